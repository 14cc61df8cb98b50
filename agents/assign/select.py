"""Which codes reach the threshold, each with its evidence."""

import math
from collections import defaultdict
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from clh.models.logistic import Logistic, logit
from clh.schema import Candidate, Span, Term, Verdict

_SMALLEST, _RARE = 0.001, 0.02  # shares below which differences carry no information

IsReportable = Callable[[int, str], bool]
"""Whether the policy reports a code for the term at a position."""


@dataclass
class SelectedCode:
    """A code on its way into the final set."""

    code: str
    evidence: list[Span] = field(default_factory=list)
    confidence: float = 0.0
    rationale: str = ""
    flags: tuple[str, ...] = ()
    term: int = 0
    """Position of the term that supports the code best."""


class TermSupport(NamedTuple):
    """The support of one term for a code; `rank` 0 is the term's best candidate."""

    term: int
    candidate: Candidate
    rank: int
    verdict: Verdict

    @property
    def weight(self) -> float:
        """The larger of the verdict's probability and the corpus's share of the same words."""
        return max(self.verdict.probability, self.candidate.precedent)


def select_best_of_terms(
    terms: Sequence[Term],
    candidates: Sequence[Sequence[Candidate]],
    verdicts: Sequence[Verdict],
    threshold: float,
    is_reportable: IsReportable,
) -> list[SelectedCode]:
    """The best reportable code of each term that reaches the threshold, equal codes merged."""
    known = {
        (term, candidate.code): candidate
        for term, found in enumerate(candidates)
        for candidate in found
    }
    best: dict[int, Verdict] = {}
    for verdict in verdicts:
        if verdict.probability < threshold or not is_reportable(verdict.term, verdict.code):
            continue
        rival = best.get(verdict.term)
        if rival is None or verdict.probability > rival.probability:
            best[verdict.term] = verdict
    selected: dict[str, SelectedCode] = {}
    for verdict in best.values():
        code = selected.setdefault(verdict.code, SelectedCode(verdict.code))
        code.evidence.append(terms[verdict.term].quote)
        if verdict.probability > code.confidence:
            code.confidence, code.term = verdict.probability, verdict.term
            code.rationale = explain_verdict(verdict, known.get((verdict.term, verdict.code)))
    return list(selected.values())


def select_by_probability(
    terms: Sequence[Term],
    supports: Mapping[str, Sequence[TermSupport]],
    probabilities: Mapping[str, float],
    threshold: float,
    evidence_share: float,
) -> list[SelectedCode]:
    """The codes whose probability reaches the threshold.

    Evidence of a code are the strongest term and all terms whose weight is within `evidence_share`
    of it; whole sentences only if there is no mention among these.
    """
    selected = []
    for code, found in supports.items():
        probability = probabilities[code]
        if probability < threshold:
            continue
        best = max(found, key=lambda support: (support.weight, support.candidate.fused_score))
        least = evidence_share * best.weight
        strong = [terms[support.term] for support in found if support.weight >= least]
        mentions = [term for term in strong if not term.is_sentence]
        selected.append(
            SelectedCode(
                code,
                evidence=[term.quote for term in mentions or strong],
                confidence=probability,
                rationale=explain_verdict(best.verdict, best.candidate),
                term=best.term,
            )
        )
    return selected


def group_by_code(
    candidates: Sequence[Sequence[Candidate]], verdicts: Sequence[Verdict]
) -> dict[str, list[TermSupport]]:
    """For each code its support by every term that it was judged for."""
    judged = {(verdict.term, verdict.code): verdict for verdict in verdicts}
    supports: defaultdict[str, list[TermSupport]] = defaultdict(list)
    for term, found in enumerate(candidates):
        known = [candidate for candidate in found if (term, candidate.code) in judged]
        known.sort(key=lambda candidate: -candidate.fused_score)
        for rank, candidate in enumerate(known):
            verdict = judged[term, candidate.code]
            supports[candidate.code].append(TermSupport(term, candidate, rank, verdict))
    return dict(supports)


def score_codes(
    supports: Mapping[str, Sequence[TermSupport]], calibrator: Logistic
) -> dict[str, float]:
    """The probability of each code in the note, by all its support."""
    return {code: calibrator.probability(code_features(found)) for code, found in supports.items()}


def code_features(supports: Sequence[TermSupport]) -> dict[str, float]:
    """The features of a code in a note.

    Logarithms where a little more of little counts for as much as a lot more of a lot.
    """
    precedent = max(support.candidate.precedent for support in supports)
    probability = max(support.verdict.probability for support in supports)
    return {
        "verdict": logit(probability),
        "rank": max(support.candidate.fused_score for support in supports),
        "similarity": max(support.candidate.similarity for support in supports),
        "words": max(support.candidate.lexical_score for support in supports),
        "prior": max(support.candidate.prior_score for support in supports),
        "precedent": precedent,
        "log_precedent": math.log(precedent + _RARE),
        "log_either": math.log(precedent + probability + _SMALLEST),
        "log_place": math.log1p(min(support.rank for support in supports)),
        "log_terms": math.log1p(len(supports)),
    }


def find_alternatives(
    code: SelectedCode, verdicts: Sequence[Verdict], chosen: Collection[str], count: int
) -> list[Verdict]:
    """The most probable other codes for the same words, at most `count`."""
    others = [
        verdict
        for verdict in verdicts
        if verdict.term == code.term and verdict.code not in chosen and verdict.code != code.code
    ]
    return sorted(others, key=lambda verdict: -verdict.probability)[:count]


def explain_verdict(verdict: Verdict, candidate: Candidate | None) -> str:
    """What a verdict rests on, in words of the code system: nothing of the note is quoted."""
    reasons = []
    if candidate is not None:
        if candidate.precedent:
            reasons.append(f"{candidate.precedent:.0%} of sentences with these words have it")
        reasons.append(f"similarity {candidate.similarity:.2f} to {candidate.matched!r}")
    if verdict.reranker_logit is not None:
        reasons.append(f"reranker {verdict.reranker_logit:+.1f}")
    return "; ".join(reasons) or f"probability {verdict.probability:.2f}"
