"""Locate: only codes of the release, each once, best first."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from clh.schema import Note
from tests.agents.steps import run_step, term
from tests.conftest import MakePipeline

NOTE = Note(id="n", text="Heart failure, pain in right knee, diabetes.")


@given(queries=st.lists(st.text() | st.sampled_from(["heart failure", "pain in knee", "E11.9"])))
def test_candidates_are_codes_of_the_release_each_once_best_first(
    make_toy: MakePipeline, queries: list[str]
) -> None:
    toy = make_toy(locate={"candidates": 4})
    found = toy.retriever.search(queries)
    assert len(found) == len(queries)
    for candidates in found:
        codes = [candidate.code for candidate in candidates]
        assert 0 < len(codes) == len(set(codes)) <= 4
        assert all(candidate.title == toy.system[candidate.code].title for candidate in candidates)
        scores = [candidate.similarity for candidate in candidates]
        assert scores == sorted(scores, reverse=True)
        assert scores[0] <= 1


@pytest.mark.parametrize(
    ("query", "code"),
    [
        ("pain in right knee", "M25.561"),
        ("high blood pressure", "I10"),
        ("heart failure", "I50.9"),  # I50 by title: the book's code for no more detail
        ("diabetes", "E11.9"),  # E11 includes "diabetes NOS"
        ("pain in knee", "M25.569"),
        ("sprain of tibial collateral ligament", "S83.419"),  # less its 7th character
    ],
)
async def test_the_first_candidate_is_what_the_book_gives(
    make_toy: MakePipeline, query: str, code: str
) -> None:
    terms = [term(NOTE, "diabetes", lead_term=query)]
    [[first, *_]] = (await run_step("locate", make_toy(), NOTE, terms=terms))["candidates"]
    assert first.code == code


async def test_terms_keep_their_order(make_toy: MakePipeline) -> None:
    terms = [term(NOTE, quote) for quote in ("diabetes", "Heart failure", "pain in right knee")]
    found = (await run_step("locate", make_toy(), NOTE, terms=terms))["candidates"]
    assert [first.code for first, *_ in found] == ["E11.9", "I50.9", "M25.561"]


async def test_no_terms_no_candidates(make_toy: MakePipeline) -> None:
    added = await run_step("locate", make_toy(), NOTE, terms=[])
    assert (added["candidates"], added["errors"]) == ([], [])
