"""How a set of codes is mended: what a rule settles by itself, and how each change is told.

All else is for a coder to settle: it stays, and `rules.check` goes on finding it.
"""

from collections.abc import Callable, Mapping
from typing import NamedTuple

from clh.icd.rules.checks import Claim, check, order
from clh.schema import Finding

Support = Mapping[str, float]

_SYMPTOMS = "18"  # chapter


class Proposal(NamedTuple):
    """The codes that are left, in order, and the findings by which others went or moved."""

    codes: tuple[str, ...]
    changes: tuple[Finding, ...]


def resolve(claim: Claim, support: Support | None = None) -> Proposal:
    """Settle what can be settled without the note, one finding at a time.

    `support` says how well each code is supported: of two codes that exclude each other a disease
    stays rather than a symptom, then the better supported, and both do if neither is. Resolving a
    proposal again changes nothing.
    """
    changes: list[Finding] = []
    while True:
        for finding in check(claim):
            settle = _SETTLED.get(finding.rule)
            mended = settle(claim, finding, support or {}) if settle else None
            if mended is not None:
                codes, change = mended
                changes.append(finding.model_copy(update={"change": change}))
                claim = Claim(codes, claim.book, claim.encounter)
                break
        else:
            return Proposal(tuple(claim.codes), tuple(changes))


Mended = tuple[tuple[str, ...], str] | None


def _drop_again(claim: Claim, finding: Finding, _: Support) -> Mended:
    [code] = finding.codes
    kept = tuple(dict.fromkeys(claim.codes))
    return kept, f"{code} stays once"


def _drop_first(claim: Claim, finding: Finding, _: Support) -> Mended:
    return _without(claim, finding.codes[0])


def _drop_weaker(claim: Claim, finding: Finding, support: Support) -> Mended:
    """The symptom beside a disease that excludes it (guideline II.A), else the less supported."""

    def weight(code: str) -> tuple[bool, float]:
        return claim.book.system[code].chapter.name != _SYMPTOMS, support.get(code, 0.0)

    weaker, better = sorted(finding.codes, key=weight)
    return None if weight(weaker) == weight(better) else _without(claim, weaker)


def _without(claim: Claim, dropped: str) -> Mended:
    return tuple(code for code in claim.codes if code != dropped), f"{dropped} dropped"


def _complete(claim: Claim, finding: Finding, _: Support) -> Mended:
    """Where the release leaves no choice."""
    if len(finding.suggestions) != 1:
        return None
    [code], [whole] = finding.codes, finding.suggestions
    return tuple(whole if one == code else one for one in claim.codes), f"{code} became {whole}"


def _move_before(claim: Claim, finding: Finding, _: Support) -> Mended:
    """The second code of the finding to where the first is."""
    if len(finding.codes) == 1:  # what is missing is not for us to add
        return None
    first, before = finding.codes
    codes = [code for code in claim.codes if code != before]
    codes.insert(codes.index(first), before)
    return tuple(codes), f"{before} moved before {first}"


def _move_first(claim: Claim, finding: Finding, support: Support) -> Mended:
    """A code that may come first to the front."""
    if len(finding.codes) > 1:
        return _move_before(claim, finding, support)
    if finding.codes[0] != claim.codes[0]:  # whether it is reported is a coder's decision
        return None
    for code in claim.known:
        if not list(order(Claim([code], claim.book, claim.encounter))):
            others = (other for other in claim.codes if other != code)
            return (code, *others), f"{code} moved to the front"
    return None


_SETTLED: dict[str, Callable[[Claim, Finding, Support], Mended]] = {
    "duplicate": _drop_again,
    "less_specific": _drop_first,
    "excludes1": _drop_weaker,
    "seventh_character": _complete,
    "code_first": _move_before,
    "first_listed": _move_first,
}
