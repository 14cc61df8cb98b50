"""MIMIC-IV: discharge summaries with the diagnoses that were billed."""

from collections.abc import Container, Iterator
from pathlib import Path
from typing import Literal

from clh.corpora import mimic
from clh.corpora.example import Example
from clh.schema import Note


def read(folder: Path, split: str, *, revision: Literal[9, 10]) -> Iterator[Example]:
    """The admissions of a split that were billed in a revision of ICD, each with its notes.

    Splits are Edin et al.'s (2023), in `reproducibility-splits`. Gold codes are all diagnoses of
    the revision; the paper adds procedures and drops codes of fewer than ten admissions. Admissions
    without notes or diagnoses are left out. Raises InputError for missing or damaged files.
    """
    splits = mimic.reproducibility_splits(folder, f"mimiciv_icd{revision}_split.feather")
    admissions = {admission for admission, name in splits.items() if name == split}
    codes = diagnoses(folder, admissions, revision)
    file = mimic.find(folder, "mimic-iv-note/note/discharge.csv")
    notes = (
        (admission, (kind != "DS", time), Note(id=note_id, text=text))  # AD is an addendum
        for admission, note_id, kind, time, text in mimic.rows(
            file, "hadm_id", "note_id", "note_type", "charttime", "text"
        )
        if admission in codes and text
    )
    yield from mimic.encounters(file, notes, codes, split)


def diagnoses(folder: Path, admissions: Container[str], revision: int) -> dict[str, list[str]]:
    """The diagnoses of each admission that has any in a revision of ICD, first-listed first."""
    return mimic.in_sequence(
        (admission, number, mimic.diagnosis(code, revision))
        for admission, number, code, version in mimic.rows(
            mimic.find(folder, "mimic-iv/hosp/diagnoses_icd.csv"),
            *("hadm_id", "seq_num", "icd_code", "icd_version"),
        )
        if admission in admissions and version == str(revision) and code
    )
