"""Make the four CSV files of experiments/train_patients.py from MIMIC-IV, or from its demo.

    python data/prepare_patients.py --tables data/raw/mimic-iv-demo --to data/processed/patients

An encounter is an admission with diagnoses in ICD-10-CM: its age, sex and codes, and the first
value of each lab. The labs kept are those that most training admissions have. All admissions
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
from collections.abc import Collection, Container, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from clh.errors import InputError
from clh.evaluation import recipes
from clh.files import atomic_write

if TYPE_CHECKING:
    from clh.icd.tabular import CodeSystem

SHARES = {"train": 0.6, "val": 0.2, "test": 0.2}  # of the patients


class Patient(NamedTuple):
    """What the patients table has of a patient."""

    sex: str
    born: int  # year, in the shifted calendar of MIMIC


def main() -> int:
    """Read, split, write."""
    arguments = parse_arguments()

    from clh.corpora import mimic
    from clh.icd.tabular import load_tabular

    codes = read_diagnoses(arguments.tables)
    patients = read_patients(arguments.tables)
    stays = read_stays(arguments.tables, codes, patients)
    patient_of = {stay: patient for stay, (patient, _) in stays.items()}
    split_of = split_patients(set(patient_of.values()), arguments.seed)
    events = arguments.labevents or mimic.find(arguments.tables, "hosp/labevents.csv")
    values = read_first_values(events, stays)
    trained = [stay for stay in stays if split_of[patient_of[stay]] == "train"]
    labs = most_measured([values[stay] for stay in trained], arguments.labs)
    labels = dict(read_table(arguments.tables, "d_labitems", "itemid", "label"))

    system = load_tabular()
    found = sorted(set().union(*(codes[stay] for stay in stays)))
    header = ["encounter_id", "age", "sex", *(f"lab_{labels[lab]} {lab}" for lab in labs)]
    people = [
        [stay, age, patients[patient].sex, *(values[stay].get(lab, "") for lab in labs)]
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
            *((stay, split_of[patient]) for stay, patient in patient_of.items()),
        ],
    }
    write_files(files, arguments.to)
    counts = Counter(split_of[patient] for patient in patient_of.values())
    print(f"{len(split_of)} patients, {len(found)} codes; admissions: {dict(counts)}")
    return 0


def parse_arguments() -> argparse.Namespace:
    """The flags of the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--tables", type=Path, required=True, help="folder with hosp/ in it")
    parser.add_argument("--labevents", type=Path, help="default: hosp/labevents.csv of --tables")
    parser.add_argument("--to", type=Path, required=True, help="folder for the four files")
    parser.add_argument("--labs", type=int, default=40, help="how many labs; default: 40")
    parser.add_argument("--seed", type=int, default=0, help="of the splits")
    return parser.parse_args()


def read_table(tables: Path, name: str, *columns: str) -> Iterable[tuple[str, ...]]:
    """The rows of a table of the hosp module, of some columns."""
    from clh.corpora import mimic

    return mimic.rows(mimic.find(tables, f"hosp/{name}.csv"), *columns)


def read_diagnoses(tables: Path) -> dict[str, set[str]]:
    """The ICD-10-CM codes of each admission that has any. InputError if none has."""
    from clh.corpora import mimic

    codes: defaultdict[str, set[str]] = defaultdict(set)
    rows = read_table(tables, "diagnoses_icd", "hadm_id", "icd_code", "icd_version")
    for stay, code, revision in rows:
        if revision == "10" and code:
            codes[stay].add(mimic.diagnosis(code, 10))
    if not codes:
        raise InputError(f"no admission in {tables} has diagnoses in ICD-10")
    return codes


def read_patients(tables: Path) -> dict[str, Patient]:
    """All patients by their id."""
    columns = "subject_id", "gender", "anchor_age", "anchor_year"
    return {
        patient: Patient(sex, int(year) - int(age))
        for patient, sex, age, year in read_table(tables, "patients", *columns)
    }


def read_stays(
    tables: Path, codes: Container[str], patients: Mapping[str, Patient]
) -> dict[str, tuple[str, int]]:
    """The patient of each admission that has codes, and the age in years at admission."""
    rows = read_table(tables, "admissions", "subject_id", "hadm_id", "admittime")
    return {
        stay: (patient, int(admitted[:4]) - patients[patient].born)
        for patient, stay, admitted in rows
        if stay in codes
    }


def split_patients(patients: Iterable[str], seed: int) -> dict[str, str]:
    """The split of each patient, drawn at random in the proportions of SHARES."""
    shuffled = sorted(patients)
    random.Random(seed).shuffle(shuffled)  # noqa: S311
    names = [name for name, share in SHARES.items() for _ in range(round(share * len(shuffled)))]
    names += ["test"] * len(shuffled)
    return dict(zip(shuffled, names, strict=False))


def read_first_values(events: Path, stays: Collection[str]) -> dict[str, dict[str, str]]:
    """The first value of each lab of each admission, by the lab's item id."""
    from clh.corpora import mimic

    first: defaultdict[str, dict[str, tuple[str, str]]] = defaultdict(dict)
    for stay, time, lab, value in mimic.rows(events, "hadm_id", "charttime", "itemid", "valuenum"):
        if stay in stays and value:
            first[stay][lab] = min((time, value), first[stay].get(lab, (time, value)))
    return {stay: {lab: value for lab, (_, value) in first[stay].items()} for stay in stays}


def most_measured(admissions: Iterable[Iterable[str]], count: int) -> list[str]:
    """The labs that most admissions have, most frequent first."""
    measured = Counter(lab for labs in admissions for lab in sorted(labs))
    return [lab for lab, _ in measured.most_common(count)]


def write_files(files: Mapping[str, Iterable[Sequence[object]]], folder: Path) -> None:
    """Write each table as NAME.csv."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, rows in files.items():
        text = io.StringIO()
        csv.writer(text, lineterminator="\n").writerows(rows)
        atomic_write(folder / f"{name}.csv", text.getvalue())


def title(code: str, system: "CodeSystem") -> str:
    """The code's title, or that of the nearest category above it which the release has."""
    for end in range(len(code), 2, -1):
        if code[:end] in system:
            return system[code[:end]].title
    return system[system.normalize(code)].title  # raises InputError, as the code is unknown


if __name__ == "__main__":
    recipes.run_script(main)
