"""Vectors of the code book's texts that come with a tower, so that the first index takes seconds.

Each number is an integer from -127 to 127 along one of the principal axes of the texts. A text is
known by a hash, so that vectors serve every release that has the text.
"""

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple, Self

import numpy as np
from numpy.typing import NDArray

from clh.errors import ModelError
from clh.models.embedder import Vectors

FILE = Path("texts") / "vectors.safetensors"  # in the folder of a tower

_LARGEST = 127
_HELD = 0.9999  # share of the squared lengths of all vectors that the axes must hold
_SPREAD = 1e-6  # of the first axis's: what varies less is the rounding of float32
_TOWER = "tower"  # metadata: the checksum of the weights that made the vectors


class TextVectors(NamedTuple):
    """Vectors of some texts, sorted by the texts' keys."""

    keys: NDArray[np.uint64]
    values: NDArray[np.int8]  # (texts, axes)
    axes: NDArray[np.float16]  # (axes, dimensions), each as long as a value of 1 stands for

    @classmethod
    def of(cls, texts: Sequence[str], vectors: Vectors) -> Self:
        """Round the vectors of different texts, float32 of shape (texts, dimensions)."""
        along = vectors @ (axes := principal_axes(vectors))
        held = np.cumsum((along.astype(np.float64) ** 2).sum(axis=0))
        kept = int(np.searchsorted(held, _HELD * held[-1])) + 1
        along, axes = along[:, :kept], axes[:, :kept]
        steps = np.abs(along).max(axis=0) / _LARGEST
        keys = _keys(texts)
        order = np.argsort(keys)
        values = np.round(along[order] / steps).astype(np.int8)
        return cls(keys[order], values, (axes * steps).T.astype(np.float16))

    def save(self, folder: Path, tower_id: str) -> None:
        """Write the file into the folder of the tower that is reported as `tower_id`."""
        from safetensors.numpy import save_file

        (folder / FILE).parent.mkdir(exist_ok=True)
        save_file(self._asdict(), folder / FILE, {_TOWER: _checksum(tower_id)})

    @classmethod
    def load(cls, folder: Path, tower_id: str) -> Self | None:
        """The vectors in a tower's folder; None if there are none of these weights.

        ModelError for a file that cannot be read.
        """
        from safetensors import SafetensorError, safe_open

        if not (folder / FILE).is_file():
            return None
        try:
            with safe_open(folder / FILE, framework="numpy") as file:
                if file.metadata()[_TOWER] != _checksum(tower_id):
                    return None
                return cls(*(file.get_tensor(name) for name in cls._fields))
        except (OSError, SafetensorError, KeyError, TypeError) as error:
            raise ModelError(f"{folder / FILE} is damaged: delete it, or install again") from error

    def find(self, texts: Sequence[str]) -> tuple[NDArray[np.intp], Vectors]:
        """The places of the texts that have vectors, and these vectors, L2-normalised."""
        keys = _keys(texts)
        rows = np.minimum(np.searchsorted(self.keys, keys), len(self.keys) - 1)
        places = np.flatnonzero(self.keys[rows] == keys)
        vectors = self.values[rows[places]].astype(np.float32) @ self.axes.astype(np.float32)
        return places, vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def principal_axes(vectors: Vectors) -> Vectors:
    """Orthonormal axes, (dimensions, axes), that the vectors vary along; the most, first.

    Axes along which all vectors are 0 are dropped, which changes no similarity.
    """
    spread, axes = np.linalg.eigh((vectors.T @ vectors).astype(np.float64))
    kept = spread > _SPREAD * spread[-1]
    return axes[:, kept][:, ::-1].astype(np.float32)


def _keys(texts: Sequence[str]) -> NDArray[np.uint64]:
    digests = (hashlib.blake2b(text.encode(), digest_size=8).digest() for text in texts)
    return np.frombuffer(b"".join(digests), "<u8")


def _checksum(tower_id: str) -> str:
    return tower_id.rpartition("@")[2]
