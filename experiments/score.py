"""Score a file of predictions, or compare two over the same notes.

    python experiments/score.py OUT/predictions.jsonl [OTHER/predictions.jsonl]

Each line is a note: `note_id`, `codes` (each with `code` and `confidence`) and `gold`, as
benchmark.py and baselines.py write them. Two files are compared by a bootstrap over notes, and by
McNemar's test over their decisions, code by code.
"""

import argparse
import json
from pathlib import Path
from typing import Any

from clh.errors import InputError
from clh.evaluation import recipes

_COMPARED = ("micro_f1", "macro_f1", "exact_match", "map")


def main() -> int:
    """Read, score, print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("predictions", type=Path, help="the file to score")
    parser.add_argument("other", type=Path, nargs="?", help="a file to compare it with")
    parser.add_argument("--samples", type=int, default=1000, help="resamples of the bootstrap")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", action="store_true", help="print JSON")
    arguments = parser.parse_args()
    if arguments.samples < 1:
        raise InputError("--samples is how often to resample: 1 or more")

    from clh.evaluation import metrics
    from clh.evaluation.stages import read_predictions
    from clh.icd.tabular import load_tabular

    system = load_tabular()
    files = [file for file in (arguments.predictions, arguments.other) if file is not None]
    notes = [read_predictions(file, system) for file in files]
    result: dict[str, Any] = {
        "files": [
            {
                "predictions": str(file),
                "n_notes": len(scored),
                "code_space": len(system),
                **metrics.summary(scored, system),
                "folded": metrics.set_scores(metrics.folded(scored, system)),
                "category": metrics.set_scores(metrics.categories(scored)),
                "ci95": metrics.bootstrap(scored, _COMPARED, arguments.samples, arguments.seed),
            }
            for file, scored in zip(files, notes, strict=True)
        ]
    }
    if arguments.other is not None:
        result["differences"] = [
            metrics.compare(*notes, metric, arguments.samples, arguments.seed)._asdict()
            for metric in _COMPARED
        ]
        result["mcnemar"] = metrics.mcnemar(*notes)._asdict()
    if arguments.json:
        print(json.dumps(result, indent=2))
    else:
        _print(result)
    return 0


def _print(result: dict[str, Any]) -> None:
    from rich.console import Console
    from rich.table import Table

    console = Console()
    files = result["files"]
    for name, scores in zip("AB", files, strict=False):
        console.print(
            f"{name}: {scores['predictions']}, {scores['n_notes']} notes, all "
            f"{scores['code_space']:,} codes",
            highlight=False,
        )
    table = Table("metric", *(name for name, _ in zip("AB", files, strict=False)), box=None)
    for metric in files[0]:
        if metric in ("predictions", "n_notes", "code_space", "ci95"):
            continue
        parts = files[0][metric].items() if isinstance(files[0][metric], dict) else [("", None)]
        for part, _ in parts:
            cells = []
            for scores in files:
                value = scores[metric][part] if part else scores[metric]
                low, high = scores["ci95"].get(metric, (None, None))
                interval = f" [{low:.3f}, {high:.3f}]" if low is not None else ""
                cells.append("-" if value is None else f"{value:.3f}{interval}")
            table.add_row(f"{metric} {part}".strip(), *cells)
    console.print(table)
    if "differences" in result:
        table = Table("difference", "A - B", "95% interval", "p (paired bootstrap)", box=None)
        for one in result["differences"]:
            low, high = one["ci95"]
            table.add_row(
                one["metric"],
                f"{one['difference']:+.3f}",
                f"[{low:+.3f}, {high:+.3f}]",
                f"{one['p_value']:.3f}",
            )
        console.print(table)
        mcnemar = result["mcnemar"]
        console.print(
            f"McNemar: only A is right on {mcnemar['only_a']} codes of notes, only B on "
            f"{mcnemar['only_b']}, p = {mcnemar['p_value']:.3g}",
            highlight=False,
        )


if __name__ == "__main__":
    recipes.run_script(main)
