"""What several tests share: contexts of the agents, from fakes and from the real small models."""

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import settings as hypothesis_settings

from clh.config import Settings
from clh.models.language import LanguageModel
from tests.fakes import ToyTower, toy_guidelines, toy_system
from tests.machine import MAIN, ROOT, Machine

if TYPE_CHECKING:
    from agents.pipeline import Pipeline
    from clh.document.reader import Reader
    from clh.retrieval.index import CodeIndex

MakePipeline = Callable[..., "Pipeline"]

WEIGHTS = Path(__file__).parents[1] / "clh" / "weights"

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
def make_toy(tmp_path_factory: pytest.TempPathFactory) -> MakePipeline:
    """Makes pipelines of fakes, each with an audit of its own; takes what `toy_pipeline` takes."""

    def make(model: LanguageModel | None = None, **flags: Any) -> "Pipeline":
        return toy_pipeline(tmp_path_factory.mktemp("data"), model, **flags)

    return make


@pytest.fixture(scope="session")
def real_pipeline(tmp_path_factory: pytest.TempPathFactory) -> "Pipeline":
    """The real small models and the whole code system, from the ordinary cache."""
    from agents.pipeline import Pipeline

    return Pipeline.load(Settings.load(data_dir=tmp_path_factory.mktemp("data")))


def toy_pipeline(data_dir: Path, model: LanguageModel | None = None, **flags: Any) -> "Pipeline":
    """A pipeline over `toy_system`, whose verifier accepts what shares most words; `flags` are
    settings."""
    from agents.pipeline import Pipeline
    from clh.audit import Audit
    from clh.icd.rules import CodeBook

    weights = write_weights(
        data_dir / "weights", {"similarity": 6, "matched_in_quote": 3, "first": 1}
    )
    verify = {"retrieval": {"weights": str(weights)}, **flags.pop("verify", {})}
    settings = Settings.load(data_dir=data_dir, verify=verify, **flags)
    system, index = toy_system(), _toy_index(settings.locate.coarse_dim)
    return Pipeline.build(
        settings,
        book=CodeBook(system, toy_guidelines()),
        reader=_reader(),
        embedder=ToyTower(),
        index=index,
        prior=None,
        model=model,
        audit=Audit(data_dir / "audit.sqlite", settings.audit.store_text),
    )


def write_weights(folder: Path, coefficients: Mapping[str, float]) -> Path:
    """Weights of a retrieval verifier; features that are not named count for nothing."""
    shipped = json.loads((WEIGHTS / "verify-retrieval" / "model.json").read_text("utf-8"))
    every = {name: coefficients.get(name, 0.0) for name in shipped["coefficients"]}
    folder.mkdir(parents=True, exist_ok=True)
    model = {"intercept": -6.0, "coefficients": every, "threshold": 0.3}
    (folder / "model.json").write_text(json.dumps(model), encoding="utf-8")
    return folder


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


# --- the command line ----------------------------------------------------------------------------


@pytest.fixture(scope="session")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The ordinary cache, with its index built."""
    folder = Settings.load().cache_dir
    folder.mkdir(parents=True, exist_ok=True)
    builder = Machine.make(tmp_path_factory.mktemp("builder"), folder)
    command = [sys.executable, "-c", MAIN, "index", "build"]
    environment = builder.environment()
    subprocess.run(command, cwd=ROOT, env=environment, check=True, capture_output=True, timeout=600)
    return folder


@pytest.fixture
def machine(cache: Path, tmp_path: Path) -> Machine:
    """A machine on which nothing has run yet."""
    return Machine.make(tmp_path, cache)
