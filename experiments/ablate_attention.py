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
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from clh.errors import InputError
from clh.evaluation import recipes
from clh.evaluation.run_folder import RunFolder, fingerprint, git_commit
from clh.files import atomic_write

if TYPE_CHECKING:
    from clh.corpora import Example
    from clh.evaluation.metrics import Scored
    from clh.training.attention.head import LabelAttention
    from clh.training.attention.shortlist import Retriever, Shortlist
    from clh.training.attention.training import AttentionRecipe

SHOWN = ("micro_f1", "roc_auc", "precision@5", *(f"recall@{k}" for k in (10, 50, 100, 200)))


def main() -> int:
    """Find, train, rank, score."""
    parser = recipes.evaluation_parser(__doc__, "experiments/recipes/attention_laa.yaml")
    arguments = recipes.parse_arguments(parser)
    check_flags(arguments)

    from clh import corpora
    from clh.config import Settings
    from clh.evaluation.thresholds import apply_threshold, best_threshold
    from clh.icd.tabular import load_tabular
    from clh.training.attention import evaluation
    from clh.training.attention.shortlist import Retriever
    from clh.training.attention.training import AttentionRecipe, score_codes

    recipe = recipes.read_recipe(arguments.recipe, AttentionRecipe, arguments.set)
    settings, system = Settings.load(arguments.profile or "cpu"), load_tabular()
    examples = read_examples(arguments, arguments.split, arguments.limit)
    train = read_examples(arguments, "train", limit=None)
    kept, held_out = corpora.hold_out(train, recipe.held_out, recipe.seed)
    retriever = Retriever.load(settings, system)
    towers = settings.model_dump(mode="json", include={"towers", "index_files"})
    ids = {"tower": retriever.tower.id, "icd_release": system.release}
    folder, named = open_folder(arguments, recipe, {"settings": towers, **ids})

    started = time.perf_counter()
    choosing = find(retriever, held_out, "held out", recipe)
    head, log = train_head(retriever, kept, choosing, recipe)
    threshold = best_threshold([note.rank(score_codes(note, head)) for note in choosing])
    notes = find(retriever, examples, arguments.split, recipe)
    ranked = [note.rank(score_codes(note, head)) for note in notes]
    sets = apply_threshold(ranked, threshold)
    how = system, recipe.bootstrap, arguments.seed
    result = {
        "dataset": arguments.dataset,
        "split": arguments.split,
        "n_notes": len(notes),
        "code_space": len(system),
        **evaluation.score_notes(ranked, sets, *how),
        "unseen": evaluation.score_unseen(ranked, train, *how),
        "evidence": evaluation.score_evidence(examples, notes, head, *how),
        "threshold": threshold,
        "held_out": len(held_out),
        "epochs": log,
        "seconds": round(time.perf_counter() - started, 1),
        **named,
    }
    write(folder, result, {"predictions": sets, "rankings": ranked})
    show(result)
    return 0


def check_flags(arguments: argparse.Namespace) -> None:
    """Raise InputError for flags of all evaluations that make no sense here."""
    for flag in ("track", "policy"):
        if getattr(arguments, flag) is not None:
            raise InputError(f"this ablation takes no --{flag}: leave it out")
    if arguments.split == "train":
        raise InputError("the train split is what a head learns from: give another --split")


def read_examples(arguments: argparse.Namespace, split: str, limit: int | None) -> list["Example"]:
    """The examples of a split."""
    from clh import corpora

    return corpora.sample(
        arguments.dataset, arguments.data_dir, split, arguments.unit, limit, arguments.seed
    )


def open_folder(
    arguments: argparse.Namespace, recipe: "AttentionRecipe", config: dict[str, Any]
) -> tuple[RunFolder, dict[str, str]]:
    """The folder of the results, and what names the run in them."""
    given = ("dataset", "split", "unit", "limit", "seed")
    config = {
        **{name: getattr(arguments, name) for name in given},
        "recipe": recipe.model_dump(),
        **config,
    }
    named = {"git": git_commit(), "config_hash": fingerprint(config)}
    return RunFolder(arguments.output, {**config, **named}, ()), named


def find(
    retriever: "Retriever",
    examples: Sequence["Example"],
    what: str,
    recipe: "AttentionRecipe",
    *,
    with_gold: bool = False,
) -> list["Shortlist"]:
    """What the towers find for each note."""
    from tqdm import tqdm

    bar = tqdm(examples, desc=what, unit="note", disable=None)
    size = recipe.shortlist
    return [retriever.shortlist(example, size, with_gold=with_gold) for example in bar]


def train_head(
    retriever: "Retriever",
    examples: Sequence["Example"],
    held_out: Sequence["Shortlist"],
    recipe: "AttentionRecipe",
) -> tuple["LabelAttention | None", list[dict[str, float]]]:
    """The recipe's head, trained, and its log; None if it has none."""
    import torch
    from tqdm import tqdm

    from clh.training.attention import training
    from clh.training.attention.head import LabelAttention

    if recipe.head is None:
        return None, []
    torch.manual_seed(recipe.seed)
    uniform = recipe.head.pooling == "mean"
    head = LabelAttention(retriever.model, recipe.head.dimensions, uniform=uniform)
    notes = find(retriever, examples, "train", recipe, with_gold=True)
    with tqdm(total=recipe.head.epochs, unit="epoch", disable=None) as bar:
        log = training.train_head(head, notes, held_out, recipe.head, recipe.seed, bar.update)
    return head, log


def write(
    folder: RunFolder, result: dict[str, Any], predictions: dict[str, list["Scored"]]
) -> None:
    """Write the figures and, for score.py, the notes."""
    atomic_write(folder.path / "metrics.json", json.dumps(result, indent=2) + "\n")
    for name, notes in predictions.items():
        lines = []
        for note in notes:
            codes = [{"code": code, "confidence": note.predicted[code]} for code in note.ranking]
            lines.append({"note_id": note.id, "codes": codes, "gold": sorted(note.gold)})
        text = "".join(json.dumps(line) + "\n" for line in lines)
        atomic_write(folder.path / f"{name}.jsonl", text)


def show(result: dict[str, Any]) -> None:
    """Print what the ablation is about."""
    for name in SHOWN:
        low, high = result["ci95"][name]
        print(f"{name:12} {result[name]:.3f} [{low:.3f}, {high:.3f}]")
    if (evidence := result["evidence"]) is not None:
        low, high = evidence["ci95"]
        right, chance = evidence["right"], evidence["chance"]
        print(f"evidence     {right:.3f} [{low:.3f}, {high:.3f}], chance {chance:.3f}")


if __name__ == "__main__":
    recipes.run_script(main)
