"""Search by meaning and words: what it ranks first, and that it ranks as it says."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from clh.retrieval import hybrid
from clh.retrieval.index import CodeIndex
from clh.retrieval.lexical import content_words
from tests.conftest import MakePipeline

QUERIES = ["pain in the right knee and cough", "chronic heart failure", "sugar", "", "HTN 🤒"]


@given(query=st.sampled_from(QUERIES) | st.text(max_size=30), weight=st.sampled_from([0.0, 0.3, 2]))
def test_codes_rank_by_their_best_text(make_toy: MakePipeline, query: str, weight: float) -> None:
    toy = make_toy(locate={"candidates": 6, "words": weight})
    [found] = toy.retriever.search([query])

    ranks: dict[str, float] = {}
    vector = toy.embedder.encode([query])[0]
    for (code, text), stored in zip(toy.index.pairs, toy.index.vectors(), strict=True):
        rank = stored @ vector + weight * toy.index.lexicon.coverage(text, query) ** 2
        ranks[code] = max(ranks.get(code, -2), rank)
    best = sorted(ranks.values(), reverse=True)[:6]
    assert [one.fused_score for one in found] == pytest.approx(best, abs=1e-3)
    assert [ranks[one.code] for one in found] == pytest.approx(best, abs=1e-3)
    assert all((one.lexical_score > 0) <= bool(content_words(query)) for one in found)


@given(right=st.integers(0, 59), seed=st.integers(0, 50))
def test_words_find_what_lies_far_by_meaning(make_toy: MakePipeline, right: int, seed: int) -> None:
    texts = [f"finding{row} of site{row % 7}" for row in range(60)]
    drawn = np.random.default_rng(seed).standard_normal((61, 32), dtype=np.float32)
    drawn /= np.linalg.norm(drawn, axis=1, keepdims=True)
    index = CodeIndex.build([(f"C{row}", texts[row]) for row in range(60)], drawn[:60], 16)
    locate = make_toy(locate={"candidates": 5, "shortlist": 5, "words": 3}).settings.locate
    query = [f"no doubt, site{right % 7} has finding{right}"]
    [found] = hybrid.search(query, drawn[60:], index, None, locate)
    assert found[0].code == f"C{right}"
    assert found[0].lexical_score == pytest.approx(3)
    assert found[0].similarity == pytest.approx(drawn[right] @ drawn[60], abs=1e-3)


@pytest.mark.parametrize(
    ("query", "words"), [("", 0), ("of the", 0), ("cough", 1), ("chronic heart failure", 3)]
)
def test_a_longer_query_ranks_higher_and_orders_codes_alike(
    make_toy: MakePipeline, query: str, words: int
) -> None:
    [plain] = make_toy().retriever.search([query])
    [longer] = make_toy(locate={"length": 0.5}).retriever.search([query])
    assert [one.code for one in longer] == [one.code for one in plain]
    gained = [one.fused_score - two.fused_score for one, two in zip(longer, plain, strict=True)]
    assert gained == pytest.approx([0.5 * math.log(words or 1)] * len(plain))


def test_a_note_of_many_queries_is_what_each_is_alone(make_toy: MakePipeline) -> None:
    toy = make_toy()
    together = toy.retriever.search(QUERIES)
    assert [len(found) > 0 for found in together] == [True] * len(QUERIES)
    for query, found in zip(QUERIES, together, strict=True):
        [alone] = toy.retriever.search([query])
        assert [one.code for one in alone] == [one.code for one in found]
        np.testing.assert_allclose(
            [o.fused_score for o in alone], [o.fused_score for o in found], atol=1e-5
        )
