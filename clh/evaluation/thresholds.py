"""From scores to sets of codes: calibration by logistic regression, and the best threshold."""

import json
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from clh.errors import InputError
from clh.evaluation import metrics
from clh.evaluation.metrics import Scored
from clh.files import atomic_write

MODEL = "model.json"  # of a logistic regression: its weights and, if it has one, its threshold
_DIGITS = 4  # of weights and thresholds


def best_threshold(notes: Sequence[Scored]) -> float:
    """The threshold that gives the sets of codes with the highest micro-F1.

    Of thresholds that are equally good, the highest. It lies midway between the lowest score that
    reaches it and the next one, so that rounding changes no set. 0 if nothing is predicted.
    """
    scores = np.array([score for note in notes for score in note.predicted.values()])
    if not len(scores):
        return 0.0
    right = np.array([code in note.gold for note in notes for code in note.predicted])
    order = np.argsort(-scores)
    scores, right = scores[order], right[order]
    gold = sum(len(note.gold) for note in notes)
    f1 = 2 * np.cumsum(right) / (np.arange(1, len(scores) + 1) + gold)
    ends_tie = np.append(scores[1:] < scores[:-1], True)  # equal scores come in together
    last = int(np.where(ends_tie, f1, -1).argmax())
    return float(scores[last : last + 2].mean())


def apply_threshold(notes: Sequence[Scored], threshold: float) -> list[Scored]:
    """The notes with the codes whose score reaches the threshold."""
    return [
        replace(note, predicted={c: s for c, s in note.predicted.items() if s >= threshold})
        for note in notes
    ]


def precision_recall_table(notes: Sequence[Scored]) -> list[dict[str, float]]:
    """Micro-averaged precision and recall at thresholds from .05 to .95."""
    table = []
    for threshold in np.arange(0.05, 1, 0.05).round(2).tolist():
        scores = metrics.set_scores(apply_threshold(notes, threshold))
        table.append(
            {
                "threshold": threshold,
                "precision": round(scores["micro_precision"], 3),
                "recall": round(scores["micro_recall"], 3),
            }
        )
    return table


class LogisticFit(NamedTuple):
    """A logistic regression, and the probabilities that it gives each row from other folds."""

    intercept: float
    coefficients: dict[str, float]
    held_out: NDArray[np.float64]

    def save(self, folder: Path, threshold: float | None = None) -> None:
        """Write model.json, with the threshold from which on probabilities count, if given."""
        model: dict[str, Any] = {"intercept": self.intercept, "coefficients": self.coefficients}
        if threshold is not None:
            model["threshold"] = threshold
        folder.mkdir(parents=True, exist_ok=True)
        atomic_write(folder / MODEL, json.dumps(model, indent=2) + "\n")


def fit_logistic(
    rows: Sequence[Mapping[str, float]],
    labels: Sequence[bool],
    documents: Sequence[Hashable],
    *,
    folds: int,
    regularisation: float,
    seed: int,
    scale: bool = False,
) -> LogisticFit:
    """Fit a logistic regression to all rows, and to the documents of all folds but one in turn.

    `rows` are named features, the same in each; `documents` says which document each row is from.
    `regularisation` is scikit-learn's C, of features at unit variance if `scale`; the weights are
    those of the features as they are. Raises InputError where a fold leaves nothing to learn from.
    """
    from sklearn.linear_model import LogisticRegression
    from sklearn.model_selection import GroupKFold
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    names = list(rows[0]) if rows else []
    x = np.array([[row[name] for name in names] for row in rows], dtype=np.float64)
    y, groups = (
        np.array(labels, dtype=bool),
        np.unique(list(map(str, documents)), return_inverse=True)[1],
    )
    model = make_pipeline(
        StandardScaler(with_mean=scale, with_std=scale),
        LogisticRegression(C=regularisation, max_iter=5000),
    )
    held_out = np.zeros(len(y))
    try:
        for train, rest in GroupKFold(folds, shuffle=True, random_state=seed).split(x, y, groups):
            held_out[rest] = model.fit(x[train], y[train]).predict_proba(x[rest])[:, 1]
        scaler, regression = model.fit(x, y)
    except ValueError as error:  # of scikit-learn: fewer documents than folds, or labels all alike
        raise InputError(
            f"too few documents for {folds} folds: some have no gold code ({error})"
        ) from error
    spread = scaler.scale_ if scale else np.ones(len(names))
    mean = scaler.mean_ if scale else np.zeros(len(names))
    weights = regression.coef_[0] / spread
    return LogisticFit(
        intercept=round(float(regression.intercept_[0] - weights @ mean), _DIGITS),
        coefficients=dict(zip(names, weights.round(_DIGITS).tolist(), strict=True)),
        held_out=held_out,
    )
