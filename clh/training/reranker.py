"""Training of the reranker with sentence-transformers' trainer for cross-encoders."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from datasets import Dataset
from numpy.typing import NDArray
from pydantic import Field, NonNegativeFloat, PositiveFloat, PositiveInt
from sentence_transformers import (
    CrossEncoder,
    CrossEncoderTrainer,
    CrossEncoderTrainingArguments,
)
from sentence_transformers.base.sampler import DefaultBatchSampler
from sentence_transformers.cross_encoder.losses import BinaryCrossEntropyLoss
from transformers.trainer_pt_utils import LengthGroupedSampler

from clh.errors import ModelError
from clh.models import weights
from clh.training.trainer import TrainerRecipe, trainer_arguments

LabelledPair = tuple[tuple[str, str], bool]  # two texts, and whether they mean the same


class RerankerRecipe(TrainerRecipe):
    """What recipes/train_verifier.yaml says."""

    profile: str
    folds: PositiveInt
    negatives: NonNegativeFloat
    dropout: float = Field(ge=0, lt=1)
    attention: Literal["eager", "sdpa", "flash_attention_2"]
    regularisation: PositiveFloat


def open_reranker(folder: Path, max_tokens: int, attention: str | None = None) -> CrossEncoder:
    """The cross-encoder in `folder`, offline and in float32, whose scores are log-odds.

    An encoder without an output gets a new one. `attention` is the backend that computes it, that
    of transformers if None. Raises ModelError if there is no encoder.
    """
    from safetensors import SafetensorError

    weights.silence_bars()
    try:
        reranker: CrossEncoder = CrossEncoder(
            str(folder),
            num_labels=1,
            max_length=max_tokens,
            activation_fn=torch.nn.Identity(),
            local_files_only=True,
            model_kwargs={"dtype": torch.float32, "attn_implementation": attention},
        )
    except (OSError, ValueError, KeyError, RuntimeError, SafetensorError) as error:
        reason = str(error).partition("\n")[0]
        raise ModelError(f"cannot load a cross-encoder from {folder}: {reason}") from error
    return reranker


class RerankerTrainer(CrossEncoderTrainer):
    """The library's trainer, whose checkpoints quote nothing of what is trained on."""

    def add_model_card_callback(self, default_args_dict: dict[str, Any]) -> None:
        """Leave out the model card's samples of the dataset: they are sentences of notes."""


class LengthBatchSampler(DefaultBatchSampler):
    """Batches of pairs of like length, so that little is spent on padding; others each epoch."""

    def __init__(
        self,
        dataset: Dataset,
        batch_size: int,
        drop_last: bool,
        *,
        generator: torch.Generator,
        seed: int,
        **_: Any,
    ) -> None:
        """Take what sentence-transformers gives any batch sampler."""
        lengths = [len(row["mention"]) + len(row["code_text"]) for row in dataset]
        by_length = LengthGroupedSampler(batch_size, lengths=lengths, generator=generator)
        super().__init__(by_length, batch_size=batch_size, drop_last=drop_last)
        self._generator, self._seed = generator, seed

    def __iter__(self) -> Iterator[list[int]]:
        """The rows of each batch; those of an epoch are the same after a restart."""
        self._generator.manual_seed(self._seed + self.epoch)
        yield from super().__iter__()


def build_trainer(
    reranker: CrossEncoder, pairs: Sequence[LabelledPair], recipe: RerankerRecipe, folder: Path
) -> RerankerTrainer:
    """The trainer that teaches which pairs mean the same, by binary cross-entropy."""
    dataset = Dataset.from_dict(
        {
            "mention": [texts[0] for texts, _ in pairs],
            "code_text": [texts[1] for texts, _ in pairs],
            "label": [float(right) for _, right in pairs],
        }
    )
    return RerankerTrainer(
        reranker,
        CrossEncoderTrainingArguments(
            **trainer_arguments(recipe, folder), batch_sampler=LengthBatchSampler
        ),
        dataset,
        loss=BinaryCrossEntropyLoss(reranker),
    )


def score_pairs(
    reranker: CrossEncoder, pairs: Sequence[tuple[str, str]], batch: int
) -> NDArray[np.float32]:
    """The log-odds of each pair, in order: float32, (pairs,)."""
    scores: NDArray[np.float32] = reranker.predict(
        list(pairs), batch_size=batch, show_progress_bar=False
    )
    return scores
