"""The towers as PyTorch modules: what training changes, and research reads inside of."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import normalize

from clh.errors import ModelError
from clh.models import weights
from clh.models.embedder import Vectors

_HEAD = "head.safetensors"  # beside the encoder's own files, of towers that were trained
_WEIGHT = "weight"


class TextEncoder(torch.nn.Module):
    """A Hugging Face encoder, mean-pooled over its tokens, and a linear head if it has one."""

    def __init__(self, encoder: Any, tokenizer: Any, head: torch.nn.Linear | None) -> None:
        """Put the parts together."""
        super().__init__()
        self.encoder, self.head = encoder, head
        self._tokenizer = tokenizer

    @classmethod
    def load(cls, folder: Path, dtype: torch.dtype = torch.float32) -> Self:
        """The weights in `folder`, offline; ModelError if they are no encoder."""
        from safetensors import SafetensorError
        from safetensors.torch import load_file
        from transformers import AutoModel, AutoTokenizer

        weights.silence_bars()
        try:
            tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
            encoder = AutoModel.from_pretrained(folder, dtype=dtype, local_files_only=True)
            head = None
            if (folder / _HEAD).exists():
                weight = load_file(folder / _HEAD)[_WEIGHT]
                head = torch.nn.Linear(weight.shape[1], weight.shape[0], bias=False)
                head.load_state_dict({_WEIGHT: weight})
        except (OSError, ValueError, KeyError, RuntimeError, SafetensorError) as error:
            reason = str(error).partition("\n")[0]
            raise ModelError(f"cannot load an encoder from {folder}: {reason}") from error
        return cls(encoder, tokenizer, head)

    def widen(self, dimensions: int) -> None:
        """Give the encoder a new head, which at first keeps all angles between its vectors."""
        self.head = torch.nn.Linear(self.encoder.config.hidden_size, dimensions, bias=False)
        torch.nn.init.orthogonal_(self.head.weight)

    def set_dropout(self, rate: float) -> None:
        """Change the share of activations that training leaves out."""
        for module in self.encoder.modules():
            if isinstance(module, torch.nn.Dropout):
                module.p = rate

    def save(self, folder: Path, dtype: torch.dtype) -> None:
        """Write what `load` reads into `folder`."""
        from safetensors.torch import save_file

        weights = {name: one.to(dtype) for name, one in self.encoder.state_dict().items()}
        self.encoder.save_pretrained(folder, state_dict=weights)
        self._tokenizer.save_pretrained(folder)
        if self.head is not None:
            save_file({_WEIGHT: self.head.weight.detach().to(dtype)}, folder / _HEAD)

    @property
    def dimensions(self) -> int:
        """Of a vector."""
        head = self.head
        return int(self.encoder.config.hidden_size if head is None else head.out_features)

    def tokens(self, texts: Sequence[str], max_tokens: int) -> Any:
        """The texts as the encoder reads them; beyond the maximum they are cut."""
        return self._tokenizer(
            list(texts), padding=True, truncation=True, max_length=max_tokens, return_tensors="pt"
        ).to(self.encoder.device)

    def forward(self, tokens: Any) -> Tensor:
        """One vector per text: (texts, dimensions), not normalised."""
        states = self.encoder(**tokens).last_hidden_state.float()
        mask = tokens["attention_mask"].unsqueeze(-1).float()
        pooled = (states * mask).sum(1) / mask.sum(1)
        vectors: Tensor = pooled if self.head is None else self.head(pooled)
        return vectors


class TextTower:
    """A text encoder at work; bfloat16 where the processor has it."""

    def __init__(self, encoder: TextEncoder, id: str, max_tokens: int, batch: int) -> None:
        """Wrap the encoder, which is named `id`; it reads `batch` texts of `max_tokens` at once."""
        self.id = id
        self._encoder = encoder
        self._max_tokens = max_tokens
        self._batch = batch

    def encode(
        self, texts: Sequence[str], progress: Callable[[int], None] | None = None
    ) -> Vectors:
        """As `Embedder.encode`; texts beyond the tower's maximum of tokens are cut there."""
        vectors = np.empty((len(texts), self._encoder.dimensions), dtype=np.float32)
        # Texts of like length share a batch, so that little is spent on padding.
        by_length = sorted(range(len(texts)), key=lambda i: len(texts[i]))
        for start in range(0, len(texts), self._batch):
            rows = by_length[start : start + self._batch]
            tokens = self._encoder.tokens([texts[row] for row in rows], self._max_tokens)
            with torch.inference_mode():
                vectors[rows] = normalize(self._encoder(tokens), dim=1).cpu().numpy()
            if progress is not None:
                progress(len(rows))
        return vectors
