"""The Tabular List: every code and category of a release, its place in the tree and its notes.

Source: the official XML of CDC/NCHS, as the package simple-icd-10-cm carries it.
"""

import difflib
import re
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import cache
from importlib.metadata import distribution
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal, NamedTuple
from xml.etree import ElementTree as ET

from clh.errors import InputError

NoteKind = Literal[
    "includes",
    "excludes1",
    "excludes2",
    "code_first",
    "use_additional_code",
    "code_also",
    "notes",
]


@dataclass(frozen=True, slots=True, kw_only=True)
class Notes:
    """What the book prints below one line of the Tabular List, in the book's own words."""

    inclusion_terms: tuple[str, ...] = ()
    includes: tuple[str, ...] = ()
    excludes1: tuple[str, ...] = ()
    excludes2: tuple[str, ...] = ()
    code_first: tuple[str, ...] = ()
    use_additional_code: tuple[str, ...] = ()
    code_also: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Heading(Notes):
    """A chapter (its name is a number, "9") or a block (its name is a range, "I30-I5A")."""

    name: str
    title: str


NO_HEADING = Heading("", "")


@dataclass(frozen=True, slots=True)
class Entry(Notes):
    """A code or a category with its own notes; `CodeSystem.inherited` adds those from above.

    `children` is filled in by the `CodeSystem` from its entries' parents. `seventh_characters`
    gives the meaning of each 7th character, as the entry or its nearest ancestor defines it; it is
    empty where there is none to add.
    """

    code: str
    title: str
    parent: str | None = None
    children: tuple[str, ...] = ()
    chapter: Heading = NO_HEADING
    block: Heading = NO_HEADING
    seventh_characters: Mapping[str, str] = field(default_factory=dict, hash=False)

    @property
    def billable(self) -> bool:
        """Whether the code is complete, and so may be reported: it is when nothing is below it."""
        return not self.children


class InheritedNote(NamedTuple):
    """A note that applies to a code, and the code, block or chapter that carries it."""

    place: str
    text: str


class CodeSystem(Mapping[str, Entry]):
    """A release of ICD-10-CM: a mapping from code ("E11.9") to entry, in tabular order.

    All methods but `normalize` take codes as the book prints them and raise KeyError for others.
    """

    def __init__(self, release: str, entries: Iterable[Entry]) -> None:
        """Index `entries`; ValueError if one comes twice or its parent is missing."""
        self.release = release
        self._entries: dict[str, Entry] = {}
        self._defaults: dict[str, str | None] = {}  # what `unspecified` found
        children: defaultdict[str, list[str]] = defaultdict(list)
        for entry in entries:
            if entry.code in self._entries:
                raise ValueError(f"{entry.code} comes twice")
            self._entries[entry.code] = entry
            if entry.parent is not None:
                children[entry.parent].append(entry.code)
        for parent, codes in children.items():
            if parent not in self._entries:
                raise ValueError(f"{parent}, the parent of {codes[0]}, is missing")
            self._entries[parent] = replace(self._entries[parent], children=tuple(codes))

    def __getitem__(self, code: str) -> Entry:
        return self._entries[code]

    def __iter__(self) -> Iterator[str]:
        return iter(self._entries)

    def __len__(self) -> int:
        return len(self._entries)

    def normalize(self, text: str) -> str:
        """The code that `text` spells: "e119", " E11.9 " and the index's "E11.9-" are E11.9.

        Raises InputError, with the nearest codes, when the release has no such code.
        """
        spelling = re.fullmatch(r"([A-Z][0-9A-Z]{2})\.?([0-9A-Z]{0,4})-*", text.strip().upper())
        if spelling is not None:
            code = ".".join(filter(None, spelling.groups()))
            if code in self:
                return code
        near = self.nearest(text)
        hint = f"; nearest: {', '.join(near)}" if near else ""
        raise InputError(f"{text.strip()!r} is not in ICD-10-CM {self.release}{hint}")

    def nearest(self, text: str) -> list[str]:
        """Up to three codes that `text` may have meant."""
        letters = re.sub(r"[^0-9A-Z]", "", text.upper())
        prefixes = (f"{letters[:3]}.{letters[3:end]}".rstrip(".") for end in range(7, 2, -1))
        longest = next((prefix for prefix in prefixes if prefix in self), None)
        if longest is None:
            options = [code for code in self if self.parent(code) is None]
        else:
            options = [longest, *self.children(longest)]
        return difflib.get_close_matches(f"{letters[:3]}.{letters[3:]}".rstrip("."), options)

    def parent(self, code: str) -> str | None:
        """The code or category right above; None above a category."""
        return self[code].parent

    def children(self, code: str) -> tuple[str, ...]:
        """The codes right below, in tabular order."""
        return self[code].children

    def ancestors(self, code: str) -> list[str]:
        """The codes above, nearest first, up to the category."""
        parent = self.parent(code)
        return [] if parent is None else [parent, *self.ancestors(parent)]

    def descendants(self, code: str) -> list[str]:
        """All codes below, in tabular order."""
        return [
            below for child in self.children(code) for below in (child, *self.descendants(child))
        ]

    def billable(self, code: str) -> bool:
        """Whether the code is complete, and so may be reported."""
        return self[code].billable

    def inherited(self, code: str, kind: NoteKind) -> list[InheritedNote]:
        """The notes of one kind that apply to the code: its own, then those from above.

        Nearest first: code, ancestors, block, chapter.
        """
        entry = self[code]
        places: list[tuple[str, Notes]] = [(code, entry)]
        places += [(ancestor, self[ancestor]) for ancestor in self.ancestors(code)]
        places += [(entry.block.name, entry.block)]
        places += [(f"Chapter {entry.chapter.name}", entry.chapter)]
        return [
            InheritedNote(place, text) for place, notes in places for text in getattr(notes, kind)
        ]

    def stems(self) -> list[str]:
        """All codes and categories but those that only add a 7th character to their parent."""
        return [code for code in self if not self._is_extension(code)]

    def stem(self, code: str) -> str:
        """The code less its 7th character, S52.501A gives S52.501; others are their own stem."""
        parent = self.parent(code)
        return parent if parent is not None and self._is_extension(code) else code

    def extensions(self, code: str) -> tuple[str, ...]:
        """The codes right below that add only a 7th character."""
        children = self.children(code)
        return children if children and self._is_extension(children[0]) else ()

    def complete(self, stem: str, character: str) -> str:
        """The stem with its 7th character, and placeholders X between: T07 and A give T07.XXXA.

        Raises InputError when the release has no such code.
        """
        code = _extended(stem, character.upper())
        extensions = self.extensions(stem)
        if code not in extensions:
            characters = ", ".join(extension[-1] for extension in extensions) or "none"
            raise InputError(f"{stem} takes no 7th character {character!r}; it takes: {characters}")
        return code

    def unspecified(self, code: str) -> str | None:
        """The code for a mention that says no more than `code` does: I50 gives I50.9.

        A code that is billable, or lacks only its 7th character, is its own answer. For others the
        book names the answer by an inclusion term, "Asthma NOS", or by a title that only adds what
        the mention leaves out: "Heart failure, unspecified", "... without complications". None when
        the book offers no such code.
        """
        if self.billable(code) or self.extensions(code):
            return code
        if code not in self._defaults:
            default = self._named_nos(code) or self._residual_child(code)
            self._defaults[code] = None if default is None else self.unspecified(default)
        return self._defaults[code]

    def reported(self, code: str) -> str:
        """The code that a mention of `code` is reported by: `unspecified`'s, without 7th character.

        Where the book offers none, it is the code itself.
        """
        return self.stem(self.unspecified(code) or code)

    def vaguer(self, code: str, than: str) -> bool:
        """Whether `code` says the same as `than` in less detail.

        It does when it is above `than`, or is the unspecified code of a category above it.
        """
        above = self.ancestors(than)
        return code != than and (
            code in above or any(self.unspecified(category) == code for category in above)
        )

    def _is_extension(self, code: str) -> bool:
        parent = self.parent(code)
        return (
            len(code) == _FULL_LENGTH
            and parent is not None
            and bool(self[parent].seventh_characters)
        )

    def _named_nos(self, code: str) -> str | None:
        """The descendant with the inclusion term "<title> NOS"."""
        nos = _words(f"{self[code].title} NOS")
        for descendant in self.descendants(code):
            if any(_words(term) == nos for term in self[descendant].inclusion_terms):
                return descendant
        return None

    def _residual_child(self, code: str) -> str | None:
        """The child whose title adds nothing to its parent's but that nothing more is known."""
        children = self.children(code)
        if len(children) == 1:
            return children[0]
        known = _words(self[code].title)

        def rank(child: str) -> tuple[int, int, bool]:
            title = self[child].title
            added = set(_words(_VAGUE.sub(" ", title))).difference(known)
            return (
                -len(_VAGUE.findall(title)),
                sum(len(word) > _LONGEST_PARTICLE for word in added),
                child[-1] not in "09",
            )

        ranked = sorted((rank(child), child) for child in children)
        (best, default), (runner_up, _) = ranked[:2]
        vagueness, added, specific = best
        if vagueness == 0 or best == runner_up:
            return None
        # The book keeps the last digits 9 and 0 for unspecified; elsewhere a title that adds words
        # is specific: E11.31, "with unspecified diabetic retinopathy", under E11.3.
        vaguer_than_others = vagueness < ranked[-1][0][0]
        return default if not added or (vaguer_than_others and not specific) else None


_FULL_LENGTH = len("S52.501A")
_LONGEST_PARTICLE = len("the")

# Words by which a title says that nothing more is known, or that a mention would have said so.
# Displaced: a fracture is coded as displaced unless documented (guideline I.C.19.c).
_VAGUE = re.compile(
    r"\b(?:unspecified(?: (?!with)\w+)?|not (?:specified|intractable|having achieved remission)"
    r"|without|uncomplicated|displaced|with [\w ]+ status unknown)\b",
    re.IGNORECASE,
)


def _extended(stem: str, character: str) -> str:
    return f"{stem[:3]}.{stem[4:]:X<3}{character}"


def _words(text: str) -> list[str]:
    """The words in lower case, less plurals and what stands in parentheses, as it is optional."""
    essential = re.sub(r"\(.*?\)", "", text.lower())
    return [word.removesuffix("s") for word in re.findall(r"\w+", essential)]


@cache
def load_tabular() -> CodeSystem:
    """The release of April 2026: 98,186 codes and categories, 74,719 of them billable."""
    # The files are read in place: importing the package would build its own tree of them first.
    package = distribution("simple-icd-10-cm")
    root = ET.parse(str(package.locate_file(_TABULAR))).getroot()
    released = frozenset(Path(str(package.locate_file(_CODES))).read_text("utf-8").split())
    none = _SeventhCharacters({}, {})
    entries: list[Entry] = []
    for chapter_xml in root.iter("chapter"):
        chapter = _heading(chapter_xml, _text(chapter_xml, "name"))
        for block_xml in chapter_xml.iter("section"):
            block = _heading(block_xml, block_xml.attrib["id"])
            for category in block_xml.findall("diag"):
                entries += _entries(category, None, chapter, block, none)
    # Not every 7th character that a definition offers makes a code of the release.
    confirmed = (entry for entry in entries if entry.code.replace(".", "") in released)
    return CodeSystem(_RELEASE, confirmed)


_RELEASE = "2026-04-01"
_TABULAR = "simple_icd_10_cm/data/icd10c-tabular-April-1-2026.xml"
_CODES = "simple_icd_10_cm/data/code-list-April-2026.txt"

_NOTE_TAGS = {
    "inclusionTerm": "inclusion_terms",
    "includes": "includes",
    "excludes1": "excludes1",
    "excludes2": "excludes2",
    "codeFirst": "code_first",
    "useAdditionalCode": "use_additional_code",
    "codeAlso": "code_also",
    "notes": "notes",
}


class _SeventhCharacters(NamedTuple):
    """A definition of 7th characters: what each means, and what it is said to include."""

    meanings: Mapping[str, str]
    inclusion_terms: Mapping[str, tuple[str, ...]]


def _entries(
    diag: ET.Element,
    parent: str | None,
    chapter: Heading,
    block: Heading,
    sevenths: _SeventhCharacters,
) -> Iterator[Entry]:
    """The entry of `diag`, then all below it; 7th characters are spelt out wherever they may go."""
    code, title = _text(diag, "name"), _text(diag, "desc")
    definition = diag.find("sevenChrDef")
    if definition is not None:
        sevenths = _seventh_characters(definition)
    yield Entry(
        code=code,
        title=title,
        parent=parent,
        chapter=chapter,
        block=block,
        seventh_characters=sevenths.meanings,
        **_notes(diag),
    )
    children = diag.findall("diag")
    for child in children:
        yield from _entries(child, code, chapter, block, sevenths)
    if not children:
        for character, meaning in sevenths.meanings.items():
            yield Entry(
                code=_extended(code, character),
                title=f"{title}, {meaning}",
                parent=code,
                chapter=chapter,
                block=block,
                inclusion_terms=sevenths.inclusion_terms[character],
            )


def _seventh_characters(definition: ET.Element) -> _SeventhCharacters:
    meanings: dict[str, str] = {}
    inclusion_terms: dict[str, tuple[str, ...]] = {}
    for element in definition:
        text = _squeeze(element.text)
        if element.tag == "extension":
            character = element.attrib["char"]
            meanings[character], inclusion_terms[character] = text, ()
        else:  # a note belongs to the extension before it
            inclusion_terms[character] += (text,)
    return _SeventhCharacters(MappingProxyType(meanings), inclusion_terms)


def _heading(element: ET.Element, name: str) -> Heading:
    title = re.sub(r" \([0-9A-Z-]+\)$", "", _text(element, "desc"))
    return Heading(name, title, **_notes(element))


def _notes(element: ET.Element) -> dict[str, Any]:
    """The fields of `Notes` that the element has; the same note may come in several parts."""
    notes: dict[str, Any] = {}
    for child in element:
        if child.tag in _NOTE_TAGS:
            name = _NOTE_TAGS[child.tag]
            notes[name] = notes.get(name, ()) + tuple(_squeeze(note.text) for note in child)
    return notes


def _text(element: ET.Element, tag: str) -> str:
    return _squeeze(element.findtext(tag))


def _squeeze(text: str | None) -> str:
    """The text with single spaces; the publisher's has line breaks and tabs."""
    return " ".join((text or "").split())
