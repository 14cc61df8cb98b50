"""CodiEsp v4: Spanish case reports with codes for every mention, and their English by machine.

Source: Miranda-Escalada et al. 2020, Overview of automatic clinical coding: annotations,
guidelines, and solutions for non-English clinical cases at CodiEsp track of CLEF eHealth 2020.
In the publisher's layout, each split has

    text_files/ID.txt, text_files_en/ID.txt   a case report and its translation
    trainD.tsv, trainP.tsv                    ID and code: the diagnoses, the procedures
    trainX.tsv                                ID, label, code, the words marked, their offsets

with offsets in the Spanish text: `40 52`, or `40 52;60 71` for a mention in pieces.
"""

import logging
from collections import defaultdict
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Literal

from clh.corpora.align import align, translation
from clh.corpora.example import Evidence, Example
from clh.errors import InputError
from clh.icd.tabular import load_tabular
from clh.schema import Note, Span

Language = Literal["en", "es"]
Kind = Literal["diagnosis", "procedure"]
_Mention = tuple[str, tuple[Span, ...]]  # a code and where the text says so

_log = logging.getLogger(__name__)

_LABELS: dict[str, Kind] = {"DIAGNOSTICO": "diagnosis", "PROCEDIMIENTO": "procedure"}
_TABLES: dict[Kind, str] = {"diagnosis": "D", "procedure": "P"}
_AGAIN = "unpack the publisher's archive again"


def read(
    folder: Path, split: str, *, language: Language = "en", kind: Kind = "diagnosis"
) -> Iterator[Example]:
    """All documents of a split, by id; `folder` holds train, dev and test.

    In Spanish, evidence is what the annotators marked; in English, the lines that translate the
    sentences it stands in. Marks with a code that is not among the document's are left out.

    Raises:
        InputError: something is missing or malformed, with file and line.

    """
    root = folder / split
    if not root.is_dir():
        raise InputError(f"{folder} has no {split}: give the folder that holds train, dev and test")
    spanish = _notes(root / "text_files")
    notes = _notes(root / "text_files_en") if language == "en" else spanish
    codes = _codes(root / f"{split}{_TABLES[kind]}.tsv", kind, notes)
    mentions = _mentions(root / f"{split}X.tsv", kind, spanish)
    for document, note in sorted(notes.items()):
        marked = [mention for mention in mentions[document] if mention[0] in codes[document]]
        if language == "en" and marked:
            marked = _translated(marked, spanish[document], note)
        evidence = (Evidence(code=code, note_id=document, spans=spans) for code, spans in marked)
        yield Example(
            id=document,
            notes=(note,),
            codes=tuple(dict.fromkeys(codes[document])),
            evidence=tuple(dict.fromkeys(evidence)),
            split=split,
        )


def _translated(marked: list[_Mention], spanish: Note, english: Note) -> list[_Mention]:
    """The mentions by the lines that translate their sentences."""
    pairs = align(spanish, english)
    if not pairs:
        _log.warning(
            "%s is read without evidence: its English has not one line for each Spanish sentence",
            english.id,
        )
    translated = ((code, translation(pieces, pairs)) for code, pieces in marked)
    return [(code, lines) for code, lines in translated if lines]


def _notes(folder: Path) -> dict[str, Note]:
    notes = {}
    for file in folder.glob("*.txt"):
        text = _text(file)
        if not text.strip():
            raise InputError(f"{file} is blank: {_AGAIN}")
        notes[file.stem] = Note(id=file.stem, text=text)
    if not notes:
        raise InputError(f"{folder} holds no texts: {_AGAIN}")
    return notes


def _codes(file: Path, kind: Kind, notes: Mapping[str, Note]) -> defaultdict[str, list[str]]:
    """The gold codes of each document."""
    codes: defaultdict[str, list[str]] = defaultdict(list)
    for where, (document, code) in _rows(file, 2):
        if document not in notes:
            raise InputError(f"{where}: there is no text of {document}: {_AGAIN}")
        codes[document].append(_code(code, kind, where))
    return codes


def _mentions(
    file: Path, kind: Kind, spanish: Mapping[str, Note]
) -> defaultdict[str, list[_Mention]]:
    """What was marked in each document, pieces in the annotators' order."""
    mentions: defaultdict[str, list[_Mention]] = defaultdict(list)
    for where, (document, label, code, _, offsets) in _rows(file, 5):
        if label not in _LABELS:
            raise InputError(f"{where}: {label!r} is not {' or '.join(_LABELS)}: {_AGAIN}")
        if document not in spanish:
            raise InputError(f"{where}: there is no Spanish text of {document}: {_AGAIN}")
        if _LABELS[label] == kind:
            pieces = _pieces(offsets, spanish[document], where)
            mentions[document].append((_code(code, kind, where), pieces))
    return mentions


def _pieces(offsets: str, note: Note, where: str) -> tuple[Span, ...]:
    pieces: tuple[Span, ...] = ()
    with suppress(ValueError):
        pairs = [tuple(map(int, pair.split())) for pair in offsets.split(";")]
        # A few mentions have an empty piece beside others.
        pieces = tuple(note.span(start, end) for start, end in pairs if start != end)
    if not pieces:
        raise InputError(f"{where}: {offsets!r} are no offsets in the text of {note.id}: {_AGAIN}")
    return pieces


def _code(code: str, kind: Kind, where: str) -> str:
    if kind == "procedure":
        return code.upper()
    system = load_tabular()
    try:
        return system.normalize(code)
    except InputError as error:
        with suppress(InputError):  # w19.xxx has placeholders, but not the character they are for
            return system.normalize(code.rstrip("xX"))
        raise InputError(f"{where}: {error}") from error


def _rows(file: Path, columns: int) -> Iterator[tuple[str, list[str]]]:
    """The rows of a table, each with what to call it in an error."""
    for number, line in enumerate(_text(file).removesuffix("\n").split("\n"), start=1):
        where = f"{file}, line {number}"
        row = line.split("\t")
        if len(row) != columns:
            raise InputError(f"{where} has {len(row)} columns instead of {columns}: {_AGAIN}")
        yield where, row


def _text(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8")
    except OSError as error:
        raise InputError(
            f"{file}: {(error.strerror or 'cannot be read').lower()}: {_AGAIN}"
        ) from error
    except UnicodeDecodeError as error:
        raise InputError(f"{file} is not UTF-8: {_AGAIN}") from error
