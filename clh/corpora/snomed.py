"""SNOMED CT Entity Linking Challenge: concepts marked in discharge summaries of MIMIC-IV."""

from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

from clh.corpora import mimic
from clh.corpora.example import Example
from clh.errors import InputError

_NOTES = {"train": "mimic-iv_notes_training_set.csv", "test": "mimic-iv_notes_test_set.csv"}


def read(folder: Path, split: str) -> Iterator[Example]:
    """The notes of a split; gold codes are the ids of the concepts, in the order of the note.

    Hardman et al. (2023), https://physionet.org/content/snomed-ct-entity-challenge, in
    `snomed-ct`; 1.0.0 has only the training set, later versions also the test set. Raises
    InputError for files that are missing, damaged or do not fit together.
    """
    file = mimic.find(folder, f"snomed-ct/{split}_annotations.csv")
    marks: defaultdict[str, list[tuple[int, int, str]]] = defaultdict(list)
    for note_id, start, end, concept in mimic.rows(file, "note_id", "start", "end", "concept_id"):
        if not (start.isdecimal() and end.isdecimal()):
            raise InputError(f"{file}: {start}:{end} of note {note_id} are not offsets")
        marks[note_id].append((int(start), int(end), concept))
    notes = mimic.find(folder, f"snomed-ct/{_NOTES[split]}")
    for note_id, text in mimic.rows(notes, "note_id", "text"):
        note = mimic.note(notes, note_id, text)
        evidence = tuple(
            mimic.evidence(file, concept, note, start, end)
            for start, end, concept in sorted(marks.pop(note_id, []))
        )
        codes = (one.code for one in evidence)
        yield mimic.example(notes, note_id, (note,), codes, split, evidence)
    for note_id in marks:
        raise InputError(f"{file} marks note {note_id}, which is not in {notes}")
