"""Fit the weights of locate: of shared words, and of how often a corpus uses each code.

    python experiments/fit_locate.py --dataset codiesp --data-dir DIR --output OUT

Writes OUT/prior.json, which `locate.prior` of the settings and `--prior` of the experiments can
name, and metrics.json; what ships is in clh/weights, and the weight of words in clh/profiles.
Counts are of the whole train split. Each weight is the one with the highest recall, averaged over
the cutoffs of `clh.stages`, on held-out documents that were neither counted for it nor seen by the
towers; all their sentences are queries, first without a prior, then with it.
"""

import argparse
import json
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from pydantic import Field, NonNegativeFloat, NonNegativeInt, PositiveInt

from clh import runs

if TYPE_CHECKING:
    from clh.corpora import Example
    from clh.icd.tabular import CodeSystem


class Recipe(runs.Recipe):
    """What recipes/fit_locate.yaml says."""

    split: str
    held_out: float = Field(gt=0, lt=1)
    seed: NonNegativeInt
    candidates: PositiveInt
    words: list[NonNegativeFloat]
    priors: list[NonNegativeFloat]


def main() -> int:
    """Fit, report, write."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--dataset", default="codiesp")
    parser.add_argument("--data-dir", type=Path, required=True)
    parser.add_argument("--output", type=Path, required=True, help="folder for prior.json")
    parser.add_argument(
        "--recipe", type=Path, default=Path(__file__).with_name("recipes") / "fit_locate.yaml"
    )
    arguments = parser.parse_args()

    import asyncio
    from dataclasses import replace

    from tqdm import tqdm

    from agents.context import Context
    from agents.evaluate import alone
    from clh import corpora, stages
    from clh.config import Settings
    from clh.icd.tabular import load_tabular
    from clh.retrieval.ann import open_index
    from clh.retrieval.prior import Prior

    recipe = runs.read_recipe(arguments.recipe, Recipe)
    system = load_tabular()
    settings = Settings.load(policy="mention", locate={"candidates": recipe.candidates})
    context = Context.load(settings, open_index(settings, system))
    examples = list(corpora.read(arguments.dataset, arguments.data_dir, recipe.split))
    counted, held_out = corpora.hold_out(examples, recipe.held_out, recipe.seed)

    def recall(words: float, prior: float) -> dict[str, float]:
        locate = {"candidates": recipe.candidates, "words": words}
        fitted = replace(
            context,
            settings=Settings.load(policy="mention", locate=locate),
            prior=Prior("fitted", prior, notes_with(counted, system), context.index, system)
            if prior
            else None,
        )
        outcomes = [
            asyncio.run(alone("locate", "sentences", one, fitted, git="")) for one in held_out
        ]
        scores = stages.locate_scores(outcomes, system)
        found = {f"recall@{k}": round(scores[f"recall@{k}"], 4) for k in stages.CUTOFFS}
        tqdm.write(json.dumps({"words": words, "prior": prior, **found}))
        return found

    by_words = {words: recall(words, 0.0) for words in tqdm(recipe.words, desc="words")}
    words = max(by_words, key=lambda one: sum(by_words[one].values()))
    by_prior = {prior: recall(words, prior) for prior in tqdm(recipe.priors, desc="prior")}
    prior = max(by_prior, key=lambda one: sum(by_prior[one].values()))
    if words != settings.locate.words:
        print(f"locate.words is {settings.locate.words}, and {words} was best")

    prior_file = {"weight": prior, "notes": notes_with(examples, system)}
    report = {
        "dataset": arguments.dataset,
        "documents": len(examples),
        "held_out": len(held_out),
        "tower": context.tower.id,
        "git": runs.git_commit(),
        "words": words,
        "prior": prior,
        **by_prior[prior],
        "by_words": by_words,
        "by_prior": by_prior,
    }
    arguments.output.mkdir(parents=True, exist_ok=True)
    runs.write(arguments.output / "prior.json", json.dumps(prior_file, indent=1) + "\n")
    runs.write(arguments.output / "metrics.json", json.dumps(report, indent=2) + "\n")
    return 0


def notes_with(examples: "Iterable[Example]", system: "CodeSystem") -> dict[str, int]:
    """The number of notes with each code of the release, 7th characters left out."""
    stems = (
        {system.stem(code) for code in example.codes if code in system} for example in examples
    )
    return dict(sorted(Counter(code for codes in stems for code in codes).items()))


if __name__ == "__main__":
    runs.command(main)
