"""Thresholds: none is better, ties, and what a fit in folds may know."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from clh.errors import InputError
from clh.evaluation.metrics import Scored, set_scores
from clh.evaluation.thresholds import (
    apply_threshold,
    best_threshold,
    fit_logistic,
    precision_recall_table,
)
from clh.models.logistic import Logistic

codes = st.sampled_from("ABCDEF")
scored_notes = st.lists(
    st.builds(
        Scored,
        id=st.just("n"),
        gold=st.frozensets(codes, max_size=4),
        predicted=st.dictionaries(codes, st.sampled_from([-1.5, -1.0, 0.0, 0.5, 2.0])),
    ),
    min_size=1,
    max_size=5,
)


def micro_f1(notes: list[Scored], threshold: float) -> float:
    return set_scores(apply_threshold(notes, threshold))["micro_f1"]


@given(scored_notes)
def test_no_other_threshold_is_better(notes: list[Scored]) -> None:
    scores = {score for note in notes for score in note.predicted.values()}
    best = max((micro_f1(notes, score) for score in scores), default=0.0)
    assert micro_f1(notes, best_threshold(notes)) == pytest.approx(best)


@given(scored_notes, st.floats(-0.2, 0.2))
def test_rounding_changes_no_set(notes: list[Scored], shift: float) -> None:
    threshold = best_threshold(notes)
    scores = sorted({score for note in notes for score in note.predicted.values()})
    if scores and threshold > scores[0]:  # midway between two scores, which lie .5 apart
        assert apply_threshold(notes, threshold + shift) == apply_threshold(notes, threshold)


def test_of_equally_good_thresholds_the_highest_is_taken() -> None:
    gold = frozenset({"A", "B"})
    note = Scored("n", gold, {"A": 0.9, "C": 0.5, "D": 0.4, "B": 0.3})
    # A alone, or all four: micro-F1 is 2/3 both times.
    assert best_threshold([note]) == pytest.approx(0.7)


def test_without_predictions_there_is_nothing_to_choose() -> None:
    assert best_threshold([Scored("n", frozenset({"A"}), {})]) == 0


def test_the_table_is_of_the_sets_at_each_threshold() -> None:
    table = precision_recall_table([Scored("n", frozenset({"A", "B"}), {"A": 0.62, "C": 0.31})])
    by_threshold = {row["threshold"]: (row["precision"], row["recall"]) for row in table}
    assert len(table) == 19
    assert by_threshold[0.3] == (0.5, 0.5)
    assert by_threshold[0.6] == (1, 0.5)
    assert by_threshold[0.65] == (0, 0)


def drawn(documents: int, seed: int = 0) -> tuple[list[dict[str, float]], list[bool], list[int]]:
    """Rows whose label depends on `tells` alone, which has a scale of its own."""
    generator = np.random.default_rng(seed)
    tells, noise = generator.normal(50, 20, documents * 10), generator.normal(size=documents * 10)
    labels = (tells + generator.normal(0, 10, len(tells)) > 50).tolist()
    rows = [{"tells": a, "noise": b} for a, b in zip(tells.tolist(), noise.tolist(), strict=True)]
    return rows, labels, [number // 10 for number in range(len(rows))]


@pytest.mark.parametrize("scale", [False, True])
def test_the_weights_are_of_the_features_as_they_are(scale: bool, tmp_path: Path) -> None:
    rows, labels, documents = drawn(60)
    fit = fit_logistic(rows, labels, documents, folds=5, regularisation=1.0, seed=0, scale=scale)
    fit.save(tmp_path, threshold=0.4)
    model = Logistic.load(str(tmp_path))
    assert model.threshold == 0.4
    given = np.array([model.probability(row) for row in rows])
    assert ((given > 0.5) == np.array(labels)).mean() > 0.8
    assert np.abs(given - fit.held_out).max() < 0.15  # of other documents, and nearly the same


def test_no_row_is_judged_by_its_own_document() -> None:
    _, labels, documents = drawn(10)
    # Only who remembers a document can use these.
    rows = [{f"is_{at}": float(at == number) for at in range(10)} for number in documents]
    fit = fit_logistic(rows, labels, documents, folds=10, regularisation=1e4, seed=0)
    right, given = np.array(labels).reshape(10, 10), fit.held_out.reshape(10, 10)
    others = (right.sum() - right.sum(axis=1)) / 90
    assert given == pytest.approx(np.repeat(others[:, None], 10, axis=1), abs=0.15)


@pytest.mark.parametrize(
    ("documents", "folds", "labels"),
    [(1, 2, [True, False] * 5), (2, 2, [True] * 10 + [False] * 10)],
)
def test_a_fold_that_leaves_nothing_to_learn_from(
    documents: int, folds: int, labels: list[bool]
) -> None:
    rows, _, of = drawn(documents)
    with pytest.raises(InputError, match=f"too few documents for {folds} folds") as error:
        fit_logistic(rows, labels, of, folds=folds, regularisation=1.0, seed=0)
    assert "\n" not in str(error.value)
