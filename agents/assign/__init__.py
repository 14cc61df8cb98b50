"""Assign: the final set of codes, complete, most specific, in order.

What counts is the policy's; each step that leaves something out says why in the audit.
"""

import json
import math
import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from agents.context import Context
from agents.state import State, Trace, agent, conversation
from clh.icd.rules.checks import Claim, Encounter, check
from clh.icd.rules.resolve import resolve
from clh.icd.tabular import CodeSystem
from clh.models.logistic import logit
from clh.schema import AssignedCode, Candidate, Citation, Finding, Span, Term, Verdict

_SYMPTOMS, _EXTERNAL_CAUSES, _FACTORS = "18", "20", "21"  # chapters of the Tabular List
_HISTORY = {"historical": "personal history", "family": "family history"}
_LEAST, _SELDOM = 0.001, 0.02  # shares below which differences tell nothing
_LATER = {_SYMPTOMS: 1, _FACTORS: 2, _EXTERNAL_CAUSES: 3}


@dataclass
class Supported:
    """A code, and all verdicts for it."""

    code: str
    evidence: list[Span] = field(default_factory=list)
    confidence: float = 0.0
    rationale: str = ""
    flags: tuple[str, ...] = ()


class Found(NamedTuple):
    """What was found of a code at one term; `place` 0 is the term's best candidate."""

    term: int
    candidate: Candidate
    place: int
    probability: float
    rationale: str

    @property
    def weight(self) -> float:
        """How probable the term makes the code: by what it says, or by what corpora coded it as."""
        return max(self.probability, self.candidate.precedent)


class Merits(NamedTuple):
    """By what codes are ordered, the strongest first; less comes first.

    Diseases before symptoms (guideline II.A), circumstances and external causes; what the note
    gives as complaint, assessment or diagnosis (II, IV.G); what is acute (I.B.8).
    """

    kind: int
    aside: bool
    lasting: bool
    named: int
    likely: float
    start: int


@agent("assign")
async def assign(state: State, context: Context, trace: Trace) -> dict[str, Any]:
    """Turn verdicts into the final set."""
    system, settings = context.system, context.settings
    terms, threshold = state["terms"], settings.assign.threshold
    probabilities: dict[str, float] = {}
    if context.decision is None:
        likely = [one for one in state["verdicts"] if one.probability >= threshold]
        counted = [one for one in likely if counts(terms[one.term], one.code, context, trace)]
        supported = gather(terms, best_of_each_term(counted))
    else:
        found = tally(state["candidates"], state["verdicts"])
        decide = context.decision.probability
        probabilities = {code: decide(features(said)) for code, said in found.items()}
        supported = support(found, probabilities, terms, context, trace)
    supported, warnings = complete(supported, system)
    supported.sort(key=lambda one: merits(one, terms, system))
    chosen = settings.assign.source == "llm" and len(supported) > 1
    if chosen:
        first = await choose_first(supported, context, trace)
        supported.insert(0, supported.pop(first))
    if settings.policy == "encounter":  # what is mentioned stands, and is no claim
        supported, findings = obey(supported, terms, context, trace)
        warnings += findings
        for one in supported[:1]:
            why = "the model's choice" if chosen else why_first(merits(one, terms, system))
            one.rationale += f"; listed first: {why}"
    codes = [
        AssignedCode(
            code=one.code,
            description=system[one.code].title,
            confidence=round(one.confidence, 4),
            sequence=sequence,
            evidence=tuple(one.evidence),
            rationale=one.rationale,
            flags=one.flags,
        )
        for sequence, one in enumerate(supported, start=1)
    ]
    return {"codes": codes, "warnings": warnings, "probabilities": probabilities}


def obey(
    supported: list[Supported], terms: Sequence[Term], context: Context, trace: Trace
) -> tuple[list[Supported], list[Finding]]:
    """The codes as the code book allows them, what that changed, and what is left to a coder."""
    by_code = {one.code: one for one in supported}
    support = {code: one.confidence for code, one in by_code.items()}
    certain = {term.quote for term in terms if term.status != "uncertain"}
    encounter = Encounter(
        setting=context.settings.rules.setting,
        uncertain=frozenset(one.code for one in supported if certain.isdisjoint(one.evidence)),
    )
    codes, changes = resolve(Claim(by_code, context.book, encounter), support)
    for code in by_code.keys() - set(codes):
        trace.drop(code, next(one.message for one in changes if code in one.codes))
    left = check(Claim(codes, context.book, encounter))
    return [by_code[code] for code in codes], [*changes, *left]


def counts(term: Term, code: str, context: Context, trace: Trace) -> bool:
    """Whether the policy reports a term of this status, and by this code.

    `mention` reports all. An `encounter` codes neither what is absent nor, in an outpatient
    setting, what is only possible (guidelines IV.H, II.H), and a history by the history codes of
    chapter 21 alone (I.C.21.c.4).
    """
    settings = context.settings
    place = f"{term.quote.start}:{term.quote.end}"
    title = context.system[code].title.lower()
    as_history = term.status in _HISTORY and _HISTORY[term.status] in title
    stands = {"affirmed", "uncertain"} if settings.rules.setting == "inpatient" else {"affirmed"}
    if settings.policy == "encounter" and term.status not in stands and not as_history:
        trace.drop(code, f"{term.status} at {place}")
    elif completed(code, context.system) is None:
        trace.drop(code, f"not billable, and the note says no more at {place}")
    else:
        return True
    return False


def best_of_each_term(verdicts: list[Verdict]) -> list[Verdict]:
    """For each term the verdict with the highest probability."""
    best: dict[int, Verdict] = {}
    for verdict in verdicts:
        rival = best.get(verdict.term)
        if rival is None or verdict.probability > rival.probability:
            best[verdict.term] = verdict
    return list(best.values())


def support(
    found: Mapping[str, Sequence[Found]],
    probabilities: Mapping[str, float],
    terms: Sequence[Term],
    context: Context,
    trace: Trace,
) -> list[Supported]:
    """The codes that all verdicts together make probable enough, each with its evidence.

    That is the term that says most for the code, and others that say a good part of that; a whole
    sentence only where no mention is among these.
    """
    settings, supported = context.settings.assign, []
    for code, probability in probabilities.items():
        if probability < settings.threshold:
            continue
        counted = [one for one in found[code] if counts(terms[one.term], code, context, trace)]
        if counted:
            best = max(counted, key=lambda one: (one.weight, one.candidate.fused_score))
            enough = settings.evidence * best.weight
            strong = [terms[one.term] for one in counted if one.weight >= enough]
            mentions = [one for one in strong if not one.is_sentence]
            share = best.candidate.precedent
            said = f"{share:.0%} of sentences that say so have it; " if share else ""
            quotes = [one.quote for one in mentions or strong]
            supported.append(Supported(code, quotes, probability, said + best.rationale))
    return supported


def tally(
    candidates: Sequence[Sequence[Candidate]], verdicts: Sequence[Verdict]
) -> dict[str, list[Found]]:
    """For each code what was found of it, term by term."""
    judged = {(one.term, one.code): one for one in verdicts}
    codes: defaultdict[str, list[Found]] = defaultdict(list)
    for term, near in enumerate(candidates):
        known = [one for one in near if (term, one.code) in judged]
        for place, one in enumerate(sorted(known, key=lambda one: -one.fused_score)):
            verdict = judged[term, one.code]
            codes[one.code].append(Found(term, one, place, verdict.probability, verdict.rationale))
    return dict(codes)


def features(found: Sequence[Found]) -> dict[str, float]:
    """What speaks for a code in a note, of all that was found of it.

    Logarithms where a little more of little counts for as much as a lot more of a lot.
    """
    precedent = max(one.candidate.precedent for one in found)
    probability = max(one.probability for one in found)
    return {
        "verdict": logit(probability),
        "rank": max(one.candidate.fused_score for one in found),
        "similarity": max(one.candidate.similarity for one in found),
        "words": max(one.candidate.lexical_score for one in found),
        "prior": max(one.candidate.prior_score for one in found),
        "precedent": precedent,
        "log_precedent": math.log(precedent + _SELDOM),
        "log_either": math.log(precedent + probability + _LEAST),
        "log_place": math.log1p(min(one.place for one in found)),
        "log_terms": math.log1p(len(found)),
    }


def gather(terms: list[Term], verdicts: list[Verdict]) -> list[Supported]:
    """The codes, each once, with all their evidence."""
    codes: dict[str, Supported] = {}
    for verdict in verdicts:
        one = codes.setdefault(verdict.code, Supported(verdict.code))
        one.evidence.append(terms[verdict.term].quote)
        if verdict.probability > one.confidence:
            one.confidence, one.rationale = verdict.probability, verdict.rationale
    return list(codes.values())


def completed(code: str, system: CodeSystem) -> str | None:
    """The code as it may be reported: with its 7th character, if it takes one.

    A note that says nothing else means active treatment, A (guideline I.C.19.a), or the character
    for what is unspecified or does not apply, 0 or 9. None for what is not billable otherwise.
    """
    if system.billable(code):
        return code
    if system.unspecified(code) != code:  # a category may define what only codes below it take
        return None
    offered = {child[-1] for child in system.children(code)}
    character = next((character for character in "A09" if character in offered), None)
    return None if character is None else system.complete(code, character)


def complete(
    supported: list[Supported], system: CodeSystem
) -> tuple[list[Supported], list[Finding]]:
    """The codes with their 7th characters, and a warning for each that is assumed."""
    warnings = []
    for one in supported:
        stem, one.code = one.code, completed(one.code, system) or one.code
        if one.code == stem:
            continue
        one.flags = (*one.flags, "seventh_character_assumed")
        character = one.code[-1]
        meaning = system[stem].seventh_characters[character]
        warnings.append(
            Finding(
                rule="seventh_character",
                severity="warning",
                codes=(one.code,),
                message=f"7th character {character}, {meaning}, is assumed: check the encounter",
                citation=Citation(place=stem, kind="seventh_characters", text=meaning),
                change=f"{stem} became {one.code}",
            )
        )
    return supported, warnings


async def choose_first(supported: list[Supported], context: Context, trace: Trace) -> int:
    """The position of the code that the language model lists first."""
    diagnoses = [
        {"title": context.system[one.code].title, "mentions": len(one.evidence)}
        for one in supported[:9]  # one digit answers
    ]
    question = conversation("assign", diagnoses=diagnoses)
    options = [str(number) for number in range(1, len(diagnoses) + 1)]
    [shares] = await context.ask().choose([question], options)
    trace.heard("assign", json.dumps(shares))
    return max(range(len(shares)), key=shares.__getitem__)


def merits(one: Supported, terms: Sequence[Term], system: CodeSystem) -> Merits:
    """What speaks for listing a code first."""
    entry = system[one.code]
    reasons = {term.quote for term in terms if term.reason}
    return Merits(
        kind=_LATER.get(entry.chapter.name, 0),
        aside=reasons.isdisjoint(one.evidence),
        lasting=re.search(r"\bacute\b", entry.title, re.IGNORECASE) is None,
        named=-len(one.evidence),
        likely=-one.confidence,
        start=one.evidence[0].start,
    )


def why_first(merit: Merits) -> str:
    """The merits of the code that is listed first, in words."""
    kind = ("a disease", "a symptom", "a circumstance", "an external cause")[merit.kind]
    said = [
        *([] if merit.aside else ["given as reason of the encounter"]),
        *([] if merit.lasting else ["acute"]),
        *([f"named {-merit.named} times"] if merit.named < -1 else []),
    ]
    return ", ".join([kind, *said])
