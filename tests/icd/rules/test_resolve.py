"""What becomes of a claim when all is settled that needs no coder."""

from collections.abc import Sequence
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from clh.icd.rules import Claim, check, load_code_book, resolve

BOOK = load_code_book()
SYSTEM = BOOK.system
ALL = list(SYSTEM)

# Codes that notes bring together: where they stand, and the first that they name.
RELATED = [
    (note.citation.place, ALL[note.intervals[0].start])
    for note in BOOK.all_notes()
    if note.intervals and note.citation.place in SYSTEM
]

CODE_FIRST = [(place, other) for place, other in RELATED if SYSTEM[place].code_first]

# Codes that may never come first, only first, or before those of all other chapters.
PLACED = [
    ALL[interval.start]
    for group in ("never_first", "only_first")
    for guideline in BOOK.guidelines[group]
    for interval in guideline.groups[0]
] + ["T38.3X6A", "T42.4X6A", "Z85.3", "O24.112"]

codes = st.sampled_from(ALL) | st.from_regex(r"[A-Z][0-9A-Z]{2,6}", fullmatch=True)
claims = st.builds(
    lambda pairs, placed, others: [*(code for pair in pairs for code in pair), *placed, *others],
    st.lists(st.sampled_from(RELATED) | st.sampled_from(CODE_FIRST), max_size=4),
    st.lists(st.sampled_from(PLACED), max_size=3),
    st.lists(codes, max_size=6),
).flatmap(st.permutations)


@given(claims, st.randoms())
def test_resolving_settles_adds_nothing_and_loses_nothing_in_silence(
    codes: Sequence[str], draw: Random
) -> None:
    claim = Claim(codes, BOOK)
    support = {code: draw.choice([0.3, 0.6]) for code in claim.codes}
    proposal = resolve(claim, support)
    assert resolve(Claim(proposal.codes, BOOK), support) == (proposal.codes, ())

    named = {code for change in proposal.changes for code in change.codes}
    assert set(claim.codes) - set(proposal.codes) <= named
    added = set(proposal.codes) - set(claim.codes)
    assert added <= {code for change in proposal.changes for code in change.suggestions}
    assert all(SYSTEM.stem(code) != code for code in added)  # a 7th character, and no more
    assert all(change.change and change.citation.text for change in proposal.changes)


@given(claims)
def test_what_is_left_is_what_a_coder_has_to_settle(codes: Sequence[str]) -> None:
    proposal = resolve(Claim(codes, BOOK))
    left = check(Claim(proposal.codes, BOOK))
    assert not {"duplicate", "less_specific"} & {one.rule for one in left}
    orders = [one for one in left if one.rule == "code_first" and len(one.codes) > 1]
    assert not orders


def test_of_two_codes_that_exclude_each_other_the_better_supported_stays() -> None:
    claim = Claim(["E10.9", "E11.9"], BOOK)
    assert resolve(claim, {"E10.9": 0.9, "E11.9": 0.4}).codes == ("E10.9",)
    assert resolve(claim, {"E10.9": 0.4, "E11.9": 0.9}).codes == ("E11.9",)
    assert resolve(claim).codes == ("E10.9", "E11.9")


def test_a_symptom_gives_way_to_the_disease_that_excludes_it() -> None:
    claim = Claim(["R06.02", "J96.00"], BOOK)
    assert resolve(claim, {"R06.02": 0.9, "J96.00": 0.4}).codes == ("J96.00",)
    assert resolve(claim).codes == ("J96.00",)


@pytest.mark.parametrize("codes", [["A37.90", "A37.9"], ["A37.9", "A37.90"]])
def test_a_category_gives_way_to_its_own_unspecified_code(codes: list[str]) -> None:
    assert resolve(Claim(codes, BOOK)).codes == ("A37.90",)


@pytest.mark.parametrize(
    "codes",
    [
        ["F02.80", "T42.4X6A"],
        ["Z91.138", "T38.3X6A", "E11.65"],
        ["Z91.13", "O36.91X5", "Y00.XXXA", "Z77.012", "T44.906S", "G01", "T80.211", "T36", "A41"],
        ["F02", "C00", "J68", "G91.4", "G31.01", "T41.296", "Z12.79"],
    ],
)
def test_rules_that_want_opposite_orders_come_to_an_end(codes: list[str]) -> None:
    for order in (codes, codes[::-1]):
        proposal = resolve(Claim(order, BOOK))
        assert resolve(Claim(proposal.codes, BOOK)) == (proposal.codes, ())
