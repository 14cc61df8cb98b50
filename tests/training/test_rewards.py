"""Rewards: bounded, and never higher for more of the same."""

from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from clh.training.rewards import agreement, share

CODES = st.sets(st.sampled_from("abcdef"))
LEADS = st.lists(CODES, max_size=8)


@given(leads=LEADS, gold=CODES)
def test_agreement_is_f1(leads: list[set[str]], gold: set[str]) -> None:
    reached = gold & set().union(*leads)
    wrong = [codes for codes in leads if not codes & gold]
    said = len(reached) + len(wrong)
    if not said or not gold:
        expected = Fraction(said == len(gold))
    else:
        precision, recall = Fraction(len(reached), said), Fraction(len(reached), len(gold))
        both = precision + recall
        expected = 2 * precision * recall / both if both else Fraction(0)
    assert agreement(leads, gold) == pytest.approx(float(expected))


@given(leads=LEADS, gold=CODES, more=CODES)
def test_a_term_pays_only_for_a_gold_code_that_is_new(
    leads: list[set[str]], gold: set[str], more: set[str]
) -> None:
    before, after = agreement(leads, gold), agreement([*leads, more], gold)
    new = (more & gold) - set().union(*leads)
    assert 0 <= after <= 1
    if new:
        assert after > before
    elif more & gold:
        assert after == before
    else:
        assert after < before or not before


@given(leads=LEADS, gold=CODES, data=st.data())
def test_the_order_of_terms_does_not_count(
    leads: list[set[str]], gold: set[str], data: st.DataObject
) -> None:
    assert agreement(data.draw(st.permutations(leads)), gold) == agreement(leads, gold)


def test_nothing_of_nothing_is_all_of_it() -> None:
    assert share(0, 0) == agreement([], []) == 1
    assert agreement([["a"]], []) == agreement([], ["a"]) == 0
