"""Fit the verifier that weighs similarity and shared words, on CodiEsp's training documents.

    python experiments/fit_verifier.py --data-dir DIR --output clh/weights/verify-retrieval

DIR is CodiEsp v4 in the publisher's layout: `train/text_files_en`, `train/trainD.tsv`. A candidate
counts as right if its code is among the document's codes; a code that the release has subdivided
counts as its unspecified successor. Documents are the folds of the figures that are printed and
kept; the weights are fitted on all of the split.
"""

import argparse
import json
from pathlib import Path


def main() -> None:
    """Fit, report, write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data-dir", type=Path, required=True, help="folder of CodiEsp v4")
    parser.add_argument("--output", type=Path, required=True, help="folder for model.json")
    parser.add_argument("--limit", type=int, help="documents to use, for a quick look")
    parser.add_argument(
        "--recipe", type=Path, default=Path("experiments/recipes/fit_verifier.yaml")
    )
    arguments = parser.parse_args()

    import numpy as np
    import yaml
    from rich.progress import track
    from sklearn.linear_model import LogisticRegression
    from sklearn.metrics import roc_auc_score
    from sklearn.model_selection import GroupKFold

    from agents.analyze import propose
    from agents.context import Context
    from agents.locate import search
    from agents.verify import consistent, features
    from clh.config import Settings
    from clh.errors import InputError
    from clh.icd.tabular import load_tabular
    from clh.retrieval.ann import open_index
    from clh.schema import Note

    recipe = yaml.safe_load(arguments.recipe.read_text())
    settings = Settings.load(locate={"candidates": recipe["candidates"]})
    system = load_tabular()
    context = Context.load(settings, open_index(settings, system))

    def current(code: str) -> str | None:
        try:
            known = system.normalize(code)
        except InputError:
            return None
        return system.unspecified(known) or known

    split = recipe["split"]
    gold: dict[str, set[str]] = {}
    for line in (arguments.data_dir / split / f"{split}D.tsv").read_text("utf-8").splitlines():
        document, code = line.split("\t")[:2]
        if (successor := current(code)) is not None:
            gold.setdefault(document, set()).add(successor)

    rows, labels, documents, terms_of, codes = [], [], [], [], []
    for number, document in enumerate(track(sorted(gold)[: arguments.limit], "reading")):
        text = (arguments.data_dir / split / "text_files_en" / f"{document}.txt").read_text("utf-8")
        terms = propose(Note(id=document, text=text), context)
        found = search([term.lead_term for term in terms], context)
        for position, (term, near) in enumerate(zip(terms, found, strict=True)):
            candidates = consistent(term, near)
            measured = features(term, candidates, context.lexicon)
            for candidate, row in zip(candidates, measured, strict=True):
                rows.append(row)
                labels.append(candidate.code in gold[document])
                documents.append(number)
                terms_of.append((number, position))
                codes.append(candidate.code)

    names = list(rows[0])
    x = np.array([[row[name] for name in names] for row in rows])
    y = np.array(labels)

    def fitted(chosen: np.ndarray) -> LogisticRegression:
        model = LogisticRegression(C=recipe["regularisation"], max_iter=5000)
        return model.fit(x[chosen], y[chosen])

    held_out = np.zeros(len(y))
    folds = GroupKFold(recipe["folds"], shuffle=True, random_state=recipe["seed"])
    for chosen, rest in folds.split(x, y, documents):
        held_out[rest] = fitted(chosen).predict_proba(x[rest])[:, 1]

    best: dict[tuple[int, int], int] = {}
    for row, term in enumerate(terms_of):
        if term not in best or held_out[row] > held_out[best[term]]:
            best[term] = row
    total = sum(len(gold[document]) for document in sorted(gold)[: arguments.limit])
    curve = []
    for threshold in np.arange(0.05, 0.65, 0.05):
        said = {(documents[row], codes[row]) for row in best.values() if held_out[row] >= threshold}
        right = sum((d, c) in said for d, c in _gold_pairs(gold, arguments.limit))
        f1 = 2 * right / (len(said) + total)
        curve.append((f1, threshold, right / max(len(said), 1), right / total))
        print(
            f"threshold {threshold:.2f}  precision {curve[-1][2]:.3f}  "
            f"recall {curve[-1][3]:.3f}  micro-F1 {f1:.3f}"
        )
    bins = np.minimum((held_out * 10).astype(int), 9)
    error = sum(
        abs(held_out[bins == b].mean() - y[bins == b].mean()) * (bins == b).mean()
        for b in np.unique(bins)
    )
    f1, threshold, precision, recall = max(curve)
    metrics = {
        "documents": number + 1,
        "candidates": len(y),
        "roc_auc": round(float(roc_auc_score(y, held_out)), 4),
        "calibration_error": round(float(error), 4),
        "micro_f1": round(f1, 4),
        "precision": round(precision, 4),
        "recall": round(recall, 4),
        "threshold": round(float(threshold), 2),
    }
    print(json.dumps(metrics))

    model = fitted(np.arange(len(y)))
    weights = {
        "intercept": round(float(model.intercept_[0]), 4),
        "coefficients": {
            name: round(float(weight), 4)
            for name, weight in zip(names, model.coef_[0], strict=True)
        },
    }
    arguments.output.mkdir(parents=True, exist_ok=True)
    (arguments.output / "model.json").write_text(json.dumps(weights, indent=2) + "\n")
    (arguments.output / "metrics.json").write_text(json.dumps(metrics, indent=2) + "\n")


def _gold_pairs(gold: dict[str, set[str]], limit: int | None) -> list[tuple[int, str]]:
    return [
        (number, code)
        for number, document in enumerate(sorted(gold)[:limit])
        for code in gold[document]
    ]


if __name__ == "__main__":
    main()
