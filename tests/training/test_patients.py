"""Four CSV files in, a tower out: what is read, what is refused, what is learned."""

import math
import random
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from clh.errors import InputError
from clh.evaluation.metrics import Scored
from clh.training.patient_tower import PatientTower
from clh.training.patients import (
    BEST,
    Codes,
    Encounter,
    Part,
    Recipe,
    best_threshold,
    log_frequency,
    note_vectors,
    read_tables,
    score,
    train_tower,
)
from tests.fakes import ToyTower

NAN = float("nan")
FILES = {
    "icd": "code,title,synonyms,level\nI10,Essential hypertension,High blood pressure,leaf\n"
    "E11.9,Type 2 diabetes mellitus,,leaf\n",
    "patients": "encounter_id,note_text,age,sex,lab_glucose,lab_a1c,ward\n"
    'a,"Blood pressure is high.\nNo ""sugar"".",61,F,5.5,,7\n'
    "b,,,M,14,9.1,\n"
    "c,Well.,,,,,3\n",
    "labels": "encounter_id,code\na,I10\nb,E11.9\nb,I10\nb,I10\n",
    "splits": "encounter_id,split\na,train\nb,val\nc,test\n",
}


def write(folder: Path, **changed: str) -> list[Path]:
    files = []
    for name, text in (FILES | changed).items():
        files.append(folder / f"{name}.csv")
        files[-1].write_text(text, encoding="utf-8")
    return files


def test_the_files_are_read_as_they_stand(tmp_path: Path) -> None:
    tables = read_tables(*write(tmp_path, splits="\ufeff" + FILES["splits"]))
    assert tables.texts == {
        "I10": "Essential hypertension; High blood pressure",
        "E11.9": "Type 2 diabetes mellitus",
    }
    assert tables.features == ("age", "lab_a1c", "lab_glucose", "sex")
    (a,), (b,), (c,) = (tables.encounters[split] for split in ("train", "val", "test"))
    assert (a.id, a.text) == ("a", 'Blood pressure is high.\nNo "sugar".')
    np.testing.assert_equal(a.values, (61, NAN, 5.5, 0))
    np.testing.assert_equal(b.values, (NAN, 9.1, 14, 1))
    np.testing.assert_equal(c.values, (NAN, NAN, NAN, NAN))
    assert [one.codes for one in (a, b, c)] == [{"I10"}, {"I10", "E11.9"}, frozenset()]


@pytest.mark.parametrize(
    ("name", "line", "message"),
    [
        ("icd", "I10,Again,,", "icd.csv, line 4: I10 comes twice: leave one out"),
        ("icd", "I11,,,", "icd.csv, line 4, title: Field required"),
        ("patients", "a,,50,F,5,,", "patients.csv, line 6: a comes twice: leave one out"),
        ("patients", "d,,50,F,5", "patients.csv, line 6: 5 cells, and 7 columns in the first"),
        ("patients", "d,,50,F,high,,", "line 6, lab_glucose: Input should be a valid number"),
        ("patients", "d,,50,F,inf,,", "line 6, lab_glucose: Input should be a finite number"),
        ("patients", "d,,50,female,5,,", "line 6, sex: Input should be 'F' or 'M'"),
        ("patients", "d,,50,F,5,,", r"line 6: d is not in .*splits.csv: add it there"),
        ("patients", ",,50,F,5,,", "patients.csv, line 6, encounter_id: Field required"),
        ("patients", '"d', "patients.csv cannot be read .*: save it as CSV"),
        ("labels", "a,I99", r"labels.csv, line 6: I99 is not in .*icd.csv: add it there"),
        ("labels", "d,I10", r"labels.csv, line 6: d is not in .*patients.csv: add it there"),
        ("splits", "d,train", r"splits.csv, line 5: d is not in .*patients.csv: add it there"),
        ("splits", "a,val", "splits.csv, line 5: a comes twice: leave one out"),
        ("splits", "a,dev", "splits.csv, line 5, split: Input should be 'train', 'val' or 'test'"),
    ],
)
def test_a_bad_line_is_named(tmp_path: Path, name: str, line: str, message: str) -> None:
    files = write(tmp_path, **{name: FILES[name] + line + "\n"})
    with pytest.raises(InputError, match=message) as caught:
        read_tables(*files)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        (
            {
                "patients": FILES["patients"] + "d,,,,,,\n",
                "splits": FILES["splits"] + "d,train\n",
            },
            "patients.csv, line 6: d has neither a note nor a value: leave it out",
        ),
        ({"labels": "encounter_id,code\na,I10\n"}, "no encounter of val has codes"),
        ({"labels": "patient,code\na,I10\n"}, "labels.csv, line 2, encounter_id: Field required"),
    ],
)
def test_files_that_do_not_belong_together(
    tmp_path: Path, changed: dict[str, str], message: str
) -> None:
    with pytest.raises(InputError, match=message):
        read_tables(*write(tmp_path, **changed))


@pytest.mark.parametrize("damage", ["missing", "Latin-1"])
def test_a_file_that_cannot_be_read(tmp_path: Path, damage: str) -> None:
    files = write(tmp_path)
    files[0].unlink()
    if damage == "Latin-1":
        files[0].write_bytes("code,title\nH81.0,Menière\n".encode("latin-1"))
    with pytest.raises(InputError, match=r"icd.csv cannot be read .*: save it as CSV in UTF-8"):
        read_tables(*files)


def test_a_note_is_the_mean_of_its_sentences() -> None:
    tower = ToyTower()
    both, one, none = note_vectors(["Cough. Gout.", "Gout.", ""], tower)
    cough, gout = torch.from_numpy(tower.encode(["Cough.", "Gout."]))
    torch.testing.assert_close(both, (cough + gout) / (cough + gout).norm())
    torch.testing.assert_close(one, gout)
    assert not none.any()


def encounter(name: str, codes: set[str], *values: float) -> Encounter:
    return Encounter(name, "", values, frozenset(codes))


def test_codes_above_and_below_a_right_one_are_not_wrong() -> None:
    names = ["I50", "I50.2", "I50.21", "I50.9", "I5A", "J18"]
    codes = Codes(names, ToyTower().encode(names))
    gold: list[set[str]] = [{"I50.2", "J18"}, {"I50.2", "I50.21"}, set()]
    masks = codes.masks([encounter(str(row), one) for row, one in enumerate(gold)])
    positive, related = ([{names[at] for at in row.nonzero()} for row in mask] for mask in masks)
    assert positive == gold
    assert related == [{"I50", "I50.21"}, {"I50"}, set()]


def test_codes_of_one_score_keep_the_order_of_the_file() -> None:
    names = [f"code {number}" for number in range(100)]
    codes = Codes(names, ToyTower().encode(names))
    part = Part([encounter("a", set(), 1.0)], ToyTower())
    scores = torch.zeros(1, 100)
    scores[0, 70] = 1
    (best,) = part.ranked(scores, codes, 50)
    assert best.ranking == ["code 70", *names[:49]]


NAMES = ["E11.9", "I10", "J18.9", "R05.9"]
CODES = Codes(NAMES, ToyTower().encode(NAMES))
RECIPE = Recipe(
    hidden=32,
    prefixes=(64, 128),
    temperature=0.1,
    epochs=12,
    batch=16,
    learning_rate=3e-3,
    weight_decay=0.01,
    kept=100,
    bootstrap=20,
    seed=0,
)


def part(seed: int) -> Part:
    """Diabetes shows in glucose and hypertension in age; a third of the values is missing."""
    draw = random.Random(seed)
    encounters = []
    for number in range(60):
        diabetes, hypertension = draw.random() < 0.5, draw.random() < 0.5
        values = (draw.gauss(75 if hypertension else 40, 5), draw.gauss(15 if diabetes else 5, 1))
        codes = {"E11.9"} if diabetes else {"J18.9"}
        codes.add("I10" if hypertension else "R05.9")
        seen = (value if draw.random() < 0.9 else NAN for value in values)
        encounters.append(encounter(str(number), codes, *seen))
    return Part(encounters, ToyTower())


def train(recipe: Recipe = RECIPE) -> tuple[PatientTower, list[dict[str, float]]]:
    return train_tower(part(1), part(2), CODES, ("age", "lab_glucose"), recipe, lambda: None)


def test_training_finds_what_the_labs_say() -> None:
    tower, _ = train()
    test = part(3)
    found = score(test.ranked(test.similarity(tower, CODES), CODES, 100), 0, NAMES, 20, 0)
    by_frequency = log_frequency(part(1), CODES).expand(60, -1)
    frequent = score(test.ranked(by_frequency, CODES, 100), 0, NAMES, 20, 0)
    assert found["map"] > 0.85 > frequent["map"]
    assert found["roc_auc_macro"] > 0.85
    assert frequent["roc_auc_macro"] == 0.5
    low, high = found["ci95"]["map"]
    assert low <= found["map"] <= high


def test_the_best_epoch_is_kept() -> None:
    tower, log = train()
    val = part(2)
    ranked = val.ranked(val.similarity(tower, CODES), CODES, RECIPE.kept)
    best = max(one[BEST] for one in log)
    assert best > log[0][BEST]
    assert score(ranked, 0, NAMES, 20, 0)[BEST] == pytest.approx(best)


def test_a_seed_gives_the_same_tower_again() -> None:
    (first, log), (again, log_again) = train(), train()
    other, _ = train(RECIPE.model_copy(update={"seed": 1}))
    assert log == log_again
    similarity, same, different = (
        part(3).similarity(tower, CODES) for tower in (first, again, other)
    )
    assert torch.equal(similarity, same)
    assert not torch.equal(similarity, different)


def test_codes_of_everybody_can_be_learned_from() -> None:
    one = Part([encounter("a", set(NAMES), 50.0, 5.0)], ToyTower())
    tower, log = train_tower(one, one, CODES, ("age", "lab_glucose"), RECIPE, lambda: None)
    assert math.isfinite(log[-1]["loss"])
    assert tower(one.texts, one.values).isfinite().all()


@given(
    st.lists(
        st.tuples(
            st.frozensets(st.sampled_from("abc")),
            st.dictionaries(st.sampled_from("abcd"), st.integers(-3, 3).map(float), min_size=1),
        ),
        min_size=1,
        max_size=5,
    )
)
def test_no_threshold_makes_better_sets(
    drawn: list[tuple[frozenset[str], dict[str, float]]],
) -> None:
    notes = [Scored(str(at), gold, scores) for at, (gold, scores) in enumerate(drawn)]

    def f1(threshold: float) -> float:
        return float(score(notes, threshold, "abcd", 1, 0)["micro_f1"])

    assert f1(best_threshold(notes)) == pytest.approx(max(map(f1, range(-3, 4))))
