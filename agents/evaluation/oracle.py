"""One example through the pipeline: all agents, or one alone on gold or predicted input."""

import hashlib
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import replace
from itertools import islice, takewhile
from typing import Any, Literal

from agents.assign import Assigner
from agents.assign.select import explain_verdict
from agents.pipeline import Coded, Pipeline
from agents.state import Input, State
from clh.corpora import Example
from clh.evaluation.stages import CUTOFFS, CodedExample, Exchanged, Outcome, Steps, TermPlace
from clh.retrieval.lexical import query
from clh.schema import AGENTS, Agent, AssignedCode, Candidate, Note, Span, Term, Verdict

Source = Literal["gold", "predicted", "sentences"]


class NoAudit:
    """Keeps nothing: experiments write files of their own."""

    def begin(self, *_: Any) -> None:
        """See `clh.audit.Record`."""

    def step(self, *_: Any, **__: Any) -> None:
        """See `clh.audit.Record`."""

    def finish(self, *_: Any) -> None:
        """See `clh.audit.Record`."""


async def run_pipeline(example: Example, pipeline: Pipeline, git: str) -> Outcome:
    """The example coded as `clh code` would."""
    coded = await replace(pipeline, audit=NoAudit()).code(example.note)
    return _outcome(example, coded, pipeline, git)


async def run_agent(
    agent: Agent, source: Source, example: Example, pipeline: Pipeline, git: str
) -> Outcome:
    """The example as far as one agent, which gets what the agents before it predict, or gold.

    The answer is the agent's own: locate's and verify's candidates, ranked, are its codes. Gold
    mentions are those that the corpus marks as evidence.
    """
    pipeline = replace(pipeline, audit=NoAudit())
    given: Input = {"note": example.note}
    agents: list[Agent] = [agent]
    if source == "predicted":
        agents = [*takewhile(lambda name: name != agent, AGENTS), agent]
    elif source == "sentences":
        given |= _sentence_input(example, pipeline)
    else:
        given |= _gold_input(agent, example, pipeline)
        if agent == "assign":  # gold verdicts leave nothing for a calibrator to decide
            settings = pipeline.settings
            assigner = Assigner(
                pipeline.book,
                settings.policy,
                settings.rules.setting,
                pipeline.assigner.threshold,
            )
            pipeline = replace(pipeline, assigner=assigner)
    coded = await pipeline.run_agents(agents, given)
    if agent in ("locate", "verify"):
        ranking = tuple(_rank_codes(agent, coded.state, pipeline))
        coded = coded._replace(note=coded.note.model_copy(update={"codes": ranking}))
    return _outcome(example, coded, pipeline, git)


def _gold_input(agent: Agent, example: Example, pipeline: Pipeline) -> Input:
    """What `agent` would get if all the agents before it were right."""
    if agent == "assign":
        return _gold_verdicts(example, pipeline)
    quotes: defaultdict[Span, list[str]] = defaultdict(list)
    for code in example.codes:
        for span in example.spans(code):
            quotes[span].append(code)
    ordered = sorted(quotes, key=lambda span: (span.start, span.end))
    terms = _terms(example.note, ordered)
    if agent == "locate":
        return {"terms": terms}
    found = pipeline.retriever.search([term.lead_term for term in terms])
    candidates = [
        near + _missing(term, near, quotes[term.quote], pipeline)
        for term, near in zip(terms, found, strict=True)
    ]
    return {"terms": terms, "candidates": candidates}


def _gold_verdicts(example: Example, pipeline: Pipeline) -> Input:
    """A certain verdict for every gold code; one without evidence is said by the whole note."""
    note = example.note
    said = [
        (code, span)
        for code in example.codes
        if code in pipeline.system
        for span in example.spans(code) or (note.span(0, len(note.text)),)
    ]
    verdicts = [
        Verdict(term=position, code=code, probability=1.0)
        for position, (code, _) in enumerate(said)
    ]
    return {"terms": _terms(note, [span for _, span in said]), "verdicts": verdicts}


def _sentence_input(example: Example, pipeline: Pipeline) -> Input:
    """Every sentence of the note as a term: what locate finds without any analyze."""
    note = example.note
    sentences = pipeline.reader.sentences(note.text)
    spans = [note.span(sentence.start, sentence.end) for sentence in sentences]
    return {"terms": _terms(note, spans)}


def _terms(note: Note, quotes: Iterable[Span]) -> list[Term]:
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
    term: Term, near: Sequence[Candidate], gold: Sequence[str], pipeline: Pipeline
) -> list[Candidate]:
    """The gold codes that search did not find, as if it had, by their titles."""
    system = pipeline.system
    stems = [system.stem(code) for code in gold if code in system]
    codes = [code for code in stems if code not in {one.code for one in near}]
    vectors = pipeline.embedder.encode([term.lead_term, *(system[code].title for code in codes)])
    return [
        Candidate(code=code, title=system[code].title, matched=system[code].title, similarity=score)
        for code, score in zip(codes, (vectors[1:] @ vectors[0]).tolist(), strict=True)
    ]


def _rank_codes(agent: Agent, state: State, pipeline: Pipeline) -> list[AssignedCode]:
    """The codes that an agent proposes for the note, best first, each with its best evidence."""
    best = list(islice(_best(agent, state).items(), max(CUTOFFS)))
    highest = max([1.0, *(score for _, (score, _, _) in best)])  # with a prior it is above 1
    return [
        AssignedCode(
            code=code,
            description=pipeline.system[code].title,
            confidence=max(score / highest, 0.0),
            sequence=sequence,
            evidence=(state["terms"][position].quote,),
            rationale=why,
        )
        for sequence, (code, (score, position, why)) in enumerate(best, start=1)
    ]


def _best(agent: Agent, state: State) -> dict[str, tuple[float, int, str]]:
    """For each code the best score, the term that has it, and why; best first."""
    if agent == "locate":
        scores = [
            (one.code, one.fused_score, position, one.matched)
            for position, found in enumerate(state.get("candidates", []))
            for one in found
        ]
    else:
        scores = [
            (verdict.code, verdict.probability, verdict.term, explain_verdict(verdict, None))
            for verdict in state.get("verdicts", [])
        ]
    best: dict[str, tuple[float, int, str]] = {}
    for code, score, position, why in sorted(scores, key=lambda one: -one[1]):
        best.setdefault(code, (score, position, why))
    return best


def _without_prior(
    candidates: Sequence[Sequence[Candidate]], pipeline: Pipeline
) -> dict[str, float]:
    """What locate would have found without a prior: each term's best codes by the rest."""
    most, reported = pipeline.settings.locate.candidates, pipeline.system.reported
    best: dict[str, float] = {}
    for found in candidates:
        # The index has codes as they are reported; others came by the prior.
        from_index = [one for one in found if reported(one.code) == one.code]
        ranks = {one.code: round(one.fused_score - one.prior_score, 4) for one in from_index}
        for code in sorted(ranks, key=lambda code: -ranks[code])[:most]:
            best[code] = max(best.get(code, -1.0), ranks[code])
    return dict(sorted(best.items(), key=lambda item: -item[1]))


def _outcome(example: Example, coded: Coded, pipeline: Pipeline, git: str) -> Outcome:
    state = coded.state

    def scores(agent: Agent) -> dict[str, float]:
        return {code: round(score, 4) for code, (score, _, _) in _best(agent, state).items()}

    steps = Steps(
        note_id=example.id,
        run_id=coded.note.run_id,
        note_sha256=example.note.sha256,
        git=git,
        exchanges=tuple(
            Exchanged(
                prompt_sha256=exchange.prompt_sha256,
                reply_sha256=hashlib.sha256(exchange.reply.encode()).hexdigest(),
            )
            for exchange in state["exchanges"]
        ),
        terms=tuple(
            TermPlace(
                start=term.quote.start,
                end=term.quote.end,
                status=term.status,
                is_sentence=term.is_sentence,
            )
            for term in state.get("terms", ())
        ),
        retrieved=scores("locate"),
        retrieved_without_prior=_without_prior(state.get("candidates", []), pipeline),
        verified=scores("verify"),
        code_probabilities={
            code: round(p, 4) for code, p in state.get("probabilities", {}).items()
        },
    )
    gold = CodedExample(**dict(coded.note), gold=example.codes)
    return Outcome(example, steps, gold)
