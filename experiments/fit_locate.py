"""Fit the weights of locate: of shared words, and of how a corpus uses each code.

    python experiments/fit_locate.py --dataset codiesp --data-dir DIR --output OUT

Writes prior.json, precedents.safetensors and metrics.json into OUT, which `locate.prior` of the
settings can name; what ships is in clh/weights, and the weight of
words in clh/profiles. Counts are of the whole train split. Each weight is the one with the highest
recall, averaged over the cutoffs of `clh.stages`, on held-out documents that were neither counted
for it nor seen by the towers. All their sentences are queries: first without a prior, then
with the number of notes that have a code, then also with the codes of sentences that say the same.
"""

import argparse
import json
from collections import Counter
from collections.abc import Callable, Iterable
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
    notes: list[NonNegativeFloat]
    precedents: list[NonNegativeFloat]
    longest: PositiveInt
    doubt: NonNegativeFloat
    least: float = Field(gt=0, lt=1)


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
    from clh.retrieval.precedents import Precedents
    from clh.retrieval.prior import PRECEDENTS, PRIOR, Prior, Weights
    from clh.training.pairs import sentence_pairs, written

    recipe = runs.read_recipe(arguments.recipe, Recipe)
    system = load_tabular()
    settings = Settings.load(policy="mention", locate={"candidates": recipe.candidates})
    context = Context.load(settings, open_index(settings, system))
    examples = list(corpora.read(arguments.dataset, arguments.data_dir, recipe.split))
    counted, held_out = corpora.hold_out(examples, recipe.held_out, recipe.seed)

    def precedents(some: "list[Example]") -> Precedents:
        documents = sentence_pairs(some, system, context.reader, written)
        sentences = [(pair.texts[0], pair.codes) for pairs in documents for pair in pairs]
        return Precedents.count(sentences, recipe.longest, recipe.doubt, recipe.least)

    of_counted = notes_with(counted, system), precedents(counted)

    def recall(words: float, notes: float, precedent: float) -> dict[str, float]:
        weights = Weights(notes, precedent)
        fitted = replace(
            context,
            settings=Settings.load(
                policy="mention", locate={"candidates": recipe.candidates, "words": words}
            ),
            prior=Prior("fitted", weights, *of_counted, context.index, system)
            if any(weights)
            else None,
        )
        outcomes = [
            asyncio.run(alone("locate", "sentences", one, fitted, git="")) for one in held_out
        ]
        scores = stages.locate_scores(outcomes, system)
        found = {f"recall@{k}": round(scores[f"recall@{k}"], 4) for k in stages.CUTOFFS}
        given = {"words": words, "notes": notes, "precedent": precedent}
        tried.append({**given, **found})
        tqdm.write(json.dumps(tried[-1]))
        return found

    def best(name: str, values: list[float], of: Callable[[float], dict[str, float]]) -> float:
        found = {value: sum(of(value).values()) for value in tqdm(values, desc=name)}
        return max(found, key=lambda value: found[value])

    tried: list[dict[str, float]] = []
    words = best("words", recipe.words, lambda one: recall(one, 0.0, 0.0))
    notes = best("notes", recipe.notes, lambda one: recall(words, one, 0.0))
    precedent = best("precedents", recipe.precedents, lambda one: recall(words, notes, one))
    if words != settings.locate.words:
        print(f"locate.words is {settings.locate.words}, and {words} was best")

    prior_file = {
        "weight": notes,
        "precedent_weight": precedent,
        "notes": notes_with(examples, system),
    }
    report = {
        "dataset": arguments.dataset,
        "documents": len(examples),
        "held_out": len(held_out),
        "tower": context.tower.id,
        "git": runs.git_commit(),
        "words": words,
        "prior": notes,
        "precedent": precedent,
        "tried": tried,
    }
    arguments.output.mkdir(parents=True, exist_ok=True)
    runs.write(arguments.output / PRIOR, json.dumps(prior_file, indent=1) + "\n")
    precedents(examples).save(arguments.output / PRECEDENTS)
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
