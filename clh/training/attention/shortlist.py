"""What the towers find for a note: the codes that a head of attention orders."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

import numpy as np
import torch
from numpy.typing import NDArray
from sentence_transformers import SentenceTransformer
from torch import Tensor

from clh.config import Settings
from clh.corpora import Example
from clh.document.reader import Reader
from clh.errors import InputError
from clh.evaluation.metrics import Scored
from clh.icd.tabular import CodeSystem
from clh.models import weights
from clh.models.embedder import Embedder, Vectors, load_embedder
from clh.retrieval.index import open_index
from clh.retrieval.lexical import query
from clh.training.attention.head import Tokens, read_tokens
from clh.training.towers import open_tower


@dataclass(frozen=True)
class Shortlist:
    """A note and the codes that may be its own, the most similar first."""

    id: str
    gold: frozenset[str]  # as the scorer compares: without 7th characters
    tokens: Tokens
    codes: tuple[str, ...]
    vectors: Tensor  # of the codes: (codes, dimensions of the towers)
    similarity: Tensor  # of the codes to their closest sentences
    closest: NDArray[np.int64]  # (codes, 2): where these start and end in the note
    labels: Tensor  # 1 for the note's own codes, 0 for others

    def rank(self, scores: Tensor) -> Scored:
        """The note as the scorer takes it, given a score for each code."""
        return Scored(self.id, self.gold, dict(zip(self.codes, scores.tolist(), strict=True)))


class CodeVectors:
    """The texts of the code system under the ICD tower, code by code."""

    def __init__(self, codes: Sequence[str], texts: Vectors) -> None:
        """`texts` has a row for each text, and `codes` the code that it stands for."""
        by_code = np.argsort(np.array(codes), kind="stable")
        self.codes, self._starts = np.unique(np.array(codes)[by_code], return_index=True)
        self._texts = texts[by_code]
        means = np.add.reduceat(self._texts, self._starts)
        self.vectors = means / np.linalg.norm(means, axis=1, keepdims=True)

    def similarity(self, sentences: Vectors) -> Vectors:
        """Of each sentence to the closest text of each code: (sentences, codes).

        Every text is compared, so that what a search may miss does not blur what a head does.
        """
        return np.maximum.reduceat(sentences @ self._texts.T, self._starts, axis=1)


class Retriever:
    """The towers, frozen, and what they find."""

    def __init__(
        self,
        model: SentenceTransformer,
        tower: Embedder,
        max_tokens: int,
        codes: CodeVectors,
        system: CodeSystem,
    ) -> None:
        """`tower` embeds sentences, and `model` is the same tower as a module, to look inside."""
        self.model, self.tower = model, tower
        self._max_tokens, self._codes, self._system = max_tokens, codes, system
        self._reader = Reader()

    @classmethod
    def load(cls, settings: Settings, system: CodeSystem) -> Self:
        """The towers of the settings; the index is built unless the cache has it."""
        name = settings.towers.query
        model = open_tower(weights.resolve(name, settings.cache_dir))
        model = model.to(weights.fast_dtype(weights.pick_device())).eval()
        index = open_index(settings, system)
        codes = CodeVectors([code for code, _ in index.pairs], index.vectors())
        tower = load_embedder(name, settings)
        return cls(model, tower, settings.towers.max_tokens, codes, system)

    def shortlist(self, example: Example, size: int, *, with_gold: bool) -> Shortlist:
        """The `size` codes closest to any sentence; `with_gold` also the note's own that are not.

        Raises InputError for a note without a sentence.
        """
        note, system = example.note, self._system
        sentences = [
            note.span(sentence.start, sentence.end)
            for sentence in self._reader.sentences(note.text)
        ]
        if not sentences:
            raise InputError(f"{example.id} has no sentence: leave it out")
        vectors = self.tower.encode([query(sentence.text) for sentence in sentences])
        similarity = self._codes.similarity(vectors)
        best = similarity.max(axis=0)
        places = np.argsort(-best, kind="stable")[:size]
        known = [code for code in example.codes if code in system]
        own = np.isin(self._codes.codes, list(map(system.reported, known)))
        if with_gold:
            places = np.append(places, np.setdiff1d(own.nonzero(), places))
        spans = np.array([(sentence.start, sentence.end) for sentence in sentences])
        return Shortlist(
            id=example.id,
            gold=frozenset(map(system.stem_or_self, example.codes)),
            tokens=read_tokens(self.model, sentences, self._max_tokens),
            codes=tuple(self._codes.codes[places].tolist()),
            vectors=torch.from_numpy(self._codes.vectors[places]),
            similarity=torch.from_numpy(best[places]),
            closest=spans[similarity[:, places].argmax(axis=0)],
            labels=torch.from_numpy(own[places]).float(),
        )
