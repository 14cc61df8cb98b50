"""MedDec: the medical decisions that experts marked in discharge summaries of MIMIC-III."""

from collections.abc import Iterator
from pathlib import Path

from pydantic import BaseModel

from clh.corpora import mimic
from clh.corpora.example import Example

_SPLITS = {"train": "train", "dev": "val", "test": "test"}


class _Annotation(BaseModel):
    start_offset: int
    end_offset: int
    category: str


class _Summary(BaseModel):
    annotations: tuple[_Annotation, ...]


def read(folder: Path, split: str) -> Iterator[Example]:
    """The discharge summaries of a split; gold codes are categories of decisions, as published.

    Elgaar et al. (2024), https://physionet.org/content/meddec, in `meddec`: `data` and `splits`,
    with files and lines named after SUBJECT_ID, HADM_ID and ROW_ID. The notes are MIMIC-III's.
    What the annotators left to be decided (TBD) is left out, as in the publisher's own scorer.
    Raises InputError for files that are missing, damaged or do not fit together.
    """
    listing = mimic.find(folder, f"meddec/splits/{_SPLITS[split]}.txt")
    summaries = {  # file -> ROW_ID
        mimic.find(folder, f"meddec/data/{name}.json"): name.split("_")[-1]
        for name in (Path(line).stem for line in mimic.text(listing).split())
    }
    notes = mimic.noteevents(folder, set(summaries.values()))
    for file, row_id in summaries.items():
        note = notes[row_id]
        evidence = tuple(
            mimic.evidence(file, one.category, note, one.start_offset, one.end_offset)
            for one in mimic.document(file, _Summary).annotations
            if one.category != "TBD"
        )
        codes = (one.code for one in evidence)
        yield mimic.example(file, row_id, (note,), codes, split, evidence)
