"""What the corpora built on MIMIC share: published files, notes, splits and the spelling of codes.

PhysioNet's files lie under the raw data as `wget -r` leaves them, one folder for each project. They
are read as a stream: MIMIC-III's notes alone are 4 GB.
"""

import csv
import gzip
import json
import zlib
from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from operator import itemgetter
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from clh.corpora.example import Evidence, Example
from clh.errors import InputError
from clh.schema import Note

_PROJECTS = {  # how a file begins -> its project on PhysioNet
    "mimic-iii/": "mimiciii",
    "mimic-iv/": "mimiciv",
    "mimic-iv-note/": "mimic-iv-note",
    "mimic-cxr/mimic-cxr-2.0.0-": "mimic-cxr-jpg",
    "mimic-cxr/": "mimic-cxr",
    "snomed-ct/": "snomed-ct-entity-challenge",
    "meddec/": "meddec",
    "phenotypes/": "phenotype-annotations-mimic",
}
_LONGEST_NOTE = 2**31 - 1  # characters; Python's csv would stop at 131,072

_Document = TypeVar("_Document", bound=BaseModel)


def find(folder: Path, name: str) -> Path:
    """A published file, gzipped or not. Raises InputError, which says where to get it."""
    file = folder / name
    for candidate in (file, file.with_name(f"{file.name}.gz")):
        if candidate.is_file():
            return candidate
    message = f"{file} is missing: get it with `make download-data`"
    project = next((of for start, of in _PROJECTS.items() if name.startswith(start)), None)
    if project:
        message += (
            ", as a credentialed user of PhysioNet who has signed the agreement of"
            f" https://physionet.org/content/{project}"
        )
    raise InputError(message)


def rows(file: Path, *columns: str) -> Iterator[tuple[str, ...]]:
    """The named columns of a published table, row by row.

    Raises InputError for a file that lacks a column, is damaged or was cut short.
    """
    csv.field_size_limit(_LONGEST_NOTE)
    opening = gzip.open if file.suffix == ".gz" else open
    try:
        with opening(file, "rt", encoding="utf-8", newline="") as lines:
            reader = csv.reader(lines, strict=True)
            header = next(reader, [])
            for column in columns:
                if column not in header:
                    raise InputError(f"{file} has no column {column}")
            wanted = [header.index(column) for column in columns]
            for row in filter(None, reader):
                if len(row) != len(header):
                    raise InputError(
                        f"{file}, line {reader.line_num}: the row has {len(row)} columns,"
                        f" the header {len(header)}: get the file again with `make download-data`"
                    )
                yield tuple(row[place] for place in wanted)
    except (OSError, EOFError, zlib.error, UnicodeDecodeError, csv.Error) as error:
        raise _damaged(file, error) from error


def text(file: Path) -> str:
    """A published text file. Raises InputError for one that cannot be read."""
    try:
        return file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise _damaged(file, error) from error


def document(file: Path, model: type[_Document]) -> _Document:
    """A published JSON file. Raises InputError that names the file and the field."""
    try:
        return model.model_validate(json.loads(text(file), strict=False))
    except json.JSONDecodeError as error:
        raise _damaged(file, error) from error
    except ValidationError as error:
        raise _invalid(str(file), error) from None


def reproducibility_splits(folder: Path, name: str) -> dict[str, str]:
    """The split of each admission, as Edin et al. (2023) published it; their `val` is our `dev`.

    Raises InputError for a file that is not such a table.
    """
    import pyarrow as pa
    from pyarrow import feather

    file = find(folder, f"reproducibility-splits/{name}")
    try:
        table = feather.read_table(file).to_pydict()
    except (OSError, pa.ArrowException) as error:
        raise _damaged(file, error) from error
    for column in ("_id", "split"):
        if column not in table:
            raise InputError(f"{file} has no column {column}")
    return {
        str(admission): "dev" if split == "val" else split
        for admission, split in zip(table["_id"], table["split"], strict=True)
    }


def noteevents(folder: Path, row_ids: Collection[str]) -> dict[str, Note]:
    """Notes of MIMIC-III by their ROW_ID. Raises InputError for one that is not there."""
    file = find(folder, "mimic-iii/NOTEEVENTS.csv")
    notes = {
        row_id: Note(id=row_id, text=body)
        for row_id, body in rows(file, "ROW_ID", "TEXT")
        if row_id in row_ids and body
    }
    for row_id in row_ids:
        if row_id not in notes:
            raise InputError(f"{file} has no note with ROW_ID {row_id}: is it MIMIC-III 1.4?")
    return notes


def diagnosis(code: str, revision: int) -> str:
    """An ICD diagnosis as the book prints it: 4019 is 401.9, E8199 is E819.9, I5020 is I50.20."""
    return _dotted(code, 4 if (revision, code[:1]) == (9, "E") else 3)


def procedure(code: str) -> str:
    """An ICD-9-CM procedure as the book prints it: 3893 is 38.93."""
    return _dotted(code, 2)


def _dotted(code: str, place: int) -> str:
    plain = code.strip().replace(".", "")
    return f"{plain[:place]}.{plain[place:]}" if len(plain) > place else plain


def in_sequence(billed: Iterable[tuple[str, str, str]]) -> dict[str, list[str]]:
    """The codes of each admission, from rows of admission, sequence number and code."""
    codes: defaultdict[str, list[tuple[str, str]]] = defaultdict(list)
    for admission, number, code in billed:
        codes[admission].append((number.zfill(5), code))
    return {admission: [code for _, code in sorted(found)] for admission, found in codes.items()}


def encounters(
    file: Path,
    notes: Iterable[tuple[str, Any, Note]],
    codes: Mapping[str, Sequence[str]],
    split: str,
) -> Iterator[Example]:
    """An example for each admission that has notes and codes.

    `notes` are rows of admission, whatever its notes are ordered by, and note. The notes of a split
    are held in memory, once.
    """
    admissions: defaultdict[str, list[tuple[Any, Note]]] = defaultdict(list)
    for admission, order, note in notes:
        if codes.get(admission):
            admissions[admission].append((order, note))
    for admission, found in admissions.items():
        in_order = tuple(note for _, note in sorted(found, key=itemgetter(0)))
        yield example(file, admission, in_order, codes[admission], split)


def note(file: Path, id: str, text: str) -> Note:
    """A note of `file`. Raises InputError that names both for one without text."""
    try:
        return Note(id=id, text=text)
    except ValidationError as error:
        raise _invalid(f"{file}, note {id}", error) from None


def evidence(file: Path, code: str, note: Note, start: int, end: int) -> Evidence:
    """Evidence that `file` marks in a note. Raises InputError for marks outside the note."""
    if not 0 <= start < end <= len(note.text):
        raise InputError(
            f"{file}: {start}:{end} is no part of note {note.id}, of {len(note.text)} characters"
        )
    return Evidence(code=code, note_id=note.id, spans=(note.span(start, end),))


def example(
    file: Path,
    id: str,
    notes: tuple[Note, ...],
    codes: Iterable[str],
    split: str,
    evidence: tuple[Evidence, ...] = (),
) -> Example:
    """The example of a record of `file`; each code is kept once.

    Raises InputError that names both for what is none.
    """
    unique = tuple(dict.fromkeys(codes))
    try:
        return Example(id=id, notes=notes, codes=unique, evidence=evidence, split=split)
    except ValidationError as error:
        raise _invalid(f"{file}, {id}", error) from None


def _damaged(file: Path, error: Exception) -> InputError:
    return InputError(f"{file} cannot be read ({error}): get it again with `make download-data`")


def _invalid(record: str, error: ValidationError) -> InputError:
    """The first problem in one line; pydantic's own message would quote the note."""
    problem = error.errors()[0]
    place = ".".join(map(str, problem["loc"]))
    message = problem["msg"].removeprefix("Value error, ")
    return InputError(": ".join(filter(None, (record, place, message))))
