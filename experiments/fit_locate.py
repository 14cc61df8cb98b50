"""Fit the weights of locate: of shared words, how a corpus uses each code, and a term's length.

    python experiments/fit_locate.py --dataset codiesp --data-dir DIR --output OUT

Writes prior.json, precedents.safetensors and metrics.json into OUT, which `locate.prior` of the
settings can name; what ships is in clh/weights, and the weights of words and length in
clh/profiles. Counts are of the whole train split. Each weight is the one with the highest recall,
averaged over the cutoffs of `clh.evaluation.stages`, on held-out documents that were neither
counted for it nor seen by the towers. All their sentences are queries: first without a prior, then
with the number of notes that have a code, then also with the codes of sentences that say the same.
For the weight of length the queries are the terms that analyze finds under the recipe's profile.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from pydantic import Field, NonNegativeFloat, NonNegativeInt, PositiveInt

from clh.evaluation import recipes
from clh.evaluation.run_folder import git_commit
from clh.files import atomic_write

if TYPE_CHECKING:
    from agents.evaluation.oracle import Source
    from agents.pipeline import Pipeline
    from clh.config import Settings
    from clh.corpora import Example
    from clh.retrieval.precedents import Precedents


class LocateRecipe(recipes.Recipe):
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


@dataclass
class Tuner:
    """Tries weights of locate on held-out documents, one weight after the other."""

    pipeline: "Pipeline"
    recipe: LocateRecipe
    counts: "tuple[dict[str, int], Precedents]"  # of other documents
    held_out: Sequence["Example"]
    weights: dict[str, float] = field(
        default_factory=lambda: {"words": 0.0, "notes": 0.0, "precedent": 0.0, "length": 0.0}
    )
    tried: list[dict[str, Any]] = field(default_factory=list)

    def tune(self, name: str, values: Sequence[float], queries: "Source" = "sentences") -> None:
        """Keep the value of one weight that has the highest recall, the others as they are."""
        from tqdm import tqdm

        recalls = {
            value: self.recall({**self.weights, name: value}, queries)
            for value in tqdm(values, desc=name)
        }
        self.weights[name] = max(recalls, key=recalls.__getitem__)

    def recall(self, weights: dict[str, float], queries: "Source") -> float:
        """The sum of recall over all cutoffs, with some weights."""
        import asyncio

        from tqdm import tqdm

        from agents.evaluation.oracle import run_agent
        from clh.evaluation import stages
        from clh.retrieval.prior import Prior, Weights

        prior, of_prior = None, Weights(weights["notes"], weights["precedent"])
        index, system = self.pipeline.index, self.pipeline.system
        if any(of_prior):
            prior = Prior("fitted", of_prior, *self.counts, index, system)
        settings = locate_settings(self.recipe, weights["words"], weights["length"])
        pipeline = self.pipeline.rebuild(settings, prior)
        outcomes = [
            asyncio.run(run_agent("locate", queries, example, pipeline, git=""))
            for example in self.held_out
        ]
        scores = stages.locate_scores(outcomes, system)
        recalls = {f"recall@{k}": round(scores[f"recall@{k}"], 4) for k in stages.CUTOFFS}
        self.tried.append({"queries": queries, **weights, **recalls})
        tqdm.write(json.dumps(self.tried[-1]))
        return float(sum(recalls.values()))


def main() -> int:
    """Fit, report, write."""
    parser = recipes.training_parser(__doc__, "experiments/recipes/fit_locate.yaml")
    arguments = recipes.parse_arguments(parser)

    from agents.pipeline import Pipeline
    from clh import corpora
    from clh.config import Settings
    from clh.retrieval.prior import Weights
    from clh.training.priors import Counting, count_codes, save_prior

    recipe = recipes.read_recipe(arguments.recipe, LocateRecipe, arguments.set)
    settings = Settings.load(policy="mention", locate={"candidates": recipe.candidates})
    pipeline = Pipeline.load(settings)
    examples = list(corpora.read(arguments.dataset, arguments.data_dir, recipe.split))
    examples = examples[: arguments.limit]
    counted, held_out = corpora.hold_out(examples, recipe.held_out, recipe.seed)
    counting = Counting(recipe.longest, recipe.doubt, recipe.least)

    counts = count_codes(counted, pipeline.system, pipeline.reader, counting)
    tuner = Tuner(pipeline, recipe, counts, held_out)
    tuner.tune("words", recipe.words)
    tuner.tune("notes", recipe.notes)
    tuner.tune("precedent", recipe.precedents)
    tuner.tune("length", recipe.length, queries="predicted")
    shipped = Settings.load(recipe.profile).locate
    for name, value in (("words", shipped.words), ("length", shipped.length)):
        if tuner.weights[name] != value:
            print(f"locate.{name} is {value}, and {tuner.weights[name]} was best")

    weights = Weights(tuner.weights["notes"], tuner.weights["precedent"])
    counts = count_codes(examples, pipeline.system, pipeline.reader, counting)
    save_prior(arguments.output, weights, counting, counts)
    report = {
        "dataset": arguments.dataset,
        "documents": len(examples),
        "held_out": len(held_out),
        "tower": pipeline.embedder.id,
        "git": git_commit(),
        "words": tuner.weights["words"],
        "prior": tuner.weights["notes"],
        "precedent": tuner.weights["precedent"],
        "length": tuner.weights["length"],
        "tried": tuner.tried,
    }
    atomic_write(arguments.output / "metrics.json", json.dumps(report, indent=2) + "\n")
    return 0


def locate_settings(recipe: LocateRecipe, words: float, length: float) -> "Settings":
    """The settings of the recipe's profile with some weights of locate."""
    from clh.config import Settings

    locate = {"candidates": recipe.candidates, "words": words, "length": length}
    verify = {"source": "retrieval"}  # takes no part, and a reranker takes long to load
    return Settings.load(recipe.profile, policy="mention", locate=locate, verify=verify)


if __name__ == "__main__":
    recipes.run_script(main)
