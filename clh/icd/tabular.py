"""The Tabular List: every code and category of a release, its place in the tree and its notes."""

import difflib
import json
import re
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from functools import cache, cached_property
from itertools import combinations
from types import MappingProxyType
from typing import Any, Literal, NamedTuple, Self

from clh.errors import InputError
from clh.icd.releases import Release, extend, find_release, read_lines

# Chapters that the rules name.
PREGNANCY, PERINATAL, SYMPTOMS, EXTERNAL_CAUSES, FACTORS = "15", "16", "18", "20", "21"

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


_NOTES = tuple(kind.name for kind in fields(Notes))


def _notes(line: Mapping[str, Any]) -> dict[str, Any]:
    """The notes among the fields of a line."""
    return {name: tuple(line[name]) for name in _NOTES if name in line}


class _LazyEntries:
    """The entries of JSON lines; each is decoded when it is first asked for."""

    def __init__(self, header: Mapping[str, Any], lines: Sequence[bytes]) -> None:
        self._entries: list[Entry | bytes] = [*lines]
        self._headings = [
            Heading(heading["name"], heading["title"], **_notes(heading))
            for heading in header["headings"]
        ]
        self._sevenths = [MappingProxyType(known) for known in header["seventh_characters"]]

    def __getitem__(self, position: int) -> Entry:
        entry = self._entries[position]
        if isinstance(entry, bytes):
            entry = self._entries[position] = self._decode(json.loads(entry))
        return entry

    def _decode(self, line: Mapping[str, Any]) -> Entry:
        sevenths = line.get("seventh_characters")
        return Entry(
            code=line["code"],
            title=line["title"],
            parent=line["parent"],
            children=tuple(line.get("children", ())),
            chapter=self._headings[line["chapter"]],
            block=self._headings[line["block"]],
            seventh_characters={} if sevenths is None else self._sevenths[sevenths],
            **_notes(line),
        )


class CodeSystem(Mapping[str, Entry]):
    """A release of ICD-10-CM: a mapping from code ("E11.9") to entry, in tabular order.

    All methods but `normalize` take codes as the book prints them and raise KeyError for others.
    """

    def __init__(self, release: str, entries: Iterable[Entry]) -> None:
        """Index `entries`; ValueError if one comes twice or its parent is missing."""
        tree: dict[str, Entry] = {}
        children: defaultdict[str, list[str]] = defaultdict(list)
        for entry in entries:
            if entry.code in tree:
                raise ValueError(f"{entry.code} comes twice")
            tree[entry.code] = entry
            if entry.parent is not None:
                children[entry.parent].append(entry.code)
        for parent, codes in children.items():
            if parent not in tree:
                raise ValueError(f"{parent}, the parent of {codes[0]}, is missing")
            tree[parent] = replace(tree[parent], children=tuple(codes))
        self._fill(release, tree, list(tree.values()))

    @classmethod
    def from_lines(cls, release: str, lines: Sequence[bytes]) -> Self:
        """The code system in the lines of `clh.icd.releases.read_lines`.

        An entry is decoded when it is first asked for: to decode all takes a second.
        """
        system = cls.__new__(cls)
        header = json.loads(lines[0])
        system._fill(release, header["codes"], _LazyEntries(header, lines[1:]))
        return system

    def _fill(
        self, release: str, codes: Iterable[str], entries: Sequence[Entry] | _LazyEntries
    ) -> None:
        self.release = release
        self._positions = {code: position for position, code in enumerate(codes)}
        self._entries = entries
        self._defaults: dict[str, str | None] = {}  # what `unspecified` found

    def __getitem__(self, code: str) -> Entry:
        return self._entries[self._positions[code]]

    def __contains__(self, code: object) -> bool:
        return code in self._positions

    def __iter__(self) -> Iterator[str]:
        return iter(self._positions)

    def __len__(self) -> int:
        return len(self._positions)

    def position(self, code: str) -> int:
        """The code's place in tabular order, from 0."""
        return self._positions[code]

    def end(self, code: str) -> int:
        """The position after the code and all below it."""
        while children := self.children(code):
            code = children[-1]
        return self.position(code) + 1

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
            # No other category is close enough for difflib.
            pairs = set(combinations(letters[:_FULL_LENGTH], 2))
            options = {code for pair in pairs for code in self._categories_by_pair.get(pair, ())}
        else:
            options = {longest, *self.children(longest)}
        return difflib.get_close_matches(f"{letters[:3]}.{letters[3:]}".rstrip("."), options)

    @cached_property
    def _categories_by_pair(self) -> Mapping[tuple[str, str], list[str]]:
        """The categories by each two of their characters, in order: E11 by E1, E1 and 11."""
        found: defaultdict[tuple[str, str], list[str]] = defaultdict(list)
        for code in self:
            if len(code) == _CATEGORY_LENGTH:
                for first, second in combinations(code, 2):
                    found[first, second].append(code)
        return found

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

    def stem_or_self(self, code: str) -> str:
        """The same for any text: a corpus may hold codes that the release does not have."""
        return self.stem(code) if code in self else code

    def extensions(self, code: str) -> tuple[str, ...]:
        """The codes right below that add only a 7th character."""
        children = self.children(code)
        return children if children and self._is_extension(children[0]) else ()

    def complete(self, stem: str, character: str) -> str:
        """The stem with its 7th character, and placeholders X between: T07 and A give T07.XXXA.

        Raises InputError when the release has no such code.
        """
        code = extend(stem, character.upper())
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

        It does when it is above `than`, or is the unspecified code of a category above it; but the
        code above its own unspecified code, A37.9 above A37.90, is the vaguer one.
        """
        above = self.ancestors(than)
        if code in above:
            return True
        unspecified = any(self.unspecified(category) == code for category in above)
        return unspecified and code != than and than not in self.ancestors(code)

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
_CATEGORY_LENGTH = len("S52")
_LONGEST_PARTICLE = len("the")

# Words by which a title says that nothing more is known, or that a mention would have said so.
# Displaced: a fracture is coded as displaced unless documented (guideline I.C.19.c).
_VAGUE = re.compile(
    r"\b(?:unspecified(?: (?!with)\w+)?|not (?:specified|intractable|having achieved remission)"
    r"|without|uncomplicated|displaced|with [\w ]+ status unknown)\b",
    re.IGNORECASE,
)


def _words(text: str) -> list[str]:
    """The words in lower case, less plurals and what stands in parentheses, as it is optional."""
    essential = re.sub(r"\(.*?\)", "", text.lower())
    return [word.removesuffix("s") for word in re.findall(r"\w+", essential)]


@cache
def _load(release: Release) -> CodeSystem:
    from clh.config import Settings

    return CodeSystem.from_lines(release.name, read_lines(release, Settings.load().cache_dir))


def load_tabular(release: str | None = None) -> CodeSystem:
    """The release in force on a day, written 2026-04-01; without it, the latest. Read once.

    That of April 2026 has 98,186 codes and categories, 74,719 of them billable. Raises InputError
    where there is no such release.
    """
    return _load(find_release(release))
