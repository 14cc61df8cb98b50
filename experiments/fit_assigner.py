"""Fit the decision of assign: how probable all verdicts on a code make it.

    python experiments/fit_assigner.py --dataset codiesp --data-dir DIR --output OUT

Writes OUT/model.json, which `assign.weights` of the settings can name, and metrics.json; what ships
is in clh/weights, its threshold in clh/profiles. Fitted on the documents that the towers and the
cross-encoder held out, with a prior counted on the others: the verdicts on these are like those on
a new document. They come in folds, and the figures are of documents that the weights were not
fitted on; the weights that are written are fitted on all. A code is right if it is among those of
the note, 7th characters left out; codes that assign may not report are no part of the fit.
"""

import json

from pydantic import Field, NonNegativeInt, PositiveFloat, PositiveInt

from clh.evaluation import runs


class Recipe(runs.Recipe):
    """What recipes/fit_assigner.yaml says."""

    profile: str
    held_out: float = Field(gt=0, lt=1)
    folds: PositiveInt
    regularisation: PositiveFloat
    seed: NonNegativeInt


def main() -> int:
    """Code, fit, report, write."""
    arguments = runs.learner(__doc__, "experiments/recipes/fit_assigner.yaml").parse_args()

    from dataclasses import replace

    import numpy as np
    from agents.context import Context
    from sklearn.linear_model import LogisticRegression
    from sklearn.metrics import average_precision_score, roc_auc_score
    from sklearn.preprocessing import StandardScaler
    from tqdm import tqdm

    from agents.assign import completed, features, tally
    from agents.training.examples import located
    from agents.verify import judge
    from clh import corpora
    from clh.config import Settings
    from clh.errors import InputError
    from clh.evaluation import metrics
    from clh.evaluation.metrics import Scored
    from clh.icd.tabular import load_tabular
    from clh.retrieval.index import open_index
    from clh.training.priors import recount

    recipe = runs.read_recipe(arguments.recipe, Recipe)
    settings = Settings.load(recipe.profile, assign={"weights": ""})
    system = load_tabular()
    context = Context.load(settings, open_index(settings, system))
    if context.prior is None:
        raise InputError(f"profile {recipe.profile} names no prior: name another in the recipe")
    train = list(corpora.read(arguments.dataset, arguments.data_dir, "train"))[: arguments.limit]
    others, examples = corpora.hold_out(train, recipe.held_out, recipe.seed)
    prior = recount(settings.locate.prior, others, context.index, system, context.reader)
    context = replace(context, prior=prior)

    rows, labels, notes, codes = [], [], [], []
    gold = [
        frozenset(system.stem(code) if code in system else code for code in one.codes)
        for one in examples
    ]
    for number, example in enumerate(tqdm(examples, unit="note", disable=None)):
        terms, found = located(example, context)
        for code, said in tally(found, judge(terms, found, context)).items():
            if completed(code, system) is not None:
                rows.append(features(said))
                labels.append(code in gold[number])
                notes.append(number)
                codes.append(code)

    names = list(rows[0])
    x = np.array([list(row.values()) for row in rows])
    y, of_note = np.array(labels), np.array(notes)
    scaler = StandardScaler().fit(x)
    scaled = scaler.transform(x)

    def fitted(chosen: np.ndarray) -> LogisticRegression:
        model = LogisticRegression(C=recipe.regularisation, max_iter=5000)
        return model.fit(scaled[chosen], y[chosen])

    probability = np.zeros(len(y))
    for fold in range(recipe.folds):
        rest = of_note % recipe.folds == fold
        if y[~rest].all() or not y[~rest].any():
            raise InputError(f"too few documents for {recipe.folds} folds: some have no gold code")
        probability[rest] = fitted(~rest).predict_proba(scaled[rest])[:, 1]
    curve = metrics.precision_recall(probability, y, sum(map(len, gold)))
    f1 = 2 * curve.precision * curve.recall / np.maximum(curve.precision + curve.recall, 1e-12)
    threshold = round(float(curve.threshold[f1.argmax()]), 2)
    predicted: list[dict[str, float]] = [{} for _ in gold]
    for note, code, p in zip(notes, codes, probability.tolist(), strict=True):
        predicted[note][code] = p
    ranked = [Scored(str(i), *pair) for i, pair in enumerate(zip(gold, predicted, strict=True))]
    sets = [
        replace(one, predicted={c: p for c, p in one.predicted.items() if p >= threshold})
        for one in ranked
    ]
    shown = [
        int(np.searchsorted(curve.threshold, at))
        for at in np.arange(0.05, 1, 0.05)
        if at <= curve.threshold[-1]
    ]
    report = {
        "dataset": arguments.dataset,
        "notes": len(examples),
        "codes": len(y),
        "profile": recipe.profile,
        "models": context.models,
        "git": runs.git_commit(),
        "threshold": threshold,
        **metrics.set_scores(sets),
        "map": metrics.rank_scores(ranked, ())["map"],
        "roc_auc": float(roc_auc_score(y, probability)),
        "average_precision": float(average_precision_score(y, probability)),
        "calibration_error": metrics.expected_calibration_error(
            metrics.calibration(probability.tolist(), labels)
        ),
        "precision_recall": [
            {
                "threshold": round(float(curve.threshold[at]), 2),
                "precision": round(float(curve.precision[at]), 3),
                "recall": round(float(curve.recall[at]), 3),
            }
            for at in shown
        ],
    }
    model = fitted(np.ones(len(y), dtype=bool))
    weights = model.coef_[0] / scaler.scale_
    arguments.output.mkdir(parents=True, exist_ok=True)
    coefficients = dict(zip(names, weights.round(4).tolist(), strict=True))
    intercept = round(float(model.intercept_[0] - weights @ scaler.mean_), 4)
    written = {"intercept": intercept, "coefficients": coefficients}
    runs.write(arguments.output / "model.json", json.dumps(written, indent=2) + "\n")
    runs.write(arguments.output / "metrics.json", json.dumps(report, indent=2) + "\n")
    print(json.dumps({name: report[name] for name in report if name != "precision_recall"}))
    if threshold != Settings.load(recipe.profile).assign.threshold:
        print(f"assign.threshold of profile {recipe.profile} is not {threshold}, which was best")
    return 0


if __name__ == "__main__":
    runs.command(main)
