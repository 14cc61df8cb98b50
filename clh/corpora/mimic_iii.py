"""MIMIC-III: discharge summaries with the ICD-9-CM codes that were billed."""

from collections import Counter
from collections.abc import Container, Iterator
from pathlib import Path
from typing import Literal

from clh.corpora import mimic
from clh.corpora.example import Example
from clh.schema import Note

Codes = dict[str, list[str]]  # of each admission

_RARE = 10  # admissions: codes of fewer are not in `clean`
# As CAML's notebook prints them. Counted anew in MIMIC-III 1.4 they are others (Edin et al., 2023).
_TOP_50 = frozenset(
    """
    401.9 38.93 428.0 427.31 414.01 96.04 96.6 584.9 250.00 96.71 272.4 518.81 99.04 39.61 599.0
    530.81 96.72 272.0 285.9 88.56 244.9 486 38.91 285.1 36.15 276.2 496 99.15 995.92 V58.61 507.0
    038.9 88.72 585.9 403.90 311 305.1 37.22 412 33.24 39.95 287.5 410.71 276.1 V45.81 424.0 45.13
    V15.82 511.9 37.23
    """.split()  # noqa: SIM905
)


def read(folder: Path, split: str, *, version: Literal["full", "50", "clean"]) -> Iterator[Example]:
    """The admissions of a split, each with its discharge summary and then its addenda.

    Gold codes are diagnoses and then procedures, as in all work since CAML: Mullenbach et al.
    (2018), whose splits `full` and `50` are in `caml-splits`; `50` keeps their 50 most frequent
    codes. `clean` is Edin et al.'s (2023), its splits are in `reproducibility-splits`; it keeps
    codes of ten admissions or more. Admissions without notes or codes are left out. Raises
    InputError for files that are missing or damaged.
    """
    codes = _clean(folder, split) if version == "clean" else _caml(folder, split, version)
    file = mimic.find(folder, "mimic-iii/NOTEEVENTS.csv")
    columns = ("HADM_ID", "ROW_ID", "CHARTDATE", "CATEGORY", "DESCRIPTION", "ISERROR", "TEXT")
    notes = (
        (admission, (description != "Report", date), Note(id=row_id, text=text))
        for admission, row_id, date, category, description, is_error, text in mimic.rows(
            file, *columns
        )
        if category == "Discharge summary" and is_error != "1" and admission in codes and text
    )
    yield from mimic.encounters(file, notes, codes, split)


def _caml(folder: Path, split: str, version: str) -> Codes:
    listing = mimic.find(folder, f"caml-splits/{split}_{version}_hadm_ids.csv")
    codes = _billed(folder, set(mimic.text(listing).split()))
    return codes if version == "full" else _only(codes, _TOP_50)


def _clean(folder: Path, split: str) -> Codes:
    splits = mimic.reproducibility_splits(folder, "mimiciii_clean_splits.feather")
    codes = _billed(folder, splits)
    counts = Counter(code for found in codes.values() for code in set(found))
    in_split = {
        admission: found for admission, found in codes.items() if splits[admission] == split
    }
    return _only(in_split, {code for code, count in counts.items() if count >= _RARE})


def _only(codes: Codes, kept: Container[str]) -> Codes:
    return {
        admission: [code for code in found if code in kept] for admission, found in codes.items()
    }


def _billed(folder: Path, admissions: Container[str]) -> Codes:
    columns = ("HADM_ID", "SEQ_NUM", "ICD9_CODE")
    diagnoses = mimic.in_sequence(
        (admission, number, mimic.diagnosis(code, 9))
        for admission, number, code in mimic.rows(
            mimic.find(folder, "mimic-iii/DIAGNOSES_ICD.csv"), *columns
        )
        if admission in admissions and code
    )
    procedures = mimic.in_sequence(
        (admission, number, mimic.procedure(code))
        for admission, number, code in mimic.rows(
            mimic.find(folder, "mimic-iii/PROCEDURES_ICD.csv"), *columns
        )
        if admission in admissions and code
    )
    return {
        admission: diagnoses.get(admission, []) + procedures.get(admission, [])
        for admission in diagnoses.keys() | procedures.keys()
    }
