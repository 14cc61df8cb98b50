"""Train the cross-encoder of verify, and how its word is weighed.

    python experiments/train_verifier.py --dataset codiesp --data-dir DIR --output OUT

Learns from the train split alone, a tenth of whose documents is held out to choose the best epoch
and for the weights, as for the towers; no sentence of these, nor of the splits in --unseen, is
learned. Candidates are found with a prior that was counted on other documents. Stopped at any time,
the same command goes on after the last checkpoint.

Writes OUT/best, a cross-encoder that `verify.encoder` of the settings can name, with model.json
(how probable a candidate is by it and the retrieval together) and metrics.json (of the documents
held out, in folds); log.jsonl, the scores by epoch; learned.jsonl and held_out.jsonl, what is read;
config.json; checkpoints.
"""

import json

from clh import runs
from clh.training import loop


def main() -> int:
    """Train, weigh, write."""
    flags = loop.parser(__doc__, "experiments/recipes/train_verifier.yaml")
    arguments = flags.parse_args()

    import numpy as np
    import torch
    from sklearn.linear_model import LogisticRegression
    from sklearn.metrics import average_precision_score, roc_auc_score
    from sklearn.model_selection import GroupKFold, cross_val_predict
    from transformers import set_seed

    from agents import readings
    from clh import metrics, models
    from clh.crossencoder import CrossEncoder, load_crossencoder, open_crossencoder
    from clh.training import crossencoder

    recipe = runs.read_recipe(arguments.recipe, crossencoder.Recipe)
    lessons = readings.prepare(arguments, recipe)
    folder, settings = lessons.folder.path, lessons.context.settings
    right = np.array([one.right for one in lessons.held_out])
    pairs = [one.texts for one in lessons.held_out]

    def scores(logits: np.ndarray) -> dict[str, float]:
        precision = float(average_precision_score(right, logits))
        return {loop.BEST: precision, "roc_auc": float(roc_auc_score(right, logits))}

    set_seed(recipe.seed)
    model, tokenizer = open_crossencoder(
        models.resolve(recipe.base, settings.cache_dir), torch.float32, to_train=True
    )
    verify = settings.verify
    trainer = crossencoder.trainer(
        model,
        tokenizer,
        [(one.texts, one.right) for one in lessons.learned],
        verify.max_tokens,
        recipe,
        folder,
    )

    def scored() -> dict[str, float]:
        encoder = CrossEncoder(model, tokenizer, "", verify.max_tokens, verify.batch)
        return scores(encoder.logits(pairs))

    loop.train(trainer, folder, scored, lambda to: crossencoder.save(model, tokenizer, to))

    best = load_crossencoder(str(folder / "best"), settings)
    logits = best.logits(pairs)
    retrieval = np.array([one.retrieval for one in lessons.held_out])
    x = np.column_stack([retrieval, logits])
    regression = LogisticRegression(C=recipe.regularisation)
    documents = [one.document for one in lessons.held_out]
    probability = cross_val_predict(
        regression, x, right, groups=documents, cv=GroupKFold(recipe.folds), method="predict_proba"
    )[:, 1]
    report = {
        "documents": len({*documents}),
        "candidates": len(right),
        "retrieval": scores(retrieval),
        "encoder": scores(logits),
        "together": scores(probability),
        "calibration_error": metrics.expected_calibration_error(
            metrics.calibration(probability, right)
        ),
    }
    fitted = regression.fit(x, right)
    weights = dict(zip(("retrieval", "encoder"), fitted.coef_[0].round(4).tolist(), strict=True))
    written = {"intercept": round(float(fitted.intercept_[0]), 4), "coefficients": weights}
    runs.write(folder / "best" / "model.json", json.dumps(written, indent=2) + "\n")
    runs.write(folder / "best" / "metrics.json", json.dumps(report, indent=2) + "\n")
    print(json.dumps(report))
    return 0


if __name__ == "__main__":
    runs.command(main)
