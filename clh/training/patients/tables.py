"""Patients from four CSV files, laid out as Two-Tower has them.

    icd       code, title; optional description and synonyms, which are read after the title
    patients  encounter_id, and what is known of age, sex (F or M), note_text, and of each lab in a
              column lab_...; an empty cell was not measured
    labels    encounter_id, code: a line for each code of an encounter
    splits    encounter_id, split: train, val or test

Other columns are not read. Every code of the first file is one to be found.
"""

import csv
import math
from collections import defaultdict
from collections.abc import Container, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar, get_args

from pydantic import BaseModel, FiniteFloat, ValidationError

from clh.errors import InputError

Split = Literal["train", "val", "test"]

_LONGEST_CELL = 2**31 - 1  # characters; Python's csv would stop at 131,072


class _Code(BaseModel):
    code: str
    title: str
    description: str = ""
    synonyms: str = ""


class _Patient(BaseModel):
    encounter_id: str
    age: FiniteFloat | None = None
    sex: Literal["F", "M"] | None = None
    note_text: str = ""
    labs: dict[str, FiniteFloat]

    @property
    def values(self) -> dict[str, float]:
        """The measured values, by their names."""
        age = {} if self.age is None else {"age": self.age}
        sex = {} if self.sex is None else {"sex": float(self.sex == "M")}
        return age | sex | self.labs


class _Label(BaseModel):
    encounter_id: str
    code: str


class _SplitRow(BaseModel):
    encounter_id: str
    split: Split


_Row = TypeVar("_Row", bound=BaseModel)


@dataclass(frozen=True)
class PatientEncounter:
    """A stay of a patient; `values` are those of `Tables.features`, NaN where not measured."""

    id: str
    text: str
    values: tuple[float, ...]
    codes: frozenset[str]


@dataclass(frozen=True)
class Tables:
    """The four files: each code's text, the names of the values, and the encounters by split."""

    texts: dict[str, str]
    features: tuple[str, ...]
    encounters: dict[Split, list[PatientEncounter]]


def read_tables(icd: Path, patients: Path, labels: Path, splits: Path) -> Tables:
    """The files as the module describes them; InputError that names file, line and problem."""
    codes, people = _by_id(icd, _Code), _by_id(patients, _Patient)
    split_rows = _by_id(splits, _SplitRow)
    gold: defaultdict[str, set[str]] = defaultdict(set)
    for where, label in _rows(labels, _Label):
        _check(label.code, codes, where, icd)
        _check(label.encounter_id, people, where, patients)
        gold[label.encounter_id].add(label.code)
    for name, (where, _) in split_rows.items():
        _check(name, people, where, patients)

    features = sorted({name for _, patient in people.values() for name in patient.values})
    encounters: dict[Split, list[PatientEncounter]] = {split: [] for split in get_args(Split)}
    for name, (where, patient) in people.items():
        _check(name, split_rows, where, splits)
        measured = patient.values
        if not patient.note_text and not measured:
            raise InputError(f"{where}: {name} has neither a note nor a value: leave it out")
        values = tuple(measured.get(feature, math.nan) for feature in features)
        encounter = PatientEncounter(name, patient.note_text, values, frozenset(gold[name]))
        encounters[split_rows[name][1].split].append(encounter)
    for split in ("train", "val"):
        if not any(encounter.codes for encounter in encounters[split]):
            raise InputError(f"{splits}: no encounter of {split} has codes: give it some")
    texts = {
        code: "; ".join(filter(None, (row.title, row.description, row.synonyms)))
        for code, (_, row) in codes.items()
    }
    return Tables(texts, tuple(features), encounters)


def _by_id(file: Path, shape: type[_Row]) -> dict[str, tuple[str, _Row]]:
    """The rows, and where each stands, by the first of their columns, which no two share."""
    column = next(iter(shape.model_fields))
    found: dict[str, tuple[str, _Row]] = {}
    for where, row in _rows(file, shape):
        name = getattr(row, column)
        if name in found:
            raise InputError(f"{where}: {name} comes twice: leave one out")
        found[name] = where, row
    return found


def _check(name: str, known: Container[str], where: str, file: Path) -> None:
    if name not in known:
        raise InputError(f"{where}: {name} is not in {file}: add it there, or leave it out here")


def _rows(file: Path, shape: type[_Row]) -> Iterator[tuple[str, _Row]]:
    """Each row, and where it ends; an empty cell is as if its column were not there."""
    csv.field_size_limit(_LONGEST_CELL)
    try:
        with file.open(encoding="utf-8-sig", newline="") as lines:
            reader = csv.reader(lines, strict=True)
            header = next(reader, [])
            for cells in filter(None, reader):
                where = f"{file}, line {reader.line_num}"
                if len(cells) != len(header):
                    raise InputError(
                        f"{where}: {len(cells)} cells, and {len(header)} columns in the first line:"
                        " put cells with commas in double quotes"
                    )
                named = zip(header, map(str.strip, cells), strict=True)
                row: dict[str, Any] = {column: cell for column, cell in named if cell}
                row["labs"] = {name: row[name] for name in row if name.startswith("lab_")}
                try:
                    yield where, shape.model_validate(row)
                except ValidationError as error:
                    problem = error.errors()[0]
                    raise InputError(f"{where}, {problem['loc'][-1]}: {problem['msg']}") from None
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise InputError(f"{file} cannot be read ({error}): save it as CSV in UTF-8") from error
