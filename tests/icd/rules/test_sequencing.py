"""The order of claims: all that rules can ask of two or three codes, and demands in a circle."""

from collections.abc import Iterator, Sequence
from itertools import permutations

import pytest

from clh.icd.rules import Claim, CodeBook, check, load_code_book, resolve
from clh.icd.rules.book import Interval
from clh.icd.tabular import CodeSystem, Entry
from clh.schema import Finding
from tests.fakes import toy_guidelines

BOOK = load_code_book()
SYSTEM = BOOK.system
ALL = list(SYSTEM)
NOTES = [note for note in BOOK.all_notes() if note.citation.kind == "code_first"]


def first_of(interval: Interval) -> str | None:
    """The first billable code of an interval."""
    codes = ALL[interval.start : interval.end]
    return next((code for code in codes if SYSTEM.billable(code) and interval.fits(code)), None)


def first_at() -> dict[str, str]:
    """The first billable code at each code, block and chapter."""
    found: dict[str, str] = {}
    for code in filter(SYSTEM.billable, SYSTEM):
        entry = SYSTEM[code]
        above = (*SYSTEM.ancestors(code), entry.block.name, f"Chapter {entry.chapter.name}")
        for place in (code, *above):
            found.setdefault(place, code)
    return found


FIRST_AT = first_at()
# A code to which each note applies, and the first code of all that it names.
DEMANDS = list(
    dict.fromkeys(
        (FIRST_AT[note.citation.place], other)
        for note in NOTES
        for interval in note.intervals
        if (other := first_of(interval)) and other != FIRST_AT[note.citation.place]
    )
)
# A code of each kind that may only or never come first, or is free to.
PLACED = [
    *(
        code
        for group in ("never_first", "only_first")
        for guideline in BOOK.guidelines[group]
        if (code := first_of(guideline.groups[0][0]))
    ),
    "Z85.3",  # a history
    "O24.112",  # pregnancy
    "E11.65",
]


def chains() -> Iterator[tuple[str, ...]]:
    """Three codes of which the first wants the second before it, and that the third."""
    wants = dict(DEMANDS)
    return ((code, other, wants[other]) for code, other in DEMANDS if other in wants)


def misplaced(codes: Sequence[str]) -> list[Finding]:
    """The errors that another order could mend."""
    found = check(Claim(codes, BOOK))
    return [
        finding
        for finding in found
        if finding.severity == "error" and finding.rule in ("code_first", "first_listed")
    ]


def assert_settled(codes: Sequence[str]) -> None:
    """The claim is resolved for good, nothing goes in silence, and no order would be better."""
    proposal = resolve(Claim(codes, BOOK))
    assert resolve(Claim(proposal.codes, BOOK)) == (proposal.codes, ()), codes
    named = {code for change in proposal.changes for code in change.codes}
    assert set(codes) - set(proposal.codes) <= named, codes
    assert proposal.changes or list(proposal.codes) == list(codes), codes
    left = misplaced(proposal.codes)
    if any(finding.rule == "first_listed" or len(finding.codes) > 1 for finding in left):
        assert all(misplaced(order) for order in permutations(proposal.codes)), codes


def test_there_is_something_to_order() -> None:
    assert len(DEMANDS) > 700
    assert len(PLACED) == 7
    assert len(list(chains())) > 30


def test_every_two_codes_of_which_one_wants_the_other_first() -> None:
    for pair in DEMANDS:
        assert_settled(pair)
        assert_settled(pair[::-1])


def test_every_two_codes_with_a_place_in_the_order() -> None:
    for pair in permutations(PLACED, 2):
        assert_settled(pair)


@pytest.mark.parametrize("third", PLACED)
def test_every_demand_beside_a_code_with_a_place_in_the_order(third: str) -> None:
    for pair in DEMANDS:
        for claim in permutations({*pair, third}):
            assert_settled(claim)


def test_every_chain_of_demands() -> None:
    for chain in chains():
        for claim in permutations(set(chain)):
            assert_settled(claim)


@pytest.mark.parametrize(
    ("codes", "ordered"),
    [
        # Underdosing comes before its reason, and never first.
        (["Z91.138", "T38.3X6A", "E11.65"], ["E11.65", "T38.3X6A", "Z91.138"]),
        (["E11.65", "Z91.138", "T38.3X6A"], ["E11.65", "T38.3X6A", "Z91.138"]),
        (["F02.80", "T42.4X6A", "G30.9"], ["G30.9", "F02.80", "T42.4X6A"]),
        # Nothing may lead: the order of the note is kept, the finding stays.
        (["F02.80", "T42.4X6A"], ["T42.4X6A", "F02.80"]),
        (["Z91.138", "T38.3X6A"], ["T38.3X6A", "Z91.138"]),
        # What comes before stands right before, and others stay where they are.
        (["F02.80", "I10", "G30.9"], ["G30.9", "F02.80", "I10"]),
        (["I10", "D63.0", "E11.9", "C18.9"], ["I10", "C18.9", "D63.0", "E11.9"]),
        (["W19.XXXA", "Z85.3", "O24.112", "I10"], ["O24.112", "W19.XXXA", "Z85.3", "I10"]),
    ],
)
def test_the_order_of_a_claim(codes: list[str], ordered: list[str]) -> None:
    assert list(resolve(Claim(codes, BOOK)).codes) == ordered


def test_each_move_is_told() -> None:
    changes = resolve(Claim(["Z91.138", "T38.3X6A", "E11.65"], BOOK)).changes
    assert [(change.rule, change.change) for change in changes] == [
        ("code_first", "T38.3X6A moved before Z91.138"),
        ("first_listed", "E11.65 moved to the front"),
    ]


def test_demands_in_a_circle_are_left_to_the_coder() -> None:
    wants = {"A01": "A02", "A02": "A03", "A03": "A01", "A04": "A01"}
    entries = [Entry(code, "Some disease", code_first=(f"x ({wants[code]})",)) for code in wants]
    circle = CodeBook(CodeSystem("test", entries), toy_guidelines())
    for codes in permutations(wants):
        proposal = resolve(Claim(codes, circle))
        assert proposal == (codes, ())
        assert {finding.rule for finding in check(Claim(proposal.codes, circle))} == {"code_first"}
