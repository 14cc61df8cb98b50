"""Fit the verifier, which tells from similarity and shared words how probable a candidate is.

    python experiments/fit_verifier.py --dataset codiesp --data-dir DIR --output OUT

Writes OUT/model.json, the weights and the threshold of the best micro-F1, which
`verify.retrieval.weights` of the settings can name, and metrics.json; what ships is in
clh/weights/verify-retrieval. A candidate is right if its code is among the note's, both as
`clh.evaluation.metrics.folded` compares codes. The figures are of notes in folds, each judged by
weights fitted on the others; the weights that are written are fitted on the whole split.
"""

import json
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from pydantic import NonNegativeInt, PositiveFloat, PositiveInt

from clh.evaluation import recipes
from clh.files import atomic_write

if TYPE_CHECKING:
    import numpy as np

    from agents.pipeline import Pipeline
    from clh.corpora import Example
    from clh.evaluation.metrics import Scored


class VerifierRecipe(recipes.Recipe):
    """What recipes/fit_verifier.yaml says."""

    split: str
    candidates: PositiveInt
    folds: PositiveInt
    regularisation: PositiveFloat
    seed: NonNegativeInt


class Candidates(NamedTuple):
    """The candidates of all notes, in columns."""

    features: list[dict[str, float]]
    right: list[bool]
    notes: list[int]  # the place of the candidate's note
    terms: list[int]  # its term, numbered within the note
    codes: list[str]


def main() -> int:
    """Fit, report, write."""
    parser = recipes.training_parser(__doc__, "experiments/recipes/fit_verifier.yaml")
    arguments = recipes.parse_arguments(parser)

    from agents.pipeline import Pipeline
    from clh import corpora
    from clh.config import Settings
    from clh.evaluation import metrics, thresholds
    from clh.evaluation.metrics import Scored

    recipe = recipes.read_recipe(arguments.recipe, VerifierRecipe, arguments.set)
    settings = Settings.load(locate={"candidates": recipe.candidates})
    pipeline = Pipeline.load(settings)
    examples = list(corpora.read(arguments.dataset, arguments.data_dir, recipe.split))
    examples = examples[: arguments.limit]
    notes = [Scored(example.id, frozenset(example.codes), {}) for example in examples]
    gold = metrics.folded(notes, pipeline.system)

    candidates = measure_candidates(examples, gold, pipeline)
    fit = thresholds.fit_logistic(
        candidates.features,
        candidates.right,
        candidates.notes,
        folds=recipe.folds,
        regularisation=recipe.regularisation,
        seed=recipe.seed,
    )
    report = evaluate(candidates, fit.held_out, gold)
    fit.save(arguments.output, report["threshold"])
    atomic_write(arguments.output / "metrics.json", json.dumps(report, indent=2) + "\n")
    print(json.dumps({name: report[name] for name in report if name != "precision_recall"}))
    return 0


def measure_candidates(
    examples: Iterable["Example"], gold: Sequence["Scored"], pipeline: "Pipeline"
) -> Candidates:
    """The candidates of all terms, as verify sees them; `gold` has the codes of the notes."""
    from tqdm import tqdm

    from agents.analyze.retrieval import RetrievalAnalyzer
    from agents.node import Trace
    from agents.verify import keep_same_side
    from agents.verify.retrieval import retrieval_features

    parts = pipeline.reader, pipeline.embedder, pipeline.index, pipeline.prior
    analyzer = RetrievalAnalyzer(pipeline.settings.analyze.retrieval, *parts)
    found = Candidates([], [], [], [], [])
    for number, example in enumerate(tqdm(examples, unit="note", disable=None)):
        terms = analyzer.extract(example.note)
        searched = pipeline.retriever.search([term.lead_term for term in terms])
        candidates = keep_same_side(terms, searched, Trace())
        for position, (term, near) in enumerate(zip(terms, candidates, strict=True)):
            rows = retrieval_features(term, near, pipeline.index.lexicon)
            for candidate, row in zip(near, rows, strict=True):
                found.features.append(row)
                found.right.append(candidate.code in gold[number].gold)
                found.notes.append(number)
                found.terms.append(position)
                found.codes.append(candidate.code)
    return found


def evaluate(
    candidates: Candidates, probabilities: "np.ndarray", gold: Sequence["Scored"]
) -> dict[str, Any]:
    """How well probabilities tell right candidates, and the sets of codes at the best threshold."""
    from sklearn.metrics import roc_auc_score

    from clh.evaluation import metrics, thresholds

    notes = best_of_each_term(candidates, probabilities.tolist(), gold)
    threshold = round(thresholds.best_threshold(notes), 4)
    scores = metrics.set_scores(thresholds.apply_threshold(notes, threshold))
    bins = metrics.calibration(probabilities, candidates.right)
    return {
        "notes": len(gold),
        "candidates": len(candidates.right),
        "roc_auc": round(float(roc_auc_score(candidates.right, probabilities)), 4),
        "calibration_error": round(metrics.expected_calibration_error(bins), 4),
        "micro_f1": round(scores["micro_f1"], 4),
        "precision": round(scores["micro_precision"], 4),
        "recall": round(scores["micro_recall"], 4),
        "threshold": threshold,
        "precision_recall": thresholds.precision_recall_table(notes),
    }


def best_of_each_term(
    candidates: Candidates, probabilities: Sequence[float], gold: Sequence["Scored"]
) -> list["Scored"]:
    """The notes with the most probable code of each of their terms, as assign takes them."""
    from dataclasses import replace

    best: dict[tuple[int, int], tuple[float, str]] = {}
    columns = zip(candidates.notes, candidates.terms, probabilities, candidates.codes, strict=True)
    for note, term, probability, code in columns:
        if (note, term) not in best or probability > best[note, term][0]:
            best[note, term] = probability, code
    predicted: list[dict[str, float]] = [{} for _ in gold]
    for (note, _), (probability, code) in best.items():
        predicted[note][code] = max(probability, predicted[note].get(code, probability))
    return [replace(one, predicted=codes) for one, codes in zip(gold, predicted, strict=True)]


if __name__ == "__main__":
    recipes.run_script(main)
