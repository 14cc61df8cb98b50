"""Re-ranking: what the towers find closest to a note, and a head that learns to order it.

The towers stay as they are, so that each note is encoded once.
"""

import copy
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, Self

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field, NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits

from clh.config import Settings
from clh.corpora import Example
from clh.document.reader import Reader
from clh.errors import InputError
from clh.evaluation import metrics, recipes
from clh.evaluation.metrics import Scored
from clh.icd.tabular import CodeSystem
from clh.models import weights
from clh.models.embedder import Embedder, Vectors
from clh.retrieval.index import open_index
from clh.retrieval.lexical import query
from clh.training.attention import LabelAttention, Tokens, read_tokens
from clh.training.towers import TextEncoder, TextTower

CHOSEN_BY = "map"  # of the held-out notes, by which the best epoch is kept

_BATCH = 128  # sentences encoded at once


class Head(recipes.Recipe):
    """A head, and how it is trained."""

    pooling: Literal["label-aware", "mean"]
    dimensions: PositiveInt
    epochs: PositiveInt
    batch: PositiveInt
    learning_rate: PositiveFloat
    weight_decay: NonNegativeFloat


class Recipe(recipes.Recipe):
    """What recipes/attention_*.yaml say."""

    shortlist: PositiveInt
    held_out: float = Field(gt=0, lt=1)
    seed: NonNegativeInt
    bootstrap: PositiveInt
    head: Head | None


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

    def ranked(self, scores: Tensor) -> Scored:
        """The note as the scorer takes it, given a score for each code."""
        return Scored(self.id, self.gold, dict(zip(self.codes, scores.tolist(), strict=True)))


class CodeVectors:
    """The texts of the code system under the ICD tower, code by code."""

    def __init__(self, codes: Sequence[str], texts: Vectors) -> None:
        """`texts` has a row for each text, and `codes` says what the text stands for."""
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
        encoder: TextEncoder,
        tower: Embedder,
        max_tokens: int,
        codes: CodeVectors,
        system: CodeSystem,
    ) -> None:
        """`encoder` is what `tower` embeds sentences with."""
        self.encoder, self.tower = encoder, tower
        self._max_tokens, self._codes, self._system = max_tokens, codes, system
        self._reader = Reader()

    @classmethod
    def load(cls, settings: Settings, system: CodeSystem) -> Self:
        """The towers of the settings; the index is built unless the cache has it."""
        name, max_tokens = settings.towers.query, settings.towers.max_tokens
        folder = weights.resolve(name, settings.cache_dir)
        encoder = TextEncoder.load(folder, weights.fast_dtype("cpu")).eval()
        tower = TextTower(encoder, weights.model_id(name, folder), max_tokens, _BATCH)
        index = open_index(settings, system)
        codes = CodeVectors([code for code, _ in index.pairs], index.vectors())
        return cls(encoder, tower, max_tokens, codes, system)

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
            raise InputError(f"{example.id} says nothing: leave it out")
        vectors = self.tower.encode([query(sentence.text) for sentence in sentences])
        similarity = self._codes.similarity(vectors)
        best = similarity.max(axis=0)
        places = np.argsort(-best, kind="stable")[:size]
        known = [code for code in example.codes if code in system]
        own = np.isin(self._codes.codes, list(map(system.reported, known)))
        if with_gold:
            places = np.append(places, np.setdiff1d(own.nonzero(), places))
        spans = np.array([(one.start, one.end) for one in sentences])
        return Shortlist(
            id=example.id,
            gold=frozenset(system.stem_or_self(code) for code in example.codes),
            tokens=read_tokens(self.encoder, sentences, self._max_tokens),
            codes=tuple(self._codes.codes[places].tolist()),
            vectors=torch.from_numpy(self._codes.vectors[places]),
            similarity=torch.from_numpy(best[places]),
            closest=spans[similarity[:, places].argmax(axis=0)],
            labels=torch.from_numpy(own[places]).float(),
        )


def train(
    head: LabelAttention,
    notes: Sequence[Shortlist],
    held_out: Sequence[Shortlist],
    recipe: Head,
    seed: int,
    progress: Callable[[], object],
) -> list[dict[str, float]]:
    """Fit the head to the labels, and keep the epoch that ranks the held-out notes best.

    The loss is the binary cross-entropy over the codes of a shortlist. Returns the log, in which
    epoch 0 is the untrained head; `progress` is called after each epoch.
    """
    draw = random.Random(seed)  # noqa: S311
    optimizer = torch.optim.AdamW(
        head.parameters(), lr=recipe.learning_rate, weight_decay=recipe.weight_decay
    )
    best = copy.deepcopy(head.state_dict())
    log: list[dict[str, float]] = [{"epoch": 0, CHOSEN_BY: _map(head, held_out)}]
    for epoch in range(1, recipe.epochs + 1):
        losses = []
        head.train()
        shuffled = draw.sample(notes, len(notes))
        for start in range(0, len(shuffled), recipe.batch):
            batch = [_loss(head, note) for note in shuffled[start : start + recipe.batch]]
            optimizer.zero_grad()
            torch.stack(batch).mean().backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            losses += [one.item() for one in batch]
        score = _map(head, held_out)
        if score > max(one[CHOSEN_BY] for one in log):
            best = copy.deepcopy(head.state_dict())
        log.append({"epoch": epoch, "loss": float(np.mean(losses)), CHOSEN_BY: score})
        progress()
    head.load_state_dict(best)
    return log


def scores(note: Shortlist, head: LabelAttention | None) -> Tensor:
    """One for each code of the shortlist: the head's probability, or without one the similarity."""
    if head is None:
        return note.similarity
    with torch.no_grad():
        return _logits(head.eval(), note).sigmoid()


def evidence(note: Shortlist, head: LabelAttention | None) -> NDArray[np.int64]:
    """Where each code's most attended token starts and ends; without a head its best sentence."""
    if head is None:
        return note.closest
    with torch.no_grad():
        weights = head.eval().weights(note.tokens.states.float(), note.vectors)
    spans: NDArray[np.int64] = note.tokens.spans[weights.argmax(dim=1).numpy()]
    return spans


def best_threshold(notes: Sequence[Scored]) -> float:
    """The score from which on codes make the sets of the highest micro-F1."""
    values = [score for note in notes for score in note.predicted.values()]
    right = [code in note.gold for note in notes for code in note.predicted]
    curve = metrics.precision_recall(values, right, sum(len(note.gold) for note in notes))
    both = np.maximum(curve.precision + curve.recall, np.finfo(np.float64).tiny)
    return float(curve.threshold[(curve.precision * curve.recall / both).argmax()])


def _logits(head: LabelAttention, note: Shortlist) -> Tensor:
    logits: Tensor = head(note.tokens.states.float(), note.vectors, note.similarity)
    return logits


def _loss(head: LabelAttention, note: Shortlist) -> Tensor:
    return binary_cross_entropy_with_logits(_logits(head, note), note.labels)


def _map(head: LabelAttention, notes: Sequence[Shortlist]) -> float:
    return metrics.rank_scores([one.ranked(scores(one, head)) for one in notes], ())[CHOSEN_BY]
