"""The releases of ICD-10-CM: which one is in force on a day, and its Tabular List as JSON lines.

Source: the official XML of CDC/NCHS, as the package simple-icd-10-cm carries it. Parsing it takes
two seconds, so the lines are kept in the cache folder.
"""

import hashlib
import json
import logging
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache, partial
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from clh.cache import build_once
from clh.errors import InputError, ModelError

if TYPE_CHECKING:
    from xml.etree import ElementTree as ET

_log = logging.getLogger(__name__)

_FORMAT = 1  # of the lines: count it up whenever they change
_LINES = "tabular.jsonl"


@dataclass(frozen=True, slots=True)
class Release:
    """A release by its first day, such as 2026-04-01, and the files that it was published in."""

    name: str
    tabular: Path  # the XML of the Tabular List
    codes: Path  # all codes and categories, without dots


@cache
def releases() -> tuple[Release, ...]:
    """All releases, the oldest first."""
    # The files are read in place: importing the package would build its own tree of them first.
    package = find_spec("simple_icd_10_cm")
    if package is None or not package.submodule_search_locations:
        raise InputError("the package simple-icd-10-cm, which carries the codes, is not installed")
    data = Path(package.submodule_search_locations[0]) / "data"
    april_2026 = Release(
        "2026-04-01",
        tabular=data / "icd10c-tabular-April-1-2026.xml",
        codes=data / "code-list-April-2026.txt",
    )
    return (april_2026,)


def find_release(day: str | None = None) -> Release:
    """The latest release that is in force on a day, written 2026-04-01; without it, the latest.

    Raises InputError for a day before the first release.
    """
    found = [release for release in releases() if day is None or release.name <= day]
    if not found:
        first = releases()[0].name
        raise InputError(f"there is no release of ICD-10-CM for {day}: the first is of {first}")
    return found[-1]


def read_lines(release: Release, cache_dir: Path) -> list[bytes]:
    """The Tabular List of a release as JSON lines.

    The first line is an object: the `codes` in tabular order, the `headings` of chapters and
    blocks, and the sets of `seventh_characters`. Then each code has a line: an object with the
    fields of `clh.icd.tabular.Entry` that are not empty, where chapter, block and seventh
    characters are positions in these lists.

    They are parsed once and kept in `cache_dir`; a copy that is damaged is made anew. Where none
    can be kept they are parsed at each call. Raises InputError where the release's files cannot be
    read.
    """
    try:
        tabular, codes = release.tabular.read_bytes(), release.codes.read_bytes()
    except OSError as error:
        raise InputError(f"cannot read {error.filename}: reinstall simple-icd-10-cm") from error
    digest = hashlib.sha256(tabular + codes).hexdigest()[:16]
    folder = cache_dir / f"tabular-{release.name}-{digest}-{_FORMAT}"
    parse = cache(partial(_parse, tabular, codes))

    def build(unfinished: Path) -> None:
        (unfinished / _LINES).write_bytes(b"\n".join(parse()))

    for rebuild in (False, True):
        try:
            return (build_once(folder, build, rebuild) / _LINES).read_bytes().split(b"\n")
        except (ModelError, OSError) as error:  # it is damaged, or cannot be written
            _log.info("%s", error)
    return parse()


class _SeventhCharacters(NamedTuple):
    """A definition of 7th characters: what each means, and the inclusion terms that it adds."""

    meanings: dict[str, str]
    inclusion_terms: Mapping[str, list[str]]


def _parse(tabular: bytes, codes: bytes) -> list[bytes]:
    """The lines that `read_lines` describes, from a release's two files."""
    from xml.etree import ElementTree as ET

    try:
        root = ET.fromstring(tabular)
    except ET.ParseError as error:
        raise InputError(f"a Tabular List is not XML ({error}): download it again") from error
    headings: list[dict[str, Any]] = []
    entries: list[dict[str, Any]] = []
    for chapter_xml in root.iter("chapter"):
        chapter = len(headings)
        headings.append(_heading(chapter_xml, _text(chapter_xml, "name")))
        for block_xml in chapter_xml.iter("section"):
            place = {"chapter": chapter, "block": len(headings)}
            headings.append(_heading(block_xml, block_xml.attrib["id"]))
            for category in block_xml.findall("diag"):
                entries += _entries(category, None, place, _SeventhCharacters({}, {}))
    # Not every 7th character that a definition offers makes a code of the release.
    released = frozenset(codes.decode().split())
    listed = {
        entry["code"]: entry for entry in entries if entry["code"].replace(".", "") in released
    }
    sevenths: list[dict[str, str]] = []
    for code, entry in listed.items():
        if entry["parent"] is not None:
            listed[entry["parent"]].setdefault("children", []).append(code)
        if meanings := entry.pop("seventh_characters"):
            if meanings not in sevenths:
                sevenths.append(meanings)
            entry["seventh_characters"] = sevenths.index(meanings)
    header = {"codes": list(listed), "headings": headings, "seventh_characters": sevenths}
    return [json.dumps(line, separators=(",", ":")).encode() for line in (header, *listed.values())]


def _entries(
    diag: "ET.Element", parent: str | None, place: Mapping[str, int], sevenths: _SeventhCharacters
) -> Iterator[dict[str, Any]]:
    """The entry of `diag`, then all below it; 7th characters are spelt out wherever they may go."""
    code, title = _text(diag, "name"), _text(diag, "desc")
    definition = diag.find("sevenChrDef")
    if definition is not None:
        sevenths = _seventh_characters(definition)
    yield {
        "code": code,
        "title": title,
        "parent": parent,
        **place,
        "seventh_characters": sevenths.meanings,
        **_notes(diag),
    }
    children = diag.findall("diag")
    for child in children:
        yield from _entries(child, code, place, sevenths)
    if not children:
        for character, meaning in sevenths.meanings.items():
            terms = sevenths.inclusion_terms[character]
            yield {
                "code": extend(code, character),
                "title": f"{title}, {meaning}",
                "parent": code,
                **place,
                "seventh_characters": {},
                **({"inclusion_terms": terms} if terms else {}),
            }


def extend(stem: str, character: str) -> str:
    """The code with a 7th character, and placeholders X between: T07 and A give T07.XXXA."""
    return f"{stem[:3]}.{stem[4:]:X<3}{character}"


def _seventh_characters(definition: "ET.Element") -> _SeventhCharacters:
    meanings: dict[str, str] = {}
    inclusion_terms: dict[str, list[str]] = {}
    for element in definition:
        text = _squeeze(element.text)
        if element.tag == "extension":
            character = element.attrib["char"]
            meanings[character], inclusion_terms[character] = text, []
        else:  # a note belongs to the extension before it
            inclusion_terms[character].append(text)
    return _SeventhCharacters(meanings, inclusion_terms)


def _heading(element: "ET.Element", name: str) -> dict[str, Any]:
    title = re.sub(r" \([0-9A-Z-]+\)$", "", _text(element, "desc"))
    return {"name": name, "title": title, **_notes(element)}


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


def _notes(element: "ET.Element") -> dict[str, list[str]]:
    """The notes that the element has, by kind; those of a kind may come in several parts."""
    notes: dict[str, list[str]] = {}
    for child in element:
        if child.tag in _NOTE_TAGS:
            texts = notes.setdefault(_NOTE_TAGS[child.tag], [])
            texts += [_squeeze(note.text) for note in child]
    return notes


def _text(element: "ET.Element", tag: str) -> str:
    return _squeeze(element.findtext(tag))


def _squeeze(text: str | None) -> str:
    """The text with single spaces; the publisher's has line breaks and tabs."""
    return " ".join((text or "").split())
