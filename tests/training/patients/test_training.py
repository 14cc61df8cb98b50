"""The patient tower: what it is trained on, and what it learns."""

import math
import random

import pytest
import torch

from clh.training.patients.tables import PatientEncounter
from clh.training.patients.tower import PatientTower
from clh.training.patients.training import (
    BEST,
    Codes,
    EncodedSplit,
    PatientRecipe,
    log_frequency,
    note_vectors,
    score,
    train_tower,
)
from tests.fakes import ToyTower

NAN = float("nan")


def test_a_note_is_the_mean_of_its_sentences() -> None:
    tower = ToyTower()
    both, one, none = note_vectors(["Cough. Gout.", "Gout.", ""], tower)
    cough, gout = torch.from_numpy(tower.encode(["Cough.", "Gout."]))
    torch.testing.assert_close(both, (cough + gout) / (cough + gout).norm())
    torch.testing.assert_close(one, gout)
    assert not none.any()


def encounter(name: str, codes: set[str], *values: float) -> PatientEncounter:
    return PatientEncounter(name, "", values, frozenset(codes))


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
    part = EncodedSplit([encounter("a", set(), 1.0)], ToyTower())
    scores = torch.zeros(1, 100)
    scores[0, 70] = 1
    (best,) = part.rank(scores, codes, 50)
    assert best.ranking == ["code 70", *names[:49]]


NAMES = ["E11.9", "I10", "J18.9", "R05.9"]
CODES = Codes(NAMES, ToyTower().encode(NAMES))
RECIPE = PatientRecipe(
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


def part(seed: int) -> EncodedSplit:
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
    return EncodedSplit(encounters, ToyTower())


def train(recipe: PatientRecipe = RECIPE) -> tuple[PatientTower, list[dict[str, float]]]:
    return train_tower(part(1), part(2), CODES, ("age", "lab_glucose"), recipe, lambda: None)


def test_training_finds_what_the_labs_say() -> None:
    tower, _ = train()
    test = part(3)
    found = score(test.rank(test.similarity(tower, CODES), CODES, 100), 0, NAMES, 20, 0)
    by_frequency = log_frequency(part(1), CODES).expand(60, -1)
    frequent = score(test.rank(by_frequency, CODES, 100), 0, NAMES, 20, 0)
    assert found["map"] > 0.85 > frequent["map"]
    assert found["roc_auc_macro"] > 0.85
    assert frequent["roc_auc_macro"] == 0.5
    low, high = found["ci95"]["map"]
    assert low <= found["map"] <= high


def test_the_best_epoch_is_kept() -> None:
    tower, log = train()
    val = part(2)
    ranked = val.rank(val.similarity(tower, CODES), CODES, RECIPE.kept)
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
    one = EncodedSplit([encounter("a", set(NAMES), 50.0, 5.0)], ToyTower())
    tower, log = train_tower(one, one, CODES, ("age", "lab_glucose"), RECIPE, lambda: None)
    assert math.isfinite(log[-1]["loss"])
    assert tower(one.texts, one.values).isfinite().all()
