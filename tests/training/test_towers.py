"""Towers in the library's own format: what they are built of, and what is written."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from sentence_transformers import SentenceTransformer

from clh.errors import ModelError
from clh.models import weights
from clh.training.towers import add_head, open_tower, save_half, set_dropout
from tests.fakes import tiny_encoder

TEXTS = ["knee pain", "cough", "acute heart failure"]


@pytest.fixture
def tower(tmp_path: Path) -> SentenceTransformer:
    return open_tower(tiny_encoder(tmp_path / "base"))


def test_a_new_head_keeps_all_angles(tower: SentenceTransformer) -> None:
    before = tower.encode(TEXTS, convert_to_tensor=True, normalize_embeddings=True)
    wide = add_head(tower, 48)
    after = wide.encode(TEXTS, convert_to_tensor=True)
    assert (wide.get_embedding_dimension(), after.shape) == (48, (3, 48))
    torch.testing.assert_close(after @ after.T, before @ before.T, rtol=1e-4, atol=1e-4)
    assert add_head(wide, 64) is wide  # it has one


def test_a_tower_is_saved_as_anybody_loads_it(tower: SentenceTransformer, tmp_path: Path) -> None:
    wide = add_head(tower, 48)
    expected = wide.encode(TEXTS)
    save_half(wide, tmp_path / "tower")
    files = {file.name for file in (tmp_path / "tower").rglob("*") if file.is_file()}
    assert {Path(name).suffix for name in files} <= {".json", ".safetensors", ".txt"}
    assert "README.md" not in files
    modules = json.loads((tmp_path / "tower" / "modules.json").read_text())
    names = [module["type"].rpartition(".")[2] for module in modules]
    assert names == ["Transformer", "Pooling", "Dense", "Normalize"]
    tensors = load_file(tmp_path / "tower" / "model.safetensors")
    tensors |= load_file(tmp_path / "tower" / "2_Dense" / "model.safetensors")
    assert {tensor.dtype for tensor in tensors.values()} == {torch.float16}
    # Saving leaves the tower as it is.
    assert wide.dtype == torch.float32

    loaded = SentenceTransformer(str(tmp_path / "tower"), local_files_only=True)
    torch.testing.assert_close(
        torch.tensor(loaded.encode(TEXTS)).float(), torch.tensor(expected), rtol=0, atol=5e-3
    )
    again = open_tower(tmp_path / "tower")
    assert again.dtype == torch.float32
    assert add_head(again, 64) is again


@pytest.mark.integration
def test_the_head_comes_before_the_normalization_of_the_base() -> None:
    wide = add_head(open_tower(weights.source("all-MiniLM-L6-v2")), 768)
    names = [type(module).__name__ for module in wide]
    assert names == ["Transformer", "Pooling", "Dense", "Normalize"]


def test_dropout_is_set_everywhere(tower: SentenceTransformer) -> None:
    set_dropout(tower, 0.3)
    rates = {module.p for module in tower.modules() if isinstance(module, torch.nn.Dropout)}
    assert rates == {0.3}


@pytest.mark.parametrize("damage", ["empty", "weights"])
def test_what_is_not_an_encoder_is_one_clear_line(tmp_path: Path, damage: str) -> None:
    folder = tmp_path / "base"
    if damage == "weights":
        tiny_encoder(folder)
        (folder / "model.safetensors").write_bytes(b"no tensors")
    else:
        folder.mkdir()
    with pytest.raises(ModelError, match="cannot load an encoder from") as error:
        open_tower(folder)
    assert "\n" not in str(error.value)
