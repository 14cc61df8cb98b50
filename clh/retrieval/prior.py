"""The prior of locate: how often a corpus uses each code, and for which phrases. Off by default."""

import hashlib
import json
import math
from collections.abc import Mapping
from typing import NamedTuple, Self

import numpy as np
from numpy.typing import NDArray

from clh.errors import ModelError
from clh.icd.tabular import CodeSystem
from clh.models.embedder import Vectors
from clh.models.weights import weights_folder
from clh.retrieval.index import CodeIndex
from clh.retrieval.precedents import Precedents

PRIOR, PRECEDENTS = "prior.json", "precedents.safetensors"  # what a folder holds


class Weights(NamedTuple):
    """The weights of the two parts of a prior, in units of cosine similarity."""

    notes: float
    precedents: float


class Prior:
    """Raises the score of codes that the corpus's annotators used, by note counts and precedents.

    A code gains `weights.notes` times the logarithm of one more than its number of notes, and
    `weights.precedents` times its share in `precedents` for the query's phrases. The corpus has so
    few codes that each is compared with every query, however far away it lies.
    """

    def __init__(
        self,
        id: str,
        weights: Weights,
        notes: dict[str, int],
        precedents: Precedents,
        index: CodeIndex,
        system: CodeSystem,
    ) -> None:
        """Look up where `index` has the texts of the codes in `notes`."""
        self.id, self.precedents = id, precedents
        self.weights = weights
        self._gains = {
            code: weights.notes * math.log1p(count)
            for code, count in notes.items()
            if code in system
        }
        rows: dict[str, list[int]] = {}
        for row, (code, _) in enumerate(index.pairs):
            rows.setdefault(code, []).append(row)
        places = {code: rows.get(system.reported(code), []) for code in self._gains}
        self._codes = [code for code, found in places.items() if found]
        self._rows = [row for code in self._codes for row in places[code]]
        self._ends = np.cumsum([len(places[code]) for code in self._codes])
        self._starts = np.r_[0, self._ends][:-1]
        self._added = np.array([self._gains[code] for code in self._codes])
        self._places = {code: place for place, code in enumerate(self._codes)}
        self._vectors = index.along_axes(self._rows)

    @classmethod
    def load(cls, name: str, index: CodeIndex, system: CodeSystem) -> Self:
        """The prior that `clh.models.weights.weights_folder` finds; ModelError if there is none."""
        folder = weights_folder(name)
        try:
            raw = (folder / PRIOR).read_bytes()
            given = json.loads(raw)
            weights = Weights(float(given["weight"]), float(given["precedent_weight"]))
            precedents = Precedents.load(folder / PRECEDENTS)
            checksum = hashlib.sha256(raw + (folder / PRECEDENTS).read_bytes()).hexdigest()[:8]
            named = f"{folder.name}@{checksum}"
            return cls(named, weights, given["notes"], precedents, index, system)
        except (OSError, ValueError, TypeError, KeyError) as error:
            raise ModelError(f"prior {name!r} cannot be read: set locate.prior") from error

    def gain(self, code: str, share: float) -> float:
        """What a code's score gains, given its share of precedents."""
        return self._gains.get(code, 0.0) + self.weights.precedents * share

    def best(
        self, query: Vectors, words: NDArray[np.float64], shares: Mapping[str, float], k: int
    ) -> list[tuple[str, int, float]]:
        """The `k` codes of the corpus that score highest for a query projected by the index.

        Each with the row of its best text and that text's similarity. `words` is the lexical score
        of each row of the index, `shares` the result of `Precedents.shares` for the query.
        """
        if not self._codes:
            return []
        similarity = self._vectors @ query
        totals = similarity + words[self._rows]
        ranks = np.maximum.reduceat(totals, self._starts) + self._added
        for code, share in shares.items():
            if code in self._places:
                ranks[self._places[code]] += self.weights.precedents * share
        found = []
        for place in np.argsort(-ranks, kind="stable")[:k].tolist():
            start, end = self._starts[place], self._ends[place]
            at = start + int(totals[start:end].argmax())
            found.append((self._codes[place], self._rows[at], float(similarity[at])))
        return found
