"""The scorer, against scikit-learn, ranx and figures worked out by hand."""

import math
import random
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from sklearn.calibration import calibration_curve
from sklearn.metrics import (
    accuracy_score,
    average_precision_score,
    f1_score,
    precision_recall_curve,
    precision_recall_fscore_support,
    roc_auc_score,
)

from clh.errors import InputError
from clh.evaluation.metrics import (
    Bin,
    Group,
    McNemar,
    Scored,
    bootstrap,
    by_band,
    by_chapter,
    calibration,
    categories,
    compare,
    expected_calibration_error,
    folded,
    macro_f1_of,
    mcnemar,
    precision_recall,
    rank_scores,
    roc_auc,
    set_scores,
    summary,
)
from clh.icd.tabular import load_tabular

TABULAR = load_tabular()
LABELS = ("A09", "B20", "E11.9", "I10", "J18.9", "R05.9", "Z66")
BELOW_EVERY_SCORE = -1e9  # scikit-learn takes no infinity

codes = st.sampled_from(LABELS)
# Few different scores, so that many tie.
scores = st.sampled_from([-1.5, 0.0, 0.25, 0.5, 2.0])
golds = st.frozensets(codes)


def note_lists(
    gold: st.SearchStrategy[frozenset[str]] = golds, score: st.SearchStrategy[float] = scores
) -> st.SearchStrategy[list[Scored]]:
    """Lists of notes with ids n0, n1, and so on."""
    pairs = st.tuples(gold, st.dictionaries(codes, score))
    return st.lists(pairs, min_size=1, max_size=12).map(
        lambda drawn: [
            Scored(f"n{i}", gold, predicted) for i, (gold, predicted) in enumerate(drawn)
        ]
    )


def scored(*notes: tuple[str, str]) -> list[Scored]:
    """Notes from their gold codes and their predicted ones, best first: ("I10 Z66", "Z66 A09")."""
    return [
        Scored(
            id=f"n{number}",
            gold=frozenset(gold.split()),
            predicted={code: 1 / rank for rank, code in enumerate(predicted.split(), start=1)},
        )
        for number, (gold, predicted) in enumerate(notes)
    ]


def indicators(notes: list[Scored], labels: tuple[str, ...] | list[str]) -> tuple[npt.NDArray, ...]:
    """Gold, predicted and scores as dense matrices, notes by labels."""
    gold = np.array([[label in note.gold for label in labels] for note in notes])
    predicted = np.array([[label in note.predicted for label in labels] for note in notes])
    score = [[note.predicted.get(label, BELOW_EVERY_SCORE) for label in labels] for note in notes]
    return gold.astype(int), predicted.astype(int), np.array(score)


# --- sets ----------------------------------------------------------------------------------


def test_scores_of_sets_by_hand() -> None:
    notes = scored(("I10 Z66", "I10 A09"), ("I10", "I10"), ("Z66", ""))
    assert set_scores(notes) == pytest.approx(
        {
            "micro_precision": 2 / 3,
            "micro_recall": 2 / 4,
            "micro_f1": 4 / 7,
            # I10 has 1, Z66 and A09 have 0
            "macro_precision": 1 / 3,
            "macro_recall": 1 / 3,
            "macro_f1": 1 / 3,
            "exact_match": 1 / 3,
        }
    )


@given(notes=note_lists())
def test_scores_of_sets_are_those_of_scikit_learn(notes: list[Scored]) -> None:
    labels = [c for c in LABELS if any(c in note.gold or c in note.predicted for note in notes)]
    assume(len(labels) > 1)  # scikit-learn takes a single column for a binary problem
    gold, predicted, _ = indicators(notes, labels)
    expected = {"exact_match": accuracy_score(gold, predicted)}
    for average in ("micro", "macro"):
        figures = precision_recall_fscore_support(
            gold, predicted, average=average, zero_division=0.0
        )
        for name, figure in zip(("precision", "recall", "f1"), figures, strict=False):
            expected[f"{average}_{name}"] = figure
    assert set_scores(notes) == pytest.approx(expected)


@given(notes=note_lists(), labels=st.lists(codes, min_size=2, unique=True))
def test_macro_f1_of_fixed_labels_is_that_of_scikit_learn(
    notes: list[Scored], labels: list[str]
) -> None:
    gold, predicted, _ = indicators(notes, labels)
    expected = f1_score(gold, predicted, average="macro", zero_division=0.0)
    assert macro_f1_of(notes, labels) == pytest.approx(expected)


def test_a_wrong_code_outside_the_fixed_labels_lowers_only_the_macro_f1_of_all_codes() -> None:
    notes = scored(("I10", "I10 A09"))
    assert set_scores(notes)["macro_f1"] == 1 / 2
    assert macro_f1_of(notes, {"I10"}) == 1


def test_a_fixed_label_that_no_note_has_counts_as_zero() -> None:
    assert macro_f1_of(scored(("I10", "I10")), ["I10", "B20", "Z66", "Z66"]) == pytest.approx(1 / 3)


@given(notes=note_lists(), data=st.data())
def test_a_wrong_code_more_never_raises_micro_precision(
    notes: list[Scored], data: st.DataObject
) -> None:
    place = data.draw(st.integers(0, len(notes) - 1))
    wrong = data.draw(codes.filter(lambda code: code not in notes[place].gold))
    more = replace(notes[place], predicted={wrong: 1.0, **notes[place].predicted})
    worse = [*notes[:place], more, *notes[place + 1 :]]
    assert set_scores(worse)["micro_precision"] <= set_scores(notes)["micro_precision"]


# --- rankings ------------------------------------------------------------------------------


def test_ties_are_ranked_as_they_were_predicted() -> None:
    note = Scored("n", frozenset(), {"Z66": 0.5, "I10": 0.9, "A09": 0.5, "B20": 0.5})
    assert note.ranking == ["I10", "Z66", "A09", "B20"]


def test_scores_of_rankings_by_hand() -> None:
    notes = scored(("I10 Z66", "A09 I10 B20 Z66"), ("I10", ""), ("", "A09"))
    assert rank_scores(notes, at=(1, 2, 3)) == pytest.approx(
        {
            # the note without gold does not count, the one without predictions does
            "map": (1 / 2 + 2 / 4) / 2 / 2,
            "r_precision": 1 / 2 / 2,
            "precision@1": 0,
            "recall@1": 0,
            "precision@2": 1 / 2 / 2,
            "recall@2": 1 / 2 / 2,
            "precision@3": 1 / 2 / 2,  # only two of the three places could have been right
            "recall@3": 1 / 2 / 2,
        }
    )


@given(data=st.data())
def test_average_precision_is_that_of_scikit_learn(data: st.DataObject) -> None:
    ranking = data.draw(st.permutations(LABELS))
    gold = data.draw(st.frozensets(codes, min_size=1))
    note = Scored("n", gold, {code: -float(rank) for rank, code in enumerate(ranking)})
    truth, _, score = indicators([note], LABELS)
    expected = average_precision_score(truth[0], score[0])
    assert rank_scores([note], at=())["map"] == pytest.approx(expected)


@pytest.mark.filterwarnings("ignore")  # numba's, about how ranx calls it
def test_scores_of_rankings_are_those_of_ranx(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("numba.config.DISABLE_JIT", 1)  # compiling would take half a minute
    from ranx import Qrels, Run, evaluate

    chance = random.Random(3)
    labels = [f"A{number:02}" for number in range(40)]
    notes = [
        Scored(
            id=f"n{number}",
            gold=frozenset(chance.sample(labels, chance.randint(8, 20))),
            predicted={label: chance.random() for label in labels},
        )
        for number in range(25)
    ]
    names = [
        "map",
        "r_precision",
        *(f"{name}@{k}" for k in (1, 5, 8) for name in ("precision", "recall")),
    ]
    expected = evaluate(
        Qrels({note.id: dict.fromkeys(note.gold, 1) for note in notes}),
        Run({note.id: dict(note.predicted) for note in notes}),
        [name.replace("_", "-") for name in names],
    )
    ours = rank_scores(notes, at=(1, 5, 8))
    assert ours == pytest.approx({name: expected[name.replace("_", "-")] for name in names})


# --- area under the curve ------------------------------------------------------------------


@given(notes=note_lists(), labels=st.lists(codes, min_size=1, unique=True))
def test_areas_are_those_of_scikit_learn_on_the_dense_matrix(
    notes: list[Scored], labels: list[str]
) -> None:
    gold, _, score = indicators(notes, labels)
    areas = roc_auc(notes, labels)
    if gold.min() == gold.max():
        assert areas["roc_auc_micro"] is None
    else:
        expected = roc_auc_score(gold.ravel(), score.ravel())
        assert areas["roc_auc_micro"] == pytest.approx(expected)
    mixed = gold.min(axis=0) < gold.max(axis=0)
    if not mixed.any():
        assert areas["roc_auc_macro"] is None
    else:
        each = [roc_auc_score(gold[:, label], score[:, label]) for label in np.flatnonzero(mixed)]
        assert areas["roc_auc_macro"] == pytest.approx(np.mean(each))


def test_the_whole_code_space_is_counted_not_stored() -> None:
    labels = range(100_000)
    notes = [
        Scored(f"n{i}", frozenset({str(i), str(i + 1)}), {str(i): 0.5, str(i + 2): 0.9})
        for i in range(250)
    ]
    negatives = 250 * 100_000 - 500
    found = negatives - 250  # a found code lies above all negatives but the 250 with scores
    missed = (negatives - 250) / 2  # a missed one ties with those without
    areas = roc_auc(notes, [str(label) for label in labels])
    assert areas["roc_auc_micro"] == pytest.approx((found + missed) / 2 / negatives, abs=1e-12)


# --- what holds for all --------------------------------------------------------------------


@given(gold=st.lists(golds, min_size=1, max_size=8).filter(any))
def test_gold_as_prediction_is_perfect_to_the_last_digit(gold: list[frozenset[str]]) -> None:
    notes = [Scored(f"n{i}", codes, dict.fromkeys(codes, 0.3)) for i, codes in enumerate(gold)]
    # The code that no note has leaves the pooled area defined, however full the notes are.
    figures = summary(notes, [*LABELS, "Z99.9"])
    if all(sum(code in codes for codes in gold) in (0, len(gold)) for code in LABELS):
        assert figures.pop("roc_auc_macro") is None
    assert figures == dict.fromkeys(figures, 1.0)
    assert rank_scores(notes, at=[len(LABELS)])[f"recall@{len(LABELS)}"] == 1.0


@given(notes=note_lists(), data=st.data())
def test_the_order_of_the_notes_does_not_matter(notes: list[Scored], data: st.DataObject) -> None:
    shuffled = data.draw(st.permutations(notes))
    assert summary(shuffled, LABELS) == pytest.approx(summary(notes, LABELS))


def test_the_summary_has_the_figures_that_reports_show() -> None:
    notes = scored(("I10 Z66", "I10 A09"), ("B20", "B20"))
    figures = summary(notes, LABELS)
    assert list(figures) == [
        *("micro_precision", "micro_recall", "micro_f1"),
        *("macro_precision", "macro_recall", "macro_f1", "exact_match", "macro_f1_gold_labels"),
        *("map", "r_precision", "precision@5", "precision@8", "precision@15"),
        *("roc_auc_micro", "roc_auc_macro"),
    ]
    assert figures["macro_f1"] == pytest.approx(2 / 4)
    assert figures["macro_f1_gold_labels"] == pytest.approx(2 / 3)


@pytest.mark.parametrize(
    "notes", [[], scored(("", "")), scored(("I10", ""), ("Z66", "")), scored(("", "I10"))]
)
def test_nothing_to_find_or_nothing_found_scores_zero(notes: list[Scored]) -> None:
    figures = summary(notes, LABELS)
    areas = {figures.pop("roc_auc_micro"), figures.pop("roc_auc_macro")}
    assert areas <= {None, 0.5}
    assert figures.pop("exact_match") == (1.0 if notes == scored(("", "")) else 0.0)
    assert figures == dict.fromkeys(figures, 0.0)


# --- coarser views -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("code", "comparable"),
    [
        ("S52.501A", "S52.501"),
        ("S52.501", "S52.501"),
        ("T07.XXXA", "T07"),
        ("I50", "I50.9"),
        ("I50.9", "I50.9"),
        ("R05", "R05.9"),
        ("S52.5", "S52.509"),
        ("S06.0", "S06.0XA"),  # "Concussion NOS" still lacks its 7th character
        ("C50", "C50"),  # a breast is female or male: the book offers nothing unspecified
        ("R65.99", "R65.99"),  # not in the release
    ],
)
def test_folding_compares_across_habits_and_releases(code: str, comparable: str) -> None:
    notes = [Scored("n", frozenset({code}), {code: 0.5})]
    assert folded(notes, TABULAR) == [Scored("n", frozenset({comparable}), {comparable: 0.5})]


def test_where_folded_codes_meet_the_highest_score_counts() -> None:
    predicted = {"S52.501D": 0.2, "I10": 0.6, "S52.501A": 0.7, "S52.501": 0.4}
    (note,) = folded([Scored("n", frozenset({"S52.501S", "S52.501A"}), predicted)], TABULAR)
    assert note.gold == {"S52.501"}
    assert note.predicted == {"S52.501": 0.7, "I10": 0.6}
    assert note.ranking == ["S52.501", "I10"]


@given(chosen=st.lists(st.sampled_from(list(TABULAR)), max_size=20))
def test_folding_twice_is_folding_once(chosen: list[str]) -> None:
    once = folded([Scored("n", frozenset(chosen), dict.fromkeys(chosen, 1.0))], TABULAR)
    assert folded(once, TABULAR) == once


def test_the_right_category_is_credit() -> None:
    notes = scored(("I50.22 B20 E11.9", "I50.9 I50.1 Z66"))
    (note,) = categories(notes)
    assert note.gold == {"I50", "B20", "E11"}
    assert note.predicted == {"I50": 1.0, "Z66": 1 / 3}
    assert set_scores([note])["micro_f1"] == pytest.approx(2 / 5)


def test_chapters_come_in_the_order_of_the_book() -> None:
    notes = scored(("I10 I50.9 A09", "I10 U07.1 Q99.99"), ("I10", "I10 I50.9"))
    assert by_chapter(notes, TABULAR) == [
        Group("1 Certain infectious and parasitic diseases", 1, 1, 0, 0, 0.0, 0.0, 0.0),
        Group("9 Diseases of the circulatory system", 2, 3, 3, 2, 2 / 3, 2 / 3, 2 / 3),
        Group("22 Codes for special purposes", 1, 0, 1, 0, 0.0, 0.0, 0.0),
        Group("not in the release", 1, 0, 1, 0, 0.0, 0.0, 0.0),
    ]


def test_bands_are_by_training_documents() -> None:
    documents = {"Z66": 10, "R05.9": 9, "J18.9": 3, "I10": 2, "E11.9": 1, "B20": 0}
    notes = scored((" ".join(LABELS), "Z66 R05.9"), ("A09", "J18.9"))
    assert by_band(notes, documents) == [
        Group("head", 1, 1, 1, 1, 1.0, 1.0, 1.0),
        Group("torso", 2, 2, 2, 1, 0.5, 0.5, 0.5),
        Group("rare", 2, 2, 0, 0, 0.0, 0.0, 0.0),
        Group("unseen", 2, 3, 0, 0, 0.0, 0.0, 0.0),
    ]


@pytest.mark.parametrize(
    "group", [lambda notes: by_chapter(notes, TABULAR), lambda notes: by_band(notes, {"I10": 3})]
)
@given(notes=note_lists())
def test_groups_leave_nothing_out(
    group: Callable[[list[Scored]], list[Group]], notes: list[Scored]
) -> None:
    groups = group(notes)
    assert sum(one.gold for one in groups) == sum(len(note.gold) for note in notes)
    assert sum(one.predicted for one in groups) == sum(len(note.predicted) for note in notes)
    assert sum(one.right for one in groups) == sum(
        len(note.gold.intersection(note.predicted)) for note in notes
    )


# --- certainty -----------------------------------------------------------------------------


def random_notes(seed: int, quality: float, number: int = 40) -> list[Scored]:
    """Notes whose gold codes depend on their number alone; `quality` is how many are found.

    Every fourth has a code that no other note has.
    """
    gold_chance, chance = random.Random(0), random.Random(seed)
    notes = []
    for i in range(number):
        gold = frozenset(gold_chance.sample(LABELS, gold_chance.randint(0, 4)))
        gold |= {f"Q{i}"} if i % 4 == 0 else set()
        found = [code for code in sorted(gold) if chance.random() < quality]
        guesses = chance.sample(LABELS, 2)
        notes.append(Scored(f"n{i:03}", gold, {c: chance.random() for c in (*found, *guesses)}))
    return notes


def test_the_bootstrap_scores_resampled_lists_of_notes() -> None:
    notes = random_notes(seed=1, quality=0.6)
    metrics = [
        *("micro_precision", "micro_recall", "micro_f1", "macro_precision", "macro_recall"),
        *("macro_f1", "exact_match", "map", "r_precision", "precision@2", "recall@3"),
    ]
    intervals = bootstrap(notes, metrics, samples=2000)
    chance = random.Random(5)
    samples = [chance.choices(notes, k=len(notes)) for _ in range(2000)]
    literally = [{**set_scores(drawn), **rank_scores(drawn, at=(2, 3))} for drawn in samples]
    scores = {**set_scores(notes), **rank_scores(notes, at=(2, 3))}
    assert list(intervals) == metrics
    for metric, interval in intervals.items():
        values = np.array([figures[metric] for figures in literally])
        around = values - values.mean() + scores[metric]
        assert interval == pytest.approx(np.quantile(around, (0.025, 0.975)), abs=0.015), metric


# Macro scores are means over the codes that occur, and in a resample fewer do.
@pytest.mark.parametrize("metric", ["micro_f1", "macro_f1", "map", "exact_match", "recall@3"])
def test_the_interval_holds_the_score_and_narrows_with_more_notes(metric: str) -> None:
    widths = []
    for number in (40, 400):
        notes = random_notes(seed=1, quality=0.6, number=number)
        low, high = bootstrap(notes, [metric])[metric]
        assert low < {**set_scores(notes), **rank_scores(notes, at=[3])}[metric] < high
        widths.append(high - low)
    assert widths[1] < widths[0] / 2


def test_the_same_seed_draws_the_same_samples() -> None:
    notes = random_notes(seed=1, quality=0.6)
    assert bootstrap(notes, ["map"], seed=4) == bootstrap(notes, ["map"], seed=4)
    assert bootstrap(notes, ["map"], seed=4) != bootstrap(notes, ["map"], seed=5)


@pytest.mark.parametrize("metric", ["f1", "precision@", "recall@x", "recall@0", "roc_auc_micro"])
def test_a_metric_that_cannot_be_resampled_is_refused(metric: str) -> None:
    with pytest.raises(InputError, match=rf"no metric '{metric}'.*choose from micro_precision"):
        bootstrap(scored(("I10", "I10")), [metric])


def test_no_notes_cannot_be_resampled() -> None:
    with pytest.raises(InputError, match="no notes to resample"):
        bootstrap([], ["micro_f1"])


@given(notes=note_lists())
def test_a_system_does_not_differ_from_itself(notes: list[Scored]) -> None:
    compared = compare(notes, notes[::-1], "macro_f1", samples=50)
    assert (compared.difference, compared.ci95, compared.p_value) == (0.0, (0.0, 0.0), 1.0)
    assert mcnemar(notes, notes[::-1]) == McNemar(0, 0, 1.0)


@pytest.mark.parametrize("metric", ["micro_f1", "macro_recall", "map", "recall@2"])
def test_swapping_the_systems_swaps_the_sign(metric: str) -> None:
    a, b = random_notes(seed=1, quality=0.8), random_notes(seed=2, quality=0.7)
    one, other = compare(a, b, metric), compare(b, a, metric)
    assert (one.metric, one.a, one.b) == (metric, other.b, other.a)
    assert one.difference == -other.difference == one.a - one.b
    assert one.ci95 == pytest.approx((-other.ci95[1], -other.ci95[0]))
    assert one.p_value == other.p_value
    tests = mcnemar(a, b), mcnemar(b, a)
    assert (tests[0].only_a, tests[0].only_b) == (tests[1].only_b, tests[1].only_a)


def test_a_clear_difference_is_told_from_none() -> None:
    good, poor = random_notes(seed=1, quality=0.9), random_notes(seed=2, quality=0.2)
    clear = compare(good, poor, "micro_f1")
    assert clear.a == set_scores(good)["micro_f1"]
    assert 0 < clear.ci95[0] < clear.difference < clear.ci95[1]
    assert clear.p_value == pytest.approx(2 / 1001)  # the least that 1000 samples can show
    assert mcnemar(good, poor).p_value < 0.001
    equal = compare(good, random_notes(seed=3, quality=0.9), "micro_f1")
    assert equal.ci95[0] < 0 < equal.ci95[1]
    assert equal.p_value > 0.05


def test_the_pairing_is_used() -> None:
    # b finds one code more in every tenth note: next to the spread between notes that is little.
    a = random_notes(seed=1, quality=0.5, number=200)
    b = [
        replace(note, predicted={**dict.fromkeys(note.gold, 0.5), **note.predicted})
        if number % 10 == 0
        else note
        for number, note in enumerate(a)
    ]
    low, high = bootstrap(a, ["micro_f1"])["micro_f1"]
    compared = compare(b, a, "micro_f1")
    assert compared.difference < (high - low) / 2
    assert compared.p_value < 0.01


@pytest.mark.parametrize("test", [mcnemar, lambda a, b: compare(a, b, "map")])
@pytest.mark.parametrize(
    ("other", "complaint"),
    [
        (scored(("I10", "")), "note n1 is in one only"),
        (scored(("I10", ""), ("Z66", ""), ("A09", "")), "note n2 is in one only"),
        (scored(("I10", ""), ("A09", "")), "note n1 has other gold codes"),
    ],
)
def test_only_the_same_notes_compare(
    test: Callable[[list[Scored], list[Scored]], object], other: list[Scored], complaint: str
) -> None:
    with pytest.raises(InputError, match=complaint):
        test(scored(("I10", ""), ("Z66", "")), other)


def test_mcnemar_counts_what_only_one_has_right() -> None:
    a = scored(("I10 Z66", "I10 Z66 A09"), ("B20", "J18.9"))
    b = scored(("I10 Z66", "I10"), ("B20", "B20 E11.9"))
    # only a: Z66, and that E11.9 is not; only b: B20, and that A09 and J18.9 are not
    assert mcnemar(a, b) == McNemar(2, 3, pytest.approx(1.0))


def test_mcnemar_is_the_exact_binomial_test() -> None:
    a = scored(("A09 B20 E11.9 I10 J18.9 R05.9", "A09 B20 E11.9 I10 J18.9 R05.9 Z66"))
    b = scored(("A09 B20 E11.9 I10 J18.9 R05.9", ""))
    assert mcnemar(a, b) == McNemar(6, 1, pytest.approx(2 * (7 + 1) / 2**7))


# --- probabilities -------------------------------------------------------------------------

predictions = st.lists(st.tuples(st.integers(0, 20), st.booleans()), min_size=1).map(
    lambda drawn: ([twentieths / 20 for twentieths, _ in drawn], [right for _, right in drawn])
)


def test_calibration_by_hand() -> None:
    bins = calibration([0.0, 0.1, 0.3, 0.35, 1.0, 0.9], [False, False, True, False, True, True])
    assert bins == [
        Bin(0.0, 0.1, 1, 0.0, 0.0),
        Bin(0.1, 0.2, 1, 0.1, 0.0),
        Bin(0.3, 0.4, 2, pytest.approx(0.325), 0.5),
        Bin(0.9, 1.0, 2, 0.95, 1.0),
    ]
    error = (1 * 0 + 1 * 0.1 + 2 * 0.175 + 2 * 0.05) / 6
    assert expected_calibration_error(bins) == pytest.approx(error)


@given(
    p=st.lists(st.floats(0, 1), min_size=1, max_size=50),
    bins=st.sampled_from([1, 2, 4, 8]),  # bounds that binary numbers hold exactly
    data=st.data(),
)
def test_calibration_is_that_of_scikit_learn(
    p: list[float], bins: int, data: st.DataObject
) -> None:
    right = data.draw(st.lists(st.booleans(), min_size=len(p), max_size=len(p)))
    assume(any(right))  # scikit-learn wants to have seen the positive class
    assume(not any(number * bins in range(1, bins) for number in p))  # it closes bins above
    shares, means = calibration_curve(right, p, n_bins=bins, pos_label=True)
    found = calibration(p, right, bins)
    assert [one.share_right for one in found] == pytest.approx(list(shares))
    assert [one.mean_probability for one in found] == pytest.approx(list(means))
    assert sum(one.count for one in found) == len(p)


def test_no_predictions_have_no_bins() -> None:
    assert calibration([], []) == []
    assert expected_calibration_error([]) == 0.0


@pytest.mark.parametrize("number", [-0.1, 1.2, math.nan])
def test_what_is_no_probability_is_refused(number: float) -> None:
    with pytest.raises(InputError, match=f"{number} is no probability"):
        calibration([0.5, number], [True, False])


@given(predictions=predictions)
def test_precision_and_recall_are_those_of_scikit_learn(
    predictions: tuple[list[float], list[bool]],
) -> None:
    p, right = predictions
    assume(any(right))
    expected = precision_recall_curve(right, p)
    curve = precision_recall(p, right, gold=sum(right))
    assert curve.threshold == pytest.approx(expected[2])
    assert curve.precision == pytest.approx(expected[0][:-1])  # less the point of no predictions
    assert curve.recall == pytest.approx(expected[1][:-1])


def test_recall_is_of_all_gold_codes() -> None:
    curve = precision_recall([0.2, 0.9, 0.2], [True, True, False], gold=5)
    assert curve.threshold.tolist() == [0.2, 0.9]
    assert curve.precision.tolist() == pytest.approx([2 / 3, 1])
    assert curve.recall.tolist() == pytest.approx([2 / 5, 1 / 5])


def test_no_predictions_have_no_curve() -> None:
    assert [part.tolist() for part in precision_recall([], [], gold=3)] == [[], [], []]


def test_more_right_predictions_than_gold_codes_are_refused() -> None:
    with pytest.raises(InputError, match="2 predictions are right, but there are 1 gold codes"):
        precision_recall([0.5, 0.6], [True, True], gold=1)
