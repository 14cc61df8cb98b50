"""Scores of an ablation of attention, with 95% intervals of notes resampled."""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from clh.corpora import Example
from clh.errors import InputError
from clh.evaluation import metrics
from clh.evaluation.metrics import Scored
from clh.evaluation.stages import CUTOFFS
from clh.icd.tabular import CodeSystem
from clh.schema import Span
from clh.training.attention.head import LabelAttention
from clh.training.attention.shortlist import Shortlist
from clh.training.attention.training import find_evidence

RECALLS = [f"recall@{k}" for k in CUTOFFS]


def score_notes(
    ranked: Sequence[Scored],
    sets: Sequence[Scored],
    system: CodeSystem,
    samples: int,
    seed: int,
) -> dict[str, Any]:
    """Scores of the rankings and of the final sets; `samples` and `seed` are the bootstrap's."""
    area, area_interval = pooled_roc_auc(ranked, samples, seed)
    return {
        **metrics.set_scores(sets),
        **metrics.rank_scores(ranked, (5, *CUTOFFS)),
        **metrics.roc_auc(ranked, system),
        "roc_auc": area,
        "codes_per_note": sum(len(note.predicted) for note in sets) / len(sets),
        "ci95": {
            **metrics.bootstrap(sets, ["micro_f1"], samples, seed),
            **metrics.bootstrap(ranked, ["map", "precision@5", *RECALLS], samples, seed),
            "roc_auc": area_interval,
        },
    }


def score_unseen(
    ranked: Sequence[Scored],
    train: Sequence[Example],
    system: CodeSystem,
    samples: int,
    seed: int,
) -> dict[str, Any]:
    """Recall of the codes that no training note has."""
    seen = {system.stem_or_self(code) for example in train for code in example.codes}
    notes = [replace(note, gold=note.gold - seen) for note in ranked]
    scores = metrics.rank_scores(notes, CUTOFFS)
    return {
        "gold": sum(len(note.gold) for note in notes),
        **{name: scores[name] for name in RECALLS},
        "ci95": metrics.bootstrap(notes, RECALLS, samples, seed),
    }


def pooled_roc_auc(
    notes: Sequence[Scored], samples: int, seed: int
) -> tuple[float, tuple[float, float]]:
    """Area under the ROC curve over all pairs of a note and a ranked code, and its 95% interval.

    Raises InputError where nothing that is ranked is right.
    """
    from sklearn.metrics import roc_auc_score

    row = np.repeat(np.arange(len(notes)), [len(note.predicted) for note in notes])
    scores = np.array([score for note in notes for score in note.predicted.values()])
    right = np.array([code in note.gold for note in notes for code in note.predicted])
    if not right.any():
        raise InputError("no gold code is among those found: a longer shortlist may help")
    areas = [
        roc_auc_score(right, scores, sample_weight=counts[row])
        for counts in metrics.resample_counts(len(notes), samples, seed)
        if counts[row][right].any()
    ]
    return float(roc_auc_score(right, scores)), metrics.interval(np.array(areas))


def score_evidence(
    examples: Sequence[Example],
    notes: Sequence[Shortlist],
    head: LabelAttention | None,
    system: CodeSystem,
    samples: int,
    seed: int,
) -> dict[str, Any] | None:
    """How often a gold code's score comes from where annotators marked the code.

    None if all of the note counts alike, or nothing is marked.
    """
    if head is not None and head.uniform:
        return None
    rows = []
    for example, note in zip(examples, notes, strict=True):
        marks: defaultdict[str, list[Span]] = defaultdict(list)
        for code in example.codes:
            if code in system:
                marks[system.stem(code)] += example.spans(code)
        places = find_evidence(note, head)
        marked = [row for row, code in enumerate(note.codes) if marks.get(code)]
        right = [overlap_marks(places[[row]], marks[note.codes[row]])[0] for row in marked]
        chance = [overlap_marks(note.tokens.spans, marks[note.codes[row]]).mean() for row in marked]
        rows.append((sum(right), sum(chance), len(marked)))
    totals = np.array(rows, dtype=np.float64)
    if not totals[:, 2].any():
        return None
    all_right, all_chance, count = totals.sum(axis=0)
    drawn = metrics.resample_counts(len(notes), samples, seed) @ totals
    drawn = drawn[drawn[:, 2] > 0]
    return {
        "right": all_right / count,
        "ci95": metrics.interval(drawn[:, 0] / drawn[:, 2]),
        "chance": all_chance / count,
        "gold_with_evidence": int(count),
    }


def overlap_marks(places: NDArray[np.int64], marks: Sequence[Span]) -> NDArray[np.bool_]:
    """Which of the places, rows of start and end, overlap a mark."""
    starts, ends = places.T
    overlap: NDArray[np.bool_] = np.logical_or.reduce(
        [(starts < mark.end) & (mark.start < ends) for mark in marks]
    )
    return overlap
