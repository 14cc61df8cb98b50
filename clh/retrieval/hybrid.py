"""Search by meaning and by words: the ranking of locate.

A code ranks by its best text: the cosine similarity, plus a weight times the square of the share of
the text's content that the query's own words hold, plus the corpus's prior if there is one. Short
queries lie closer to texts than long ones do, so that what a note's queries find is only comparable
with a weight times the logarithm of their lengths.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from clh.config import Locate
from clh.models.embedder import Vectors
from clh.retrieval.index import CodeIndex
from clh.retrieval.lexical import content_words
from clh.retrieval.prior import Prior


@dataclass(frozen=True, slots=True)
class Found:
    """A code, the text that stands for it, and the parts of its rank."""

    code: str
    text: str
    similarity: float
    lexical_score: float
    length_bonus: float = 0.0
    prior_score: float = 0.0
    precedent: float = 0.0

    @property
    def fused_score(self) -> float:
        """What codes are ordered by."""
        return self.similarity + self.lexical_score + self.length_bonus + self.prior_score


def search(
    queries: Sequence[str],
    vectors: Vectors,
    index: CodeIndex,
    prior: Prior | None,
    settings: Locate,
) -> list[list[Found]]:
    """For each query the best codes by meaning and words, and the best with the prior, in order.

    `vectors` are those of the queries.
    """
    found = []
    similarities, shortlists = index.closest(vectors, settings.shortlist)
    for query, vector, near, similar in zip(
        queries, vectors, shortlists, similarities, strict=True
    ):
        words = settings.words * index.lexicon.coverages(query) ** 2
        best = _best(near, similar, words, index, settings.candidates)
        # Beyond the shortlist no text is closer than its last, so that only words can lift one.
        lowest = best[-1].fused_score if len(best) == settings.candidates else 0.0
        said = np.setdiff1d((words > max(lowest - similar[-1], 0.0)).nonzero()[0], near)
        said = said[np.argsort(-words[said], kind="stable")[: settings.shortlist]]
        if len(said):
            rows = np.append(near, said)
            every = np.append(similar, index.vectors(said) @ vector)
            best = _best(rows, every, words, index, settings.candidates)
        if prior is not None:
            shares = prior.precedents.shares(query)
            known = {one.code: one for one in best}
            for code, row, close in prior.best(vector, words, shares, settings.candidates):
                known.setdefault(code, Found(code, index.pairs[row][1], close, float(words[row])))
            for code, one in known.items():
                share = shares.get(code, 0.0)
                known[code] = replace(one, prior_score=prior.gain(code, share), precedent=share)
            best = sorted(known.values(), key=lambda one: -one.fused_score)
        length = settings.length * math.log(len(content_words(query)) or 1)
        found.append([replace(one, length_bonus=length) for one in best])
    return found


def _best(
    rows: NDArray[np.int64],
    similarity: Vectors,
    words: NDArray[np.float64],
    index: CodeIndex,
    k: int,
) -> list[Found]:
    """The `k` best codes of some rows of the index, with their similarity; best first."""
    gained = words[rows]
    best: dict[str, Found] = {}
    for place in np.argsort(-(similarity + gained), kind="stable").tolist():
        code, text = index.pairs[rows[place]]
        best.setdefault(code, Found(code, text, float(similarity[place]), float(gained[place])))
        if len(best) == k:
            break
    return list(best.values())
