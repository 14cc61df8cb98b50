"""Rerankers: one model reads two texts together and scores whether they mean the same."""

from collections.abc import Sequence
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from clh.config import Settings
from clh.errors import ModelError
from clh.models import weights
from clh.models.encoder import Encoder


class Reranker(Protocol):
    """Anything that scores pairs of texts."""

    @property
    def id(self) -> str:
        """Name and checksum of the weights, as outputs report them."""
        ...

    def score(self, pairs: Sequence[tuple[str, str]]) -> NDArray[np.float32]:
        """The log-odds that the two texts of each pair mean the same: float32, (pairs,)."""
        ...


class OnnxReranker:
    """A cross-encoder with one output, in ONNX Runtime."""

    def __init__(self, id: str, encoder: Encoder) -> None:
        """Wrap the encoder, which is named `id`."""
        self.id = id
        self._encoder = encoder

    def score(self, pairs: Sequence[tuple[str, str]]) -> NDArray[np.float32]:
        """As `Reranker.score`; of a pair that is too long the longer text is cut."""
        logits = np.empty(len(pairs), dtype=np.float32)
        for batch in self._encoder.run(pairs):
            logits[batch.rows] = batch.output[:, 0]
        return logits


def load_reranker(name: str, settings: Settings) -> OnnxReranker:
    """The reranker whose weights `name` names, as in `clh.models.weights.resolve`.

    Its folder is that of a sentence-transformers CrossEncoder, with an ONNX graph. ModelError for
    anything else.
    """
    folder = weights.resolve(name, settings.cache_dir)
    reranking = settings.verify.reranking
    encoder = Encoder.load(folder, reranking.max_tokens, reranking.batch_tokens)
    if encoder.width != 1:
        raise ModelError(f"{folder} is not a reranker: name another in verify.reranking.model")
    return OnnxReranker(weights.model_id(name, folder), encoder)
