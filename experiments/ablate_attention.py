"""Does it help to let each code attend to the note? Three ways to rank what the towers find.

    python experiments/ablate_attention.py --dataset codiesp --data-dir DIR --split dev
        --recipe experiments/recipes/attention_laa.yaml --output OUT

The other recipes are attention_mean.yaml and attention_plain.yaml:

    plain  the towers' own ranking: a code is as likely as its most similar sentence
    mean   and a head trained on top, to which the note is the mean of its tokens
    laa    the same head, but each code attends to tokens of its own

A head learns from the train split alone. A share of that is held out to choose the epoch and, for
all three, the score from which on codes are in the final set. MAP, precision@k and recall@k are of
the ranking, and so is ROC-AUC: `roc_auc` over the pairs of a note and a code found for it. `unseen`
is recall of the codes that no training note has. `evidence` is the share of gold codes whose most
attended token, or most similar sentence, lies in what annotators marked for the code; `chance` is
that share for a token drawn at random.

Writes OUT/metrics.json, config.json and, for score.py, predictions.jsonl with the final sets and
rankings.jsonl with all that is ranked, in which `confidence` is the score.
"""

import argparse
import json
import time
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from clh.errors import InputError
from clh.evaluation import recipes, runs

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from clh.corpora import Example
    from clh.evaluation.metrics import Scored
    from clh.icd.tabular import CodeSystem
    from clh.schema import Span
    from clh.training.attention import LabelAttention
    from clh.training.rerank import Shortlist

SHOWN = ("micro_f1", "roc_auc", "precision@5", *(f"recall@{k}" for k in (10, 50, 100, 200)))


def main() -> int:
    """Find, train, rank, score."""
    parser = recipes.evaluation_parser(__doc__, "experiments/recipes/attention_laa.yaml")
    arguments = recipes.parse_arguments(parser)
    for flag in ("track", "policy"):
        if getattr(arguments, flag) is not None:
            raise InputError(f"this ablation takes no --{flag}: leave it out")
    if arguments.split == "train":
        raise InputError("the train split is what a head learns from: give another --split")

    import torch
    from tqdm import tqdm

    from clh import corpora
    from clh.config import Settings
    from clh.icd.tabular import load_tabular
    from clh.training import rerank
    from clh.training.attention import LabelAttention

    recipe = recipes.read_recipe(arguments.recipe, rerank.Recipe, arguments.set)
    settings = Settings.load(arguments.profile or "cpu")
    system = load_tabular()
    examples = _examples(arguments, arguments.split, arguments.limit)
    train = _examples(arguments, "train", limit=None)
    kept, held_out = corpora.hold_out(train, recipe.held_out, recipe.seed)
    retriever = rerank.Retriever.load(settings, system)
    config = {
        **{
            name: getattr(arguments, name) for name in ("dataset", "split", "unit", "limit", "seed")
        },
        "recipe": recipe.model_dump(),
        "settings": settings.model_dump(mode="json", include={"towers", "index_files"}),
        "tower": retriever.tower.id,
        "icd_release": system.release,
    }
    named = {"git": runs.git_commit(), "config_hash": runs.fingerprint(config)}
    folder = runs.Folder(arguments.output, {**config, **named}, ()).path

    def find(what: str, some: Sequence["Example"], *, with_gold: bool = False) -> list["Shortlist"]:
        bar = tqdm(some, desc=what, unit="note", disable=None)
        return [retriever.shortlist(one, recipe.shortlist, with_gold=with_gold) for one in bar]

    started = time.perf_counter()
    choosing = find("held out", held_out)
    head, log = None, []
    if recipe.head is not None:
        torch.manual_seed(recipe.seed)
        uniform = recipe.head.pooling == "mean"
        head = LabelAttention(retriever.encoder, recipe.head.dimensions, uniform=uniform)
        learning = find("train", kept, with_gold=True)
        with tqdm(total=recipe.head.epochs, unit="epoch", disable=None) as bar:
            log = rerank.train(head, learning, choosing, recipe.head, recipe.seed, bar.update)
    threshold = rerank.best_threshold([one.ranked(rerank.scores(one, head)) for one in choosing])
    notes = find(arguments.split, examples)
    ranked = [one.ranked(rerank.scores(one, head)) for one in notes]
    sets = [final(note, threshold) for note in ranked]
    result = {
        "dataset": arguments.dataset,
        "split": arguments.split,
        "n_notes": len(notes),
        "code_space": len(system),
        **measured(ranked, sets, system, recipe.bootstrap, arguments.seed),
        "unseen": unseen(ranked, train, system, recipe.bootstrap, arguments.seed),
        "evidence": pointed_at(examples, notes, head, system, recipe.bootstrap, arguments.seed),
        "threshold": threshold,
        "held_out": len(held_out),
        "epochs": log,
        "seconds": round(time.perf_counter() - started, 1),
        **named,
    }
    runs.write(folder / "metrics.json", json.dumps(result, indent=2) + "\n")
    for name, written in (("predictions", sets), ("rankings", ranked)):
        runs.write(folder / f"{name}.jsonl", "".join(prediction(note) + "\n" for note in written))
    show(result)
    return 0


def final(note: "Scored", threshold: float) -> "Scored":
    """The note with the codes that reach the threshold."""
    return replace(note, predicted={c: s for c, s in note.predicted.items() if s >= threshold})


def measured(
    ranked: Sequence["Scored"],
    sets: Sequence["Scored"],
    system: "CodeSystem",
    samples: int,
    seed: int,
) -> dict[str, Any]:
    """What the rankings and the final sets are worth, with 95% intervals, notes resampled."""
    from clh.evaluation import metrics
    from clh.evaluation.stages import CUTOFFS

    recalls = [f"recall@{k}" for k in CUTOFFS]
    area, interval = roc_auc(ranked, samples, seed)
    return {
        **metrics.set_scores(sets),
        **metrics.rank_scores(ranked, (5, *CUTOFFS)),
        **metrics.roc_auc(ranked, system),
        "roc_auc": area,
        "codes_per_note": sum(len(note.predicted) for note in sets) / len(sets),
        "ci95": {
            **metrics.bootstrap(sets, ["micro_f1"], samples, seed),
            **metrics.bootstrap(ranked, ["map", "precision@5", *recalls], samples, seed),
            "roc_auc": interval,
        },
    }


def unseen(
    ranked: Sequence["Scored"],
    train: Sequence["Example"],
    system: "CodeSystem",
    samples: int,
    seed: int,
) -> dict[str, Any]:
    """Recall of the codes that no training note has."""
    from clh.evaluation import metrics
    from clh.evaluation.stages import CUTOFFS

    seen = {system.stem_or_self(code) for note in train for code in note.codes}
    notes = [replace(note, gold=note.gold - seen) for note in ranked]
    recalls = [f"recall@{k}" for k in CUTOFFS]
    scores = metrics.rank_scores(notes, CUTOFFS)
    return {
        "gold": sum(len(note.gold) for note in notes),
        **{name: scores[name] for name in recalls},
        "ci95": metrics.bootstrap(notes, recalls, samples, seed),
    }


def roc_auc(
    notes: Sequence["Scored"], samples: int, seed: int
) -> tuple[float, tuple[float, float]]:
    """Area under the ROC curve over all that is ranked, and its 95% interval.

    Raises InputError where nothing that is ranked is right.
    """
    import numpy as np
    from sklearn.metrics import roc_auc_score

    row = np.repeat(np.arange(len(notes)), [len(note.predicted) for note in notes])
    scores = np.array([score for note in notes for score in note.predicted.values()])
    right = np.array([code in note.gold for note in notes for code in note.predicted])
    if not right.any():
        raise InputError("no gold code is among those found: a longer shortlist may help")
    areas = [
        roc_auc_score(right, scores, sample_weight=times[row])
        for times in draws(len(notes), samples, seed)
        if times[row][right].any()
    ]
    return float(roc_auc_score(right, scores)), interval(np.array(areas))


def pointed_at(
    examples: Sequence["Example"],
    notes: Sequence["Shortlist"],
    head: "LabelAttention | None",
    system: "CodeSystem",
    samples: int,
    seed: int,
) -> dict[str, Any] | None:
    """How often a gold code's score comes from where annotators marked the code.

    None if all of the note counts alike, or nothing is marked.
    """
    import numpy as np

    from clh.training.rerank import evidence

    if head is not None and head.uniform:
        return None
    rows = []
    for example, note in zip(examples, notes, strict=True):
        marks: defaultdict[str, list[Span]] = defaultdict(list)
        for code in example.codes:
            if code in system:
                marks[system.stem(code)] += example.spans(code)
        places = evidence(note, head)
        found = [row for row, code in enumerate(note.codes) if marks.get(code)]
        right = [touches(places[[row]], marks[note.codes[row]])[0] for row in found]
        chance = [touches(note.tokens.spans, marks[note.codes[row]]).mean() for row in found]
        rows.append((sum(right), sum(chance), len(found)))
    totals = np.array(rows, dtype=np.float64)
    if not totals[:, 2].any():
        return None
    right, chance, count = totals.sum(axis=0)
    drawn = draws(len(notes), samples, seed) @ totals
    drawn = drawn[drawn[:, 2] > 0]
    return {
        "right": right / count,
        "ci95": interval(drawn[:, 0] / drawn[:, 2]),
        "chance": chance / count,
        "gold_with_evidence": int(count),
    }


def touches(places: "NDArray[np.int64]", marks: Sequence["Span"]) -> "NDArray[np.bool_]":
    """Which of the places, from start to end, overlap a mark."""
    import numpy as np

    starts, ends = places.T
    overlap: NDArray[np.bool_] = np.logical_or.reduce(
        [(starts < mark.end) & (mark.start < ends) for mark in marks]
    )
    return overlap


def draws(notes: int, samples: int, seed: int) -> "NDArray[np.int64]":
    """How often each sample of a bootstrap has each note: (samples, notes)."""
    import numpy as np

    return np.random.default_rng(seed).multinomial(notes, np.full(notes, 1 / notes), size=samples)


def interval(values: "NDArray[np.float64]") -> tuple[float, float]:
    """The middle 95% of the values."""
    import numpy as np

    low, high = np.quantile(values, (0.025, 0.975))
    return float(low), float(high)


def prediction(note: "Scored") -> str:
    """A line for score.py."""
    codes = [{"code": code, "confidence": note.predicted[code]} for code in note.ranking]
    return json.dumps({"note_id": note.id, "codes": codes, "gold": sorted(note.gold)})


def show(result: dict[str, Any]) -> None:
    """Print what the ablation is about."""
    for name in SHOWN:
        low, high = result["ci95"][name]
        print(f"{name:12} {result[name]:.3f} [{low:.3f}, {high:.3f}]")
    if (of := result["evidence"]) is not None:
        low, high = of["ci95"]
        print(f"evidence     {of['right']:.3f} [{low:.3f}, {high:.3f}], chance {of['chance']:.3f}")


def _examples(arguments: argparse.Namespace, split: str, limit: int | None) -> list["Example"]:
    from clh import corpora

    return corpora.sample(
        arguments.dataset, arguments.data_dir, split, arguments.unit, limit, arguments.seed
    )


if __name__ == "__main__":
    recipes.run_script(main)
