"""What the agents work with: settings, code system, index, models. Loaded once per process."""

from dataclasses import dataclass
from functools import cache
from typing import Self

from clh.audit import Audit, Record
from clh.config import Settings
from clh.document.reader import Reader
from clh.errors import ClhError, ModelError
from clh.icd.rules.checks import CodeBook, load_rules
from clh.icd.tabular import CodeSystem, load_tabular
from clh.models import language
from clh.models.embedder import Embedder, load_embedder
from clh.models.language import LanguageModel
from clh.models.logistic import Logistic
from clh.models.reranker import Reranker, load_reranker
from clh.retrieval.index import CodeIndex, open_index
from clh.retrieval.prior import Prior
from clh.schema import Agent


@dataclass(frozen=True)
class Context:
    """Everything a node may use; no node changes it."""

    settings: Settings
    book: CodeBook
    reader: Reader
    tower: Embedder  # of queries
    index: CodeIndex
    prior: Prior | None
    verifier: Logistic
    encoder: Reranker | None  # of verify
    reading: Logistic | None  # what the encoder says and the verifier, together
    decision: Logistic | None  # of assign
    llm: LanguageModel | None
    audit: Record

    @classmethod
    def load(cls, settings: Settings, index: CodeIndex) -> Self:
        """Load all that `settings` names, to search in `index`.

        Raises ModelError where weights are missing or damaged, InputError where the audit database
        cannot be written.
        """
        book = load_rules(settings.rules.edits)
        system = book.system
        prior, verify = settings.locate.prior, settings.verify
        reads = verify.source == "encoder"
        return cls(
            settings=settings,
            book=book,
            reader=Reader(),
            tower=load_embedder(settings.towers.query, settings),
            index=index,
            prior=Prior.load(prior, index, system) if prior else None,
            verifier=Logistic.load(verify.weights),
            encoder=load_reranker(verify.encoder, settings) if reads else None,
            reading=Logistic.load(verify.encoder) if reads else None,
            decision=Logistic.load(settings.assign.weights) if settings.assign.weights else None,
            llm=_load_llm(settings),
            audit=Audit(settings.data_dir / "audit.sqlite", settings.audit.store_text),
        )

    @property
    def system(self) -> CodeSystem:
        """The release."""
        return self.book.system

    @property
    def models(self) -> dict[Agent, str]:
        """What each agent runs on, by name and checksum."""
        settings = self.settings
        asked = self.llm.id if self.llm is not None else ""
        return {
            "analyze": asked if settings.analyze.source == "llm" else f"{self.tower.id} + negspacy",
            "locate": self.tower.id + (f" + {self.prior.id}" if self.prior is not None else ""),
            "verify": asked
            if settings.verify.source == "llm"
            else " + ".join(
                [
                    *([self.encoder.id] if self.encoder is not None else []),
                    *([self.reading.id] if self.reading is not None else []),
                    self.tower.id,
                    self.verifier.id,
                ]
            ),
            "assign": " + ".join(
                [
                    *([asked] if settings.assign.source == "llm" else []),
                    *([self.decision.id] if self.decision is not None else []),
                    "rules",
                ]
            ),
        }

    def ask(self) -> LanguageModel:
        """The language model, which is there when the settings let an agent use it."""
        if self.llm is None:
            raise ClhError("no language model is loaded: start with an agent's source set to llm")
        return self.llm


@cache
def default_context() -> Context:
    """The context of a caller that gives none, such as a LangGraph server: profile `cpu`."""
    settings = Settings.load()
    return Context.load(settings, open_index(settings, load_tabular()))


def _load_llm(settings: Settings) -> LanguageModel | None:
    if "llm" not in (settings.analyze.source, settings.verify.source, settings.assign.source):
        return None
    model = settings.llm
    if model.backend == "local":
        return language.LocalModel(
            model.model, settings.cache_dir, max_tokens=model.max_tokens, think=model.think
        )
    try:
        return language.connect(
            model.base_url,
            model.model,
            api_key=model.api_key.get_secret_value() or "none",
            timeout=model.timeout,
            retries=model.retries,
            max_tokens=model.max_tokens,
        )
    except ImportError as error:
        raise ModelError(
            f"{error.name} is not installed, which servers need: `pip install 'clh[server]'`"
        ) from error
