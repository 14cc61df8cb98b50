"""The shipped embedder and reranker, and any folder of sentence-transformers that a user names."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from clh.config import Settings
from clh.errors import ModelError
from clh.models import weights
from clh.models.embedder import OnnxEmbedder, load_embedder
from clh.models.reranker import OnnxReranker, load_reranker

NAME, RERANKER = "clh-towers", "verify-codiesp"
TEXTS = [
    "Community acquired pneumonia of the left lower lobe, with a small pleural effusion",
    "gout",
    "Pain in right knee",
    "lung infection",
    "Type 2 diabetes mellitus with diabetic chronic kidney disease, stage 3",
]


@pytest.fixture(scope="module")
def embedder() -> OnnxEmbedder:
    return load_embedder(NAME, Settings.load(towers={"batch_tokens": 32}))


@pytest.fixture(scope="module")
def reranker() -> OnnxReranker:
    return load_reranker(RERANKER, Settings.load())


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    """The folder of the towers, to change."""
    return shutil.copytree(weights.source(NAME), tmp_path / "copy")


def test_rows_are_unit_vectors_of_float32(embedder: OnnxEmbedder) -> None:
    vectors = embedder.encode([*TEXTS, "", " \n", "38.5 °C 🤒"])
    assert (vectors.shape, vectors.dtype) == ((8, 768), np.float32)
    assert embedder.dimensions == 768
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-5)


@pytest.mark.parametrize("batch_tokens", [1, 32, 512])
@pytest.mark.parametrize("order", [[4, 3, 2, 1, 0], [2, 0, 3, 1, 4]])
def test_a_text_has_the_same_vector_whatever_is_read_beside_it(
    embedder: OnnxEmbedder, order: list[int], batch_tokens: int
) -> None:
    other = load_embedder(NAME, Settings.load(towers={"batch_tokens": batch_tokens}))
    np.testing.assert_allclose(
        other.encode([TEXTS[place] for place in order]), embedder.encode(TEXTS)[order], atol=1e-6
    )


def test_meaning_counts_more_than_words(embedder: OnnxEmbedder) -> None:
    pneumonia, gout, knee, lung, _ = embedder.encode(TEXTS)
    assert pneumonia @ lung > max(pneumonia @ gout, pneumonia @ knee)


def test_progress_adds_up(embedder: OnnxEmbedder) -> None:
    counts: list[int] = []
    embedder.encode(TEXTS, counts.append)
    assert sum(counts) == len(TEXTS)
    assert len(counts) > 1


def test_more_texts_than_are_tokenised_at_once(
    embedder: OnnxEmbedder, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = embedder.encode(TEXTS)
    monkeypatch.setattr("clh.models.encoder._CHUNK", 2)
    np.testing.assert_allclose(embedder.encode(TEXTS), whole, atol=1e-6)


def test_no_texts(embedder: OnnxEmbedder, reranker: OnnxReranker) -> None:
    assert embedder.encode([]).shape == (0, 768)
    assert reranker.score([]).shape == (0,)


def test_texts_are_cut_at_the_maximum(embedder: OnnxEmbedder) -> None:
    one, other = embedder.encode(["knee " * 300 + "gout", "knee " * 300 + "pneumonia"])
    np.testing.assert_allclose(one, other, atol=1e-6)


def test_the_id_names_the_weights(embedder: OnnxEmbedder) -> None:
    assert embedder.id == weights.model_id(NAME, weights.source(NAME))
    name, _, checksum = embedder.id.partition("@")
    assert name == NAME
    assert len(checksum) == 8
    assert int(checksum, 16) >= 0


@pytest.mark.parametrize("file", ["2_Dense/model.safetensors", "model.onnx"])
def test_the_id_changes_with_all_that_changes_vectors(copy: Path, file: str) -> None:
    before = weights.model_id(str(copy), copy)
    with (copy / file).open("ab") as stream:
        stream.write(b"\0")
    assert weights.model_id(str(copy), copy) != before


def test_a_reranker_prefers_what_the_sentence_says(reranker: OnnxReranker) -> None:
    sentence = "chest pain: He has had chest pain since this morning."
    titles = ["Chest pain, unspecified", "Gout, unspecified", "Pain in right knee"]
    scores = reranker.score([(sentence, title) for title in titles])
    assert scores.dtype == np.float32
    assert scores.argmax() == 0
    np.testing.assert_array_equal(
        scores[::-1], reranker.score([(sentence, title) for title in titles[::-1]])
    )
    # Both texts may be longer than all that is read.
    assert np.isfinite(reranker.score([("pain " * 500, "gout " * 500)])).all()


# --- as the field's own library reads the same folders ---------------------------------------


@pytest.mark.integration
def test_sentence_transformers_gives_the_same_vectors(embedder: OnnxEmbedder) -> None:
    from sentence_transformers import SentenceTransformer

    model = SentenceTransformer(str(weights.source(NAME)), device="cpu")
    texts = [*TEXTS, "knee " * 300]
    cosines = (model.encode(texts) * embedder.encode(texts)).sum(axis=1)
    assert cosines.min() > 0.993  # all that int8 changes


@pytest.mark.integration
def test_sentence_transformers_gives_the_same_scores(reranker: OnnxReranker) -> None:
    from sentence_transformers import CrossEncoder

    model = CrossEncoder(str(weights.source(RERANKER)), device="cpu")
    pairs = [(text, title) for text in TEXTS for title in TEXTS]
    np.testing.assert_allclose(reranker.score(pairs), model.predict(pairs), atol=0.5)


# --- folders that cannot be used -------------------------------------------------------------


def test_a_folder_without_a_graph_says_how_to_export_one() -> None:
    with pytest.raises(ModelError, match=r"no model\.onnx: run `python experiments/export_onnx"):
        load_embedder("all-MiniLM-L6-v2", Settings.load())


@pytest.mark.parametrize("file", ["config.json", "tokenizer.json", "model.onnx"])
@pytest.mark.parametrize("damage", [b"", b"{", b"\xff" * 99])
def test_damaged_files(copy: Path, file: str, damage: bytes) -> None:
    (copy / file).write_bytes(damage)
    with pytest.raises(ModelError, match="cannot load an encoder from") as caught:
        load_embedder(str(copy), Settings.load())
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("file", ["modules.json", "1_Pooling/config.json", "2_Dense/config.json"])
def test_damaged_modules(copy: Path, file: str) -> None:
    (copy / file).write_text("{")
    with pytest.raises(ModelError, match="is damaged"):
        load_embedder(str(copy), Settings.load())


def test_weights_cut_short(copy: Path) -> None:
    whole = (copy / "model.safetensors").read_bytes()
    (copy / "model.safetensors").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ModelError, match="cannot load an encoder from"):
        load_embedder(str(copy), Settings.load())


def test_weights_in_another_layout_than_the_graph_has_the_offsets_of(copy: Path) -> None:
    file = copy / "model.safetensors"
    tensors = load_file(file)
    save_file(tensors, file, {"note": "the header is longer, so that all weights lie elsewhere"})
    with pytest.raises(ModelError, match=r"made for another model\.safetensors: run"):
        load_embedder(str(copy), Settings.load())


def test_weights_that_were_trained_on_in_place(copy: Path, embedder: OnnxEmbedder) -> None:
    file = copy / "model.safetensors"
    tensors = load_file(file)
    tensors["embeddings.word_embeddings.weight"] *= 0.5
    save_file(tensors, file, {"format": "pt"})
    changed = load_embedder(str(copy), Settings.load())
    assert (changed.encode(TEXTS) * embedder.encode(TEXTS)).sum(axis=1).max() < 0.9999


def test_more_tokens_than_the_encoder_reads() -> None:
    with pytest.raises(ModelError, match="reads at most 512 tokens"):
        load_embedder(NAME, Settings.load(towers={"max_tokens": 513}))


def test_an_embedder_is_not_a_reranker(copy: Path) -> None:
    with pytest.raises(ModelError, match="is not a reranker"):
        load_reranker(str(copy), Settings.load())


# --- other heads -----------------------------------------------------------------------------


def test_pooling_by_the_first_token_and_no_head(copy: Path, embedder: OnnxEmbedder) -> None:
    modules = json.loads((copy / "modules.json").read_text())
    (copy / "modules.json").write_text(json.dumps([*modules[:2], modules[3]]))
    (copy / "1_Pooling" / "config.json").write_text(
        json.dumps({"word_embedding_dimension": 384, "pooling_mode_cls_token": True})
    )
    vectors = load_embedder(str(copy), Settings.load()).encode(TEXTS)
    assert vectors.shape == (len(TEXTS), 384)
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-5)


@pytest.mark.parametrize(
    ("file", "content", "complaint"),
    [
        ("1_Pooling/config.json", {"pooling_mode": "max"}, "CLH runs mean and cls"),
        (
            "2_Dense/config.json",
            {"activation_function": "torch.nn.modules.activation.Tanh", "bias": False},
            "more than a linear layer",
        ),
        ("modules.json", [{"type": "x.LSTM", "path": "1_LSTM"}], "a module LSTM"),
    ],
)
def test_modules_that_are_not_supported(
    copy: Path, file: str, content: object, complaint: str
) -> None:
    (copy / file).write_text(json.dumps(content))
    with pytest.raises(ModelError, match=complaint):
        load_embedder(str(copy), Settings.load())
