"""Training of the head that orders a shortlist, and what it gives a note.

The towers stay as they are, so that each note is encoded once.
"""

import copy
import random
from collections.abc import Callable, Sequence
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field, NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits

from clh.evaluation import metrics, recipes
from clh.training.attention.head import LabelAttention
from clh.training.attention.shortlist import Shortlist

BEST = "map"  # of the held-out notes, by which the best epoch is kept


class HeadRecipe(recipes.Recipe):
    """A head, and how it is trained."""

    pooling: Literal["label-aware", "mean"]
    dimensions: PositiveInt
    epochs: PositiveInt
    batch: PositiveInt
    learning_rate: PositiveFloat
    weight_decay: NonNegativeFloat


class AttentionRecipe(recipes.Recipe):
    """What recipes/attention_*.yaml say."""

    shortlist: PositiveInt
    held_out: float = Field(gt=0, lt=1)
    seed: NonNegativeInt
    bootstrap: PositiveInt
    head: HeadRecipe | None


def train_head(
    head: LabelAttention,
    notes: Sequence[Shortlist],
    held_out: Sequence[Shortlist],
    recipe: HeadRecipe,
    seed: int,
    progress: Callable[[], object],
) -> list[dict[str, float]]:
    """Fit the head to the labels, and keep the epoch that ranks the held-out notes best.

    The loss is the binary cross-entropy over the codes of a shortlist. Returns the log, in which
    epoch 0 is the untrained head; `progress` is called after each epoch.
    """
    rng = random.Random(seed)  # noqa: S311
    optimizer = torch.optim.AdamW(
        head.parameters(), lr=recipe.learning_rate, weight_decay=recipe.weight_decay
    )
    best = copy.deepcopy(head.state_dict())
    log: list[dict[str, float]] = [{"epoch": 0, BEST: _map(head, held_out)}]
    for epoch in range(1, recipe.epochs + 1):
        losses = []
        head.train()
        shuffled = rng.sample(notes, len(notes))
        for start in range(0, len(shuffled), recipe.batch):
            batch = [_loss(head, note) for note in shuffled[start : start + recipe.batch]]
            optimizer.zero_grad()
            torch.stack(batch).mean().backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            losses += [loss.item() for loss in batch]
        score = _map(head, held_out)
        if score > max(row[BEST] for row in log):
            best = copy.deepcopy(head.state_dict())
        log.append({"epoch": epoch, "loss": float(np.mean(losses)), BEST: score})
        progress()
    head.load_state_dict(best)
    return log


def score_codes(note: Shortlist, head: LabelAttention | None) -> Tensor:
    """A score for each code of the shortlist: the head's probability, or else the similarity."""
    if head is None:
        return note.similarity
    with torch.no_grad():
        return _logits(head.eval(), note).sigmoid()


def find_evidence(note: Shortlist, head: LabelAttention | None) -> NDArray[np.int64]:
    """Where each code's most attended token starts and ends; without a head its best sentence."""
    if head is None:
        return note.closest
    with torch.no_grad():
        attention = head.eval().weights(note.tokens.states.float(), note.vectors)
    spans: NDArray[np.int64] = note.tokens.spans[attention.argmax(dim=1).numpy()]
    return spans


def _logits(head: LabelAttention, note: Shortlist) -> Tensor:
    logits: Tensor = head(note.tokens.states.float(), note.vectors, note.similarity)
    return logits


def _loss(head: LabelAttention, note: Shortlist) -> Tensor:
    return binary_cross_entropy_with_logits(_logits(head, note), note.labels)


def _map(head: LabelAttention, notes: Sequence[Shortlist]) -> float:
    ranked = [note.rank(score_codes(note, head)) for note in notes]
    return metrics.rank_scores(ranked, ())[BEST]
