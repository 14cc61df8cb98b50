"""Embedders: texts in, vectors out. The query tower embeds mentions, the code tower code texts."""

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from clh.config import Settings
from clh.errors import ModelError
from clh.models import weights
from clh.models.encoder import Batch, Encoder

Vectors = NDArray[np.float32]


class Embedder(Protocol):
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


class Dense(NamedTuple):
    """A linear layer on the pooled vectors, as sentence-transformers has it."""

    weight: NDArray[np.float32]  # (dimensions, width of the encoder)
    bias: NDArray[np.float32] | None


class OnnxEmbedder:
    """A sentence-transformers model: its encoder in ONNX Runtime, pooling and head in NumPy."""

    def __init__(self, id: str, encoder: Encoder, pooling: str, head: Sequence[Dense]) -> None:
        """`pooling` is `mean`, over all tokens, or `cls`, the first one."""
        self.id = id
        self._encoder, self._pooling, self._head = encoder, pooling, head
        self.dimensions = len(head[-1].weight) if head else encoder.width

    def encode(
        self, texts: Sequence[str], progress: Callable[[int], None] | None = None
    ) -> Vectors:
        """As `Embedder.encode`; texts beyond the encoder's maximum of tokens are cut there."""
        vectors = np.empty((len(texts), self.dimensions), dtype=np.float32)
        for batch in self._encoder.run(texts):
            pooled = _pool(batch, self._pooling)
            for layer in self._head:
                pooled = pooled @ layer.weight.T
                if layer.bias is not None:
                    pooled += layer.bias
            lengths = np.linalg.norm(pooled, axis=1, keepdims=True)
            # Of a text without tokens the vector is 0.
            vectors[batch.rows] = pooled / np.maximum(lengths, np.finfo(np.float32).tiny)
            if progress is not None:
                progress(len(batch.rows))
        return vectors


def load_embedder(name: str, settings: Settings) -> OnnxEmbedder:
    """The embedder whose weights `name` names, as in `clh.models.weights.resolve`.

    Its folder is one of sentence-transformers, with an ONNX graph of the encoder; without
    modules.json the tokens' mean is taken. ModelError for anything else.
    """
    folder = weights.resolve(name, settings.cache_dir)
    towers = settings.towers
    encoder = Encoder.load(folder, towers.max_tokens, towers.batch_tokens)
    try:
        pooling, head = _read_modules(folder)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ModelError(f"{folder} is damaged: {error}") from error
    return OnnxEmbedder(weights.model_id(name, folder), encoder, pooling, head)


def _pool(batch: Batch, pooling: str) -> Vectors:
    """The vector of each text: (texts, width)."""
    if pooling == "cls":
        return batch.output[:, 0]
    mask = batch.mask.astype(np.float32)
    sums = np.einsum("ijk,ij->ik", batch.output, mask)
    means: Vectors = sums / np.maximum(mask.sum(axis=1, keepdims=True), 1)
    return means


def _read_modules(folder: Path) -> tuple[str, list[Dense]]:
    """How tokens are pooled, and the linear layers after that; vectors are always normalised."""
    pooling = "mean"
    head: list[Dense] = []
    if not (folder / "modules.json").exists():
        return pooling, head
    for module in json.loads((folder / "modules.json").read_text(encoding="utf-8")):
        kind, path = module["type"].rpartition(".")[2], folder / module["path"]
        match kind:
            case "Transformer" | "Normalize":
                pass
            case "Pooling":
                pooling = _read_pooling(path)
            case "Dense":
                head.append(_read_dense(path))
            case _:
                raise ModelError(f"{folder} has a module {kind}, which CLH does not run")
    return pooling, head


def _read_pooling(folder: Path) -> str:
    config: dict[str, Any] = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    # Before sentence-transformers 6 each mode was a flag of its own.
    old = {"mean": "pooling_mode_mean_tokens", "cls": "pooling_mode_cls_token"}
    flags = [mode for mode, flag in old.items() if config.get(flag)]
    pooling = str(config.get("pooling_mode", "+".join(flags)))
    if pooling not in old:
        raise ModelError(f"{folder} pools tokens by {pooling!r}: CLH runs mean and cls")
    return pooling


def _read_dense(folder: Path) -> Dense:
    from safetensors import SafetensorError
    from safetensors.numpy import load_file

    config: dict[str, Any] = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    activation = config["activation_function"].rpartition(".")[2]
    if activation != "Identity" or config.get("use_residual"):
        raise ModelError(f"{folder} is more than a linear layer, which is all that CLH runs")
    try:
        tensors = load_file(folder / "model.safetensors")
    except SafetensorError as error:
        raise ModelError(f"{folder} is damaged: {error}") from error
    bias = tensors["linear.bias"].astype(np.float32) if config["bias"] else None
    return Dense(tensors["linear.weight"].astype(np.float32), bias)
