"""Search by meaning and by words: the ranking of locate.

A code ranks by its best text: the cosine similarity, plus a weight times the square of the share of
the text's content that the query's own words hold, plus the corpus's prior if there is one.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from clh.config import Locate
from clh.retrieval.ann import CodeIndex
from clh.retrieval.lexical import Lexicon
from clh.retrieval.prior import Prior
from clh.retrieval.towers import Vectors


@dataclass(frozen=True, slots=True)
class Found:
    """A code, the text that stands for it, and the parts of its rank."""

    code: str
    text: str
    similarity: float
    words: float
    prior: float = 0.0

    @property
    def rank(self) -> float:
        """What codes are ordered by."""
        return self.similarity + self.words + self.prior


def search(
    queries: Sequence[str],
    vectors: Vectors,
    index: CodeIndex,
    lexicon: Lexicon,
    prior: Prior | None,
    settings: Locate,
) -> list[list[Found]]:
    """For each query the best codes by meaning and words, and the best with the prior, in order.

    `vectors` are those of the queries, and `lexicon` is of the index's texts.
    """
    found = []
    most = min(settings.shortlist, len(index)) - 1
    for query, vector, near in zip(
        queries, vectors, index.rows(vectors, settings.shortlist), strict=True
    ):
        words = settings.words * lexicon.coverages(query) ** 2
        said = np.argpartition(-words, most)[: most + 1]
        rows = np.union1d(near[near >= 0], said[words[said] > 0])
        similarity = index.vectors(rows) @ vector
        best: dict[str, Found] = {}
        for place in np.argsort(-(similarity + words[rows]), kind="stable").tolist():
            code, text = index.pairs[rows[place]]
            best.setdefault(
                code, Found(code, text, float(similarity[place]), float(words[rows[place]]))
            )
            if len(best) == settings.candidates:
                break
        if prior is not None:
            best = {code: replace(one, prior=prior.gain(code)) for code, one in best.items()}
            for code, row, similar in prior.best(vector, words, settings.candidates):
                one = Found(code, index.pairs[row][1], similar, float(words[row]), prior.gain(code))
                best.setdefault(code, one)
        found.append(sorted(best.values(), key=lambda one: -one.rank))
    return found
