"""Assign: the final set of codes, complete, most specific, in order.

The line: select codes that reach the threshold and that the policy reports, complete their 7th
characters, put them in order, apply the rules of the code book. What is left out is in
`considered`, with the reason.
"""

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from agents.assign.code_book import add_seventh_characters, apply_code_book
from agents.assign.policy import EXPLANATIONS, Reason, why_not_reported
from agents.assign.select import (
    SelectedCode,
    find_alternatives,
    group_by_code,
    score_codes,
    select_best_of_terms,
    select_by_probability,
)
from agents.assign.sequence import choose_first, explain_first, sequence_key
from agents.node import Trace, unusable_replies
from clh.icd.rules import CodeBook, Setting
from clh.models.language import LanguageModel
from clh.models.logistic import Logistic
from clh.schema import (
    Alternative,
    AssignedCode,
    Candidate,
    ConsideredCode,
    Finding,
    Policy,
    Term,
    Verdict,
)

_ALTERNATIVES = 3  # for each code


@dataclass(frozen=True)
class Assignment:
    """The final set and how it came about."""

    codes: list[AssignedCode]
    considered: list[ConsideredCode]
    warnings: list[Finding]
    probabilities: dict[str, float]
    """Of codes, where all verdicts on a code decide together; else empty."""


class Assigner:
    """Turns verdicts into the final set of codes."""

    def __init__(
        self,
        book: CodeBook,
        policy: Policy,
        setting: Setting,
        threshold: float,
        *,
        code_calibrator: Logistic | None = None,
        evidence_share: float = 0.8,
        model: LanguageModel | None = None,
    ) -> None:
        """With a `code_calibrator` all verdicts on a code decide, else the best of each term.

        A language `model` chooses the first-listed code.
        """
        parts = [part.id for part in (model, code_calibrator) if part is not None]
        self.id = " + ".join([*parts, "rules"])
        self._book, self._policy, self._setting = book, policy, setting
        self.threshold = threshold
        self._calibrator, self._evidence_share = code_calibrator, evidence_share
        self._model = model

    async def assign(
        self,
        terms: Sequence[Term],
        candidates: Sequence[Sequence[Candidate]],
        verdicts: Sequence[Verdict],
        trace: Trace,
    ) -> Assignment:
        """The final set for a note's terms, candidates and verdicts."""
        system = self._book.system
        selected, probabilities, unreported = await asyncio.to_thread(
            self._select, terms, candidates, verdicts
        )
        warnings = add_seventh_characters(selected, system)
        selected.sort(key=lambda code: sequence_key(code, terms, system))
        chosen_by_model = False
        if self._model is not None and len(selected) > 1:
            first = await choose_first(selected, self._model, system, trace)
            if first is None:
                warnings.append(unusable_replies("assign", self._model.id, 1, 1))
            else:
                selected.insert(0, selected.pop(first))
                chosen_by_model = True
        dropped: dict[str, Finding] = {}
        all_codes = {code.code: code for code in selected}
        if self._policy == "encounter":  # mentions are not a claim
            selected, findings, dropped = await asyncio.to_thread(
                apply_code_book, selected, terms, self._book, self._setting
            )
            warnings += findings
            for code in selected[:1]:
                key = sequence_key(code, terms, system)
                why = "the model's choice" if chosen_by_model else explain_first(key)
                code.rationale += f"; listed first: {why}"
        kept = {code.code for code in selected} | {system.stem(code.code) for code in selected}
        considered = [
            *self._describe_unreported(unreported, kept, terms),
            *self._describe_dropped(dropped, all_codes),
        ]
        for left_out in considered:
            for quote in left_out.evidence:
                trace.drop(left_out.reason, quote, left_out.code)
        return Assignment(
            codes=[
                self._describe(code, sequence, verdicts, kept)
                for sequence, code in enumerate(selected, start=1)
            ],
            considered=considered,
            warnings=warnings,
            probabilities=probabilities,
        )

    def _select(
        self,
        terms: Sequence[Term],
        candidates: Sequence[Sequence[Candidate]],
        verdicts: Sequence[Verdict],
    ) -> tuple[list[SelectedCode], dict[str, float], dict[tuple[int, str], Reason]]:
        """The selected codes, the probabilities they were selected by, and what is not reported."""
        reasons = {
            (verdict.term, verdict.code): why_not_reported(
                terms[verdict.term].status,
                verdict.code,
                self._policy,
                self._setting,
                self._book.system,
            )
            for verdict in verdicts
        }

        def is_reportable(term: int, code: str) -> bool:
            return reasons[term, code] is None

        if self._calibrator is None:
            selected = select_best_of_terms(
                terms, candidates, verdicts, self.threshold, is_reportable
            )
            return selected, {}, self._best_unreported(verdicts, reasons)
        # Terms that the policy does not report must not make a code more probable.
        supports = {
            code: counted
            for code, found in group_by_code(candidates, verdicts).items()
            if (
                counted := [
                    support
                    for support in found
                    if reasons[support.term, code] in (None, "not_billable")
                ]
            )
        }
        probabilities = score_codes(supports, self._calibrator)
        reportable = {
            code: found for code, found in supports.items() if is_reportable(found[0].term, code)
        }
        selected = select_by_probability(
            terms, reportable, probabilities, self.threshold, self._evidence_share
        )
        return selected, probabilities, self._best_unreported(verdicts, reasons)

    def _best_unreported(
        self, verdicts: Sequence[Verdict], reasons: Mapping[tuple[int, str], Reason | None]
    ) -> dict[tuple[int, str], Reason]:
        """The terms whose most probable code reaches the threshold and is not reported."""
        best: dict[int, Verdict] = {}
        for verdict in verdicts:
            rival = best.get(verdict.term)
            if rival is None or verdict.probability > rival.probability:
                best[verdict.term] = verdict
        return {
            (term, verdict.code): reason
            for term, verdict in best.items()
            if verdict.probability >= self.threshold
            and (reason := reasons[term, verdict.code]) is not None
        }

    def _describe_unreported(
        self,
        unreported: Mapping[tuple[int, str], Reason],
        kept: set[str],
        terms: Sequence[Term],
    ) -> list[ConsideredCode]:
        considered: dict[tuple[str, Reason], ConsideredCode] = {}
        for (term, code), reason in unreported.items():
            if code in kept:
                continue
            quote = terms[term].quote
            known = considered.get((code, reason))
            considered[code, reason] = ConsideredCode(
                code=code,
                description=self._book.system[code].title,
                reason=reason,
                message=EXPLANATIONS[reason],
                evidence=(*(known.evidence if known else ()), quote),
            )
        return list(considered.values())

    def _describe_dropped(
        self, dropped: Mapping[str, Finding], codes: Mapping[str, SelectedCode]
    ) -> list[ConsideredCode]:
        return [
            ConsideredCode(
                code=code,
                description=self._book.system[code].title,
                reason=finding.rule,
                message=finding.message,
                citation=finding.citation,
                evidence=tuple(codes[code].evidence),
            )
            for code, finding in dropped.items()
        ]

    def _describe(
        self, code: SelectedCode, sequence: int, verdicts: Sequence[Verdict], kept: set[str]
    ) -> AssignedCode:
        system = self._book.system
        return AssignedCode(
            code=code.code,
            description=system[code.code].title,
            confidence=round(code.confidence, 4),
            sequence=sequence,
            evidence=tuple(code.evidence),
            rationale=code.rationale,
            flags=code.flags,
            alternatives=tuple(
                Alternative(
                    code=verdict.code,
                    description=system[verdict.code].title,
                    confidence=round(verdict.probability, 4),
                )
                for verdict in find_alternatives(code, verdicts, kept, _ALTERNATIVES)
            ),
        )
