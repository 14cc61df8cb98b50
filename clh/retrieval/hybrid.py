"""Search by meaning and by words: the ranking of locate.

A code scores by its best text: the cosine similarity, plus a weight times the square of the share
of the text's content words that the query contains, plus the corpus's prior if there is one. Short
queries lie closer to texts than long ones do, so scores of several queries are made comparable by
adding a weight times the logarithm of each query's number of words.
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
    """A code, the text that stands for it, and the parts of its score."""

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
    """For each query the codes that score best, best first; with a prior, also its own best.

    `vectors` are those of the queries: (queries, dimensions).
    """
    found = []
    similarities, shortlists = index.closest(vectors, settings.shortlist)
    projected = index.project(vectors)
    for query, vector, near, similar in zip(
        queries, projected, shortlists, similarities, strict=True
    ):
        words = settings.words * index.lexicon.coverages(query) ** 2
        best = _best(near, similar, words, index, settings.candidates)
        # Beyond the shortlist no text is closer than its last, so that only words can lift one.
        lowest = best[-1].fused_score if len(best) == settings.candidates else 0.0
        lexical = np.setdiff1d((words > max(lowest - similar[-1], 0.0)).nonzero()[0], near)
        lexical = lexical[np.argsort(-words[lexical], kind="stable")[: settings.shortlist]]
        if len(lexical):
            rows = np.append(near, lexical)
            every = np.append(similar, index.along_axes(lexical) @ vector)
            best = _best(rows, every, words, index, settings.candidates)
        if prior is not None:
            shares = prior.precedents.shares(query)
            by_code = {code.code: code for code in best}
            for name, row, close in prior.best(vector, words, shares, settings.candidates):
                text = index.pairs[row][1]
                by_code.setdefault(name, Found(name, text, close, float(words[row])))
            for name, code in by_code.items():
                share = shares.get(name, 0.0)
                by_code[name] = replace(code, prior_score=prior.gain(name, share), precedent=share)
            best = sorted(by_code.values(), key=lambda code: -code.fused_score)
        length = settings.length * math.log(len(content_words(query)) or 1)
        found.append([replace(code, length_bonus=length) for code in best])
    return found


def _best(
    rows: NDArray[np.int64],
    similarity: Vectors,
    words: NDArray[np.float64],
    index: CodeIndex,
    k: int,
) -> list[Found]:
    """The `k` best codes of some rows of the index, with their similarity; best first."""
    lexical = words[rows]
    best: dict[str, Found] = {}
    for place in np.argsort(-(similarity + lexical), kind="stable").tolist():
        code, text = index.pairs[rows[place]]
        best.setdefault(code, Found(code, text, float(similarity[place]), float(lexical[place])))
        if len(best) == k:
            break
    return list(best.values())
