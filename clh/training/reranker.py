"""Training of the cross-encoder: pairs of texts, and whether they belong together."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch
from pydantic import Field, NonNegativeFloat, PositiveFloat, PositiveInt

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
