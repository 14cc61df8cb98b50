"""Train the cross-encoder of verify, and how its word is weighed.

    python experiments/train_verifier.py --dataset codiesp --data-dir DIR --output OUT

Learns from the train split alone, a tenth of whose documents is held out to choose the best epoch
and for the weights, as for the towers; no sentence of these, nor of the splits in --unseen, is
learned. Candidates are found with a prior that was counted on other documents. Stopped at any time,
the same command goes on after the last checkpoint.

Writes OUT/best, a cross-encoder that `verify.encoder` of the settings can name, with model.json
(how probable a candidate is by it, the retrieval and locate's rank together) and metrics.json (of
the documents held out, in folds); log.jsonl, the scores by epoch; learned.jsonl and held_out.jsonl,
what is read; config.json; checkpoints. With `--encoder NAME` that one is weighed anew, and none is
trained: OUT/best then has model.json and metrics.json alone.
"""

import json
from collections.abc import Sequence
from typing import TYPE_CHECKING

from clh.evaluation import recipes, runs
from clh.training import loop, reranker

if TYPE_CHECKING:
    import numpy as np

    from agents.training.rerank_pairs import Lessons


def main() -> int:
    """Train, weigh, write."""
    flags = loop.parser(__doc__, "experiments/recipes/train_verifier.yaml")
    flags.add_argument("--encoder", help="a trained one to weigh, as verify.encoder in clh.toml")
    arguments = recipes.parse_arguments(flags)

    from agents.training import rerank_pairs
    from clh.models.reranker import load_reranker

    recipe = recipes.read_recipe(arguments.recipe, reranker.Recipe, arguments.set)
    lessons = rerank_pairs.prepare(arguments, recipe)
    best = lessons.folder.path / "best"
    if arguments.encoder is None:
        train(lessons, recipe)
    encoder = load_reranker(arguments.encoder or str(best), lessons.context.settings)
    logits = encoder.score([one.texts for one in lessons.held_out if one.likely])
    weights, report = weigh(lessons, logits.tolist(), recipe)
    best.mkdir(exist_ok=True)
    runs.write(best / "model.json", json.dumps(weights, indent=2) + "\n")
    runs.write(
        best / "metrics.json", json.dumps({"encoder": encoder.id, **report}, indent=2) + "\n"
    )
    print(json.dumps(report))
    return 0


def train(lessons: "Lessons", recipe: reranker.Recipe) -> None:
    """Train the cross-encoder."""
    import torch
    from transformers import set_seed

    from clh.models import weights
    from clh.training.reranker import CrossEncoder, open_crossencoder

    folder, settings = lessons.folder.path, lessons.context.settings
    set_seed(recipe.seed)
    model, tokenizer = open_crossencoder(
        weights.resolve(recipe.base, settings.cache_dir), torch.float32, to_train=True
    )
    verify = settings.verify
    trainer = reranker.trainer(
        model,
        tokenizer,
        [(one.texts, one.right) for one in lessons.learned],
        verify.max_tokens,
        recipe,
        folder,
    )
    likely = [one for one in lessons.held_out if one.likely]

    def scored() -> dict[str, float]:
        encoder = CrossEncoder(model, tokenizer, "", verify.max_tokens, batch=32)
        logits = encoder.logits([one.texts for one in likely])
        return scores([one.right for one in likely], logits)

    loop.train(trainer, folder, scored, lambda to: reranker.save(model, tokenizer, to))


def weigh(
    lessons: "Lessons", logits: Sequence[float], recipe: reranker.Recipe
) -> tuple[dict[str, object], dict[str, object]]:
    """The weights of what is known of a candidate, and how good they are; logits are of the likely.

    `likely` compares on the candidates that are read; `all` is of these and of the others.
    """
    import numpy as np
    from sklearn.linear_model import LogisticRegression
    from sklearn.model_selection import GroupKFold, cross_val_predict

    from agents.verify import weighed
    from clh.evaluation import metrics

    said = iter(logits)
    known = [
        weighed(one.retrieval, one.rank, next(said) if one.likely else None)
        for one in lessons.held_out
    ]
    x = np.array([list(one.values()) for one in known])
    right = np.array([one.right for one in lessons.held_out])
    likely = np.array([one.likely for one in lessons.held_out])
    documents = [one.document for one in lessons.held_out]
    regression = LogisticRegression(C=recipe.regularisation, max_iter=1000)
    probability = cross_val_predict(
        regression, x, right, groups=documents, cv=GroupKFold(recipe.folds), method="predict_proba"
    )[:, 1]
    report = {
        "documents": len({*documents}),
        "likely": {
            "candidates": int(likely.sum()),
            "retrieval": scores(right[likely], x[likely, 0]),
            "rank": scores(right[likely], x[likely, 1]),
            "encoder": scores(right[likely], np.array(logits)),
            "together": scores(right[likely], probability[likely]),
        },
        "all": {"candidates": len(right), **scores(right, probability)},
        "calibration_error": metrics.expected_calibration_error(
            metrics.calibration(probability, right)
        ),
    }
    fitted = regression.fit(x, right)
    coefficients = dict(zip(known[0], fitted.coef_[0].round(4).tolist(), strict=True))
    weights = {"intercept": round(float(fitted.intercept_[0]), 4), "coefficients": coefficients}
    return weights, report


def scores(right: "Sequence[bool] | np.ndarray", ranking: "np.ndarray") -> dict[str, float]:
    """How well a ranking tells right from wrong."""
    from sklearn.metrics import average_precision_score, roc_auc_score

    precision = float(average_precision_score(right, ranking))
    return {loop.BEST: precision, "roc_auc": float(roc_auc_score(right, ranking))}


if __name__ == "__main__":
    recipes.run_script(main)
