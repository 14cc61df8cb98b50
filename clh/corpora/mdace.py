"""MDACE: the evidence that professional coders marked for the codes of MIMIC-III charts."""

from collections.abc import Iterator
from pathlib import Path
from typing import Literal

from pydantic import BaseModel

from clh.corpora import mimic
from clh.corpora.example import Evidence, Example
from clh.errors import InputError
from clh.schema import Note

_SPLITS = {"train": "train", "dev": "val", "test": "test"}


class _Annotation(BaseModel):
    begin: int
    end: int
    code: str
    code_system: str
    covered_text: str | None = None


class _Document(BaseModel):
    note_id: int
    annotations: tuple[_Annotation, ...]


class _Chart(BaseModel):
    hadm_id: int
    notes: tuple[_Document, ...]


def read(
    folder: Path, split: str, *, setting: Literal["inpatient", "profee"], revision: Literal[9, 10]
) -> Iterator[Example]:
    """The charts of a split, each with its notes and the diagnoses that coders found in them.

    Cheng et al. (2023), https://github.com/3mcloud/MDACE, in `mdace`; the notes are MIMIC-III's.
    The splits are those of the paper's experiments on evidence (`MDace-ev-*.csv`). Procedures (ICD
    and CPT) are left out. ICD-9 codes were mapped from ICD-10 by the publisher. Raises InputError
    for files that are missing, damaged or do not fit together.
    """
    setting_folder = setting.title()
    listing = mimic.find(folder, f"mdace/splits/{setting_folder}/MDace-ev-{_SPLITS[split]}.csv")
    data = f"mdace/data/{setting_folder}/ICD-{revision}/1.0"
    files = [
        mimic.find(folder, f"{data}/{admission}-ICD-{revision}.json")
        for admission in mimic.text(listing).split()
    ]
    charts = {file: mimic.document(file, _Chart) for file in files}
    row_ids = {str(one.note_id) for chart in charts.values() for one in chart.notes}
    notes = mimic.noteevents(folder, row_ids)
    for file, chart in charts.items():
        evidence = tuple(
            _evidence(file, notes[str(one.note_id)], annotation)
            for one in chart.notes
            for annotation in one.annotations
            if annotation.code_system == f"ICD-{revision}-CM"
        )
        yield mimic.example(
            file,
            str(chart.hadm_id),
            tuple(notes[str(one.note_id)] for one in chart.notes),
            (one.code for one in evidence),
            split,
            evidence,
        )


def _evidence(file: Path, note: Note, annotation: _Annotation) -> Evidence:
    found = mimic.evidence(file, annotation.code, note, annotation.begin, annotation.end)
    if annotation.covered_text not in (None, found.spans[0].text):
        raise InputError(
            f"{file}: {annotation.begin}:{annotation.end} of note {note.id} is not the covered_text"
            " of the annotation: is it MIMIC-III 1.4?"
        )
    return found
