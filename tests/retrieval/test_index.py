"""The vector index: it finds what an exact search finds, and a damaged file is never used."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from clh.config import Settings
from clh.errors import InputError, ModelError
from clh.models.embedder import Vectors
from clh.retrieval.index import CodeIndex, _largest, open_index
from clh.retrieval.lexical import searchable
from tests.fakes import ToyTower, toy_system

PAIRS = searchable(toy_system())
VECTORS = ToyTower().encode([text for _, text in PAIRS])
INDEX = CodeIndex.build(PAIRS, VECTORS, coarse_dim=16)
FILES = ["axes.npy", "full.npy", "coarse.npy", "texts.json", "words.npz"]


def vectors(*shape: int, seed: int = 0) -> Vectors:
    drawn = np.random.default_rng(seed).standard_normal(shape, dtype=np.float32)
    return drawn / np.linalg.norm(drawn, axis=-1, keepdims=True)


# --- search ---------------------------------------------------------------------------------


def test_a_text_finds_itself() -> None:
    hits = INDEX.nearest(ToyTower().encode(["knee pain", "cough"]), k=3, shortlist=20)

    assert [len(row) for row in hits] == [3, 3]
    assert {hit.code for hit in hits[0][:2]} == {"M25.56", "M25.569"}
    assert (hits[1][0].text, hits[1][0].score) == ("Cough", pytest.approx(1, abs=1e-3))
    assert all(row == sorted(row, key=lambda hit: -hit.score) for row in hits)


@given(
    k=st.integers(1, 12),
    coarse_dim=st.integers(8, 40),
    seed=st.integers(0, 100),
)
def test_a_full_shortlist_finds_what_an_exact_search_finds(
    k: int, coarse_dim: int, seed: int
) -> None:
    stored, queries = vectors(60, 32, seed=seed), vectors(4, 32, seed=seed + 1000)
    pairs = [(f"C{row}", f"text {row}") for row in range(60)]
    index = CodeIndex.build(pairs, stored, coarse_dim)

    found = index.nearest(queries, k, shortlist=60 + k)

    exact = queries @ index.vectors().T
    for row, hits in enumerate(found):
        assert [hit.score for hit in hits] == pytest.approx(
            sorted(exact[row])[: -k - 1 : -1], abs=1e-6
        )
        named = [exact[row][int(hit.code[1:])] for hit in hits]
        assert [hit.score for hit in hits] == pytest.approx(named, abs=1e-6)


@given(
    values=st.lists(st.integers(-50, 50), min_size=1, max_size=400),
    share=st.floats(0, 1),
)
def test_the_largest_values_are_found(values: list[int], share: float) -> None:
    k = max(1, int(share * len(values)))
    places = _largest(np.array(values, dtype=np.float32), k)
    assert sorted({*places.tolist()}) == places.tolist()
    assert sorted(values[place] for place in places) == sorted(values)[-k:]


def test_axes_that_tell_no_texts_apart_are_dropped() -> None:
    narrow = vectors(60, 12)
    wide = narrow @ vectors(12, 48, seed=1)
    wide /= np.linalg.norm(wide, axis=1, keepdims=True)
    index = CodeIndex.build([(f"C{row}", "") for row in range(60)], wide, 8)
    assert index.along_axes([0, 1]).shape == (2, 12)
    np.testing.assert_allclose(index.vectors(), wide, atol=1e-5)
    # Queries may have parts that no text has.
    queries = vectors(4, 48, seed=2)
    np.testing.assert_allclose(
        index.project(queries) @ index.along_axes(range(60)).T, queries @ wide.T, atol=1e-5
    )


def test_a_short_shortlist_still_finds_most_of_the_nearest() -> None:
    axes = vectors(8, 64) * (2.0 ** -np.arange(8, dtype=np.float32))[:, None]
    weights = np.random.default_rng(1).standard_normal((300, 8), dtype=np.float32)
    stored = weights @ axes + 0.02 * vectors(300, 64, seed=2)
    stored /= np.linalg.norm(stored, axis=1, keepdims=True)
    index = CodeIndex.build([(str(i), str(i)) for i in range(300)], stored, coarse_dim=8)

    found = index.nearest(stored[:50], k=5, shortlist=30)

    exact = np.argsort(-(stored[:50] @ stored.T), axis=1)[:, :5]
    shared = [
        len({int(h.code) for h in hits} & set(b))
        for hits, b in zip(found, exact.tolist(), strict=True)
    ]
    assert sum(shared) / 250 > 0.95


@pytest.mark.parametrize(("k", "found"), [(1, 1), (10_000, len(PAIRS))])
def test_as_many_as_asked_for_or_as_there_are(k: int, found: int) -> None:
    (hits,) = INDEX.nearest(VECTORS[:1], k=k, shortlist=1)
    assert len(hits) == found
    assert len(set(hits)) == found


def test_no_queries_no_hits() -> None:
    assert INDEX.nearest(VECTORS[:0], k=5, shortlist=50) == []
    assert [one.shape for one in INDEX.closest(VECTORS[:0], k=5)] == [(0, 5), (0, 5)]


# --- files ----------------------------------------------------------------------------------


def test_a_saved_index_is_the_same_when_loaded(tmp_path: Path) -> None:
    INDEX.save(tmp_path)
    loaded = CodeIndex.load(tmp_path)

    assert len(loaded) == len(INDEX) == len(PAIRS)
    assert loaded.pairs == PAIRS
    np.testing.assert_array_equal(loaded.vectors(), INDEX.vectors())
    np.testing.assert_allclose(loaded.vectors(), VECTORS, atol=1e-3)
    queries = ToyTower().encode(["chest pain", "sprained knee", "no such thing"])
    assert loaded.nearest(queries, 7, 30) == INDEX.nearest(queries, 7, 30)
    for text in ("pain in the right knee", "no such thing"):
        coverages = INDEX.lexicon.coverages(text)
        assert loaded.lexicon.coverages(text).tolist() == coverages.tolist()


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("damage", ["truncate", "empty", "garbage", "remove"])
def test_a_damaged_file_says_how_to_mend_it(tmp_path: Path, name: str, damage: str) -> None:
    INDEX.save(tmp_path)
    file = tmp_path / name
    match damage:
        case "truncate":
            file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
        case "empty":
            file.write_bytes(b"")
        case "garbage":
            file.write_bytes(b"\xff\xfe not an index" * 10)
        case "remove":
            file.unlink()

    with pytest.raises(ModelError, match="clh index build --force"):
        CodeIndex.load(tmp_path)


@pytest.mark.parametrize("texts", ["[]", "{}", "[1, 2]", '[["I10"]]', "null"])
def test_texts_that_do_not_belong_to_the_vectors(tmp_path: Path, texts: str) -> None:
    INDEX.save(tmp_path)
    (tmp_path / "texts.json").write_text(texts)
    with pytest.raises(ModelError, match="clh index build --force"):
        CodeIndex.load(tmp_path)


# --- the cache ------------------------------------------------------------------------------


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return settings_of(tmp_path)


def settings_of(folder: Path, weights: bytes = b"weights", **flags: Any) -> Settings:
    tower = folder / "tower"
    tower.mkdir(exist_ok=True)
    (tower / "config.json").write_text("{}")
    (tower / "model.safetensors").write_bytes(weights)
    flags.setdefault("towers", {"code": str(tower)})
    return Settings.load(cache_dir=folder / "cache", **flags)


def cached(settings: Settings) -> list[Path]:
    return [entry for entry in settings.cache_dir.iterdir() if entry.is_dir()]


@pytest.fixture(autouse=True)
def encoded(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many texts each call embedded, by a toy tower in place of any other."""
    counts: list[int] = []

    class Counting(ToyTower):
        def encode(self, texts: Any, progress: Any = None) -> Vectors:
            counts.append(len(texts))
            return super().encode(texts, progress)

    monkeypatch.setattr("clh.retrieval.index.load_embedder", lambda name, settings: Counting())
    return counts


def test_the_index_is_built_once(settings: Settings, encoded: list[int]) -> None:
    reports: list[tuple[int, int]] = []
    built = open_index(settings, toy_system(), lambda *report: reports.append(report))
    read = open_index(settings, toy_system(), lambda *report: reports.append(report))

    assert len(encoded) == 1
    assert encoded[0] < len(built)  # a text that two codes share is embedded once
    assert reports[-1] == (encoded[0], encoded[0])
    query = ToyTower().encode(["acute systolic heart failure"])
    (hits,) = read.nearest(query, 5, 50)
    assert hits[0].code == "I50.21"
    assert [hits] == built.nearest(query, 5, 50)


@pytest.mark.parametrize("name", FILES)
def test_a_truncated_index_is_refused_until_built_anew(settings: Settings, name: str) -> None:
    open_index(settings, toy_system())
    (folder,) = cached(settings)
    file = folder / name
    file.write_bytes(file.read_bytes()[:-100])

    with pytest.raises(ModelError, match=r"is damaged: delete that folder"):
        open_index(settings, toy_system())

    assert len(open_index(settings, toy_system(), rebuild=True)) == len(PAIRS)
    assert len(open_index(settings, toy_system())) == len(PAIRS)


def test_an_index_is_kept_for_all_that_it_depends_on(tmp_path: Path, encoded: list[int]) -> None:
    def opened(weights: bytes = b"weights", **flags: Any) -> int:
        open_index(settings_of(tmp_path, weights, **flags), toy_system())
        return len(encoded)

    assert opened() == 1
    assert opened(policy="mention", locate={"candidates": 5}) == 1
    assert opened(weights=b"tuned") == 2
    assert opened(locate={"coarse_dim": 32}) == 3
    code = str(tmp_path / "tower")
    assert opened(towers={"code": code, "max_tokens": 6}) == 4
    assert opened(towers={"code": code, "batch_tokens": 6}) == 4
    assert opened() == 4
    assert len(cached(settings_of(tmp_path))) == 4


TERMS = """<ICD10CM.index><letter><mainTerm><title>Gonalgia</title><code>M25.56-</code>
</mainTerm></letter></ICD10CM.index>"""


def test_index_files_add_terms(tmp_path: Path) -> None:
    xml = tmp_path / "index.xml"
    xml.write_text(TERMS)
    bare, richer = settings_of(tmp_path), settings_of(tmp_path, index_files=[xml])
    gonalgia = ToyTower().encode(["gonalgia"])

    (found,) = open_index(richer, toy_system()).nearest(gonalgia, 1, 50)
    assert (found[0].code, found[0].text) == ("M25.569", "Gonalgia")
    (without,) = open_index(bare, toy_system()).nearest(gonalgia, 1, 50)
    assert without[0].score < 0.9

    xml.write_text(TERMS.replace("Gonalgia", "Knee ache"))
    (changed,) = open_index(richer, toy_system()).nearest(ToyTower().encode(["knee ache"]), 1, 50)
    assert changed[0].text == "Knee ache"


def test_an_index_file_that_is_none(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"gone\.xml"):
        open_index(settings_of(tmp_path, index_files=[tmp_path / "gone.xml"]), toy_system())
    (tmp_path / "table.xml").write_text("<ICD10CM.tabular/>")
    with pytest.raises(InputError, match="is not the Alphabetic Index"):
        open_index(settings_of(tmp_path, index_files=[tmp_path / "table.xml"]), toy_system())
