"""One example through the agents: all of them, or one alone on gold or predicted input."""

import hashlib
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from itertools import islice, takewhile
from typing import Any, Literal

from langgraph.runtime import Runtime

from agents.analyze import analyze
from agents.assign import assign
from agents.code import code as code_note
from agents.context import Context
from agents.locate import locate, search
from agents.state import Node, State, begin, finish
from agents.verify import verify
from clh.audit import Exchange
from clh.corpora import Example
from clh.evaluation.stages import CUTOFFS, CodedExample, Exchanged, Outcome, Steps
from clh.retrieval.lexical import query
from clh.schema import (
    AGENTS,
    Agent,
    AssignedCode,
    Candidate,
    CodedNote,
    Note,
    Span,
    Term,
    Verdict,
)

Source = Literal["gold", "predicted", "sentences"]

_NODES: dict[Agent, Node] = {
    "analyze": analyze,
    "locate": locate,
    "verify": verify,
    "assign": assign,
}


class Recorder:
    """A record of the run at hand, kept in memory: it is read for the experiment's own files."""

    def begin(self, run_id: str, note: Note, settings_hash: str, settings: str) -> None:
        """See `clh.audit.Record`."""
        self.exchanges: list[Exchanged] = []
        self.added: dict[str, Any] = {}

    def step(
        self,
        run_id: str,
        *,
        agent: Agent,
        output: Mapping[str, Any],
        exchanges: Sequence[Exchange],
        **_: Any,
    ) -> None:
        """See `clh.audit.Record`."""
        self.added |= output
        self.exchanges += [
            Exchanged(
                agent=agent,
                prompt_sha256=one.prompt_sha256,
                reply_sha256=hashlib.sha256(one.reply.encode()).hexdigest(),
            )
            for one in exchanges
        ]

    def finish(self, coded: CodedNote) -> None:
        """See `clh.audit.Record`."""


async def whole(example: Example, context: Context, git: str) -> Outcome:
    """The example coded as `clh code` would."""
    recorder = Recorder()
    coded = await code_note(example.note, replace(context, audit=recorder))
    return _outcome(example, recorder.added, coded, recorder, context, git)


async def alone(
    agent: Agent, source: Source, example: Example, context: Context, git: str
) -> Outcome:
    """The example as far as one agent, which gets what the agents before it predict, or gold.

    The answer is the agent's own: locate's and verify's candidates, ranked, are its codes. Gold
    mentions are those that the corpus marks as evidence.
    """
    recorder = Recorder()
    context = replace(context, audit=recorder)
    if (agent, source) == ("assign", "gold"):
        context = replace(context, decision=None)  # gold verdicts leave nothing to decide
    runtime = Runtime(context=context)
    given: State = {"note": example.note, "errors": [], "timings": {}}
    state: dict[str, Any] = {**given, **await begin(given, runtime=runtime)}
    if source == "predicted":
        todo = [*takewhile(lambda one: one != agent, AGENTS), agent]
    else:
        todo = [agent]
        state |= (
            _gold(agent, example, context) if source == "gold" else _sentences(example, context)
        )
    for name in todo:
        added = await _NODES[name](state, runtime=runtime)  # type: ignore[arg-type]
        errors = state["errors"] + added.pop("errors")
        state |= {**added, "errors": errors, "timings": state["timings"] | added["timings"]}
        if errors:
            break
    if agent in ("locate", "verify"):
        state["codes"] = _ranking(agent, state, context)
    done = await finish(state, runtime=runtime)  # type: ignore[arg-type]
    return _outcome(example, state, done["coded_note"], recorder, context, git)


def _gold(agent: Agent, example: Example, context: Context) -> dict[str, Any]:
    """What `agent` would get if all the agents before it were right."""
    if agent == "assign":
        return _gold_verdicts(example, context)
    quotes: defaultdict[Span, list[str]] = defaultdict(list)
    for code in example.codes:
        for span in example.spans(code):
            quotes[span].append(code)
    ordered = sorted(quotes, key=lambda span: (span.start, span.end))
    terms = _terms(example.note, ordered, context)
    if agent == "locate":
        return {"terms": terms}
    found = search([term.lead_term for term in terms], context)
    candidates = [
        near + _missing(term, near, quotes[term.quote], context)
        for term, near in zip(terms, found, strict=True)
    ]
    return {"terms": terms, "candidates": candidates}


def _gold_verdicts(example: Example, context: Context) -> dict[str, Any]:
    """A certain verdict for every gold code; one without evidence is said by the whole note."""
    note = example.note
    said = [
        (code, span)
        for code in example.codes
        if code in context.system
        for span in example.spans(code) or (note.span(0, len(note.text)),)
    ]
    verdicts = [
        Verdict(term=position, code=code, probability=1.0, rationale="gold")
        for position, (code, _) in enumerate(said)
    ]
    return {"terms": _terms(note, [span for _, span in said], context), "verdicts": verdicts}


def _sentences(example: Example, context: Context) -> dict[str, Any]:
    """Every sentence that analyze reads as a term: what locate finds without any analyze."""
    note = example.note
    sentences = context.reader.sentences(note.text)
    spans = [note.span(sentence.start, sentence.end) for sentence in sentences]
    return {"terms": _terms(note, spans, context)}


def _terms(note: Note, quotes: Iterable[Span], context: Context) -> list[Term]:
    return [
        Term(
            quote=quote,
            sentence=quote,
            lead_term=query(quote.text) or quote.text,
            status="affirmed",
        )
        for quote in quotes
    ]


def _missing(
    term: Term, near: Sequence[Candidate], gold: Sequence[str], context: Context
) -> list[Candidate]:
    """The gold codes that search did not find, as if it had, by their titles."""
    system = context.system
    stems = [system.stem(code) for code in gold if code in system]
    codes = [code for code in stems if code not in {one.code for one in near}]
    vectors = context.tower.encode([term.lead_term, *(system[code].title for code in codes)])
    return [
        Candidate(code=code, title=system[code].title, matched=system[code].title, similarity=score)
        for code, score in zip(codes, (vectors[1:] @ vectors[0]).tolist(), strict=True)
    ]


def _ranking(agent: Agent, state: Mapping[str, Any], context: Context) -> list[AssignedCode]:
    """The codes that an agent proposes for the note, best first, each with its best evidence."""
    best = list(islice(_best(agent, state).items(), max(CUTOFFS)))
    highest = max([1.0, *(score for _, (score, _, _) in best)])  # with a prior it is above 1
    return [
        AssignedCode(
            code=code,
            description=context.system[code].title,
            confidence=max(score / highest, 0.0),
            sequence=sequence,
            evidence=(state["terms"][position].quote,),
            rationale=why,
        )
        for sequence, (code, (score, position, why)) in enumerate(best, start=1)
    ]


def _best(agent: Agent, state: Mapping[str, Any]) -> dict[str, tuple[float, int, str]]:
    """For each code the best score, the term that has it, and why; best first."""
    if agent == "locate":
        scores = [
            (one.code, one.fused_score, position, one.matched)
            for position, found in enumerate(state.get("candidates", []))
            for one in found
        ]
    else:
        scores = [
            (one.code, one.probability, one.term, one.rationale)
            for one in state.get("verdicts", [])
        ]
    best: dict[str, tuple[float, int, str]] = {}
    for code, score, position, why in sorted(scores, key=lambda one: -one[1]):
        best.setdefault(code, (score, position, why))
    return best


def _near(candidates: Sequence[Sequence[Candidate]], context: Context) -> dict[str, float]:
    """What locate would have found without a prior: each term's best codes by the rest."""
    most, reported = context.settings.locate.candidates, context.system.reported
    best: dict[str, float] = {}
    for found in candidates:
        # The index has codes as they are reported; others came by the prior.
        from_index = [one for one in found if reported(one.code) == one.code]
        ranks = {one.code: round(one.fused_score - one.prior_score, 4) for one in from_index}
        for code in sorted(ranks, key=lambda code: -ranks[code])[:most]:
            best[code] = max(best.get(code, -1.0), ranks[code])
    return dict(sorted(best.items(), key=lambda item: -item[1]))


def _outcome(
    example: Example,
    state: Mapping[str, Any],
    coded: CodedNote,
    recorder: Recorder,
    context: Context,
    git: str,
) -> Outcome:
    def scores(agent: Agent) -> dict[str, float]:
        return {code: round(score, 4) for code, (score, _, _) in _best(agent, state).items()}

    steps = Steps(
        note_id=example.id,
        run_id=coded.run_id,
        note_sha256=example.note.sha256,
        git=git,
        exchanges=tuple(recorder.exchanges),
        terms=tuple(state.get("terms", ())),
        located=scores("locate"),
        near=_near(state.get("candidates", []), context),
        verified=scores("verify"),
        decided={code: round(p, 4) for code, p in state.get("probabilities", {}).items()},
    )
    gold = CodedExample(**dict(coded), gold=example.codes)
    return Outcome(example, steps, gold)
