"""Phenotype annotations of MIMIC-III: notes with the conditions that clinicians found in them."""

import hashlib
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

from clh.corpora import mimic
from clh.corpora.example import Example

PHENOTYPES = (
    "ADVANCED.CANCER",
    "ADVANCED.HEART.DISEASE",
    "ADVANCED.LUNG.DISEASE",
    "ALCOHOL.ABUSE",
    "CHRONIC.NEUROLOGICAL.DYSTROPHIES",
    "CHRONIC.PAIN.FIBROMYALGIA",
    "DEMENTIA",
    "DEPRESSION",
    "DEVELOPMENTAL.DELAY.RETARDATION",
    "NON.ADHERENCE",
    "OBESITY",
    "OTHER.SUBSTANCE.ABUSE",
    "SCHIZOPHRENIA.AND.OTHER.PSYCHIATRIC.DISORDERS",
)
_PRECEDENCE = {"DAG": 0, "PAT": 0, "JTW": 1, "JF": 1, "ETM": 2, "JW": 2}  # of annotators


def read(folder: Path, split: str) -> Iterator[Example]:
    """The notes of a split; gold codes are the names of the phenotypes' columns.

    Moseley et al. (2020), https://physionet.org/content/phenotype-annotations-mimic, in
    `phenotypes`; the notes are MIMIC-III's. Several annotators read a note: those who take
    precedence in Elgaar et al. (2024) decide, and a reading marked UNSURE does not count. No split
    is published: a hash of the subject's id makes one, of 80, 10 and 10 %. Raises InputError for
    files that are missing or damaged.
    """
    file = mimic.find(folder, "phenotypes/ACTdb102003.csv")
    readings: defaultdict[str, list[tuple[int, set[str]]]] = defaultdict(list)
    for subject, row_id, annotator, unsure, *flags in mimic.rows(
        file, "SUBJECT_ID", "ROW_ID", "OPERATOR", "UNSURE", *PHENOTYPES
    ):
        if unsure != "1" and split_of(subject) == split:
            found = {name for name, flag in zip(PHENOTYPES, flags, strict=True) if flag == "1"}
            readings[row_id].append((_PRECEDENCE.get(annotator, 3), found))
    notes = mimic.noteevents(folder, readings.keys())
    for row_id, of_note in readings.items():
        first = min(place for place, _ in of_note)
        found = set().union(*(names for place, names in of_note if place == first))
        yield mimic.example(file, row_id, (notes[row_id],), sorted(found), split)


def split_of(subject: str) -> str:
    """The split of a subject, from a hash of its id."""
    tenth = int(hashlib.sha256(subject.encode()).hexdigest(), 16) % 10
    return {8: "dev", 9: "test"}.get(tenth, "train")
