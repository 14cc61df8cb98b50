"""Fit the weights of locate: of shared words, how a corpus uses each code, and a term's length.

    python experiments/fit_locate.py --dataset codiesp --data-dir DIR --output OUT

Writes prior.json, precedents.safetensors and metrics.json into OUT, which `locate.prior` of the
settings can name; what ships is in clh/weights, and the weights of words and length in
clh/profiles. Counts are of the whole train split. Each weight is the one with the highest
recall, averaged over the cutoffs of `clh.evaluation.stages`, on held-out documents that were
neither counted for it nor seen by the towers. All their sentences are queries: first without a
prior, then with the number of notes that have a code, then also with the codes of sentences that
say the same. For the weight of length the queries are the terms that analyze finds under the
recipe's profile.
"""

import json
from collections.abc import Callable

from pydantic import Field, NonNegativeFloat, NonNegativeInt, PositiveInt

from clh.evaluation import runs


class Recipe(runs.Recipe):
    """What recipes/fit_locate.yaml says."""

    split: str
    held_out: float = Field(gt=0, lt=1)
    seed: NonNegativeInt
    candidates: PositiveInt
    words: list[NonNegativeFloat]
    notes: list[NonNegativeFloat]
    precedents: list[NonNegativeFloat]
    profile: str
    length: list[NonNegativeFloat]
    longest: PositiveInt
    doubt: NonNegativeFloat
    least: float = Field(gt=0, lt=1)


def main() -> int:
    """Fit, report, write."""
    arguments = runs.learner(__doc__, "experiments/recipes/fit_locate.yaml").parse_args()

    import asyncio
    from dataclasses import replace

    from agents.context import Context
    from tqdm import tqdm

    from agents.evaluation.oracle import Source, alone
    from clh import corpora
    from clh.config import Settings
    from clh.evaluation import stages
    from clh.icd.tabular import load_tabular
    from clh.retrieval.index import open_index
    from clh.retrieval.prior import PRECEDENTS, PRIOR, Prior, Weights
    from clh.training.priors import Counting, count

    recipe = runs.read_recipe(arguments.recipe, Recipe)
    system = load_tabular()
    settings = Settings.load(policy="mention", locate={"candidates": recipe.candidates})
    context = Context.load(settings, open_index(settings, system))
    examples = list(corpora.read(arguments.dataset, arguments.data_dir, recipe.split))
    examples = examples[: arguments.limit]
    counted, held_out = corpora.hold_out(examples, recipe.held_out, recipe.seed)

    how = Counting(recipe.longest, recipe.doubt, recipe.least)
    of_counted = count(counted, system, context.reader, how)

    def recall(
        words: float,
        notes: float = 0.0,
        precedent: float = 0.0,
        length: float = 0.0,
        source: Source = "sentences",
    ) -> dict[str, float]:
        weights = Weights(notes, precedent)
        locate = {"candidates": recipe.candidates, "words": words, "length": length}
        fitted = replace(
            context,
            settings=Settings.load(recipe.profile, policy="mention", locate=locate),
            prior=Prior("fitted", weights, *of_counted, context.index, system)
            if any(weights)
            else None,
        )
        outcomes = [asyncio.run(alone("locate", source, one, fitted, git="")) for one in held_out]
        scores = stages.locate_scores(outcomes, system)
        found = {f"recall@{k}": round(scores[f"recall@{k}"], 4) for k in stages.CUTOFFS}
        given = {"words": words, "notes": notes, "precedent": precedent, "length": length}
        tried.append({"queries": source, **given, **found})
        tqdm.write(json.dumps(tried[-1]))
        return found

    def best(name: str, values: list[float], of: Callable[[float], dict[str, float]]) -> float:
        found = {value: sum(of(value).values()) for value in tqdm(values, desc=name)}
        return max(found, key=lambda value: found[value])

    tried: list[dict[str, float]] = []
    words = best("words", recipe.words, recall)
    notes = best("notes", recipe.notes, lambda one: recall(words, one))
    precedent = best("precedents", recipe.precedents, lambda one: recall(words, notes, one))
    length = best(
        "length", recipe.length, lambda one: recall(words, notes, precedent, one, "predicted")
    )
    shipped = Settings.load(recipe.profile).locate
    for name, given, value in (
        ("words", shipped.words, words),
        ("length", shipped.length, length),
    ):
        if value != given:
            print(f"locate.{name} is {given}, and {value} was best")

    with_code, precedents = count(examples, system, context.reader, how)
    prior_file = {
        "weight": notes,
        "precedent_weight": precedent,
        **how._asdict(),
        "notes": with_code,
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
        "length": length,
        "tried": tried,
    }
    arguments.output.mkdir(parents=True, exist_ok=True)
    runs.write(arguments.output / PRIOR, json.dumps(prior_file, indent=1) + "\n")
    precedents.save(arguments.output / PRECEDENTS)
    runs.write(arguments.output / "metrics.json", json.dumps(report, indent=2) + "\n")
    return 0


if __name__ == "__main__":
    runs.command(main)
