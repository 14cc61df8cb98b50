"""Score language models on the agents' own questions about a split, as before and after training.

    python experiments/eval_language.py --dataset codiesp --data-dir DIR --split dev
        --models SmolLM2-135M-Instruct OUT/best --encoder verify-codiesp --output EVAL

All are asked the same questions, drawn as run_training.py draws its own: analyze's about windows of
a note, verify's about candidates. `--thinking` adds models that think before they reply, and
`--encoder` a reranker, which can answer verify's. 95% intervals, and those of the differences
to the first model, are bootstrapped by document.

Writes EVAL/metrics.json and table.md.
"""

import json
import time
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal

from pydantic import NonNegativeFloat, NonNegativeInt, PositiveInt

from clh.evaluation import recipes, runs

if TYPE_CHECKING:
    from agents.training.examples import Heard, Item

    Answered = tuple[Sequence[Item], Sequence[Heard | float]]

SHOWN = ("analyze_f1", "analyze_recall", "verify_average_precision", "verify_roc_auc")


class LanguageEvaluationRecipe(recipes.Recipe):
    """What recipes/eval_language.yaml says."""

    scored: dict[Literal["analyze", "verify"], PositiveInt]
    candidates: PositiveInt
    negatives: NonNegativeFloat
    reply_tokens: PositiveInt
    bootstrap: PositiveInt
    seed: NonNegativeInt


def main() -> int:
    """Ask, score, print, write."""
    flags = recipes.evaluation_parser(__doc__, "experiments/recipes/eval_language.yaml")
    flags.add_argument("--models", nargs="+", required=True, help="as llm.model in clh.toml")
    flags.add_argument("--thinking", nargs="+", default=[], help="the same, with llm.think")
    flags.add_argument("--encoder", help="as verify.encoder in clh.toml")
    arguments = recipes.parse_arguments(flags)

    import asyncio

    from agents.training import examples
    from clh import corpora
    from clh.models.language import LocalModel
    from clh.models.reranker import load_reranker

    recipe = recipes.read_recipe(arguments.recipe, LanguageEvaluationRecipe, arguments.set)
    given = arguments.data_dir, arguments.split, arguments.unit, arguments.limit, arguments.seed
    documents = corpora.sample(arguments.dataset, *given)
    context = examples.asking(arguments.dataset, recipe.candidates)
    items = examples.draw(documents, context, recipe, recipe.scored)
    questions = [one for one in items if isinstance(one, examples.Question)]
    windows = [one for one in items if isinstance(one, examples.Window)]

    asked: list[tuple[Item, ...]] = []
    got: list[list[Heard | float]] = []
    rows: list[dict[str, Any]] = []
    named = [(name, False) for name in arguments.models]
    for name, think in [*named, *((name, True) for name in arguments.thinking)]:
        model = LocalModel(
            name, context.settings.cache_dir, max_tokens=recipe.reply_tokens, think=think
        )
        started = time.perf_counter()
        judged = asyncio.run(examples.outcomes(questions, model))
        between = time.perf_counter()
        heard = asyncio.run(examples.outcomes(windows, model))
        ended = time.perf_counter()
        asked.append((*questions, *windows))
        got.append([*judged, *heard])
        rows.append(
            {
                "model": model.id,
                "seconds_a_question": (between - started) / len(questions),
                "seconds_a_window": (ended - between) / len(windows),
            }
        )
    if arguments.encoder:
        encoder = load_reranker(arguments.encoder, context.settings)
        started = time.perf_counter()
        asked.append((*questions,))
        got.append(encoder.score([one.texts for one in questions]).tolist())
        seconds = (time.perf_counter() - started) / len(questions)
        rows.append({"model": encoder.id, "seconds_a_question": seconds})
    answered = list(zip(asked, got, strict=True))
    for row, one in zip(rows, answered, strict=True):
        row.update(intervals(one, None, recipe))
        if one is not answered[0]:
            row["over_first"] = intervals(one, answered[0], recipe)
    report = {
        "dataset": arguments.dataset,
        "split": arguments.split,
        "documents": len({one.document for one in items}),
        "windows": len(windows),
        "questions": len(questions),
        "git": runs.git_commit(),
        "models": rows,
    }
    arguments.output.mkdir(parents=True, exist_ok=True)
    runs.write(arguments.output / "metrics.json", json.dumps(report, indent=1) + "\n")
    runs.write(arguments.output / "table.md", table(rows))
    print(table(rows), end="")
    return 0


def intervals(
    one: "Answered", other: "Answered | None", recipe: LanguageEvaluationRecipe
) -> dict[str, list[float]]:
    """Each score, or its difference to another model's, and its 95% interval.

    A resample without windows, or with one answer to all questions, has no score, and is left out.
    """
    from collections import defaultdict
    from contextlib import suppress

    import numpy as np

    from agents.training import examples
    from clh.errors import InputError

    def scores(documents: Sequence[str]) -> dict[str, float]:
        by_model = []
        for items, got in filter(None, (one, other)):
            places = defaultdict(list)
            for place, item in enumerate(items):
                places[item.document].append(place)
            drawn = [place for document in documents for place in places[document]]
            by_model.append(examples.scores([items[i] for i in drawn], [got[i] for i in drawn]))
        first, *rest = by_model
        return {
            name: value - rest[0][name] if rest else value
            for name, value in first.items()
            if not rest or name in rest[0]
        }

    documents = sorted({item.document for item in one[0]})
    draw = np.random.default_rng(recipe.seed)
    resampled = []
    for _ in range(recipe.bootstrap):
        with suppress(InputError):
            resampled.append(scores(draw.choice(documents, len(documents)).tolist()))
    shown = {}
    for name, value in scores(documents).items():
        values = [one[name] for one in resampled if name in one]
        shown[name] = [value, *np.percentile(values, [2.5, 97.5]).tolist()]
    return shown


def table(rows: Sequence[Mapping[str, Any]]) -> str:
    """The scores as Markdown, with the seconds of a question and of a window."""
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
