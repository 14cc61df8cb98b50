"""Training of the reranker: pairs of texts, and whether they belong together."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field, NonNegativeFloat, PositiveFloat, PositiveInt

from clh.errors import ModelError
from clh.models import weights
from clh.training import loop

if TYPE_CHECKING:
    from transformers import Trainer

Labelled = tuple[tuple[str, str], bool]


class Recipe(loop.Recipe):
    """What recipes/train_verifier.yaml says."""

    profile: str
    folds: PositiveInt
    negatives: NonNegativeFloat
    dropout: float = Field(ge=0, lt=1)
    attention: Literal["eager", "sdpa", "flash_attention_2"]
    regularisation: PositiveFloat


class CrossEncoder:
    """A Hugging Face encoder with one output, the log-odds that two texts mean the same."""

    def __init__(self, model: Any, tokenizer: Any, id: str, max_tokens: int, batch: int) -> None:
        """Wrap the model, which is named `id`; it reads `batch` pairs of `max_tokens` at once."""
        self.id = id
        self._model, self._tokenizer = model.eval(), tokenizer
        self._max_tokens, self._batch = max_tokens, batch

    def logits(self, pairs: Sequence[tuple[str, str]]) -> NDArray[np.float32]:
        """One for each pair, in order; of a pair that is too long the first text is cut."""
        logits = np.empty(len(pairs), dtype=np.float32)
        # Pairs of like length share a batch, so that little is spent on padding.
        by_length = sorted(range(len(pairs)), key=lambda i: sum(map(len, pairs[i])))
        for start in range(0, len(pairs), self._batch):
            rows = by_length[start : start + self._batch]
            firsts, seconds = zip(*(pairs[row] for row in rows), strict=True)
            read = self._tokenizer(
                [*firsts],
                [*seconds],
                padding=True,
                truncation="only_first",
                max_length=self._max_tokens,
                return_tensors="pt",
            ).to(self._model.device)
            with torch.inference_mode():
                logits[rows] = self._model(**read).logits[:, 0].float().numpy(force=True)
        return logits


def open_crossencoder(
    folder: Path, dtype: torch.dtype, *, to_train: bool = False
) -> tuple[Any, Any]:
    """The model and the tokenizer in `folder`, offline.

    An encoder without an output gets one if it is `to_train`. Raises ModelError if there is no
    encoder, or none with an output.
    """
    from safetensors import SafetensorError
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    weights.silence_bars()
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
        model, loaded = AutoModelForSequenceClassification.from_pretrained(
            folder, num_labels=1, dtype=dtype, local_files_only=True, output_loading_info=True
        )
    except (OSError, ValueError, KeyError, RuntimeError, SafetensorError) as error:
        reason = str(error).partition("\n")[0]
        raise ModelError(f"cannot load a cross-encoder from {folder}: {reason}") from error
    if loaded["missing_keys"] and not to_train:
        raise ModelError(f"{folder} is no trained cross-encoder: name another in verify.encoder")
    return model, tokenizer


def trainer(
    model: Any,
    tokenizer: Any,
    pairs: Sequence[Labelled],
    max_tokens: int,
    recipe: Recipe,
    folder: Path,
) -> "Trainer":
    """The trainer that teaches which pairs are right, by binary cross-entropy."""
    from datasets import Dataset, disable_progress_bars
    from transformers import DataCollatorWithPadding, Trainer, TrainingArguments

    disable_progress_bars()
    model.set_attn_implementation(recipe.attention)
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = recipe.dropout
    firsts, seconds = zip(*(texts for texts, _ in pairs), strict=True)
    read = tokenizer([*firsts], [*seconds], truncation="only_first", max_length=max_tokens)
    labels = [float(right) for _, right in pairs]
    lengths = [len(one) for one in read["input_ids"]]
    return Trainer(
        model,
        TrainingArguments(
            **loop.settings(recipe, folder),
            train_sampling_strategy="group_by_length",  # little is spent on padding
        ),
        DataCollatorWithPadding(tokenizer),
        Dataset.from_dict({**read, "labels": labels, "length": lengths}),
        compute_loss_func=_loss,
    )


def save(model: Any, tokenizer: Any, folder: Path) -> None:
    """Write the model in float16."""
    weights = {name: one.half() for name, one in model.state_dict().items()}
    model.save_pretrained(folder, state_dict=weights)
    tokenizer.save_pretrained(folder)


def _loss(outputs: Any, labels: torch.Tensor, **_: Any) -> torch.Tensor:
    logits = outputs.logits[:, 0].float()
    return torch.nn.functional.binary_cross_entropy_with_logits(logits, labels)
