"""What several tests share: contexts of the agents, from fakes and from the real small models."""

import os
from collections import defaultdict
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import settings as hypothesis_settings

from clh.config import Settings
from clh.models.language import LanguageModel
from tests.fakes import ToyTower, toy_guidelines, toy_system

if TYPE_CHECKING:
    from agents.context import Context
    from clh.document.reader import Reader
    from clh.retrieval.index import CodeIndex

MakeContext = Callable[..., "Context"]

hypothesis_settings.register_profile("clh", deadline=None, max_examples=60)
hypothesis_settings.load_profile("clh")


@pytest.fixture(scope="session", autouse=True)
def _plain_settings(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """No settings of whoever runs the tests, but for where their cache is."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("clh.config.USER_FILE", tmp_path_factory.mktemp("config") / "clh.toml")
        for name in [name for name in os.environ if name.startswith("CLH_")]:
            if name not in ("CLH_CACHE_DIR", "CLH_TEST_DATA"):
                patch.delenv(name)
        yield


@pytest.fixture(scope="session")
def context(tmp_path_factory: pytest.TempPathFactory) -> MakeContext:
    """Makes contexts from fakes, each with an audit of its own; takes what `make_context` takes."""

    def make(llm: LanguageModel | None = None, **flags: Any) -> "Context":
        return make_context(tmp_path_factory.mktemp("data"), llm, **flags)

    return make


@pytest.fixture(scope="session")
def real_context(tmp_path_factory: pytest.TempPathFactory) -> "Context":
    """The real small models and the whole code system, from the ordinary cache."""
    from agents.context import Context
    from clh.icd.tabular import load_tabular
    from clh.retrieval.index import open_index

    settings = Settings.load(data_dir=tmp_path_factory.mktemp("data"))
    return Context.load(settings, open_index(settings, load_tabular()))


def make_context(data_dir: Path, llm: LanguageModel | None = None, **flags: Any) -> "Context":
    """A context over `toy_system`, whose verifier accepts what shares most words; `flags` are
    settings."""
    from agents.context import Context
    from clh.audit import Audit
    from clh.icd.rules.checks import CodeBook
    from clh.models.logistic import Logistic

    settings = Settings.load(data_dir=data_dir, **flags)
    system, index = toy_system(), _toy_index(settings.locate.coarse_dim)
    weights = {"similarity": 6.0, "matched_in_quote": 3.0, "first": 1.0}
    return Context(
        settings=settings,
        book=CodeBook(system, toy_guidelines()),
        reader=_reader(),
        tower=ToyTower(),
        index=index,
        prior=None,
        verifier=Logistic("by hand", -6.0, defaultdict(float, weights)),
        encoder=None,
        reading=None,
        decision=None,
        llm=llm,
        audit=Audit(data_dir / "audit.sqlite", settings.audit.store_text),
    )


@cache
def _reader() -> "Reader":
    from clh.document.reader import Reader

    return Reader()


@cache
def _toy_index(coarse_dim: int) -> "CodeIndex":
    from clh.retrieval.index import CodeIndex
    from clh.retrieval.lexical import searchable

    system = toy_system()
    pairs = [(system.reported(code), text) for code, text in searchable(system)]
    return CodeIndex.build(pairs, ToyTower().encode([text for _, text in pairs]), coarse_dim)
