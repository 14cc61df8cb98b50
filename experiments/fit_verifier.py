"""Fit the verifier that weighs similarity and shared words, on a training split.

    python experiments/fit_verifier.py --dataset codiesp --data-dir DIR --output OUT

Writes OUT/model.json and metrics.json; what ships is in clh/weights/verify-retrieval. A candidate
counts as right if its code is among the note's, both folded as `clh.evaluation.metrics.folded`
does. Notes are the folds of the figures that are printed and kept; the weights are fitted on the
whole split.
"""

import json

from pydantic import NonNegativeInt, PositiveFloat, PositiveInt

from clh.evaluation import runs


class Recipe(runs.Recipe):
    """What recipes/fit_verifier.yaml says."""

    split: str
    candidates: PositiveInt
    folds: PositiveInt
    regularisation: PositiveFloat
    seed: NonNegativeInt


def main() -> int:
    """Fit, report, write."""
    arguments = runs.learner(__doc__, "experiments/recipes/fit_verifier.yaml").parse_args()

    import numpy as np
    from agents.context import Context
    from sklearn.linear_model import LogisticRegression
    from sklearn.metrics import roc_auc_score
    from sklearn.model_selection import GroupKFold
    from tqdm import tqdm

    from agents.analyze import extract_by_retrieval
    from agents.locate import search
    from agents.verify import features, same_laterality
    from clh import corpora
    from clh.config import Settings
    from clh.evaluation import metrics
    from clh.evaluation.metrics import Scored
    from clh.icd.tabular import load_tabular
    from clh.retrieval.index import open_index

    recipe = runs.read_recipe(arguments.recipe, Recipe)
    settings = Settings.load(locate={"candidates": recipe.candidates})
    system = load_tabular()
    context = Context.load(settings, open_index(settings, system))

    examples = list(corpora.read(arguments.dataset, arguments.data_dir, recipe.split))
    gold = metrics.folded(
        [Scored(one.id, frozenset(one.codes), {}) for one in examples[: arguments.limit]], system
    )
    rows, labels, notes, terms_of, codes = [], [], [], [], []
    for number, (example, note) in enumerate(zip(examples, tqdm(gold, unit="note"), strict=False)):
        terms = extract_by_retrieval(example.note, context)
        found = search([term.lead_term for term in terms], context)
        for position, (term, near) in enumerate(zip(terms, found, strict=True)):
            candidates = same_laterality(term, near)
            measured = features(term, candidates, context.index.lexicon)
            for candidate, row in zip(candidates, measured, strict=True):
                rows.append(row)
                labels.append(candidate.code in note.gold)
                notes.append(number)
                terms_of.append((number, position))
                codes.append(candidate.code)

    names = list(rows[0])
    x = np.array([[row[name] for name in names] for row in rows])
    y = np.array(labels)

    def fitted(chosen: np.ndarray) -> LogisticRegression:
        model = LogisticRegression(C=recipe.regularisation, max_iter=5000)
        return model.fit(x[chosen], y[chosen])

    held_out = np.zeros(len(y))
    folds = GroupKFold(recipe.folds, shuffle=True, random_state=recipe.seed)
    for chosen, rest in folds.split(x, y, notes):
        held_out[rest] = fitted(chosen).predict_proba(x[rest])[:, 1]

    best: dict[tuple[int, int], int] = {}  # the row of the best candidate of each term
    for row, term in enumerate(terms_of):
        if term not in best or held_out[row] > held_out[best[term]]:
            best[term] = row
    curve = []
    for threshold in np.arange(0.05, 0.65, 0.05):
        predicted: list[dict[str, float]] = [{} for _ in gold]
        for row in best.values():
            if held_out[row] >= threshold:
                predicted[notes[row]][codes[row]] = held_out[row]
        scored = [Scored(one.id, one.gold, p) for one, p in zip(gold, predicted, strict=True)]
        scores = metrics.set_scores(scored)
        curve.append((scores["micro_f1"], round(float(threshold), 2), scores))
        print(
            f"threshold {threshold:.2f}  precision {scores['micro_precision']:.3f}  "
            f"recall {scores['micro_recall']:.3f}  micro-F1 {scores['micro_f1']:.3f}"
        )
    f1, threshold, scores = max(curve, key=lambda point: point[0])
    report = {
        "notes": len(gold),
        "candidates": len(y),
        "roc_auc": float(roc_auc_score(y, held_out)),
        "calibration_error": metrics.expected_calibration_error(metrics.calibration(held_out, y)),
        "micro_f1": f1,
        "precision": scores["micro_precision"],
        "recall": scores["micro_recall"],
        "threshold": threshold,
    }
    report = {name: round(value, 4) for name, value in report.items()}
    print(json.dumps(report))

    model = fitted(np.arange(len(y)))
    weights = {
        "intercept": round(float(model.intercept_[0]), 4),
        "coefficients": {
            name: round(float(weight), 4)
            for name, weight in zip(names, model.coef_[0], strict=True)
        },
    }
    arguments.output.mkdir(parents=True, exist_ok=True)
    runs.write(arguments.output / "model.json", json.dumps(weights, indent=2) + "\n")
    runs.write(arguments.output / "metrics.json", json.dumps(report, indent=2) + "\n")
    return 0


if __name__ == "__main__":
    runs.command(main)
