"""Rewards: bounded, never higher for more of the same, and as their docstrings show."""

import doctest
import json
from collections.abc import Callable
from fractions import Fraction
from functools import partial
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agents.training import rewards
from agents.training.evidence import find_codes
from agents.training.examples import AgentExample, with_thought
from agents.training.rewards import (
    code_f1,
    code_f1_reward,
    format_reward,
    ratio,
    reward_columns,
    reward_functions,
    verbatim_reward,
)
from clh.models.language import with_thinking
from tests.agents.training.documents import built, document
from tests.conftest import MakePipeline

Rewarded = Callable[..., list[tuple[float, float, float]]]


@pytest.fixture(scope="session")
def examples(make_toy: MakePipeline) -> list[AgentExample]:
    """A window, a candidate that is right and one that is wrong."""
    windows, candidates = built(document(), make_toy(policy="mention"))
    by_answer = {example.completion: example for example in candidates}
    return [*windows, by_answer["yes"], by_answer["no"]]


@pytest.fixture(scope="session")
def rewarded(make_toy: MakePipeline, examples: list[AgentExample]) -> Rewarded:
    """Gives format, verbatim and code F1 rewards of completions of one of the examples."""
    # One candidate for each term: among 20 of this small book any code would be.
    toy = make_toy(locate={"candidates": 1})
    search = partial(find_codes, retriever=toy.retriever, system=toy.system)

    def rewards_of(place: int, *raws: str) -> list[tuple[float, float, float]]:
        row = reward_columns(examples[place])
        columns: dict[str, Any] = {name: [value] * len(raws) for name, value in row.items()}
        completions = [[{"role": "assistant", "content": raw}] for raw in raws]
        return list(
            zip(
                format_reward(completions, **columns),
                verbatim_reward(completions, **columns),
                code_f1_reward(completions, **columns, find_codes=search),
                strict=True,
            )
        )

    return rewards_of


def reply(*terms: tuple[str, str]) -> str:
    listed = [{"quote": quote, "lead_term": lead, "status": "affirmed"} for quote, lead in terms]
    return json.dumps({"terms": listed})


COUGH, KNEE, HEART = (
    ("cough", "Cough"),
    ("right knee", "Pain in right knee"),
    ("heart failure", "Heart failure"),
)
DOG = ("dog", "Sprain")


@pytest.mark.parametrize(
    ("place", "raw", "expected"),
    [
        (0, reply(COUGH, KNEE, HEART), (1, 1, 1)),
        (0, reply(HEART, COUGH, KNEE), (1, 1, 1)),
        (0, reply(COUGH), (1, 1, 0.5)),
        (0, reply(COUGH, COUGH), (1, 0.5, 0.5)),
        (0, reply(COUGH, ("a cough", "Cough")), (1, 1, 0.5)),
        (0, reply(COUGH, KNEE, HEART, DOG), (1, 1, 6 / 7)),
        (0, reply(COUGH, ("gout", "Gout")), (1, 0.5, 0.5)),
        (0, reply(), (1, 1, 0)),
        (0, "", (0, 0, 0)),
        (0, reply(COUGH)[:-1], (0, 0, 0)),
        (0, "Sure! " + reply(COUGH), (0, 0, 0)),
        (1, "yes", (1, 1, 1)),
        (1, "no", (1, 1, 0)),
        (1, "yes, because it says so", (0, 0, 0)),
        (0, with_thinking("cough", reply(COUGH)), (1, 1, 0.5)),
        (1, with_thinking("cough", "yes"), (1, 1, 1)),
        (1, with_thinking("cough", "no"), (1, 1, 0)),
        (1, "<think>cough yes", (0, 0, 0)),
        (1, with_thinking("cough", with_thinking("cough", "yes")), (0, 0, 0)),
        (2, "no", (1, 1, 1)),
        (2, "", (0, 0, 0)),
    ],
)
def test_rewards(
    rewarded: Rewarded, place: int, raw: str, expected: tuple[float, float, float]
) -> None:
    assert rewarded(place, raw) == [pytest.approx(expected)]


def test_the_right_completion_earns_most(rewarded: Rewarded, examples: list[AgentExample]) -> None:
    for place, example in enumerate(examples):
        raws = example.completion, with_thought(example).completion
        assert rewarded(place, *raws) == [(1, 1, 1)] * 2


QUOTES = st.sampled_from([COUGH, KNEE, HEART, DOG, ("gout", "Gout"), ("had a", "Heart failure")])


@given(terms=st.lists(QUOTES, max_size=6), more=QUOTES)
def test_a_repeated_lead_term_earns_nothing(
    rewarded: Rewarded, terms: list[tuple[str, str]], more: tuple[str, str]
) -> None:
    before, after = rewarded(0, reply(*terms), reply(*terms, more))
    assert all(0 <= reward <= 1 for reward in (*before, *after))
    if more[1] in {lead for _, lead in terms}:
        assert after[2] <= before[2]


@given(
    raws=st.lists(st.text() | st.just('{"terms": [{}]}') | st.just('{"terms": null}'), min_size=1)
)
def test_garbage_earns_nothing_and_breaks_nothing(rewarded: Rewarded, raws: list[str]) -> None:
    for place in range(3):
        for raw, earned in zip(raws, rewarded(place, *raws), strict=True):
            assert earned == (0, 0, 0) or raw.strip() in ("yes", "no")


@pytest.mark.parametrize("name", ["format_reward", "verbatim_reward", "code_f1_reward"])
def test_the_example_of_a_docstring_runs(name: str) -> None:
    function = getattr(rewards, name)
    tests = doctest.DocTestFinder().find(function, name, globs=vars(rewards).copy())
    assert sum(len(test.examples) for test in tests) > 1
    runner = doctest.DocTestRunner(verbose=False)
    assert all(runner.run(test).failed == 0 for test in tests)


def test_functions_keep_the_names_that_trl_logs(examples: list[AgentExample]) -> None:
    names = ["code_f1_reward", "format_reward"]
    functions = reward_functions(names, lambda lead_terms: [[] for _ in lead_terms])
    assert [function.__name__ for function in functions] == names
    columns = {name: [value] for name, value in reward_columns(examples[1]).items()}
    completion = [[{"role": "assistant", "content": "yes"}]]
    assert [function(completion, **columns) for function in functions] == [[1.0], [1.0]]


CODES = st.sets(st.sampled_from("abcdef"))
FOUND = st.lists(CODES, max_size=8)


@given(found=FOUND, gold=CODES)
def test_code_f1_is_f1(found: list[set[str]], gold: set[str]) -> None:
    reached = gold & set().union(*found)
    wrong = [codes for codes in found if not codes & gold]
    given = len(reached) + len(wrong)
    if not given or not gold:
        expected = Fraction(given == len(gold))
    else:
        precision, recall = Fraction(len(reached), given), Fraction(len(reached), len(gold))
        both = precision + recall
        expected = 2 * precision * recall / both if both else Fraction(0)
    assert code_f1(found, gold) == pytest.approx(float(expected))


@given(found=FOUND, gold=CODES, more=CODES)
def test_a_term_pays_only_for_a_gold_code_that_is_new(
    found: list[set[str]], gold: set[str], more: set[str]
) -> None:
    before, after = code_f1(found, gold), code_f1([*found, more], gold)
    new = (more & gold) - set().union(*found)
    assert 0 <= after <= 1
    if new:
        assert after > before
    elif more & gold:
        assert after == before
    else:
        assert after < before or not before


@given(found=FOUND, gold=CODES, data=st.data())
def test_the_order_of_terms_does_not_count(
    found: list[set[str]], gold: set[str], data: st.DataObject
) -> None:
    assert code_f1(data.draw(st.permutations(found)), gold) == code_f1(found, gold)


def test_nothing_of_nothing_is_all_of_it() -> None:
    assert ratio(0, 0) == code_f1([], []) == 1
    assert code_f1([["a"]], []) == code_f1([], ["a"]) == 0
