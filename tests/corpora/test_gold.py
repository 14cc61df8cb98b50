"""Gold codes fed in as predictions score exactly 1 for every metric, in every corpus."""

import json
import os
from pathlib import Path

import pytest

from clh.corpora import CORPORA, Example, read
from clh.evaluation import metrics
from clh.evaluation.metrics import Scored
from clh.evaluation.stages import CUTOFFS
from clh.icd.tabular import load_tabular
from tests.corpora.fixtures import FIXTURES, codiesp_train

REAL = os.environ.get("CLH_TEST_DATA", "")
_CODES = [["R05.9", "I10"], ["E11.9"], ["S52.501A", "I10"], ["J18.9"], [], ["E11.9", "Z79.4"]]
_OWN = {
    "jsonl": "".join(
        json.dumps({"id": number, "text": "Cough.", "codes": codes}) + "\n"
        for number, codes in enumerate(_CODES)
    ),
    "csv": "id,text,codes\n"
    + "".join(f"{number},Cough.,{';'.join(codes)}\n" for number, codes in enumerate(_CODES)),
}


def examples(dataset: str, folder: Path) -> list[Example]:
    """The examples of all splits, in the publisher's layout as we wrote it."""
    if dataset in _OWN:
        (folder / f"train.{dataset}").write_text(_OWN[dataset])
        return list(read(dataset, folder, "train"))
    if dataset == "parquet":
        from clh.corpora.table import write_parquet

        write_parquet(examples("jsonl", folder), folder / "train.parquet")
        return list(read(dataset, folder, "train"))
    if dataset.startswith("codiesp"):
        codiesp_train(folder)
        return list(read(dataset, folder, "train"))
    FIXTURES[dataset](folder)
    return [one for split in CORPORA[dataset].splits for one in read(dataset, folder, split)]


def assert_gold_is_perfect(found: list[Example]) -> None:
    system = load_tabular()
    gold = [Scored(one.id, frozenset(one.codes), dict.fromkeys(one.codes, 0.5)) for one in found]
    assert any(one.gold for one in gold)
    for notes in (gold, metrics.folded(gold, system), metrics.categories(gold)):
        # A corpus may have codes of other systems, and retired ones.
        scores = metrics.summary(notes, {*system, *(code for one in notes for code in one.gold)})
        if len({one.gold for one in notes}) == 1:  # codes that all notes have: no curve
            del scores["roc_auc_macro"]
        assert set(scores.values()) == {1.0}
    longest = max(len(one.gold) for one in gold)
    at = [*CUTOFFS, longest]
    scores = metrics.rank_scores(gold, at)
    coded = [one for one in gold if one.gold]
    for k in at:
        # No ranking has more than k codes among its first k.
        most = sum(min(k, len(one.gold)) / len(one.gold) for one in coded) / len(coded)
        assert scores[f"recall@{k}"] == pytest.approx(most, abs=0 if k >= longest else 1e-12)
    intervals = metrics.bootstrap(coded, ["micro_f1", "macro_f1", "map"], samples=20)
    assert set(intervals.values()) == {(1.0, 1.0)}
    assert metrics.compare(gold, gold, "micro_f1", samples=20).difference == 0
    assert metrics.mcnemar(gold, gold).p_value == 1
    groups = [*metrics.by_chapter(gold, system), *metrics.by_band(gold, {})]
    assert {group.f1 for group in groups if group.gold} == {1.0}


@pytest.mark.parametrize("dataset", CORPORA)
def test_gold_as_prediction_scores_1(dataset: str, tmp_path: Path) -> None:
    assert_gold_is_perfect(examples(dataset, tmp_path))


@pytest.mark.skipif(not REAL, reason="CLH_TEST_DATA names no folder of real data")
@pytest.mark.parametrize("dataset", [name for name in CORPORA if name.startswith("codiesp")])
def test_gold_of_the_real_corpus_scores_1(dataset: str) -> None:
    found = list(read(dataset, Path(REAL) / "codiesp", "dev"))
    assert len(found) == 250
    assert_gold_is_perfect(found)


@pytest.mark.parametrize("dataset", [*FIXTURES])
def test_encounters_fall_apart_into_documents(dataset: str, tmp_path: Path) -> None:
    for one in examples(dataset, tmp_path):
        documents = one.documents()
        assert [document.note.text for document in documents] == [note.text for note in one.notes]
        assert one.note.text == "\n\n".join(note.text for note in one.notes)
        evidenced = {code for document in documents for code in document.codes}
        assert evidenced == {evidence.code for evidence in one.evidence}
        for code in one.codes:
            spans = one.spans(code)
            assert all(one.note.text[span.start : span.end] == span.text for span in spans)
            assert len(spans) == sum(len(document.spans(code)) for document in documents)
