"""The scorer: what benchmark, baselines, training rewards and `score.py` all report.

Pure functions over notes with gold and predicted codes. 0/0 counts as 0 throughout, as it does in
scikit-learn with `zero_division=0`.
"""

import math
import re
from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from itertools import zip_longest
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from scipy.sparse import csr_array
from scipy.stats import binomtest

from clh.errors import InputError
from clh.icd.tabular import CodeSystem

Array = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Scored:
    """A note's gold codes, and the predicted ones with their scores: higher is surer."""

    id: str
    gold: frozenset[str]
    predicted: Mapping[str, float]

    @property
    def ranking(self) -> list[str]:
        """The predicted codes, best first; ties keep the order of `predicted`."""
        return sorted(self.predicted, key=self.predicted.__getitem__, reverse=True)


# --- the figures that everything reports ---------------------------------------------------


def summary(notes: Sequence[Scored], labels: Collection[str]) -> dict[str, float | None]:
    """What every report shows: the same predictions get the same figures everywhere.

    `labels` is the whole code space, over which the areas under the ROC curve are taken.
    `macro_f1_gold_labels` is `macro_f1_of` over the codes that are gold in any of the notes.
    """
    gold_labels = frozenset(code for note in notes for code in note.gold)
    of_rankings = rank_scores(notes, at=(5, 8, 15))
    return {
        **set_scores(notes),
        "macro_f1_gold_labels": macro_f1_of(notes, gold_labels),
        **{name: score for name, score in of_rankings.items() if not name.startswith("recall@")},
        **roc_auc(notes, labels),
    }


def set_scores(notes: Sequence[Scored]) -> dict[str, float]:
    """Precision, recall and F1 of the sets of codes, and the share of sets that match exactly.

    `micro_…` pools all decisions; `macro_…` is the mean over the codes that are gold or predicted
    in any of the notes, so `macro_f1` is a mean of F1s, not the F1 of the means (Opitz and Burst,
    2019, "Macro F1 and Macro F1").
    """
    return _unweighted(_set_scorer(notes), len(notes))


def macro_f1_of(notes: Sequence[Scored], labels: Collection[str]) -> float:
    """Macro F1 over a fixed set of labels, other codes ignored: `macro_f1_fixed_labels`.

    The `macro_f1` of `set_scores` takes in every code that was predicted, each wrong one as a zero,
    so its denominator changes with the system. Over fixed labels, such as the gold ones, wrong
    codes outside cost nothing. Papers report either under one name; here each has its own.
    """
    counts = _count(notes)
    _, _, f1 = _precision_recall_f1(*counts.totals())
    chosen = frozenset(labels)
    scores = [float(score) for code, score in zip(counts.codes, f1, strict=True) if code in chosen]
    return math.fsum(scores) / max(len(chosen), 1)


def rank_scores(notes: Sequence[Scored], at: Sequence[int]) -> dict[str, float]:
    """Scores of the whole rankings and of their first k, for each k in `at`.

    Each is the mean over the notes that have gold codes.

    - `map`: average precision over the whole ranking; a gold code that is not in it adds 0.
    - `r_precision`: precision among the first n, n being the number of gold codes.
    - `recall@k`: hits among the first k, over the number of gold codes.
    - `precision@k`: hits among the first k, over the smaller of k and the number of gold codes. A
      note with two codes is not charged for three places that no code could fill; where notes have
      at least k codes, this is the usual precision@k.
    """
    return _unweighted(_rank_scorer(notes, at), len(notes))


def roc_auc(notes: Sequence[Scored], labels: Collection[str]) -> dict[str, float | None]:
    """Area under the ROC curve over all pairs of a note and a label; codes outside are ignored.

    A pair without a score ties with all others without, below every score. `roc_auc_micro` pools
    the pairs; `roc_auc_macro` is the mean over the labels that have both a note with the code and
    one without. None where there are no such pairs or labels.
    """
    columns = {label: column for column, label in enumerate(dict.fromkeys(labels))}
    pairs = [
        (columns[code], note.predicted.get(code, -math.inf), code in note.gold)
        for note in notes
        for code in dict.fromkeys((*note.predicted, *note.gold))
        if code in columns
    ]
    column = np.array([pair[0] for pair in pairs], dtype=np.int64)
    score = np.array([pair[1] for pair in pairs], dtype=np.float64)
    positive = np.array([pair[2] for pair in pairs], dtype=np.bool_)

    by_label = np.argsort(column, kind="stable")
    starts = np.flatnonzero(np.diff(column[by_label])) + 1
    areas = [
        area
        for label in np.split(by_label, starts)
        if (area := _area(score[label], positive[label], len(notes) - len(label))) is not None
    ]
    return {
        "roc_auc_micro": _area(score, positive, len(notes) * len(columns) - len(pairs)),
        "roc_auc_macro": math.fsum(areas) / len(areas) if areas else None,
    }


def _area(scores: Array, positive: npt.NDArray[np.bool_], others: int) -> float | None:
    """The share of (positive, negative) where the positive scores higher; ties count half.

    `others` is the number of negatives without a score, which are not listed.
    """
    wanted, rest = scores[positive], np.sort(scores[~positive])
    if not len(wanted) or not len(rest) + others:
        return None
    below = np.searchsorted(rest, wanted, "left") + np.where(wanted > -math.inf, others, 0)
    not_above = np.searchsorted(rest, wanted, "right") + others
    return float((below + not_above).sum() / 2 / (len(wanted) * (len(rest) + others)))


# --- the same notes, seen more coarsely ----------------------------------------------------


def folded(notes: Iterable[Scored], system: CodeSystem) -> list[Scored]:
    """The notes with codes that compare across annotation habits and releases.

    A code that only adds a 7th character counts as its stem, and one that the release has since
    subdivided as its unspecified code, where the book offers one. Codes that the release does not
    know stay as they are. Where predicted codes meet, the highest score counts.
    """
    return _mapped(notes, lambda code: _comparable(code, system))


def categories(notes: Iterable[Scored]) -> list[Scored]:
    """The notes with each code cut to its category, what stands before the dot.

    Scored so, a wrong code of the right category counts as right.
    """
    return _mapped(notes, lambda code: code.partition(".")[0])


def _comparable(code: str, system: CodeSystem) -> str:
    return system.reported(code) if code in system else code


def _mapped(notes: Iterable[Scored], name: Callable[[str], str]) -> list[Scored]:
    name = cache(name)
    mapped = []
    for note in notes:
        predicted: dict[str, float] = {}
        for code, score in note.predicted.items():
            predicted[name(code)] = max(score, predicted.get(name(code), score))
        mapped.append(replace(note, gold=frozenset(map(name, note.gold)), predicted=predicted))
    return mapped


# --- where the errors are ------------------------------------------------------------------

# The least number of training documents of a code in each band. A head code occurs often enough to
# be learned from examples, a torso code a few times, a rare one hardly; an unseen one, never.
BANDS = {"head": 10, "torso": 3, "rare": 1, "unseen": 0}

_NOT_IN_RELEASE = "not in the release"


class Group(NamedTuple):
    """Pooled counts of the (note, code) decisions on a group of codes, and their scores."""

    name: str
    codes: int
    gold: int
    predicted: int
    right: int
    precision: float
    recall: float
    f1: float


def by_chapter(notes: Sequence[Scored], system: CodeSystem) -> list[Group]:
    """Scores by chapter of the book, in its order; "not in the release" comes last.

    Chapters without a gold or predicted code are left out.
    """
    counts = _count(notes)
    occurring = frozenset(counts.codes)
    chapters = {code: system[code].chapter for code in system if code in occurring}
    names = {code: f"{chapter.name} {chapter.title}" for code, chapter in chapters.items()}
    names |= {code: _NOT_IN_RELEASE for code in counts.codes if code not in names}
    return _groups(counts, names)


def by_band(notes: Sequence[Scored], train_counts: Mapping[str, int]) -> list[Group]:
    """Scores by how many training documents have the code, as `BANDS` says, most first.

    Bands without a gold or predicted code are left out.
    """
    counts = _count(notes)
    by_count = sorted(counts.codes, key=lambda code: train_counts.get(code, 0), reverse=True)
    return _groups(counts, {code: _band(train_counts.get(code, 0)) for code in by_count})


def _band(documents: int) -> str:
    return next(name for name, least in BANDS.items() if documents >= least)


# --- how sure the figures are --------------------------------------------------------------


class Comparison(NamedTuple):
    """A metric of two systems on the same notes; `difference` is a less b."""

    metric: str
    a: float
    b: float
    difference: float
    ci95: tuple[float, float]
    p_value: float


class McNemar(NamedTuple):
    """How many decisions only one of two systems has right, and the p-value of the exact test."""

    only_a: int
    only_b: int
    p_value: float


def bootstrap(
    notes: Sequence[Scored], metrics: Sequence[str], samples: int = 1000, seed: int = 0
) -> dict[str, tuple[float, float]]:
    """95% intervals of metrics, the notes resampled with replacement.

    They are percentiles of the resamples, shifted so that these lie around the score itself: fewer
    codes occur in a resample than in all notes, and macro averages, taken over the codes that
    occur, would be too high (the bootstrap's estimate of bias, Efron and Tibshirani 1993, ch. 10).
    `metrics` are any of `set_scores` and `rank_scores`, such as "micro_f1" or "recall@50". Raises
    InputError for others, or if there are no notes.
    """
    resampled = _resampled(notes, metrics, samples, seed)
    scores = _scores(notes, metrics)
    intervals = {name: interval(_around(scores[name], resampled[name])) for name in metrics}
    return {name: (max(low, 0.0), min(high, 1.0)) for name, (low, high) in intervals.items()}


def compare(
    a: Sequence[Scored], b: Sequence[Scored], metric: str, samples: int = 1000, seed: int = 0
) -> Comparison:
    """Paired bootstrap (Koehn, 2004) of the difference of two systems, notes matched by id.

    The p-value is two-sided: twice the share of resampled differences on the side of zero where
    fewer lie, with 1 added to both counts, so that it is never 0. Raises InputError if the notes or
    their gold codes differ, or for a metric that `bootstrap` does not take.
    """
    a, b = _matched(a, b)
    in_a, in_b = (_resampled(notes, [metric], samples, seed)[metric] for notes in (a, b))
    score_a, score_b = (_scores(notes, [metric])[metric] for notes in (a, b))
    differences = _around(score_a - score_b, in_a - in_b)
    fewer = min((differences <= 0).sum(), (differences >= 0).sum())
    return Comparison(
        metric=metric,
        a=score_a,
        b=score_b,
        difference=score_a - score_b,
        ci95=interval(differences),
        p_value=min(1.0, float(2 * (fewer + 1) / (samples + 1))),
    )


def mcnemar(a: Sequence[Scored], b: Sequence[Scored]) -> McNemar:
    """Exact McNemar test on the (note, code) decisions that only one of two systems has right.

    A decision is right if the code is predicted and gold, or neither. Notes are matched by their
    ids; raises InputError if they or their gold codes differ.
    """
    only_a = only_b = 0
    for in_a, in_b in zip(*_matched(a, b), strict=True):
        for code in in_a.predicted.keys() ^ in_b.predicted.keys():
            if (code in in_a.predicted) == (code in in_a.gold):
                only_a += 1
            else:
                only_b += 1
    total = only_a + only_b
    return McNemar(only_a, only_b, float(binomtest(only_a, total).pvalue) if total else 1.0)


def _resampled(
    notes: Sequence[Scored], metrics: Sequence[str], samples: int, seed: int
) -> dict[str, Array]:
    """Each metric in each sample; the samples depend on the seed and the number of notes alone."""
    if not notes:
        raise InputError("there are no notes to resample: give at least one")
    set_scorer, rank_scorer = _set_scorer(notes), _rank_scorer(notes, _cuts(metrics))
    draws = resample_counts(len(notes), samples, seed)
    parts = []
    for start in range(0, samples, _SAMPLES_AT_ONCE):
        weights = draws[start : start + _SAMPLES_AT_ONCE].T.astype(np.float64)
        parts.append({**set_scorer(weights), **rank_scorer(weights)})
    return {metric: np.concatenate([part[metric] for part in parts]) for metric in metrics}


_SAMPLES_AT_ONCE = 50  # bounds memory: a few dense arrays of all codes by this many


def _cuts(metrics: Iterable[str]) -> list[int]:
    """The k of each "precision@k" and "recall@k"; raises InputError for what is no metric."""
    cuts = []
    for metric in metrics:
        if cut := re.fullmatch(r"(?:precision|recall)@([1-9][0-9]*)", metric):
            cuts.append(int(cut[1]))
        elif metric not in (*_SET_SCORES, *_RANK_SCORES):
            choices = ", ".join((*_SET_SCORES, *_RANK_SCORES, "precision@k", "recall@k"))
            raise InputError(f"there is no metric {metric!r} to resample: choose from {choices}")
    return cuts


def _scores(notes: Sequence[Scored], metrics: Sequence[str]) -> dict[str, float]:
    return {**set_scores(notes), **rank_scores(notes, _cuts(metrics))}


def _around(score: float, resampled: Array) -> Array:
    """The resampled scores without their bias: their mean is the score itself."""
    return resampled + (score - float(resampled.mean()))


def resample_counts(notes: int, samples: int, seed: int) -> npt.NDArray[np.int64]:
    """How often each sample of a bootstrap has each of so many notes: (samples, notes)."""
    return np.random.default_rng(seed).multinomial(notes, np.full(notes, 1 / notes), size=samples)


def interval(values: Array) -> tuple[float, float]:
    """The middle 95% of the values."""
    low, high = np.quantile(values, (0.025, 0.975))
    return float(low), float(high)


def _matched(a: Sequence[Scored], b: Sequence[Scored]) -> tuple[list[Scored], list[Scored]]:
    """Both in the order of their ids."""
    a, b = (sorted(notes, key=lambda note: note.id) for notes in (a, b))
    for in_a, in_b in zip_longest(a, b):
        if in_a is None or in_b is None or in_a.id != in_b.id:
            first = min(note.id for note in (in_a, in_b) if note is not None)
            raise InputError(f"note {first} is in one only: compare predictions for the same notes")
        if in_a.gold != in_b.gold:
            raise InputError(
                f"note {in_a.id} has other gold codes in one than in the other: "
                "compare predictions for the same split"
            )
    return a, b


# --- probabilities -------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Bin:
    """Predictions with a probability from `low` up to `high`, and how many of them are right."""

    low: float
    high: float
    count: int
    mean_probability: float
    share_right: float


class Curve(NamedTuple):
    """Precision and recall of what has at least the threshold; thresholds ascend."""

    precision: Array
    recall: Array
    threshold: Array


def calibration(probabilities: npt.ArrayLike, labels: npt.ArrayLike, bins: int = 10) -> list[Bin]:
    """The reliability diagram: bins of equal width, those that hold no prediction left out.

    `labels` say which predictions are right. A probability of 1 is in the last bin. Raises
    InputError for a number that is no probability.
    """
    p, right = np.asarray(probabilities, dtype=np.float64), np.asarray(labels, dtype=np.bool_)
    if outside := p[~((p >= 0) & (p <= 1))].tolist():
        raise InputError(f"{outside[0]} is no probability: give numbers from 0 to 1")
    edges = np.arange(bins + 1) / bins
    place = np.digitize(p, edges[1:-1])
    return [
        Bin(
            low=float(edges[number]),
            high=float(edges[number + 1]),
            count=int(np.count_nonzero(place == number)),
            mean_probability=float(p[place == number].mean()),
            share_right=float(right[place == number].mean()),
        )
        for number in np.unique(place)
    ]


def expected_calibration_error(bins: Sequence[Bin]) -> float:
    """How far probability and share of right ones lie apart, on average (Guo et al., 2017)."""
    gaps = [one.count * abs(one.mean_probability - one.share_right) for one in bins]
    return math.fsum(gaps) / max(sum(one.count for one in bins), 1)


def precision_recall(probabilities: npt.ArrayLike, labels: npt.ArrayLike, gold: int) -> Curve:
    """Precision and recall at each distinct probability as the threshold.

    `labels` say which predictions are right; `gold` counts all gold codes, also those that were
    never among the predictions. Raises InputError if it is less than the right predictions.
    """
    p, right = np.asarray(probabilities, dtype=np.float64), np.asarray(labels, dtype=np.bool_)
    if right.sum() > gold:
        raise InputError(f"{right.sum()} predictions are right, but there are {gold} gold codes")
    threshold, first = np.unique(np.sort(p), return_index=True)
    hits = np.cumsum(right[np.argsort(p)][::-1])[::-1][first].astype(np.float64)
    return Curve(hits / (len(p) - first), hits / max(gold, 1), threshold)


# --- counting ------------------------------------------------------------------------------


class _Counts(NamedTuple):
    """Which codes are right, predicted and gold in which notes: sparse, codes by notes, 0 or 1."""

    codes: list[str]
    right: Any
    predicted: Any
    gold: Any

    def totals(self) -> tuple[Array, Array, Array]:
        """In how many notes each code is right, predicted and gold."""
        return self.right.sum(axis=1), self.predicted.sum(axis=1), self.gold.sum(axis=1)


# From weights of the notes, notes by samples, to the scores in each sample. A bootstrap sample has
# each note as often as its weight says; with weights of 1, the scores are those of the notes.
_Scorer = Callable[[Array], dict[str, Array]]

_SET_SCORES = (
    *("micro_precision", "micro_recall", "micro_f1"),
    *("macro_precision", "macro_recall", "macro_f1"),
    "exact_match",
)
_RANK_SCORES = ("map", "r_precision")


def _count(notes: Sequence[Scored]) -> _Counts:
    # Sorted, as the order of a set, and with it the last digit of a sum, changes between runs.
    codes = sorted({code for note in notes for code in (*note.gold, *note.predicted)})
    row = {code: number for number, code in enumerate(codes)}

    def matrix(sets: Iterable[Collection[str]]) -> csr_array:
        places = [(row[code], column) for column, some in enumerate(sets) for code in some]
        rows, columns = np.array(places, dtype=np.int64).reshape(-1, 2).T
        return csr_array((np.ones(len(places)), (rows, columns)), shape=(len(codes), len(notes)))

    predicted = matrix(note.predicted for note in notes)
    gold = matrix(note.gold for note in notes)
    return _Counts(codes, gold.multiply(predicted), predicted, gold)


def _groups(counts: _Counts, names: Mapping[str, str]) -> list[Group]:
    """One group a name, in the order of the names."""
    row = {code: number for number, code in enumerate(counts.codes)}
    members: defaultdict[str, list[int]] = defaultdict(list)
    for code, name in names.items():
        members[name].append(row[code])
    totals = counts.totals()
    groups = []
    for name, rows in members.items():
        right, predicted, gold = (total[rows].sum() for total in totals)
        scores = (float(score) for score in _precision_recall_f1(right, predicted, gold))
        groups.append(Group(name, len(rows), int(gold), int(predicted), int(right), *scores))
    return groups


def _set_scorer(notes: Sequence[Scored]) -> _Scorer:
    _, *matrices = _count(notes)
    exact = np.array([note.gold == set(note.predicted) for note in notes], dtype=np.float64)

    def score(weights: Array) -> dict[str, Array]:
        right, predicted, gold = (matrix @ weights for matrix in matrices)
        micro = _precision_recall_f1(right.sum(axis=0), predicted.sum(axis=0), gold.sum(axis=0))
        macro = _precision_recall_f1(right, predicted, gold)
        codes = np.count_nonzero(predicted + gold, axis=0)
        scores = [*micro, *(_ratio(of_codes.sum(axis=0), codes) for of_codes in macro)]
        scores += [_ratio(exact @ weights, weights.sum(axis=0))]
        return dict(zip(_SET_SCORES, scores, strict=True))

    return score


def _rank_scorer(notes: Sequence[Scored], at: Sequence[int]) -> _Scorer:
    names = [*_RANK_SCORES, *(f"{name}@{k}" for k in at for name in ("precision", "recall"))]
    with_gold = np.array([bool(note.gold) for note in notes], dtype=np.float64)
    rows = [_rank_scores(note, at) if note.gold else [0.0] * len(names) for note in notes]
    values = np.array(rows).reshape(len(notes), len(names)).T

    def score(weights: Array) -> dict[str, Array]:
        means = _ratio(values @ weights, with_gold @ weights)
        return dict(zip(names, means, strict=True))

    return score


def _rank_scores(note: Scored, at: Sequence[int]) -> list[float]:
    """Average precision, R-precision, then precision and recall at each k."""
    hits = np.array([code in note.gold for code in note.ranking], dtype=np.float64)
    found = np.concatenate([[0.0], np.cumsum(hits)])
    wanted = len(note.gold)

    def among(first: int) -> float:
        return float(found[min(first, len(hits))])

    precisions = found[1:] / np.arange(1, len(found))
    scores = [float(hits @ precisions) / wanted, among(wanted) / wanted]
    for k in at:
        scores += [among(k) / min(k, wanted), among(k) / wanted]
    return scores


def _unweighted(scorer: _Scorer, notes: int) -> dict[str, float]:
    return {name: float(score[0]) for name, score in scorer(np.ones((notes, 1))).items()}


def _precision_recall_f1(right: Array, predicted: Array, gold: Array) -> tuple[Array, Array, Array]:
    return _ratio(right, predicted), _ratio(right, gold), _ratio(2 * right, predicted + gold)


def _ratio(part: Array, whole: npt.ArrayLike) -> Array:
    """Element by element, 0/0 being 0; a whole of 0 has no part."""
    return np.asarray(part / np.maximum(whole, np.finfo(np.float64).tiny))
