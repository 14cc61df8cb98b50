"""The Alphabetic Index: the words under which coders look codes up.

Source: the official XML of CDC/NCHS, which the user provides: the index of diseases, the index of
external causes, the table of neoplasms and the table of drugs and chemicals.
"""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from xml.etree import ElementTree as ET

from clh.errors import InputError


@dataclass(frozen=True, slots=True)
class IndexTerm:
    """One line of the index, or one cell of a table.

    `path` runs from the main term to the line, and on to the column of a cell; `modifiers` are the
    line's own nonessential modifiers: words whose presence in the note changes nothing. `code` and
    `manifestation` are as printed: a trailing "-" says that the code needs more characters. `see`
    and `see_also` name other places of the index.
    """

    path: tuple[str, ...]
    modifiers: tuple[str, ...] = ()
    code: str | None = None
    manifestation: str | None = None
    see: str | None = None
    see_also: str | None = None

    @property
    def text(self) -> str:
        """The term in one line: "Pneumonia, community acquired"."""
        return ", ".join(self.path)


def read_index(path: str | Path) -> list[IndexTerm]:
    """All terms of an index or a table, in the order of the file.

    Raises InputError when the file cannot be read, is not XML or is not an index.
    """
    try:
        root = ET.parse(path).getroot()
    except OSError as error:
        raise InputError(f"cannot read the index {path}: {error.strerror}") from error
    except ET.ParseError as error:
        raise InputError(f"the index {path} is not XML, or is cut short: {error}") from error
    if root.tag != "ICD10CM.index":
        raise InputError(f"{path} is not the Alphabetic Index: it starts with <{root.tag}>")
    columns = {head.get("col"): _squeeze(head.text) for head in root.iter("head")}
    if any(term.find("title") is None for tag in _TERMS for term in root.iter(tag)):
        raise InputError(
            f"{path} is not the Alphabetic Index, or just addenda: a term has no title"
        )
    if any(cell.get("col") not in columns for cell in root.iter("cell")):
        raise InputError(f"{path} is not a table of the Index: a cell has no column heading")
    return [
        term
        for main_term in root.iterfind("letter/mainTerm")
        for term in _terms(main_term, (), columns)
    ]


_TERMS = ("mainTerm", "term")


def _terms(
    element: ET.Element, above: tuple[str, ...], columns: Mapping[str | None, str]
) -> Iterator[IndexTerm]:
    """The term of `element`, or one for each of its cells, then all below it."""
    title, modifiers = _title(element)
    path = (*above, title)
    see, see_also = _see(element), _text(element, "seeAlso")
    cells = [
        IndexTerm((*path, columns[cell.get("col")]), modifiers, printed, None, see, see_also)
        for cell in element.iterfind("cell")
        if (printed := _squeeze(cell.text)).strip("-")
    ]
    if cells:
        yield from cells
    else:
        code, manifestation = _text(element, "code"), _text(element, "manif")
        yield IndexTerm(path, modifiers, code, manifestation, see, see_also)
    for child in element.iterfind("term"):
        yield from _terms(child, path, columns)


def _title(element: ET.Element) -> tuple[str, tuple[str, ...]]:
    """The title without its nonessential modifiers, and these.

    They are known by their parentheses, not by <nemod>, which often runs on past the last one:
    "Alder<nemod>(-Reilly) anomaly</nemod>". A title of modifiers alone is kept as it is.
    """
    title = "".join(next(element.iter("title")).itertext())
    modifiers = tuple(_squeeze(modifier) for modifier in _MODIFIER.findall(title))
    return _squeeze(_MODIFIER.sub("", title)) or " ".join(modifiers), modifiers


_MODIFIER = re.compile(r"\(((?:[^()]|\([^()]*\))*)\)")


def _see(element: ET.Element) -> str | None:
    """The cross-reference, in the words of the printed index."""
    see, category, subcategory = (_text(element, tag) for tag in ("see", "seecat", "subcat"))
    if category is not None:
        return f"category {category}"
    if subcategory is not None:
        return f"subcategory {subcategory}"
    return see


def _text(element: ET.Element, tag: str) -> str | None:
    return _squeeze(element.findtext(tag)) or None


def _squeeze(text: str | None) -> str:
    return " ".join((text or "").split())
