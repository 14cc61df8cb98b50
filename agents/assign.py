"""Assign: the final set of codes, complete, most specific, in order.

What counts is the policy's; each step that leaves something out says why in the audit.
"""

import json
from dataclasses import dataclass, field
from typing import Any

from agents.context import Context
from agents.state import State, Trace, agent, conversation
from clh.icd.tabular import CodeSystem
from clh.schema import AssignedCode, RuleWarning, Span, Term, Verdict

_SYMPTOMS, _EXTERNAL_CAUSES, _FACTORS = "18", "20", "21"  # chapters of the Tabular List
_HISTORY = {"historical": "personal history", "family": "family history"}
_LATER = {_SYMPTOMS: 1, _FACTORS: 2, _EXTERNAL_CAUSES: 3}


@dataclass
class Supported:
    """A code, and all verdicts for it."""

    code: str
    evidence: list[Span] = field(default_factory=list)
    confidence: float = 0.0
    rationale: str = ""
    flags: tuple[str, ...] = ()


@agent("assign")
async def assign(state: State, context: Context, trace: Trace) -> dict[str, Any]:
    """Turn verdicts into the final set."""
    system, settings = context.system, context.settings
    counted = [
        verdict
        for verdict in state["verdicts"]
        if verdict.probability >= settings.assign.threshold
        and counts(state["terms"][verdict.term], verdict.code, context, trace)
    ]
    supported = gather(state["terms"], best_of_each_term(counted))
    supported = most_specific(supported, system, trace)
    supported, warnings = complete(supported, system)
    supported.sort(key=lambda one: _rank(one, system))
    if settings.assign.source == "llm" and len(supported) > 1:
        first = await choose_first(supported, context, trace)
        supported.insert(0, supported.pop(first))
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
    return {"codes": codes, "warnings": warnings}


def counts(term: Term, code: str, context: Context, trace: Trace) -> bool:
    """Whether the policy reports a term of this status, and by this code.

    `mention` reports all. An `encounter` codes neither what is absent nor what is only possible
    (guideline IV.H, outpatient), and a history by the history codes of chapter 21 alone
    (I.C.21.c.4).
    """
    place = f"{term.quote.start}:{term.quote.end}"
    title = context.system[code].title.lower()
    as_history = term.status in _HISTORY and _HISTORY[term.status] in title
    if context.settings.policy == "encounter" and term.status != "affirmed" and not as_history:
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


def gather(terms: list[Term], verdicts: list[Verdict]) -> list[Supported]:
    """The codes, each once, with all their evidence."""
    codes: dict[str, Supported] = {}
    for verdict in verdicts:
        one = codes.setdefault(verdict.code, Supported(verdict.code))
        one.evidence.append(terms[verdict.term].quote)
        if verdict.probability > one.confidence:
            one.confidence, one.rationale = verdict.probability, verdict.rationale
    return list(codes.values())


def most_specific(supported: list[Supported], system: CodeSystem, trace: Trace) -> list[Supported]:
    """The codes less those that another of them says in more detail (guideline I.B.2)."""
    codes = [one.code for one in supported]
    kept = []
    for one in supported:
        detailed = next((code for code in codes if system.vaguer(one.code, than=code)), None)
        if detailed is None:
            kept.append(one)
        else:
            trace.drop(one.code, f"{detailed} is more specific")
    return kept


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
) -> tuple[list[Supported], list[RuleWarning]]:
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
            RuleWarning(
                rule="seventh_character",
                codes=(one.code,),
                message=f"7th character {character}, {meaning}, is assumed: check the encounter",
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


def _rank(one: Supported, system: CodeSystem) -> tuple[int, int, float, int]:
    """Diseases before symptoms (guideline II.A), then factors and external causes; by weight."""
    chapter = system[one.code].chapter.name
    return (_LATER.get(chapter, 0), -len(one.evidence), -one.confidence, one.evidence[0].start)
