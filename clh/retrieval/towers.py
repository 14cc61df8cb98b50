"""The towers: a query tower embeds mentions, a code tower embeds texts of the code system."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from clh import models
from clh.config import Settings
from clh.errors import ModelError

Vectors = NDArray[np.float32]


class Tower(Protocol):
    """Anything that embeds texts."""

    @property
    def id(self) -> str:
        """Name and checksum of the weights, as outputs report them."""
        ...

    def encode(
        self, texts: Sequence[str], progress: Callable[[int], None] | None = None
    ) -> Vectors:
        """One row per text, in order: float32 of shape (texts, dimensions), L2-normalised.

        `progress` is called with the number of texts just encoded.
        """
        ...


class TextTower:
    """A Hugging Face encoder, mean-pooled over its tokens; bfloat16 where the processor has it."""

    def __init__(self, folder: Path, id: str, max_tokens: int, batch: int) -> None:
        """Load the weights in `folder`, offline; ModelError if they are no encoder."""
        from safetensors import SafetensorError
        from transformers import AutoModel, AutoTokenizer

        models.silence_bars()
        self.id = id
        try:
            self._tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
            self._model = AutoModel.from_pretrained(
                folder, dtype=models.fast_dtype(), local_files_only=True
            ).eval()
        except (OSError, ValueError, SafetensorError) as error:
            reason = str(error).partition("\n")[0]
            raise ModelError(f"cannot load an encoder from {folder}: {reason}") from error
        self._max_tokens = max_tokens
        self._batch = batch

    def encode(
        self, texts: Sequence[str], progress: Callable[[int], None] | None = None
    ) -> Vectors:
        """As `Tower.encode`; texts beyond the tower's maximum of tokens are cut there."""
        import torch
        from torch.nn.functional import normalize

        vectors = np.empty((len(texts), self._model.config.hidden_size), dtype=np.float32)
        # Texts of like length share a batch, so that little is spent on padding.
        by_length = sorted(range(len(texts)), key=lambda i: len(texts[i]))
        for start in range(0, len(texts), self._batch):
            rows = by_length[start : start + self._batch]
            batch = self._tokenizer(
                [texts[row] for row in rows],
                padding=True,
                truncation=True,
                max_length=self._max_tokens,
                return_tensors="pt",
            )
            with torch.inference_mode():
                states = self._model(**batch).last_hidden_state.float()
                mask = batch["attention_mask"].unsqueeze(-1).float()
                pooled = normalize((states * mask).sum(1) / mask.sum(1), dim=-1)
            vectors[rows] = pooled.numpy()
            if progress is not None:
                progress(len(rows))
        return vectors


def load_tower(name: str, settings: Settings) -> Tower:
    """The tower whose weights `name` names, as in `clh.models.resolve`."""
    folder = models.resolve(name, settings.cache_dir)
    towers = settings.towers
    return TextTower(folder, models.model_id(name, folder), towers.max_tokens, towers.batch)
