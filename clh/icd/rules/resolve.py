"""How a claim is mended: what needs no coder to decide, with the finding behind each change.

All else is left to a coder, and `check` goes on finding it.
"""

from collections.abc import Callable, Iterable, Mapping
from typing import NamedTuple

from clh.icd.rules.checks import (
    check_billable,
    check_duplicates,
    check_excludes1,
    check_exists,
    check_sequence,
    check_specificity,
    code_first_finding,
)
from clh.icd.rules.claim import Claim
from clh.icd.rules.sequencing import find_demands, find_leader, order_by_notes
from clh.icd.tabular import SYMPTOMS
from clh.schema import Finding

Support = Mapping[str, float]


class Proposal(NamedTuple):
    """The codes that are left, in order, and the findings by which others went or moved."""

    codes: tuple[str, ...]
    changes: tuple[Finding, ...]


def resolve(claim: Claim, support: Support | None = None) -> Proposal:
    """Settle what can be settled without the note.

    `support` is how well each code is supported: of two codes that exclude each other a disease
    stays rather than a symptom, then the better supported, and both do if neither is.

    Each step is taken once, so it ends; and none undoes what an earlier one did, so a proposal that
    is resolved again stays as it is. Completing comes first, as it may make two codes equal. Of the
    rest the first three only take codes away, by findings that rest on the two codes at hand: no
    other code makes or unmakes them. The last two only change the order. The first of these meets
    every demand of a note that can be met; the second moves to the front a code on which there is
    no demand, which can only help the others.
    """
    changes: list[Finding] = []
    for settle in _STEPS:
        codes, settled = settle(claim, support or {})
        changes += settled
        claim = Claim(codes, claim.book, claim.encounter)
    return Proposal(tuple(claim.codes), tuple(changes))


Step = tuple[Iterable[str], list[Finding]]  # the codes after it, and the findings that it settled


def _complete(claim: Claim, _: Support) -> Step:
    """Add 7th characters where the release leaves no choice."""
    completed: dict[str, str] = {}
    settled = []
    for finding in (*check_exists(claim), *check_billable(claim)):
        if finding.rule == "seventh_character" and len(finding.suggestions) == 1:
            [code], [complete] = finding.codes, finding.suggestions
            completed[code] = complete
            settled.append(_with_change(finding, f"{code} became {complete}"))
    return [completed.get(code, code) for code in claim.codes], settled


def _drop_duplicates(claim: Claim, _: Support) -> Step:
    settled = [
        _with_change(finding, f"{finding.codes[0]} stays once")
        for finding in check_duplicates(claim)
    ]
    return dict.fromkeys(claim.codes), settled


def _drop_excluded(claim: Claim, support: Support) -> Step:
    """Of two codes that exclude each other drop the symptom (guideline II.A), or the weaker."""

    def strength(code: str) -> tuple[bool, float]:
        is_symptom = claim.book.system[code].chapter.name == SYMPTOMS
        return not is_symptom, support.get(code, 0.0)

    def weaker(finding: Finding) -> str | None:
        code, other = sorted(finding.codes, key=strength)
        return None if strength(code) == strength(other) else code

    return _drop(claim, check_excludes1(claim), weaker)


def _drop_less_specific(claim: Claim, _: Support) -> Step:
    return _drop(claim, check_specificity(claim), lambda finding: finding.codes[0])


def _drop(
    claim: Claim, findings: Iterable[Finding], choose: Callable[[Finding], str | None]
) -> Step:
    """Drop the code that is chosen of each finding whose codes are all still there."""
    left = dict.fromkeys(claim.codes)
    settled = []
    for finding in findings:
        code = choose(finding)
        if code is not None and left.keys() >= set(finding.codes):
            del left[code]
            settled.append(_with_change(finding, f"{code} dropped"))
    return left, settled


def _order_by_notes(claim: Claim, _: Support) -> Step:
    """Move codes before those that are to be coded after them."""
    ordered = Claim(order_by_notes(claim), claim.book, claim.encounter)
    settled = []
    for demand in find_demands(claim):
        if demand.is_broken(claim) and not demand.is_broken(ordered):
            code = demand.code
            earlier = ordered.codes[: ordered.index(code)]
            before = next((other for other in demand.others if other in earlier), None)
            change = f"{before} moved before {code}" if before else f"{code} is no longer first"
            settled.append(_with_change(code_first_finding(demand), change))
    return ordered.codes, settled


def _move_leader(claim: Claim, _: Support) -> Step:
    """Move a code that may come first to the front, if the one that is there may not."""
    forbidden = [finding for finding in check_sequence(claim) if finding.severity == "error"]
    leader = find_leader(claim) if forbidden else None
    if leader is None:
        return claim.codes, []
    codes = dict.fromkeys([leader, *claim.codes])
    return codes, [_with_change(finding, f"{leader} moved to the front") for finding in forbidden]


def _with_change(finding: Finding, change: str) -> Finding:
    return finding.model_copy(update={"change": change})


_STEPS: tuple[Callable[[Claim, Support], Step], ...] = (
    _complete,
    _drop_duplicates,
    _drop_excluded,
    _drop_less_specific,
    _order_by_notes,
    _move_leader,
)
