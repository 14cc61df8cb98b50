"""The cross-encoder: one model reads what a note says and what a code means, together."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from clh.config import Settings
from clh.errors import ModelError
from clh.models import weights


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


def load_crossencoder(name: str, settings: Settings) -> CrossEncoder:
    """The cross-encoder whose weights `name` names, as in `clh.models.resolve`."""
    folder = weights.resolve(name, settings.cache_dir)
    model, tokenizer = open_crossencoder(folder, weights.fast_dtype("cpu"))
    named, reranking = weights.model_id(name, folder), settings.verify.reranking
    return CrossEncoder(model, tokenizer, named, reranking.max_tokens, reranking.batch)


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
