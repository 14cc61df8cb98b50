"""The vector index: every text of the code system, searched coarse-to-fine."""

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple, Self

import faiss
import numpy as np
from numpy.typing import ArrayLike, NDArray

from clh.cache import build_once, sha256
from clh.config import Settings
from clh.errors import InputError, ModelError
from clh.icd.index import read_index
from clh.icd.tabular import CodeSystem
from clh.models import weights
from clh.models.embedder import Vectors, load_tower
from clh.retrieval.lexical import Lexicon, searchable

_FORMAT = 3  # of what is in a folder; a new number makes a new cache key
_VECTORS = "vectors.faiss"
_TEXTS = "texts.json"
_WORDS = "words.npz"
_THREADS = faiss.omp_get_max_threads()
_MANY = 16  # queries from which faiss uses all its threads
_BITS = 4  # of each dimension in the scan: faiss keeps such tables in registers


class Hit(NamedTuple):
    """A text of the code system that lies close to a query."""

    code: str
    text: str
    score: float


class CodeIndex:
    """All texts are scanned at a few dimensions; a shortlist is rescored at all of them.

    The few dimensions are the principal axes of the texts' vectors, renormalised: 64 of them find
    more than the first 64 dimensions do, even of a model trained for truncation (matryoshka). The
    scan is a product quantizer's (André et al., 2015, "Cache locality is not enough"); all
    dimensions are kept in float16.
    """

    def __init__(self, index: faiss.Index, pairs: list[tuple[str, str]], lexicon: Lexicon) -> None:
        """Wrap vectors, the (code, text) of each in the same order, and the texts' words."""
        if index.ntotal != len(pairs):
            raise ModelError("the index and its texts differ: run `clh index build --force`")
        self._index = index
        self._pairs = pairs
        self.lexicon = lexicon

    @classmethod
    def build(cls, pairs: list[tuple[str, str]], vectors: Vectors, coarse_dim: int) -> Self:
        """An index over `vectors`, float32 of shape (pairs, dimensions), L2-normalised.

        At least 16 of them, as each dimension of the scan has 16 levels.
        """
        _, dimensions = vectors.shape
        moment = (vectors.T @ vectors).astype(np.float64)
        axes = np.linalg.eigh(moment).eigenvectors[:, ::-1][:, :coarse_dim]  # largest first
        kept = axes.shape[1]
        project = faiss.LinearTransform(dimensions, kept, False)
        faiss.copy_array_to_vector(axes.T.astype(np.float32).ravel(), project.A)
        project.is_trained = True
        product = faiss.METRIC_INNER_PRODUCT
        scan = faiss.IndexPQFastScan(kept, kept, _BITS, product)
        scan.pq.cp.min_points_per_centroid = 1  # else faiss warns about small code systems
        coarse = faiss.IndexPreTransform(scan)
        coarse.prepend_transform(faiss.NormalizationTransform(kept))
        coarse.prepend_transform(project)
        full = faiss.IndexScalarQuantizer(dimensions, faiss.ScalarQuantizer.QT_fp16, product)
        index = faiss.IndexRefine(coarse, full)
        faiss.omp_set_num_threads(1)  # the steps of k-means are too small for more
        index.train(vectors)
        index.add(vectors)
        return cls(index, pairs, Lexicon.of([text for _, text in pairs]))

    def save(self, folder: Path) -> None:
        """Write the index into `folder`."""
        faiss.write_index(self._index, str(folder / _VECTORS))
        (folder / _TEXTS).write_text(json.dumps(self._pairs), encoding="utf-8")
        self.lexicon.save(folder / _WORDS)

    @classmethod
    def load(cls, folder: Path) -> Self:
        """Map the index in `folder` into memory; ModelError when it cannot be read."""
        try:
            index = faiss.read_index(str(folder / _VECTORS), faiss.IO_FLAG_MMAP_IFC)
            pairs = [
                (code, text) for code, text in json.loads((folder / _TEXTS).read_text("utf-8"))
            ]
            lexicon = Lexicon.load(folder / _WORDS)
        except (OSError, RuntimeError, TypeError, ValueError) as error:
            raise ModelError(
                f"the index in {folder} cannot be read: run `clh index build --force`"
            ) from error
        return cls(index, pairs, lexicon)

    def __len__(self) -> int:
        """The number of texts."""
        return len(self._pairs)

    @property
    def pairs(self) -> list[tuple[str, str]]:
        """(code, text) of each vector."""
        return self._pairs

    def vectors(self, rows: ArrayLike | None = None) -> Vectors:
        """The vectors of some rows at full dimensions, or all in the order of the texts."""
        refined: Any = faiss.downcast_index(self._index)
        stored = faiss.downcast_index(refined.refine_index)
        chosen = range(len(self)) if rows is None else rows
        vectors: Vectors = stored.reconstruct_batch(np.array(chosen, dtype=np.int64))
        return vectors

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
        if not len(queries):
            return np.empty((0, k), np.float32), np.empty((0, k), np.int64)
        # A few queries need no threads, and faiss's would hold up those of the tower.
        faiss.omp_set_num_threads(1 if len(queries) < _MANY else _THREADS)
        parameters = faiss.IndexRefineSearchParameters()
        parameters.k_factor = max(1.0, shortlist / k)
        scores, rows = self._index.search(queries, k, params=parameters)
        return scores, rows


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
        tower = load_tower(settings.towers.code, settings)
        done = 0

        def advance(count: int) -> None:
            nonlocal done
            done += count
            if progress is not None:
                progress(done, len(texts))

        vectors = tower.encode(texts, advance)
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
    built_from = json.dumps([_FORMAT, settings.locate.coarse_dim, files])
    key = hashlib.sha256(built_from.encode()).hexdigest()[:8]
    return settings.cache_dir / f"index-{system.release}-{tower_id.replace('/', '--')}-{key}"
