"""Fit the decision of assign: how probable a code is, given all its verdicts in a note.

    python experiments/fit_assigner.py --dataset codiesp --data-dir DIR --output OUT

Writes OUT/model.json, the weights and the threshold of the best micro-F1, which `assign.weights` of
the settings can name, and metrics.json; what ships is in clh/weights. Fitted on the documents that
the towers and the reranker held out, with a prior counted on the others: the verdicts on these are
like those on a new document. They come in folds, and the figures are of documents that the weights
were not fitted on; the weights that are written are fitted on all. A code is right if it is among
those of the note, 7th characters left out; codes that assign may not report take no part in the
fit.
"""

import json
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from pydantic import Field, NonNegativeInt, PositiveFloat, PositiveInt

from clh.evaluation import recipes
from clh.evaluation.run_folder import git_commit
from clh.files import atomic_write

if TYPE_CHECKING:
    import numpy as np

    from agents.pipeline import Pipeline
    from clh.corpora import Example


class AssignerRecipe(recipes.Recipe):
    """What recipes/fit_assigner.yaml says."""

    profile: str
    held_out: float = Field(gt=0, lt=1)
    folds: PositiveInt
    regularisation: PositiveFloat
    seed: NonNegativeInt


class NoteCodes(NamedTuple):
    """The codes that verify judged, note by note, in columns."""

    features: list[dict[str, float]]
    right: list[bool]
    notes: list[int]  # the place of the code's note
    codes: list[str]


def main() -> int:
    """Code, fit, report, write."""
    parser = recipes.training_parser(__doc__, "experiments/recipes/fit_assigner.yaml")
    arguments = recipes.parse_arguments(parser)

    from clh import corpora
    from clh.evaluation import thresholds

    recipe = recipes.read_recipe(arguments.recipe, AssignerRecipe, arguments.set)
    train = list(corpora.read(arguments.dataset, arguments.data_dir, "train"))[: arguments.limit]
    counted, examples = corpora.hold_out(train, recipe.held_out, recipe.seed)
    pipeline = load_pipeline(recipe.profile, counted)
    stem = pipeline.system.stem_or_self
    gold = [frozenset(map(stem, example.codes)) for example in examples]

    judged = judge_notes(examples, gold, pipeline)
    fit = thresholds.fit_logistic(
        judged.features,
        judged.right,
        judged.notes,
        folds=recipe.folds,
        regularisation=recipe.regularisation,
        seed=recipe.seed,
        scale=True,
    )
    report = {
        "dataset": arguments.dataset,
        "profile": recipe.profile,
        "models": pipeline.models,
        "git": git_commit(),
        **evaluate(judged, fit.held_out, gold),
    }
    fit.save(arguments.output, report["threshold"])
    atomic_write(arguments.output / "metrics.json", json.dumps(report, indent=2) + "\n")
    print(json.dumps({name: report[name] for name in report if name != "precision_recall"}))
    return 0


def load_pipeline(profile: str, counted: Sequence["Example"]) -> "Pipeline":
    """The agents of a profile without weights for assign, their prior counted on some examples.

    Raises InputError for a profile without a prior.
    """
    from agents.pipeline import Pipeline
    from clh.config import Settings
    from clh.errors import InputError
    from clh.training.priors import recount

    settings = Settings.load(profile, assign={"weights": ""})
    if settings.locate.prior is None:
        raise InputError(f"profile {profile} names no prior: name another in the recipe")
    pipeline = Pipeline.load(settings)
    parts = pipeline.index, pipeline.system, pipeline.reader
    return pipeline.rebuild(settings, recount(settings.locate.prior, counted, *parts))


def judge_notes(
    examples: Sequence["Example"], gold: Sequence[frozenset[str]], pipeline: "Pipeline"
) -> NoteCodes:
    """What assign would decide by, for each code that it may report in each note."""
    import asyncio

    from tqdm import tqdm

    from agents.assign.policy import why_not_reported
    from agents.assign.select import code_features, group_by_code
    from agents.node import Trace
    from agents.training.evidence import locate_document

    settings = pipeline.settings
    policy = settings.policy, settings.rules.setting, pipeline.system
    judged = NoteCodes([], [], [], [])
    for number, example in enumerate(tqdm(examples, unit="note", disable=None)):
        terms, candidates = locate_document(example, pipeline)
        verdicts, _ = asyncio.run(pipeline.verifier.verify(terms, candidates, Trace()))
        for code, supports in group_by_code(candidates, verdicts).items():
            reported = [
                support
                for support in supports
                if why_not_reported(terms[support.term].status, code, *policy) is None
            ]
            if reported:
                judged.features.append(code_features(reported))
                judged.right.append(code in gold[number])
                judged.notes.append(number)
                judged.codes.append(code)
    return judged


def evaluate(
    judged: NoteCodes, probabilities: "np.ndarray", gold: Sequence[frozenset[str]]
) -> dict[str, Any]:
    """The rankings that probabilities make, and the sets of codes at the best threshold."""
    from sklearn.metrics import average_precision_score, roc_auc_score

    from clh.evaluation import metrics, thresholds
    from clh.evaluation.metrics import Scored

    predicted: list[dict[str, float]] = [{} for _ in gold]
    for note, code, probability in zip(
        judged.notes, judged.codes, probabilities.tolist(), strict=True
    ):
        predicted[note][code] = probability
    ranked = [Scored(str(i), *pair) for i, pair in enumerate(zip(gold, predicted, strict=True))]
    threshold = round(thresholds.best_threshold(ranked), 2)
    bins = metrics.calibration(probabilities.tolist(), judged.right)
    return {
        "notes": len(gold),
        "codes": len(judged.right),
        "threshold": threshold,
        **metrics.set_scores(thresholds.apply_threshold(ranked, threshold)),
        "map": metrics.rank_scores(ranked, ())["map"],
        "roc_auc": float(roc_auc_score(judged.right, probabilities)),
        "average_precision": float(average_precision_score(judged.right, probabilities)),
        "calibration_error": metrics.expected_calibration_error(bins),
        "precision_recall": thresholds.precision_recall_table(ranked),
    }


if __name__ == "__main__":
    recipes.run_script(main)
