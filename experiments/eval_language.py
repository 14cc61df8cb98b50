"""Score language models on the agents' prompts about a split, as before and after training.

    python experiments/eval_language.py --dataset codiesp --data-dir DIR --split dev
        --models SmolLM2-135M-Instruct OUT/best --encoder verify-codiesp --output EVAL

All get the same prompts, drawn as run_training.py draws its own: analyze's about windows of a note,
verify's about candidates. `--thinking` adds models that think before they reply, and `--encoder` a
reranker, which can answer verify's. 95% intervals, and those of the differences to the first
model, are bootstrapped by document.

Writes EVAL/metrics.json and table.md.
"""

import asyncio
import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, TypeVar

from pydantic import NonNegativeFloat, NonNegativeInt, PositiveInt

from clh.evaluation import recipes
from clh.evaluation.run_folder import git_commit
from clh.files import atomic_write

if TYPE_CHECKING:
    from agents.training.evaluation import Prediction
    from agents.training.examples import AgentExample, AnalyzeExample, VerifyExample
    from clh.models.language import LanguageModel
    from clh.models.reranker import OnnxReranker

SHOWN = ("analyze_f1", "analyze_recall", "verify_average_precision", "verify_roc_auc")

ResultT = TypeVar("ResultT")


class LanguageEvaluationRecipe(recipes.Recipe):
    """What recipes/eval_language.yaml says."""

    examples: dict[Literal["analyze", "verify"], PositiveInt]
    candidates: PositiveInt
    negatives: NonNegativeFloat
    reply_tokens: PositiveInt
    bootstrap: PositiveInt
    seed: NonNegativeInt


@dataclass(frozen=True)
class Evaluated:
    """What a model predicts for some examples, and how long it takes for one of each task."""

    model: str
    examples: "Sequence[AgentExample]"
    predictions: "Sequence[Prediction]"
    seconds: dict[str, float]


def main() -> int:
    """Predict, score, print, write."""
    parser = recipes.evaluation_parser(__doc__, "experiments/recipes/eval_language.yaml")
    parser.add_argument("--models", nargs="+", required=True, help="as llm.model in clh.toml")
    parser.add_argument("--thinking", nargs="+", default=[], help="the same, with llm.think")
    parser.add_argument("--encoder", help="as verify.encoder in clh.toml")
    arguments = recipes.parse_arguments(parser)

    from agents.training.examples import AnalyzeExample, VerifyExample, draw_examples
    from agents.training.training_set import load_pipeline
    from clh import corpora
    from clh.models.language import LocalModel
    from clh.models.reranker import load_reranker

    recipe = recipes.read_recipe(arguments.recipe, LanguageEvaluationRecipe, arguments.set)
    given = arguments.data_dir, arguments.split, arguments.unit, arguments.limit, arguments.seed
    documents = corpora.sample(arguments.dataset, *given)
    pipeline = load_pipeline(arguments.dataset, recipe.candidates)
    examples = draw_examples(documents, pipeline, recipe, recipe.examples)
    analyze = [example for example in examples if isinstance(example, AnalyzeExample)]
    verify = [example for example in examples if isinstance(example, VerifyExample)]

    evaluated = []
    for names, think in ((arguments.models, False), (arguments.thinking, True)):
        for name in names:
            cache_dir, tokens = pipeline.settings.cache_dir, recipe.reply_tokens
            model = LocalModel(name, cache_dir, max_tokens=tokens, think=think)
            evaluated.append(evaluate_model(model, analyze, verify))
    if arguments.encoder:
        encoder = load_reranker(arguments.encoder, pipeline.settings)
        evaluated.append(evaluate_encoder(encoder, verify))
    report = {
        "dataset": arguments.dataset,
        "split": arguments.split,
        "documents": len({example.document for example in examples}),
        "windows": len(analyze),
        "questions": len(verify),
        "git": git_commit(),
        "models": score_models(evaluated, recipe),
    }
    table = format_table(report["models"])
    arguments.output.mkdir(parents=True, exist_ok=True)
    atomic_write(arguments.output / "metrics.json", json.dumps(report, indent=1) + "\n")
    atomic_write(arguments.output / "table.md", table)
    print(table, end="")
    return 0


def evaluate_model(
    model: "LanguageModel",
    analyze: "Sequence[AnalyzeExample]",
    verify: "Sequence[VerifyExample]",
) -> Evaluated:
    """What a language model predicts."""
    from agents.training.evaluation import predict

    probabilities, verify_seconds = timed(lambda: asyncio.run(predict(verify, model)))
    parsed, analyze_seconds = timed(lambda: asyncio.run(predict(analyze, model)))
    seconds = {
        "seconds_a_question": verify_seconds / max(len(verify), 1),
        "seconds_a_window": analyze_seconds / max(len(analyze), 1),
    }
    return Evaluated(model.id, [*verify, *analyze], [*probabilities, *parsed], seconds)


def evaluate_encoder(encoder: "OnnxReranker", verify: "Sequence[VerifyExample]") -> Evaluated:
    """What a reranker predicts, which ranks as probabilities do."""
    logits, seconds = timed(lambda: encoder.score([example.texts for example in verify]).tolist())
    return Evaluated(
        encoder.id, verify, logits, {"seconds_a_question": seconds / max(len(verify), 1)}
    )


def timed(work: Callable[[], ResultT]) -> tuple[ResultT, float]:
    """What a function returns, and its seconds."""
    started = time.perf_counter()
    result = work()
    return result, time.perf_counter() - started


def score_models(
    evaluated: Sequence[Evaluated], recipe: LanguageEvaluationRecipe
) -> list[dict[str, Any]]:
    """A row for each model: its scores and, but for the first, the differences to the first."""
    rows: list[dict[str, Any]] = []
    for one in evaluated:
        rows.append({"model": one.model, **one.seconds, **intervals(one, None, recipe)})
        if one is not evaluated[0]:
            rows[-1]["over_first"] = intervals(one, evaluated[0], recipe)
    return rows


def intervals(
    model: Evaluated, other: Evaluated | None, recipe: LanguageEvaluationRecipe
) -> dict[str, list[float]]:
    """Each score, or its difference to another model's, and its 95% interval.

    A resample without windows, or with one answer to all candidates, has no score, and is left out.
    """
    from contextlib import suppress

    import numpy as np

    from clh.errors import InputError

    def scores(documents: Sequence[str]) -> dict[str, float]:
        own = score_documents(model, documents)
        if other is None:
            return own
        others = score_documents(other, documents)
        return {name: own[name] - others[name] for name in own if name in others}

    documents = sorted({example.document for example in model.examples})
    rng = np.random.default_rng(recipe.seed)
    resampled = []
    for _ in range(recipe.bootstrap):
        with suppress(InputError):
            resampled.append(scores(rng.choice(documents, len(documents)).tolist()))
    found = {}
    for name, value in scores(documents).items():
        values = [row[name] for row in resampled if name in row]
        found[name] = [value, *np.percentile(values, [2.5, 97.5]).tolist()]
    return found


def score_documents(model: Evaluated, documents: Sequence[str]) -> dict[str, float]:
    """A model's scores on the examples of some documents, each as often as it is named."""
    from collections import defaultdict

    from agents.training.evaluation import score_predictions

    places = defaultdict(list)
    for place, example in enumerate(model.examples):
        places[example.document].append(place)
    drawn = [place for document in documents for place in places[document]]
    return score_predictions(
        [model.examples[place] for place in drawn], [model.predictions[place] for place in drawn]
    )


def format_table(rows: Sequence[Mapping[str, Any]]) -> str:
    """The scores as Markdown, with the seconds of a candidate and of a window."""
    lines = [
        "| model | " + " | ".join(SHOWN) + " | s/question | s/window |",
        "|---" * (3 + len(SHOWN)) + "|",
    ]
    for row in rows:
        cells = [
            "{:.3f} [{:.3f}, {:.3f}]".format(*row[name]) if name in row else "" for name in SHOWN
        ]
        seconds = [
            f"{row[name]:.3f}" if name in row else ""
            for name in ("seconds_a_question", "seconds_a_window")
        ]
        lines.append(f"| {row['model']} | {' | '.join([*cells, *seconds])} |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    recipes.run_script(main)
