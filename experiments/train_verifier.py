"""Train the reranker of verify, and calibrate it.

    python experiments/train_verifier.py --dataset codiesp --data-dir DIR --output OUT

Learns from the train split alone, a tenth of whose documents is held out to choose the best epoch
and for the calibration, as for the towers; no sentence of these, nor of the splits in --unseen, is
trained on. Candidates are found with a prior that was counted on other documents. Stopped at any
time, the same command goes on after the last checkpoint.

Writes OUT/best, a sentence-transformers cross-encoder that `verify.reranking.model` of the settings
can name, with model.json (how probable a candidate is, given its score, the retrieval's verdict and
locate's score, and the threshold of the best micro-F1) and metrics.json (of the documents held out,
in folds); log.jsonl, the scores by epoch; train.jsonl and held_out.jsonl, the pairs that are read;
config.json; checkpoints. With `--encoder NAME` that one is calibrated anew, and none is trained:
OUT/best then has model.json and metrics.json alone.
"""

import json
from collections import defaultdict
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from clh.evaluation import recipes
from clh.files import atomic_write
from clh.training import trainer

if TYPE_CHECKING:
    import numpy as np

    from agents.training.rerank_pairs import RerankData
    from clh.evaluation.metrics import Scored
    from clh.evaluation.thresholds import LogisticFit
    from clh.training.reranker import RerankerRecipe


def main() -> int:
    """Train, calibrate, write."""
    parser = trainer.training_parser(__doc__, "experiments/recipes/train_verifier.yaml")
    parser.add_argument("--encoder", help="a trained one to calibrate, as verify.reranking.model")
    arguments = recipes.parse_arguments(parser)

    from agents.training.rerank_pairs import load_rerank_data
    from clh.models.reranker import load_reranker
    from clh.training.reranker import RerankerRecipe

    recipe = recipes.read_recipe(arguments.recipe, RerankerRecipe, arguments.set)
    data = load_rerank_data(arguments, recipe)
    best = data.folder.path / "best"
    if arguments.encoder is None:
        train(data, recipe)
    encoder = load_reranker(arguments.encoder or str(best), data.pipeline.settings)
    scores = encoder.score([pair.texts for pair in data.held_out if pair.reranked])
    fit, report = calibrate(data, scores.tolist(), recipe)
    fit.save(best, report["threshold"])
    metrics = json.dumps({"encoder": encoder.id, **report}, indent=2)
    atomic_write(best / "metrics.json", metrics + "\n")
    print(json.dumps(report))
    return 0


def train(data: "RerankData", recipe: "RerankerRecipe") -> None:
    """Train the reranker, and keep its best epoch in OUT/best."""
    from transformers import set_seed

    from clh.models import weights
    from clh.training import reranker
    from clh.training.export import export_onnx
    from clh.training.towers import save_half, set_dropout

    folder, settings = data.folder.path, data.pipeline.settings
    set_seed(recipe.seed)
    base = weights.resolve(recipe.base, settings.cache_dir)
    max_tokens = settings.verify.reranking.max_tokens
    model = reranker.open_reranker(base, max_tokens, recipe.attention)
    set_dropout(model, recipe.dropout)
    pairs = [(pair.texts, pair.right) for pair in data.train]
    held_out = [pair for pair in data.held_out if pair.reranked]

    def evaluate() -> dict[str, float]:
        scores = reranker.score_pairs(model, [pair.texts for pair in held_out], recipe.batch)
        return ranking_scores([pair.right for pair in held_out], scores)

    trained = reranker.build_trainer(model, pairs, recipe, folder)
    trainer.train(trained, folder, evaluate, lambda to: save_half(model, to))
    export_onnx(folder / "best")


def calibrate(
    data: "RerankData", scores: Sequence[float], recipe: "RerankerRecipe"
) -> tuple["LogisticFit", dict[str, Any]]:
    """How probable a candidate is, and how good that is; `scores` are of the reranked candidates.

    `reranked` compares on the candidates that the reranker reads; `all` is of all candidates.
    """
    import numpy as np

    from agents.verify.reranking import combination_features
    from clh.evaluation import metrics, thresholds

    pairs, given = data.held_out, iter(scores)
    rows = [
        combination_features(
            pair.retrieval, pair.fused_score, next(given) if pair.reranked else None
        )
        for pair in pairs
    ]
    right = np.array([pair.right for pair in pairs])
    reranked = np.array([pair.reranked for pair in pairs])
    fit = thresholds.fit_logistic(
        rows,
        right.tolist(),
        [pair.document for pair in pairs],
        folds=recipe.folds,
        regularisation=recipe.regularisation,
        seed=recipe.seed,
    )
    rankings = {name: np.array([row[name] for row in rows]) for name in ("retrieval", "rank")}
    rankings |= {"encoder": np.array([row["encoder"] for row in rows]), "together": fit.held_out}
    threshold = thresholds.best_threshold(score_documents(data, fit.held_out.tolist()))
    report = {
        "documents": len(data.gold),
        "reranked": {
            "candidates": int(reranked.sum()),
            **{
                name: ranking_scores(right[reranked], by[reranked]) for name, by in rankings.items()
            },
        },
        "all": {"candidates": len(right), **ranking_scores(right, fit.held_out)},
        "calibration_error": metrics.expected_calibration_error(
            metrics.calibration(fit.held_out, right)
        ),
        "threshold": round(threshold, 4),
    }
    return fit, report


def score_documents(data: "RerankData", probabilities: Sequence[float]) -> list["Scored"]:
    """The held-out documents, with the highest probability of each of their codes."""
    from clh.evaluation.metrics import Scored

    predicted: defaultdict[str, dict[str, float]] = defaultdict(dict)
    for pair, probability in zip(data.held_out, probabilities, strict=True):
        codes = predicted[pair.document]
        codes[pair.code] = max(probability, codes.get(pair.code, probability))
    return [Scored(document, gold, predicted[document]) for document, gold in data.gold.items()]


def ranking_scores(right: "Sequence[bool] | np.ndarray", scores: "np.ndarray") -> dict[str, float]:
    """How well scores rank right before wrong: `score` is the average precision."""
    from sklearn.metrics import average_precision_score, roc_auc_score

    precision = float(average_precision_score(right, scores))
    return {trainer.SCORE: precision, "roc_auc": float(roc_auc_score(right, scores))}


if __name__ == "__main__":
    recipes.run_script(main)
