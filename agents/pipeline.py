"""The pipeline: the four agents and all that they work with, loaded once, for any number of notes.

    pipeline = Pipeline.load(profile="cpu")
    coded = await pipeline.code(Note(id="visit", text="Assessment: essential hypertension."))
    coded.note.codes[0].code   # "I10"

Command line, experiments, batches and servers all stand on this one object.
"""

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Callable, Container, Coroutine, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache, cached_property
from typing import Any, NamedTuple, Self, TypeVar

from langgraph.config import get_stream_writer
from langgraph.types import StreamMode
from langsmith import tracing_context

from agents.analyze import Analyzer, Progress
from agents.analyze.llm import LlmAnalyzer
from agents.analyze.retrieval import RetrievalAnalyzer
from agents.assign import Assigner
from agents.graph import Graph, build_graph
from agents.locate import Retriever
from agents.node import Node, Trace, Update, Work, make_node, new_run_id
from agents.state import Input, State
from agents.verify import Verifier, keep_same_side
from agents.verify.llm import LlmVerifier
from agents.verify.reranking import RerankingVerifier
from agents.verify.retrieval import RetrievalVerifier
from clh.audit import Audit, Record
from clh.config import Settings
from clh.document.reader import Reader
from clh.errors import ClhError, InputError
from clh.icd.rules import CodeBook, load_code_book
from clh.icd.tabular import CodeSystem, load_tabular
from clh.models import language
from clh.models.embedder import Embedder, load_embedder
from clh.models.language import LanguageModel
from clh.models.logistic import Logistic
from clh.models.reranker import load_reranker
from clh.retrieval.index import CodeIndex, open_index
from clh.retrieval.lexical import forget_texts
from clh.retrieval.prior import Prior
from clh.schema import AGENTS, Agent, AgentError, CodedNote, Note

Item = TypeVar("Item")
Result = TypeVar("Result")


class Coded(NamedTuple):
    """A coded note, and the state that it came from: terms, candidates, verdicts, exchanges."""

    note: CodedNote
    state: State


@dataclass(frozen=True)
class Pipeline:
    """The agents and their parts. `dataclasses.replace` makes another with other parts."""

    settings: Settings
    book: CodeBook
    reader: Reader
    embedder: Embedder
    """Of queries."""

    index: CodeIndex
    prior: Prior | None
    model: LanguageModel | None
    analyzer: Analyzer
    retriever: Retriever
    verifier: Verifier
    assigner: Assigner
    audit: Record

    @classmethod
    def load(
        cls,
        settings: Settings | None = None,
        *,
        profile: str = "cpu",
        progress: Callable[[int, int], None] | None = None,
    ) -> Self:
        """Load all that the settings name; without settings, those of a profile.

        The first time, the index of the code system is built; `progress` is then called with the
        texts embedded so far and their total.

        Raises:
            InputError: a setting is wrong, or the audit database cannot be written.
            ModelError: weights are missing or damaged.

        """
        settings = settings or Settings.load(profile)
        system = load_tabular()
        index = open_index(settings, system, progress)
        audit = Audit(settings.data_dir / "audit.sqlite", settings.audit.store_text)
        return cls.build(
            settings,
            book=load_code_book(settings.rules.edits),
            reader=Reader(),
            embedder=load_embedder(settings.towers.query, settings),
            index=index,
            prior=Prior.load(settings.locate.prior, index, system)
            if settings.locate.prior
            else None,
            model=load_language_model(settings),
            audit=audit,
        )

    @classmethod
    def build(
        cls,
        settings: Settings,
        *,
        book: CodeBook,
        reader: Reader,
        embedder: Embedder,
        index: CodeIndex,
        prior: Prior | None,
        model: LanguageModel | None,
        audit: Record,
    ) -> Self:
        """Build the agents that the settings name from parts that are loaded."""
        verifier = _build_verifier(settings, book.system, index, embedder, model)
        assign = settings.assign
        code_calibrator = Logistic.load(assign.weights) if assign.weights else None
        fitted = verifier.threshold if code_calibrator is None else code_calibrator.threshold
        return cls(
            settings=settings,
            book=book,
            reader=reader,
            embedder=embedder,
            index=index,
            prior=prior,
            model=model,
            analyzer=_build_analyzer(settings, reader, embedder, index, prior, model),
            retriever=Retriever(embedder, index, prior, book.system, settings.locate),
            verifier=verifier,
            assigner=Assigner(
                book,
                settings.policy,
                settings.rules.setting,
                fitted if assign.threshold is None else assign.threshold,
                code_calibrator=code_calibrator,
                evidence_share=assign.evidence,
                model=_required(model) if assign.source == "llm" else None,
            ),
            audit=audit,
        )

    @property
    def system(self) -> CodeSystem:
        """The release of the code system."""
        return self.book.system

    @property
    def models(self) -> dict[Agent, str]:
        """What each agent runs on, by name and checksum."""
        return {
            "analyze": self.analyzer.id,
            "locate": self.retriever.id,
            "verify": self.verifier.id,
            "assign": self.assigner.id,
        }

    def rebuild(self, settings: Settings, prior: Prior | None) -> Self:
        """The agents built anew, by other settings or with another prior, from the same parts."""
        return self.build(
            settings,
            book=self.book,
            reader=self.reader,
            embedder=self.embedder,
            index=self.index,
            prior=prior,
            model=self.model,
            audit=self.audit,
        )

    async def code(
        self,
        note: Note,
        on_step: Callable[[str], None] | None = None,
        on_progress: Progress | None = None,
    ) -> Coded:
        """Code one note. An agent that fails is in `errors`, and what came before it is kept.

        `on_step` is called with the name of each node as it ends, `on_progress` with the number of
        characters that analyze has read and their total. Raises InputError if the audit refuses the
        run before coding has begun.
        """
        return await self._run(self.graph, {"note": note}, on_step, on_progress)

    async def code_many(
        self, notes: Iterable[Note], done: Container[str] = (), concurrency: int = 1
    ) -> AsyncIterator[Coded]:
        """Code many notes, `concurrency` at a time, and yield them in their order.

        Notes whose ids are in `done` are left out; of the others no more are read ahead than are
        being coded.
        """
        todo = (note for note in notes if note.id not in done)
        async for coded in run_in_order(self.code, todo, concurrency):
            yield coded

    async def run_agents(self, agents: Iterable[Agent], given: Input) -> Coded:
        """Run some of the agents, in their order, on what the ones before them would add."""
        return await self._run(self._build_graph(agents), given)

    @cached_property
    def graph(self) -> Graph:
        """All agents as a compiled LangGraph graph."""
        return self._build_graph(AGENTS)

    async def _run(
        self,
        graph: Graph,
        given: Input,
        on_step: Callable[[str], None] | None = None,
        on_progress: Progress | None = None,
    ) -> Coded:
        state: State = {}
        kinds: list[StreamMode] = ["updates", "values", "custom"]
        # Patient text must not reach the tracing server of a user's other projects.
        try:
            with tracing_context(enabled=False):
                async for kind, value in graph.astream(given, stream_mode=kinds):
                    if kind == "values":
                        state = value  # type: ignore[assignment]
                    elif kind == "custom":
                        if on_progress is not None:
                            on_progress(*value)
                    elif on_step is not None:
                        for name in value:
                            on_step(name)
        finally:
            forget_texts()
        return Coded(state["coded_note"], state)

    def _build_graph(self, agents: Iterable[Agent]) -> Graph:
        works: Mapping[Agent, Work] = {
            "analyze": self._analyze,
            "locate": self._locate,
            "verify": self._verify,
            "assign": self._assign,
        }
        nodes: dict[Agent, Node] = {
            agent: make_node(agent, self.models[agent], works[agent], self.audit)
            for agent in agents
        }
        return build_graph(nodes, self._begin, self._finish)

    async def _begin(self, state: State) -> Update:
        """Name the run and open its record in the audit."""
        run_id = new_run_id()
        settings = self.settings
        await asyncio.to_thread(
            self.audit.begin, run_id, state["note"], settings.hash, settings.model_dump_json()
        )
        return {"run_id": run_id}

    async def _analyze(self, state: State, trace: Trace) -> Update:
        """Find the note's terms."""
        write = get_stream_writer()
        terms, warnings = await self.analyzer.analyze(
            state["note"], trace, lambda done, total: write((done, total))
        )
        return {"terms": terms, "warnings": warnings}

    async def _locate(self, state: State, trace: Trace) -> Update:
        """Find the candidates of each term."""
        return {"candidates": await self.retriever.locate(state["terms"])}

    async def _verify(self, state: State, trace: Trace) -> Update:
        """Judge every candidate of every term."""
        terms = state["terms"]
        candidates = keep_same_side(terms, state["candidates"], trace)
        verdicts, warnings = await self.verifier.verify(terms, candidates, trace)
        return {"verdicts": verdicts, "warnings": warnings}

    async def _assign(self, state: State, trace: Trace) -> Update:
        """Turn verdicts into the final set."""
        assignment = await self.assigner.assign(
            state["terms"], state.get("candidates", []), state["verdicts"], trace
        )
        return {
            "codes": assignment.codes,
            "considered": assignment.considered,
            "warnings": assignment.warnings,
            "probabilities": assignment.probabilities,
        }

    async def _finish(self, state: State) -> Update:
        """Put together the coded note, of all that the agents have added."""
        coded = CodedNote(
            note_id=state["note"].id,
            run_id=state["run_id"],
            icd_release=self.system.release,
            policy=self.settings.policy,
            codes=tuple(state.get("codes", ())),
            considered=tuple(state.get("considered", ())),
            warnings=tuple(state["warnings"]),
            errors=tuple(state["errors"]),
            models=self.models,
            timings={agent: round(seconds, 4) for agent, seconds in state["timings"].items()},
        )
        try:
            await asyncio.to_thread(self.audit.finish, coded)
        except ClhError as error:
            failure = AgentError(agent="audit", message=str(error))
            coded = coded.model_copy(update={"errors": (*coded.errors, failure)})
        return {"coded_note": coded}


async def run_in_order(
    work: Callable[[Item], Coroutine[Any, Any, Result]], items: Iterable[Item], concurrency: int
) -> AsyncIterator[Result]:
    """The results of `work` on each item, in order, `concurrency` items at a time.

    Items are taken as there is room for them; what is left is cancelled if the caller stops.
    """
    running: deque[asyncio.Task[Result]] = deque()
    try:
        for item in items:
            running.append(asyncio.create_task(work(item)))
            if len(running) >= concurrency:
                yield await running.popleft()
        while running:
            yield await running.popleft()
    finally:
        for task in running:
            task.cancel()


def code_text(text: str, *, profile: str = "cpu", note_id: str = "note") -> CodedNote:
    """See `clh.code`. It also works where an event loop runs, as in a notebook."""
    if not text.strip():
        raise InputError("the note is blank: there is nothing to code")
    pipeline = _load_once(profile)

    def run() -> CodedNote:
        return asyncio.run(pipeline.code(Note(id=note_id, text=text))).note

    with ThreadPoolExecutor(max_workers=1) as thread:
        return thread.submit(run).result()


@cache
def _load_once(profile: str) -> Pipeline:
    return Pipeline.load(profile=profile)


def serve_graph() -> Graph:
    """The graph of the default profile, for a LangGraph server (langgraph.json)."""
    return Pipeline.load().graph


def _build_analyzer(
    settings: Settings,
    reader: Reader,
    embedder: Embedder,
    index: CodeIndex,
    prior: Prior | None,
    model: LanguageModel | None,
) -> Analyzer:
    match settings.analyze.source:
        case "retrieval":
            return RetrievalAnalyzer(settings.analyze.retrieval, reader, embedder, index, prior)
        case "llm":
            return LlmAnalyzer(_required(model), reader, settings.analyze.llm, settings.policy)


def _build_verifier(
    settings: Settings,
    system: CodeSystem,
    index: CodeIndex,
    embedder: Embedder,
    model: LanguageModel | None,
) -> Verifier:
    verify = settings.verify
    if verify.source == "llm":
        llm = verify.llm
        return LlmVerifier(_required(model), system, llm.candidates, llm.threshold)
    calibrator = Logistic.load(verify.retrieval.weights)
    retrieval = RetrievalVerifier(calibrator, index.lexicon, embedder.id)
    if verify.source == "retrieval":
        return retrieval
    reranking = verify.reranking
    reranker = load_reranker(reranking.model, settings)
    return RerankingVerifier(retrieval, reranker, Logistic.load(reranking.model), reranking.top_k)


def _required(model: LanguageModel | None) -> LanguageModel:
    if model is None:
        raise ClhError("no language model is loaded: set an agent's source to llm before loading")
    return model


def load_language_model(settings: Settings) -> LanguageModel | None:
    """The language model, if an agent runs on one."""
    if not settings.uses_language_model:
        return None
    llm = settings.llm
    if llm.backend == "local":
        return language.LocalModel(
            llm.model, settings.cache_dir, max_tokens=llm.max_tokens, think=llm.think
        )
    return language.connect(
        llm.base_url.get_secret_value(),
        llm.model,
        api_key=llm.api_key.get_secret_value() or language.NO_KEY,
        timeout=llm.timeout,
        retries=llm.retries,
        max_tokens=llm.max_tokens,
    )
