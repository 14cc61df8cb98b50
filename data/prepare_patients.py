"""Make the four CSV files of experiments/train_patients.py from MIMIC-IV, or from its demo.

    python data/prepare_patients.py --tables data/raw/mimic-iv-demo --to data/processed/patients

An encounter is an admission with diagnoses in ICD-10-CM: its age, sex and codes, and the first
value of each lab. Of the labs there are those that most training admissions have. All admissions
of a patient are in one split. There are no notes.

icd.csv has the codes of these admissions alone, so finding one among them is easier than among all
codes of a release. Titles are the installed release's; a code that it no longer has goes by that
of the nearest category above.
"""

import argparse
import csv
import io
import random
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from clh.errors import InputError
from clh.evaluation import recipes
from clh.files import atomic_write

if TYPE_CHECKING:
    from clh.icd.tabular import CodeSystem

SHARES = {"train": 0.6, "val": 0.2, "test": 0.2}  # of the patients


def main() -> int:
    """Read, split, write."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--tables", type=Path, required=True, help="folder with hosp/ in it")
    parser.add_argument("--labevents", type=Path, help="default: hosp/labevents.csv of --tables")
    parser.add_argument("--to", type=Path, required=True, help="folder for the four files")
    parser.add_argument("--labs", type=int, default=40, help="how many labs; default: 40")
    parser.add_argument("--seed", type=int, default=0, help="of the splits")
    arguments = parser.parse_args()

    from clh.corpora import mimic
    from clh.icd.tabular import load_tabular

    def table(name: str, *columns: str) -> Iterable[tuple[str, ...]]:
        return mimic.rows(mimic.find(arguments.tables, f"hosp/{name}.csv"), *columns)

    codes: defaultdict[str, set[str]] = defaultdict(set)
    for stay, code, revision in table("diagnoses_icd", "hadm_id", "icd_code", "icd_version"):
        if revision == "10" and code:
            codes[stay].add(mimic.diagnosis(code, 10))
    if not codes:
        raise InputError(f"no admission in {arguments.tables} has diagnoses in ICD-10")
    born, sexes = {}, {}
    for patient, sex, age, year in table(
        "patients", "subject_id", "gender", "anchor_age", "anchor_year"
    ):
        born[patient], sexes[patient] = int(year) - int(age), sex
    stays = {
        stay: (patient, int(admitted[:4]) - born[patient])
        for patient, stay, admitted in table("admissions", "subject_id", "hadm_id", "admittime")
        if stay in codes
    }

    patients = sorted({patient for patient, _ in stays.values()})
    random.Random(arguments.seed).shuffle(patients)  # noqa: S311
    names = [name for name, share in SHARES.items() for _ in range(round(share * len(patients)))]
    names += ["test"] * len(patients)
    split_of = dict(zip(patients, names, strict=False))

    first: defaultdict[str, dict[str, tuple[str, str]]] = defaultdict(dict)
    events = arguments.labevents or mimic.find(arguments.tables, "hosp/labevents.csv")
    for stay, time, item, value in mimic.rows(events, "hadm_id", "charttime", "itemid", "valuenum"):
        if stay in stays and value:
            first[stay][item] = min((time, value), first[stay].get(item, (time, value)))
    measured = Counter(
        item
        for stay in stays
        if split_of[stays[stay][0]] == "train"
        for item in sorted(first[stay])
    )
    labs = [item for item, _ in measured.most_common(arguments.labs)]
    labels = dict(table("d_labitems", "itemid", "label"))

    system = load_tabular()
    found = sorted(set().union(*(codes[stay] for stay in stays)))
    header = ["encounter_id", "age", "sex", *(f"lab_{labels[item]} {item}" for item in labs)]
    people = [
        [stay, age, sexes[patient], *(first[stay].get(item, ("", ""))[1] for item in labs)]
        for stay, (patient, age) in stays.items()
    ]
    files: dict[str, list[Sequence[object]]] = {
        "icd": [("code", "title"), *((code, title(code, system)) for code in found)],
        "patients": [header, *people],
        "labels": [
            ("encounter_id", "code"),
            *((stay, code) for stay in stays for code in sorted(codes[stay])),
        ],
        "splits": [
            ("encounter_id", "split"),
            *((stay, split_of[patient]) for stay, (patient, _) in stays.items()),
        ],
    }
    arguments.to.mkdir(parents=True, exist_ok=True)
    for name, rows in files.items():
        text = io.StringIO()
        csv.writer(text, lineterminator="\n").writerows(rows)
        atomic_write(arguments.to / f"{name}.csv", text.getvalue())
    counts = Counter(split_of[patient] for patient, _ in stays.values())
    print(f"{len(patients)} patients, {len(found)} codes; admissions: {dict(counts)}")
    return 0


def title(code: str, system: "CodeSystem") -> str:
    """The code's title, or that of the nearest category above it which the release has."""
    for end in range(len(code), 2, -1):
        if code[:end] in system:
            return system[code[:end]].title
    return system[system.normalize(code)].title  # InputError: there is none


if __name__ == "__main__":
    recipes.run_script(main)
