"""Train the patient tower, which reads labs, age and sex beside the note, on four CSV files.

    python experiments/train_patients.py --icd_csv ICD.csv --patients_csv PATIENTS.csv
        --labels_csv LABELS.csv --splits_csv SPLITS.csv --output OUT

The files are as the Two-Tower design has them; clh/training/patients.py names their columns, and
data/prepare_patients.py makes them from MIMIC-IV or its demo. `towers.query` of the settings
encodes the notes, if there are any, and `towers.code` the codes; neither is trained.

Writes OUT, whole or not at all: tower, at its best epoch on val; metrics.json; log.jsonl, by epoch;
config.json. The tower's ranking stands beside that by the codes' frequency in train, and beside
both together: similarity over temperature, plus the log of frequency. The epoch and the thresholds
of F1 are chosen on val, so that the figures to report are those of test. Intervals are of a
bootstrap of encounters: where patients have several, they are too narrow.
"""

import json
import shutil
from pathlib import Path
from typing import Any

from clh.errors import InputError
from clh.evaluation import recipes, runs

FILES = ("icd_csv", "patients_csv", "labels_csv", "splits_csv")
SHOWN = ("micro_f1", "precision@5", "recall@10", "recall@50", "recall@200")


def main() -> int:
    """Train, score, write."""
    parser = recipes.recipe_parser(__doc__, "experiments/recipes/train_patients.yaml")
    for name in FILES:
        parser.add_argument(f"--{name}", type=Path, required=True)
    parser.add_argument("--output", "--out_dir", type=Path, required=True)
    arguments = recipes.parse_arguments(parser)
    output: Path = arguments.output
    if output.exists():
        raise InputError(f"{output} exists: choose another --output, or delete it")

    from rich.console import Console
    from rich.table import Table
    from tqdm import tqdm

    from clh.cache import sha256
    from clh.config import Settings
    from clh.evaluation import metrics
    from clh.models.embedder import load_embedder
    from clh.training import patients

    recipe = recipes.read_recipe(arguments.recipe, patients.Recipe, arguments.set)
    files = {name: getattr(arguments, name) for name in FILES}
    tables = patients.read_tables(*files.values())
    settings = Settings.load()
    query = load_embedder(settings.towers.query, settings)
    code = load_embedder(settings.towers.code, settings)
    codes = patients.Codes(list(tables.texts), code.encode(list(tables.texts.values())))
    parts = {split: patients.Part(some, query) for split, some in tables.encounters.items() if some}
    with tqdm(total=recipe.epochs, unit="epoch", disable=None) as bar:
        tower, log = patients.train_tower(
            parts["train"], parts["val"], codes, tables.features, recipe, bar.update
        )

    frequency = patients.log_frequency(parts["train"], codes)
    scores: dict[str, dict[str, Any]] = {}
    thresholds: dict[str, float] = {}
    shown = Table("split", "ranked by", *SHOWN, box=None)
    for split in ("val", "test"):  # val first: it sets the thresholds
        if split not in parts:
            continue
        part = parts[split]
        similarity = part.similarity(tower, codes)
        ranked = {
            name: part.ranked(by, codes, recipe.kept)
            for name, by in (
                ("frequency", frequency.expand_as(similarity)),
                ("tower", similarity),
                ("both", similarity / recipe.temperature + frequency),
            )
        }
        scores[split] = {"encounters": len(part.encounters)}
        for name, notes in ranked.items():
            threshold = thresholds.setdefault(name, patients.best_threshold(notes))
            found = patients.score(notes, threshold, codes.names, recipe.bootstrap, recipe.seed)
            scores[split][name] = found
            cells = ("{:.3f} [{:.3f}, {:.3f}]".format(found[m], *found["ci95"][m]) for m in SHOWN)
            shown.add_row(split, name, *cells)
        scores[split]["both_over_frequency"] = metrics.compare(
            ranked["both"], ranked["frequency"], patients.BEST, recipe.bootstrap, recipe.seed
        )._asdict()
    Console().print(shown)

    config = {
        "recipe": recipe.model_dump(mode="json"),
        "files": {name: sha256(file) for name, file in files.items()},
        "towers": {"query": query.id, "code": code.id},
        "features": tables.features,
        "git": runs.git_commit(),
    }
    report = {"codes": len(codes.names), **scores}
    unfinished = output.with_name(output.name + ".partial")
    try:
        shutil.rmtree(unfinished, ignore_errors=True)
        (unfinished / "tower").mkdir(parents=True)
        tower.save(unfinished / "tower")
        for name, values in (("config.json", config), ("metrics.json", report)):
            runs.write(unfinished / name, json.dumps(values, indent=2) + "\n")
        runs.write(unfinished / "log.jsonl", "".join(json.dumps(one) + "\n" for one in log))
        unfinished.rename(output)
    except OSError as error:
        raise InputError(f"{output} cannot be written ({error}): choose another") from error
    return 0


if __name__ == "__main__":
    recipes.run_script(main)
