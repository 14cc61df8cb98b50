"""The real text tower: rows are unit vectors, in the order of the texts."""

from pathlib import Path

import numpy as np
import pytest

from clh.config import Settings
from clh.errors import ModelError
from clh.models import weights
from clh.models.embedder import Tower, load_tower

pytestmark = pytest.mark.integration
NAME = "all-MiniLM-L6-v2"
TEXTS = [
    "Community acquired pneumonia of the left lower lobe, with a small pleural effusion",
    "gout",
    "Pain in right knee",
    "lung infection",
    "Type 2 diabetes mellitus with diabetic chronic kidney disease, stage 3",
]


@pytest.fixture(scope="module")
def tower() -> Tower:
    return load_tower(NAME, Settings.load(towers={"batch": 2}))


def test_rows_are_unit_vectors_of_float32(tower: Tower) -> None:
    vectors = tower.encode([*TEXTS, "", " \n", "38.5 °C 🤒"])
    assert (vectors.shape, vectors.dtype) == ((8, 384), np.float32)
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-5)


@pytest.mark.parametrize("order", [[4, 3, 2, 1, 0], [2, 0, 3, 1, 4]])
def test_rows_keep_the_order_of_the_texts(tower: Tower, order: list[int]) -> None:
    similarity = tower.encode([TEXTS[i] for i in order]) @ tower.encode(TEXTS).T
    assert similarity.argmax(axis=1).tolist() == order
    # Other neighbours in a batch bring other padding: close, to what bfloat16 can hold.
    assert similarity[np.arange(len(order)), order] == pytest.approx(1, abs=0.01)


def test_meaning_counts_more_than_words(tower: Tower) -> None:
    pneumonia, gout, knee, lung, _ = tower.encode(TEXTS)
    assert pneumonia @ lung > max(pneumonia @ gout, pneumonia @ knee)


def test_progress_adds_up(tower: Tower) -> None:
    counts: list[int] = []
    tower.encode(TEXTS, counts.append)
    assert counts == [2, 2, 1]


def test_no_texts(tower: Tower) -> None:
    assert tower.encode([]).shape == (0, 384)


def test_texts_are_cut_at_the_tower_s_maximum(tower: Tower) -> None:
    one, other = tower.encode(["knee " * 300 + "gout", "knee " * 300 + "pneumonia"])
    assert one @ other == pytest.approx(1, abs=1e-3)


def test_the_id_names_the_weights(tower: Tower) -> None:
    folder = weights.source(NAME)
    assert tower.id == weights.model_id(NAME, folder)
    name, _, checksum = tower.id.partition("@")
    assert name == NAME
    assert len(checksum) == 8
    assert int(checksum, 16) >= 0


def test_a_folder_without_weights(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"holds no \*\.safetensors"):
        load_tower(str(tmp_path), Settings.load())


@pytest.mark.parametrize("damage", ["truncate", "no tokenizer"])
def test_weights_that_cannot_be_read(tmp_path: Path, damage: str) -> None:
    for file in weights.source(NAME).iterdir():
        if file.suffix in (".json", ".safetensors", ".txt"):
            (tmp_path / file.name).symlink_to(file)
    if damage == "truncate":
        whole = (tmp_path / "model.safetensors").read_bytes()
        (tmp_path / "model.safetensors").unlink()
        (tmp_path / "model.safetensors").write_bytes(whole[:1_000_000])
    else:
        for file in tmp_path.glob("*.[jt]*"):
            file.unlink()

    with pytest.raises(ModelError, match="cannot load an encoder from") as caught:
        load_tower(str(tmp_path), Settings.load())
    assert "\n" not in str(caught.value)
