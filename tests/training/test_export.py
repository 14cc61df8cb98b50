"""Exported graphs: they give what the library gives, hold no weights, and say what is missing."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from clh.config import Settings
from clh.errors import ModelError
from clh.models.embedder import load_embedder
from clh.models.encoder import Encoder
from clh.models.reranker import load_reranker
from clh.training.export import export_onnx
from tests.fakes import tiny_encoder

TEXTS = [
    "chronic systolic heart failure",
    "cough",
    "pain in right knee and other joint disorder",
    "",
]


def tower(folder: Path) -> Path:
    """A tiny tower with a head, as sentence-transformers saves it."""
    import torch
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.base.modules import Dense, Normalize, Transformer
    from sentence_transformers.sentence_transformer.modules import Pooling

    encoder = Transformer(str(tiny_encoder(folder / "encoder")))
    width = encoder.get_embedding_dimension()
    head = Dense(width, 48, bias=True, activation_function=torch.nn.Identity())
    model = SentenceTransformer(
        modules=[encoder, Pooling(width, "mean"), head, Normalize()], device="cpu"
    )
    model.save(str(folder / "tower"), create_model_card=False)
    return folder / "tower"


def reranker(folder: Path) -> Path:
    """A tiny cross-encoder, as sentence-transformers saves it."""
    from sentence_transformers import CrossEncoder

    model = CrossEncoder(str(tiny_encoder(folder / "encoder")), num_labels=1, device="cpu")
    model.save_pretrained(str(folder / "reranker"), create_model_card=False)
    return folder / "reranker"


@pytest.mark.parametrize(("quantize", "least"), [(False, 0.999999), (True, 0.99)])
def test_a_tower_gives_the_same_vectors(tmp_path: Path, quantize: bool, least: float) -> None:
    from sentence_transformers import SentenceTransformer

    folder = tower(tmp_path)
    file = export_onnx(folder, quantize=quantize)
    assert file == folder / "model.onnx"
    assert file.stat().st_size < 100_000

    embedder = load_embedder(str(folder), Settings.load())
    expected = SentenceTransformer(str(folder), device="cpu").encode(TEXTS)
    assert embedder.dimensions == 48
    vectors = embedder.encode(TEXTS)
    for text, vector, other in zip(TEXTS, vectors, expected, strict=True):
        assert vector @ other > least or not text  # of no tokens the vector is any
        assert not np.isnan(vector).any()


def test_a_reranker_gives_the_same_scores(tmp_path: Path) -> None:
    from sentence_transformers import CrossEncoder

    folder = reranker(tmp_path)
    export_onnx(folder, quantize=False)
    texts = list(filter(None, TEXTS))  # of no tokens at all a reranker gives any number
    pairs = [(one, other) for one in texts for other in texts]
    model = CrossEncoder(str(folder), device="cpu")
    expected = model.predict(pairs, activation_fn=lambda logits: logits)
    scores = load_reranker(str(folder), Settings.load()).score(pairs)
    np.testing.assert_allclose(scores, expected, atol=1e-5)


@pytest.mark.parametrize("dtype", [np.float16, np.float32])
def test_the_graph_reads_the_weights_beside_it(tmp_path: Path, dtype: type) -> None:
    folder = tiny_encoder(tmp_path)
    weights = load_file(folder / "model.safetensors")
    weights = {name: weight.astype(dtype) for name, weight in weights.items()}
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    export_onnx(folder)
    before = outputs(folder)

    changed = {name: np.zeros_like(weight) for name, weight in weights.items()}
    save_file(changed, folder / "model.safetensors", {"format": "pt"})
    assert np.abs(before).max() > 0.1
    np.testing.assert_array_equal(outputs(folder), np.zeros_like(before))


def outputs(folder: Path) -> np.ndarray:
    [batch] = Encoder.load(folder, 32, 512).run(["pain in right knee"])
    return batch.output


@pytest.mark.parametrize("texts", [1, 3])
@pytest.mark.parametrize("length", [1, 20])
def test_texts_of_any_number_and_length(tmp_path: Path, texts: int, length: int) -> None:
    folder = tiny_encoder(tmp_path)
    export_onnx(folder)
    batches = Encoder.load(folder, 32, 512).run([" ".join(["knee"] * length)] * texts)
    assert [batch.output.shape for batch in batches] == [(texts, length, 32)]


def damage_nothing(folder: Path) -> None:
    for file in folder.iterdir():
        file.unlink()


def damage_config(folder: Path) -> None:
    (folder / "config.json").write_text(json.dumps({"architectures": []}))


def damage_weights(folder: Path) -> None:
    (folder / "model.safetensors").write_bytes(b"\0" * 99)


@pytest.mark.parametrize("damage", [damage_nothing, damage_config, damage_weights])
def test_folders_that_hold_no_encoder(tmp_path: Path, damage: Callable[[Path], None]) -> None:
    folder = tiny_encoder(tmp_path)
    damage(folder)
    with pytest.raises(ModelError, match="cannot load an encoder from") as caught:
        export_onnx(folder)
    assert "\n" not in str(caught.value)
