"""The code book: the code system with its notes read, and what only the Official Guidelines state.

The rules of the guidelines are in guidelines.toml, each with its section.
"""

import re
import tomllib
from collections.abc import Iterable, Iterator, Mapping
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any, NamedTuple, get_args

from clh.icd.edits import Edits, read_edits
from clh.icd.references import Reading, read_references
from clh.icd.tabular import CodeSystem, NoteKind, Notes, load_tabular
from clh.schema import Citation


class Interval(NamedTuple):
    """The codes from one position in tabular order to another that have certain characters.

    `end` is the position after the last code; `characters` is searched in codes without their dot.
    """

    start: int
    end: int
    characters: re.Pattern[str] | None

    def fits(self, code: str) -> bool:
        """Whether a code between the positions has the characters."""
        return self.characters is None or bool(self.characters.search(code.replace(".", "")))


class InstructionalNote(NamedTuple):
    """A note of the Tabular List, the codes that it names, and what of it is not understood."""

    citation: Citation
    intervals: tuple[Interval, ...]
    unread: str


class Guideline(NamedTuple):
    """A rule of guidelines.toml: groups of codes, and the codes to choose from instead."""

    groups: tuple[tuple[Interval, ...], ...]
    instead: tuple[str, ...]
    citation: Citation


# Notes of the kind "notes" are prose.
KINDS: tuple[NoteKind, ...] = tuple(kind for kind in get_args(NoteKind) if kind != "notes")


class CodeBook:
    """The code system, its notes, the guidelines, and the edits of Medicare if they are given.

    A note is read when it is first asked for.
    """

    def __init__(
        self, system: CodeSystem, guidelines: Mapping[str, Any], edits: Edits | None = None
    ) -> None:
        """Read the guidelines, as guidelines.toml has them.

        Raises ValueError where they name codes that the system lacks.
        """
        self.system, self.edits = system, edits
        self._notes: dict[tuple[str, NoteKind, tuple[str, ...]], tuple[InstructionalNote, ...]] = {}
        self._sections = guidelines["sections"]
        self.guidelines = {
            name: [self._guideline(rule) for rule in rules]
            for name, rules in guidelines.items()
            if name != "sections"
        }

    def notes_by_place(
        self, code: str, kind: NoteKind
    ) -> Iterator[tuple[str, tuple[InstructionalNote, ...]]]:
        """The notes of one kind that apply to the code, by the place where they are printed.

        The nearest first: code, ancestors, block, chapter.
        """
        entry = self.system[code]
        yield from self._notes_at(code, entry, kind)
        for ancestor in self.system.ancestors(code):
            yield from self._notes_at(ancestor, self.system[ancestor], kind)
        yield from self._notes_at(entry.block.name, entry.block, kind)
        yield from self._notes_at(f"Chapter {entry.chapter.name}", entry.chapter, kind)

    def notes(self, code: str, kind: NoteKind) -> Iterator[InstructionalNote]:
        """The notes of one kind that apply to the code, the nearest first."""
        return (note for _, notes in self.notes_by_place(code, kind) for note in notes)

    def all_notes(self) -> Iterator[InstructionalNote]:
        """Every note of the release, at every place where it is printed."""
        headings: dict[str, Notes] = {}
        for entry in self.system.values():
            headings[entry.block.name] = entry.block
            headings[f"Chapter {entry.chapter.name}"] = entry.chapter
        for place, printed in (*self.system.items(), *headings.items()):
            for kind in KINDS:
                for _, notes in self._notes_at(place, printed, kind):
                    yield from notes

    def section(self, name: str) -> Citation:
        """A section of the guidelines that a check rests on."""
        return Citation(place=name, kind="guideline", text=self._sections[name])

    def intervals(self, reading: Reading) -> tuple[Interval, ...]:
        """The codes that a note, or another text in its notation, names."""
        return tuple(
            Interval(
                self.system.position(reference.first),
                self.system.end(reference.last),
                reference.characters,
            )
            for reference in reading.references
        )

    def names(self, intervals: Iterable[Interval], code: str) -> bool:
        """Whether the code is in one of the intervals."""
        position = self.system.position(code)
        return any(
            interval.start <= position < interval.end and interval.fits(code)
            for interval in intervals
        )

    def _notes_at(
        self, place: str, printed: Notes, kind: NoteKind
    ) -> Iterator[tuple[str, tuple[InstructionalNote, ...]]]:
        """The place with its notes of one kind, if it has any."""
        texts: tuple[str, ...] = getattr(printed, kind)
        if texts:
            key = place, kind, texts
            if key not in self._notes:
                self._notes[key] = tuple(self._read(place, kind, text) for text in texts)
            yield place, self._notes[key]

    def _read(self, place: str, kind: NoteKind, text: str) -> InstructionalNote:
        reading = read_references(text, self.system)
        citation = Citation(place=place, kind=kind, text=text)
        return InstructionalNote(citation, self.intervals(reading), reading.unread)

    def _guideline(self, rule: Mapping[str, Any]) -> Guideline:
        groups = tuple(self.intervals(read_references(text, self.system)) for text in rule["codes"])
        if not all(groups):
            raise ValueError(f"guidelines.toml, {rule['section']}: the codes cannot be read")
        citation = Citation(place=rule["section"], kind="guideline", text=rule["summary"])
        return Guideline(groups, tuple(rule.get("instead", ())), citation)


@cache
def load_code_book(edits: Path | None = None, release: str | None = None) -> CodeBook:
    """The code book of the release in force on a day, written 2026-04-01; else of the latest.

    `edits` is a file for `read_edits`. Raises InputError where it cannot be read, or there is no
    such release.
    """
    guidelines = tomllib.loads((files("clh.icd.rules") / "guidelines.toml").read_text("utf-8"))
    return CodeBook(load_tabular(release), guidelines, None if edits is None else read_edits(edits))
