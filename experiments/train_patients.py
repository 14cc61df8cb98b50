"""Train the patient tower, which reads labs, age and sex beside the note, on four CSV files.

    python experiments/train_patients.py --icd_csv ICD.csv --patients_csv PATIENTS.csv
        --labels_csv LABELS.csv --splits_csv SPLITS.csv --output OUT

The files are as the Two-Tower design has them; clh/training/patients/tables.py names their columns,
and data/prepare_patients.py makes them from MIMIC-IV or its demo. `towers.query` of the settings
encodes the notes, if there are any, and `towers.code` the codes; neither is trained.

Writes OUT, whole or not at all: tower, at its best epoch on val; metrics.json; log.jsonl, by epoch;
config.json. The tower's ranking stands beside that by the codes' frequency in train, and beside
both together: similarity over temperature, plus the log of frequency. The epoch and the thresholds
of F1 are chosen on val, so that the figures to report are those of test. Intervals are of a
bootstrap of encounters: where patients have several, they are too narrow.
"""

import json
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from clh.errors import InputError
from clh.evaluation import recipes
from clh.evaluation.run_folder import git_commit
from clh.files import atomic_write

if TYPE_CHECKING:
    from clh.training.patients.tower import PatientTower

FILES = ("icd_csv", "patients_csv", "labels_csv", "splits_csv")
SHOWN = ("micro_f1", "precision@5", "recall@10", "recall@50", "recall@200")


def main() -> int:
    """Train, score, write."""
    parser = recipes.recipe_parser(__doc__, "experiments/recipes/train_patients.yaml")
    for name in FILES:
        parser.add_argument(f"--{name}", type=Path, required=True)
    parser.add_argument("--output", "--out_dir", type=Path, required=True)
    arguments = recipes.parse_arguments(parser)
    if arguments.output.exists():
        raise InputError(f"{arguments.output} exists: choose another --output, or delete it")

    from tqdm import tqdm

    from clh.cache import sha256
    from clh.config import Settings
    from clh.models.embedder import load_embedder
    from clh.training.patients.tables import read_tables
    from clh.training.patients.training import (
        Codes,
        EncodedSplit,
        PatientRecipe,
        evaluate_splits,
        train_tower,
    )

    recipe = recipes.read_recipe(arguments.recipe, PatientRecipe, arguments.set)
    files = {name: getattr(arguments, name) for name in FILES}
    tables = read_tables(*files.values())
    settings = Settings.load()
    query = load_embedder(settings.towers.query, settings)
    code = load_embedder(settings.towers.code, settings)
    codes = Codes(list(tables.texts), code.encode(list(tables.texts.values())))
    splits = {name: EncodedSplit(some, query) for name, some in tables.encounters.items() if some}
    with tqdm(total=recipe.epochs, unit="epoch", disable=None) as bar:
        tower, log = train_tower(
            splits["train"], splits["val"], codes, tables.features, recipe, bar.update
        )
    scores = evaluate_splits(splits, tower, codes, recipe)
    show(scores)
    config = {
        "recipe": recipe.model_dump(mode="json"),
        "files": {name: sha256(file) for name, file in files.items()},
        "towers": {"query": query.id, "code": code.id},
        "features": tables.features,
        "git": git_commit(),
    }
    write(arguments.output, tower, config, {"codes": len(codes.names), **scores}, log)
    return 0


def show(scores: Mapping[str, Mapping[str, Any]]) -> None:
    """Print a table of each ranking on each split."""
    from rich.console import Console
    from rich.table import Table

    table = Table("split", "ranked by", *SHOWN, box=None)
    for split, rankings in scores.items():
        for name in ("frequency", "tower", "both"):
            found = rankings[name]
            cells = ("{:.3f} [{:.3f}, {:.3f}]".format(found[m], *found["ci95"][m]) for m in SHOWN)
            table.add_row(split, name, *cells)
    Console().print(table)


def write(
    output: Path,
    tower: "PatientTower",
    config: Mapping[str, Any],
    report: Mapping[str, Any],
    log: Sequence[Mapping[str, float]],
) -> None:
    """Write all results, or none; InputError if the folder cannot be written."""
    unfinished = output.with_name(output.name + ".partial")
    try:
        shutil.rmtree(unfinished, ignore_errors=True)
        (unfinished / "tower").mkdir(parents=True)
        tower.save(unfinished / "tower")
        for name, values in (("config.json", config), ("metrics.json", report)):
            atomic_write(unfinished / name, json.dumps(values, indent=2) + "\n")
        atomic_write(unfinished / "log.jsonl", "".join(json.dumps(row) + "\n" for row in log))
        unfinished.rename(output)
    except OSError as error:
        raise InputError(f"{output} cannot be written ({error}): choose another") from error


if __name__ == "__main__":
    recipes.run_script(main)
