"""Training the towers: what a batch holds, and that weights and moments survive being written."""

from pathlib import Path

import pytest
import torch

from clh.errors import InputError, ModelError
from clh.evaluation.runs import read_recipe
from clh.icd.index import IndexTerm
from clh.retrieval.lexical import searchable
from clh.training.pairs import Pair, index_pairs
from clh.training.retriever import Columns, Data, Recipe, Relations
from clh.training.towers import TextEncoder
from tests.fakes import tiny_encoder, toy_system

RECIPE = Path(__file__).parents[2] / "experiments" / "recipes" / "train_retriever.yaml"
SYSTEM = toy_system()
TERMS = [IndexTerm(("Failure", "heart"), code="I50.9"), IndexTerm(("Cough",), code="R05.9")]
DOCUMENTS = [
    [Pair(("coughing all night",), frozenset({"R05.9"})), Pair(("he went home",), frozenset())],
    [Pair(("knee pain, cough",), frozenset({"M25.569", "R05.9"})), Pair(("rest",), frozenset())],
]


def recipe(**changed: object) -> Recipe:
    sizes = {"marked": 2, "unmarked": 1, "terms": 1}
    return read_recipe(RECIPE, Recipe).model_copy(update={**sizes, **changed})


def data(**changed: object) -> Data:
    return Data(DOCUMENTS, [], index_pairs(TERMS, SYSTEM, {}), TERMS, SYSTEM, recipe(**changed))


def test_a_step_has_always_the_same_batch() -> None:
    batches = [data().batch(step, process) for step in range(5) for process in range(2)]
    assert batches == [data().batch(step, process) for step in range(5) for process in range(2)]
    assert any(batch != batches[0] for batch in batches)


def test_every_positive_is_a_text_of_a_code_that_its_query_means() -> None:
    texts = {(SYSTEM.reported(code), text) for code, text in searchable(SYSTEM, TERMS)}
    texts |= {(code, SYSTEM[code].title) for code in SYSTEM}
    for step in range(20):
        batch = data().batch(step, 0)
        assert len(batch.queries) == len(batch.meant) == 4
        assert len(batch.codes) == len(batch.texts) == 3  # an unmarked sentence means none
        for code, text in zip(batch.codes, batch.texts, strict=True):
            assert any(code in meant for meant in batch.meant)
            assert (code, text) in texts


def test_a_batch_larger_than_the_data_is_refused() -> None:
    with pytest.raises(InputError, match="2 marked to learn from, 3 in a batch"):
        data(marked=3)


def test_what_lies_above_or_below_a_right_code_is_neither_right_nor_wrong() -> None:
    codes = ["S83.411", "S83.41", "S83.4", "S83.412", "I10", "S83.411"]
    meant = [frozenset({"S83.411"}), frozenset({"I10", "S83.41"}), frozenset[str]()]
    right, related = Relations(SYSTEM).masks(meant, Columns(codes))
    assert right.int().tolist() == [[1, 0, 0, 0, 0, 1], [0, 1, 0, 0, 1, 0], [0] * 6]
    # S83.412 contradicts S83.411; S83.4 is a category, which is reported by another code.
    assert related[0, 3].item() is False
    assert related[1, [0, 3, 5]].all()
    assert not (right & related).any()


def test_towers_are_read_as_they_were_written(tmp_path: Path) -> None:
    encoder = TextEncoder.load(tiny_encoder(tmp_path / "base")).eval()
    tokens = encoder.tokens(["knee pain", "cough"], 16)
    before = encoder(tokens)
    encoder.widen(48)
    with torch.no_grad():
        wide = encoder(tokens)
        encoder.save(tmp_path / "wide", torch.float32)
        read = TextEncoder.load(tmp_path / "wide").eval()
        torch.testing.assert_close(read(tokens), wide)
    assert (encoder.dimensions, read.dimensions) == (48, 48)
    # A new head keeps all angles.
    angle = torch.nn.functional.cosine_similarity
    torch.testing.assert_close(angle(wide[0], wide[1], dim=0), angle(before[0], before[1], dim=0))


def test_a_damaged_head_is_one_clear_line(tmp_path: Path) -> None:
    folder = tiny_encoder(tmp_path / "base")
    (folder / "head.safetensors").write_bytes(b"no tensors")
    with pytest.raises(ModelError, match="cannot load an encoder from"):
        TextEncoder.load(folder)
