"""The vector index: every text of the code system, searched coarse-to-fine."""

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple, Self

import numpy as np
from numpy.typing import ArrayLike, NDArray

from clh.cache import build_once, sha256
from clh.config import Settings
from clh.errors import InputError, ModelError
from clh.icd.index import read_index
from clh.icd.tabular import CodeSystem
from clh.models import weights
from clh.models.embedder import Vectors, load_embedder
from clh.retrieval.lexical import Lexicon, searchable
from clh.retrieval.text_vectors import TextVectors, principal_axes

_FORMAT = 6  # of what is in a folder; a new number makes a new cache key
_TEXTS = "texts.json"
_WORDS = "words.npz"
_AXES, _FULL, _COARSE = "axes.npy", "full.npy", "coarse.npy"
_ARRAYS = (_AXES, _FULL, _COARSE)

_GROUP = 16  # texts
_CHUNK = 64  # queries scanned at once: for fewer, reading the texts costs more than the product


class Hit(NamedTuple):
    """A text of the code system that lies close to a query."""

    code: str
    text: str
    score: float


class CodeIndex:
    """All texts are scanned at a few dimensions; a shortlist is rescored at all of them.

    Vectors are kept along the principal axes of the texts, largest first. Axes along which all
    texts are 0 are dropped, which changes no similarity: a linear head from 384 to 768 dimensions
    leaves 384. The few dimensions are the first axes, renormalised: 64 of them find more than the
    first 64 dimensions do, even of a model trained for truncation (matryoshka).
    """

    def __init__(
        self,
        axes: Vectors,
        full: Vectors,
        coarse: Vectors,
        pairs: list[tuple[str, str]],
        lexicon: Lexicon,
    ) -> None:
        """Wrap (code, text) pairs, the words of the texts, and their vectors in the same order.

        `axes` is (dimensions, axes), `full` (texts, axes), and `coarse` (texts, first axes).
        """
        if not len(full) == len(coarse) == len(pairs):
            raise ModelError("the index and its texts differ: run `clh index build --force`")
        self._axes, self._full, self._coarse = axes, full, coarse
        self._pairs = pairs
        self.lexicon = lexicon

    @classmethod
    def build(cls, pairs: list[tuple[str, str]], vectors: Vectors, coarse_dim: int) -> Self:
        """An index over `vectors`, float32 of shape (pairs, dimensions), L2-normalised."""
        axes = principal_axes(vectors)
        full = vectors @ axes
        coarse = full[:, :coarse_dim]
        lengths = np.linalg.norm(coarse, axis=1, keepdims=True)
        coarse = coarse / np.maximum(lengths, np.finfo(np.float32).tiny)
        return cls(axes, full, coarse, pairs, Lexicon.of([text for _, text in pairs]))

    def save(self, folder: Path) -> None:
        """Write the index into `folder`."""
        for name, array in zip(_ARRAYS, (self._axes, self._full, self._coarse), strict=True):
            np.save(folder / name, array)
        (folder / _TEXTS).write_text(json.dumps(self._pairs), encoding="utf-8")
        self.lexicon.save(folder / _WORDS)

    @classmethod
    def load(cls, folder: Path) -> Self:
        """Map the index in `folder` into memory; ModelError when it cannot be read."""
        try:
            # As plain arrays: NumPy spends more on indexing its own kind for mapped files.
            axes, full, coarse = (
                np.asarray(np.load(folder / name, mmap_mode="r")) for name in _ARRAYS
            )
            pairs = [
                (code, text) for code, text in json.loads((folder / _TEXTS).read_text("utf-8"))
            ]
            lexicon = Lexicon.load(folder / _WORDS)
        except (OSError, EOFError, TypeError, ValueError) as error:
            raise ModelError(
                f"the index in {folder} cannot be read: run `clh index build --force`"
            ) from error
        return cls(axes, full, coarse, pairs, lexicon)

    def __len__(self) -> int:
        """The number of texts."""
        return len(self._pairs)

    @property
    def pairs(self) -> list[tuple[str, str]]:
        """(code, text) of each vector."""
        return self._pairs

    def vectors(self, rows: ArrayLike | None = None) -> Vectors:
        """The vectors of some rows at full dimensions, or all in the order of the texts."""
        chosen = self._full if rows is None else self._full[np.asarray(rows, dtype=np.int64)]
        vectors: Vectors = chosen @ self._axes.T
        return vectors

    def project(self, queries: Vectors) -> Vectors:
        """The queries along the axes of the index; their similarities to texts stay the same."""
        projected: Vectors = queries @ self._axes
        return projected

    def along_axes(self, rows: ArrayLike) -> Vectors:
        """The vectors of some rows along the axes, to be multiplied with projected queries."""
        return self._full[np.asarray(rows, dtype=np.int64)]

    def nearest(self, queries: Vectors, k: int, shortlist: int) -> list[list[Hit]]:
        """For each query the `k` nearest texts, best first, out of a shortlist rescored in full."""
        scores, rows = self.closest(queries, k, shortlist)
        found = []
        for near, similar in zip(rows.tolist(), scores.tolist(), strict=True):
            pairs = [self._pairs[row] for row in near]
            hits = zip(pairs, similar, strict=True)
            found.append([Hit(code, text, score) for (code, text), score in hits])
        return found

    def closest(
        self, queries: Vectors, k: int, shortlist: int = 0
    ) -> tuple[Vectors, NDArray[np.int64]]:
        """Similarities and rows of the `k` nearest texts, best first: (queries, k) each.

        `k` is all texts if there are fewer, and the shortlist is at least as long.
        """
        k = min(k, len(self))
        shortlist = min(max(shortlist, k), len(self))
        scores = np.empty((len(queries), k), np.float32)
        rows = np.empty((len(queries), k), np.int64)
        projected = self.project(queries)
        for start in range(0, len(queries), _CHUNK):
            some = projected[start : start + _CHUNK]
            coarse = some[:, : self._coarse.shape[1]] @ self._coarse.T
            for place, (query, scanned) in enumerate(zip(some, coarse, strict=True), start):
                near = _largest(scanned, shortlist)
                similar = self._full[near] @ query
                best = np.argsort(-similar, kind="stable")[:k]
                scores[place], rows[place] = similar[best], near[best]
        return scores, rows


def _largest(values: Vectors, k: int) -> NDArray[np.int64]:
    """Where the `k` largest values are, in the order of their places.

    They lie in the `k` groups of values with the largest maxima, which are found first: most
    values are only looked at once.
    """
    groups = len(values) // _GROUP
    if k >= groups:
        return np.sort(np.argpartition(-values, k - 1)[:k])
    inside = values[: groups * _GROUP].reshape(_GROUP, groups)
    chosen = np.argpartition(inside.max(axis=0), -k)[-k:]
    near = (chosen + groups * np.arange(_GROUP)[:, None]).ravel()
    near = np.append(near, np.arange(groups * _GROUP, len(values)))
    return np.sort(near[np.argpartition(values[near], -k)[-k:]])


def open_index(
    settings: Settings,
    system: CodeSystem,
    progress: Callable[[int, int], None] | None = None,
    rebuild: bool = False,
) -> CodeIndex:
    """The index of the release under the code tower: built once, then read from the cache.

    A category's texts lead to the code that the book gives to a mention without more detail.
    `progress` is called with the texts embedded so far and their total. Raises ModelError for a
    damaged cache, InputError for an Alphabetic Index file that is none.
    """

    def build(partial: Path) -> None:
        terms = (term for file in settings.index_files for term in read_index(file))
        pairs = searchable(system, terms)
        texts = sorted({text for _, text in pairs})
        embedder = load_embedder(settings.towers.code, settings)
        done = 0

        def advance(count: int) -> None:
            nonlocal done
            done += count
            if progress is not None:
                progress(done, len(texts))

        vectors = np.empty((len(texts), embedder.dimensions), np.float32)
        missing = np.arange(len(texts))
        tower = weights.resolve(settings.towers.code, settings.cache_dir)
        if stored := TextVectors.load(tower, embedder.id):
            places, vectors[places] = stored.find(texts)
            missing = np.setdiff1d(missing, places)
            advance(len(places))
        vectors[missing] = embedder.encode([texts[place] for place in missing], advance)
        rows = {text: row for row, text in enumerate(texts)}
        each = vectors[[rows[text] for _, text in pairs]]
        named = [(system.reported(code), text) for code, text in pairs]
        CodeIndex.build(named, each, settings.locate.coarse_dim).save(partial)

    folder = index_folder(settings, system)
    return CodeIndex.load(build_once(folder, build, rebuild=rebuild))


def index_folder(settings: Settings, system: CodeSystem) -> Path:
    """Where the cache keeps the index of the release and of the settings' files.

    InputError for a file that cannot be read.
    """
    tower = settings.towers.code
    tower_id = weights.model_id(tower, weights.resolve(tower, settings.cache_dir))
    try:
        files = [sha256(file) for file in settings.index_files]
    except OSError as error:
        raise InputError(f"cannot read the index {error.filename}: {error.strerror}") from error
    built_from = json.dumps(
        [_FORMAT, settings.locate.coarse_dim, settings.towers.max_tokens, files]
    )
    key = hashlib.sha256(built_from.encode()).hexdigest()[:8]
    return settings.cache_dir / f"index-{system.release}-{tower_id.replace('/', '--')}-{key}"
