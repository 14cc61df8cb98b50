"""Vectors that come with a tower: close to the exact ones, and never used for other weights."""

from pathlib import Path

import numpy as np
import pytest

from clh.config import Settings
from clh.errors import ModelError
from clh.icd.tabular import load_tabular
from clh.models import weights
from clh.models.embedder import load_embedder
from clh.retrieval.lexical import searchable
from clh.retrieval.text_vectors import FILE, TextVectors
from tests.fakes import ToyTower, toy_system

TEXTS = sorted({text for _, text in searchable(toy_system())})
VECTORS = ToyTower().encode(TEXTS)
TOWER = "toy@12345678"


def test_vectors_are_found_by_their_texts_and_hardly_rounded(tmp_path: Path) -> None:
    TextVectors.of(TEXTS, VECTORS).save(tmp_path, TOWER)
    stored = TextVectors.load(tmp_path, "./a/copy@12345678")
    assert stored is not None
    places, found = stored.find(["of a later release", *TEXTS[::-1], "zzz"])
    assert places.tolist() == list(range(1, len(TEXTS) + 1))
    assert np.sum(found * VECTORS[::-1], axis=1).min() > 0.999
    assert np.linalg.norm(found, axis=1) == pytest.approx(1)


def test_no_text_has_a_vector(tmp_path: Path) -> None:
    TextVectors.of(TEXTS, VECTORS).save(tmp_path, TOWER)
    stored = TextVectors.load(tmp_path, TOWER)
    assert stored is not None
    places, found = stored.find(["of a later release"])
    assert (places.size, found.shape) == (0, (0, VECTORS.shape[1]))


def test_vectors_of_other_weights_are_not_used(tmp_path: Path) -> None:
    assert TextVectors.load(tmp_path, TOWER) is None
    TextVectors.of(TEXTS, VECTORS).save(tmp_path, TOWER)
    assert TextVectors.load(tmp_path, "toy@87654321") is None


def test_a_damaged_file_is_told(tmp_path: Path) -> None:
    TextVectors.of(TEXTS, VECTORS).save(tmp_path, TOWER)
    (tmp_path / FILE).write_bytes((tmp_path / FILE).read_bytes()[:100])
    with pytest.raises(ModelError, match="damaged"):
        TextVectors.load(tmp_path, TOWER)


def test_the_towers_come_with_the_vectors_of_every_text() -> None:
    settings = Settings.load()
    tower = load_embedder(settings.towers.code, settings)
    folder = weights.resolve(settings.towers.code, settings.cache_dir)
    stored = TextVectors.load(folder, tower.id)
    assert stored is not None
    texts = sorted({text for _, text in searchable(load_tabular())})
    places, found = stored.find(texts)
    assert len(places) == len(texts)
    some = slice(None, None, 1000)
    assert np.sum(found[some] * tower.encode(texts[some]), axis=1).min() > 0.999
