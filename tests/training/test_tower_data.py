"""The dataset of the towers: what a batch holds, and what is right, related or wrong in it."""

from collections import Counter
from pathlib import Path

import pytest
import torch
from datasets import Dataset

from clh.errors import InputError
from clh.icd.index import IndexTerm
from clh.retrieval.lexical import searchable
from clh.training.pairs import Pair, index_pairs
from clh.training.tower_data import (
    BatchSizes,
    CodeCollator,
    CodeRelations,
    EpochBatchSampler,
    TowerData,
)
from clh.training.towers import open_tower
from tests.fakes import tiny_encoder, toy_system

SYSTEM = toy_system()
TERMS = [IndexTerm(("Failure", "heart"), code="I50.9"), IndexTerm(("Cough",), code="R05.9")]
DOCUMENTS = [
    [Pair(("coughing all night",), frozenset({"R05.9"})), Pair(("he went home",), frozenset())],
    [Pair(("knee pain, cough",), frozenset({"M25.569", "R05.9"})), Pair(("rest",), frozenset())],
]
SIZES = BatchSizes(marked=2, unmarked=1, terms=1)


def data(sizes: BatchSizes = SIZES) -> TowerData:
    return TowerData(DOCUMENTS, index_pairs(TERMS, SYSTEM, {}), TERMS, SYSTEM, sizes)


def test_a_seed_draws_the_same_batches() -> None:
    first, again, other = (data().draw(5, 0.5, seed).to_list() for seed in (0, 0, 1))
    assert first == again != other
    # More batches begin with the same ones: a longer run sees what a shorter one has seen.
    assert data().draw(9, 0.5, 0).to_list()[: len(first)] == first


def test_every_text_stands_for_a_code_that_its_query_means() -> None:
    texts = {(SYSTEM.reported(code), text) for code, text in searchable(SYSTEM, TERMS)}
    texts |= {(code, SYSTEM[code].title) for code in SYSTEM}
    rows = data().draw(20, 0.5, 0).to_list()
    assert len(rows) == 20 * 4
    for row in rows:
        assert (row["text"] is None) == (not row["codes"])  # an unmarked sentence means none
        if row["text"] is not None:
            assert row["code"] in row["codes"]
            assert (row["code"], row["text"]) in texts
    for start in range(0, len(rows), 4):
        assert [row["text"] is None for row in rows[start : start + 4]].count(True) == 1


@pytest.mark.parametrize(("share", "expected"), [(0.0, False), (1.0, True)])
def test_texts_are_titles_as_often_as_asked_for(share: float, expected: bool) -> None:
    rows = [row for row in data().draw(40, share, 0).to_list() if row["code"] == "I50.9"]
    titles = Counter(row["text"] == SYSTEM["I50.9"].title for row in rows)
    assert titles[expected]
    assert share == 0 or titles[False] == 0


def test_a_batch_larger_than_the_data_is_refused() -> None:
    with pytest.raises(InputError, match="2 marked to train on, 3 in a batch: lower it"):
        data(BatchSizes(marked=3, unmarked=1, terms=1))


def test_what_lies_above_or_below_a_right_code_is_neither_right_nor_wrong() -> None:
    codes = ["S83.411", "S83.41", "S83.4", "S83.412", "I10", "S83.411"]
    bank = ["I10", "S83.411", "S83.412"]
    meanings = [frozenset({"S83.411"}), frozenset({"I10", "S83.41"}), frozenset[str]()]
    right, related = CodeRelations(SYSTEM, bank).labels(meanings, codes).unbind(-1)
    assert right[:, :6].int().tolist() == [[1, 0, 0, 0, 0, 1], [0, 1, 0, 0, 1, 0], [0] * 6]
    # S83.412 contradicts S83.411; S83.4 is a category, which is reported by another code.
    assert related[0, 3].item() is False
    assert related[1, [0, 3, 5]].all()
    assert not (right & related).any()
    assert (right | related)[:, 6:].int().tolist() == [[0, 1, 0], [1, 1, 1], [0, 0, 0]]


def test_a_batch_is_both_columns_and_their_relations(tmp_path: Path) -> None:
    tower = open_tower(tiny_encoder(tmp_path))
    collate = CodeCollator(tower.preprocess, relations=CodeRelations(SYSTEM, ["I10"]))
    rows = data().draw(1, 0.5, 0).to_list()
    batch = collate(rows)
    assert batch["query_input_ids"].shape[0] == len(rows) == 4
    assert batch["text_input_ids"].shape[0] == 3
    assert batch["label"].shape == (4, 3 + 1, 2)
    assert batch["label"].dtype == torch.bool
    with_text = [row for row in rows if row["text"] is not None]
    for column, row in enumerate(with_text):
        assert batch["label"][rows.index(row), column, 0]


def test_each_epoch_has_its_own_part_of_the_dataset() -> None:
    dataset = Dataset.from_dict({"row": list(range(24))})
    sampler = EpochBatchSampler(dataset, batch_size=4, drop_last=True, epochs=3)
    seen = []
    for epoch in range(3):
        sampler.set_epoch(epoch)
        assert len(sampler) == len(list(sampler)) == 2
        seen += [row for batch in sampler for row in batch]
    assert seen == list(range(24))
