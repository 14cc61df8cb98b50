"""Search by meaning and words: what it ranks first, and that it ranks as it says."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from agents.locate import search
from clh.retrieval.lexical import content_words
from tests.conftest import MakeContext

QUERIES = ["pain in the right knee and cough", "chronic heart failure", "sugar", "", "HTN 🤒"]


@given(query=st.sampled_from(QUERIES) | st.text(max_size=30), weight=st.sampled_from([0.0, 0.3, 2]))
def test_codes_rank_by_their_best_text(context: MakeContext, query: str, weight: float) -> None:
    toy = context(locate={"candidates": 6, "words": weight})
    [found] = search([query], toy)

    ranks: dict[str, float] = {}
    vector = toy.tower.encode([query])[0]
    for (code, text), stored in zip(toy.index.pairs, toy.index.vectors(), strict=True):
        rank = stored @ vector + weight * toy.lexicon.coverage(text, query) ** 2
        ranks[code] = max(ranks.get(code, -2), rank)
    best = sorted(ranks.values(), reverse=True)[:6]
    assert [one.rank for one in found] == pytest.approx(best, abs=1e-3)
    assert [ranks[one.code] for one in found] == pytest.approx(best, abs=1e-3)
    assert all((one.words > 0) <= bool(content_words(query)) for one in found)


def test_words_find_what_the_shortlist_of_meaning_misses(context: MakeContext) -> None:
    query = ["cough, heart failure, hypertension and pain in the right knee"]
    short = {"candidates": 6, "shortlist": 6}
    meaning = {one.code for one in search(query, context(locate={**short, "words": 0}))[0]}
    both = {one.code for one in search(query, context(locate={**short, "words": 1}))[0]}
    said = {"R05.9", "I50.9", "M25.561"}
    assert not said <= meaning
    assert said <= both


def test_a_note_of_many_queries_is_what_each_is_alone(context: MakeContext) -> None:
    toy = context()
    together = search(QUERIES, toy)
    assert [len(found) > 0 for found in together] == [True] * len(QUERIES)
    for query, found in zip(QUERIES, together, strict=True):
        [alone] = search([query], toy)
        assert [one.code for one in alone] == [one.code for one in found]
        np.testing.assert_allclose([o.rank for o in alone], [o.rank for o in found], atol=1e-5)
