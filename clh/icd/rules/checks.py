"""What the code book demands of a set of codes.

Most rules are the release's own: its notes, titles and tree. What only the Official Guidelines say
is in guidelines.toml, each rule with its section. A check is a pure function of a claim, which is
codes in the order of reporting and what is known of the encounter; it yields findings, each with
what it rests on.
"""

import re
import tomllib
from bisect import bisect_left
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from itertools import combinations
from pathlib import Path
from typing import Any, Literal, NamedTuple, get_args

from clh.icd.edits import Edits, read_edits
from clh.icd.references import Reading, read
from clh.icd.tabular import CodeSystem, NoteKind, Notes, load_tabular
from clh.schema import Citation, Finding, Severity

Setting = Literal["inpatient", "outpatient"]
Sex = Literal["female", "male"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Encounter:
    """What rules need to know beside codes. Where it is None, what rests on it is not checked."""

    setting: Setting | None = None
    age: int | None = None  # years
    sex: Sex | None = None
    uncertain: frozenset[str] = frozenset()  # codes of what is only suspected, possible, probable


class Interval(NamedTuple):
    """Codes by their positions in tabular order, and what is found in each, written without dot."""

    start: int
    end: int
    characters: re.Pattern[str] | None


class Note(NamedTuple):
    """A note of the Tabular List, read; `unread` is what of it was not understood."""

    citation: Citation
    intervals: tuple[Interval, ...]
    unread: str


class Guideline(NamedTuple):
    """A rule of guidelines.toml; what its groups of codes are to each other, the check says."""

    groups: tuple[tuple[Interval, ...], ...]
    instead: tuple[str, ...]
    citation: Citation


READ: tuple[NoteKind, ...] = tuple(kind for kind in get_args(NoteKind) if kind != "notes")


class CodeBook:
    """The code system with its notes read, and what the guidelines add."""

    def __init__(
        self, system: CodeSystem, guidelines: Mapping[str, Any], edits: Edits | None = None
    ) -> None:
        """Read every note once; `guidelines` are those of guidelines.toml.

        Raises ValueError where the guidelines name codes that the system lacks.
        """
        self.system, self.edits = system, edits
        self._start = {code: position for position, code in enumerate(system)}
        self._end: dict[str, int] = {}
        headings: dict[str, Notes] = {}
        for code, entry in system.items():
            for above in (code, *system.ancestors(code)):
                self._end[above] = self._start[code] + 1  # what is below comes right after
            headings[entry.block.name] = entry.block
            headings[f"Chapter {entry.chapter.name}"] = entry.chapter
        self._notes = {
            place: {
                kind: tuple(self._read(place, kind, text) for text in getattr(notes, kind))
                for kind in READ
                if getattr(notes, kind)
            }
            for place, notes in [*system.items(), *headings.items()]
        }
        self._sections = guidelines["sections"]
        self.guidelines = {
            rule: [self._guideline(one) for one in said]
            for rule, said in guidelines.items()
            if rule != "sections"
        }

    def places(self, code: str, kind: NoteKind) -> Iterator[tuple[str, tuple[Note, ...]]]:
        """The notes of one kind that apply to the code, place by place, its own first."""
        entry = self.system[code]
        block, chapter = entry.block.name, f"Chapter {entry.chapter.name}"
        for place in (code, *self.system.ancestors(code), block, chapter):
            if notes := self._notes[place].get(kind):
                yield place, notes

    def notes(self, code: str, kind: NoteKind) -> Iterator[Note]:
        """The same, note by note."""
        return (note for _, notes in self.places(code, kind) for note in notes)

    def all_notes(self) -> Iterator[Note]:
        """Every note of the release, at every place where it stands."""
        return (
            note for kinds in self._notes.values() for notes in kinds.values() for note in notes
        )

    def position(self, code: str) -> int:
        """The code's place in tabular order."""
        return self._start[code]

    def section(self, name: str) -> Citation:
        """A section of the guidelines that a check rests on."""
        return Citation(place=name, kind="guideline", text=self._sections[name])

    def intervals(self, reading: Reading) -> tuple[Interval, ...]:
        """The codes that a note, or another text in its notation, names."""
        return tuple(
            Interval(self._start[one.first], self._end[one.last], one.characters)
            for one in reading.references
        )

    def _read(self, place: str, kind: NoteKind, text: str) -> Note:
        reading = read(text, self.system)
        citation = Citation(place=place, kind=kind, text=text)
        return Note(citation, self.intervals(reading), reading.unread)

    def _guideline(self, said: Mapping[str, Any]) -> Guideline:
        groups = tuple(self.intervals(read(text, self.system)) for text in said["codes"])
        if not all(groups):
            raise ValueError(f"guidelines.toml, {said['section']}: the codes cannot be read")
        citation = Citation(place=said["section"], kind="guideline", text=said["says"])
        return Guideline(groups, tuple(said.get("instead", ())), citation)


@cache
def load_rules(edits: Path | None = None) -> CodeBook:
    """The rules of the release of April 2026; `edits` is a file for `read_edits`."""
    guidelines = (files("clh.icd.rules") / "guidelines.toml").read_text("utf-8")
    lists = None if edits is None else read_edits(edits)
    return CodeBook(load_tabular(), tomllib.loads(guidelines), lists)


class Claim:
    """Codes of one encounter as they are to be reported, the principal or first-listed one first.

    `codes` are all of them as the book would print them, `known` those that it has, each once.
    """

    def __init__(
        self, codes: Iterable[str], book: CodeBook, encounter: Encounter = Encounter()
    ) -> None:
        """Codes in any spelling."""
        self.book, self.encounter = book, encounter
        self.codes = [_spelled(code) for code in codes]
        self.known = [code for code in dict.fromkeys(self.codes) if code in book.system]
        self._placed = sorted((book.position(code), code) for code in self.known)
        self._place = {code: place for place, code in reversed(list(enumerate(self.codes)))}

    def named(self, intervals: Iterable[Interval]) -> list[str]:
        """The claim's codes among those."""
        found = []
        for start, end, characters in intervals:
            place = bisect_left(self._placed, (start, ""))
            while place < len(self._placed) and self._placed[place][0] < end:
                code = self._placed[place][1]
                if characters is None or characters.search(code.replace(".", "")):
                    found.append(code)
                place += 1
        return found

    def place(self, code: str) -> int:
        """Where the code comes first, from 0."""
        return self._place[code]


Check = Callable[[Claim], Iterator[Finding]]


def check(claim: Claim) -> list[Finding]:
    """All findings, those that forbid the claim first."""
    found = [finding for rule in CHECKS for finding in rule(claim)]
    return sorted(found, key=lambda one: get_args(Severity).index(one.severity))


def existing(claim: Claim) -> Iterator[Finding]:
    """Codes that the release does not have, with what they may have meant."""
    system = claim.book.system
    for code in dict.fromkeys(claim.codes):
        if code in system:
            continue
        ends = range(len(code) - 1, 2, -1)
        stem = next((code[:end] for end in ends if code[:end] in system), None)
        sevenths = system.extensions(stem) if stem else ()
        if sevenths:
            whole = len(code) == len(sevenths[0])
            why = "does not take this one" if whole else "takes it in the 7th place, after X"
            says = f"{code} has a wrong 7th character: {stem} {why}"
            meant = [one for one in sevenths if one[-1] == code[-1]] or sevenths
            yield _finding(
                "seventh_character", "error", [code], says, claim.book.section("I.A.5"), meant
            )
        elif stem and system.billable(stem):
            says = f"{code} is no code: {stem} is complete"
            yield _finding("unknown", "error", [code], says, claim.book.section("I.B.2"), [stem])
        else:
            says = f"{code} is not in ICD-10-CM {system.release}"
            near = system.nearest(code)
            yield _finding("unknown", "error", [code], says, claim.book.section("I.A.2"), near)


def complete(claim: Claim) -> Iterator[Finding]:
    """Codes that are not billable, with those below them."""
    system = claim.book.system
    for code in claim.known:
        if system.billable(code):
            continue
        if below := system.extensions(code):
            says = f"{code} lacks its 7th character"
            yield _finding(
                "seventh_character", "error", [code], says, claim.book.section("I.A.5"), below
            )
        else:
            says = f"{code} is not billable: a code below it is"
            below = system.children(code)
            yield _finding(
                "not_billable", "error", [code], says, claim.book.section("I.B.2"), below
            )


def once(claim: Claim) -> Iterator[Finding]:
    """Codes that come twice."""
    for code, count in Counter(claim.codes).items():
        if count > 1:
            says = f"{code} comes {count} times: a code is reported once"
            yield _finding("duplicate", "error", [code], says, claim.book.section("I.B.12"))


def specific(claim: Claim) -> Iterator[Finding]:
    """Codes that others of the claim say in more detail."""
    system = claim.book.system
    for code, other in _pairs_of_a_category(claim):
        for vague, detailed in ((code, other), (other, code)):
            if system.vaguer(vague, than=detailed):
                says = f"{detailed} says more than {vague}"
                yield _finding(
                    "less_specific", "warning", [vague, detailed], says, claim.book.section("I.B.2")
                )


def sides(claim: Claim) -> Iterator[Finding]:
    """Right and left where one code says both, and codes that differ in their side alone."""
    system, cited = claim.book.system, claim.book.section("I.B.13")
    for code, other in _pairs_of_a_category(claim):
        first, second = _side(system[code].title), _side(system[other].title)
        if first is None or second is None:
            continue
        said = {first.said: first.rest, second.said: second.rest}
        if said.keys() == {"right", "left"}:
            both = _bilateral(code, system) if first.rest == second.rest else None
            if both is not None:
                says = f"{both} says what {code} and {other} say"
                yield _finding("laterality", "warning", [code, other], says, cited, [both])
        elif len(said) > 1:
            whole = said.get("both", first.rest)  # a title that says both may leave out "eye"
            if all(whole <= rest if "both" in said else whole == rest for rest in said.values()):
                says = f"{code} and {other} differ in their side only"
                yield _finding("laterality", "warning", [code, other], says, cited)


def excludes1(claim: Claim) -> Iterator[Finding]:
    """Codes of which a note says that the other is not coded here."""
    seen = set()
    for code in claim.known:
        for note in claim.book.notes(code, "excludes1"):
            excluded = claim.named(note.intervals)
            if code in excluded:  # the note is about another part of what it stands at
                continue
            for other in excluded:
                if frozenset((code, other)) not in seen:
                    seen.add(frozenset((code, other)))
                    says = f"{code} excludes {other}, unless the two conditions are unrelated"
                    yield _finding("excludes1", "error", [code, other], says, note.citation)


def etiology(claim: Claim) -> Iterator[Finding]:
    """Manifestations without, or before, the disease that is to be coded first.

    Of a list that only gives examples ("such as"), or that a block or chapter gives, nothing
    follows but that the code is not the first.
    """
    system = claim.book.system
    for code in claim.known:
        adverse = system[code].title.startswith("Adverse effect")
        for place, notes in claim.book.places(code, "code_first"):
            if any("adverse effect" in note.citation.text for note in notes) and not adverse:
                continue
            texts = [note.citation.text for note in notes]
            closed = place in system and not any("such as" in text for text in texts)
            others = [
                (one, note)
                for note in notes
                for one in claim.named(note.intervals)
                if one != code and not _asks_first(one, code, claim.book)
            ]
            if others and all(claim.place(one) > claim.place(code) for one, _ in others):
                other, note = others[0]
                if closed or claim.place(code) == 0:
                    says = f"{other} comes before {code}"
                    yield _finding("code_first", "error", [code, other], says, note.citation)
            elif not others and _manifestation(code, notes[0], system):
                if claim.place(code) == 0:
                    says = f"{code} never comes first: the underlying condition does"
                    yield _finding("code_first", "error", [code], says, notes[0].citation)
                elif closed and all(note.intervals for note in notes):
                    says = f"{code} lacks the underlying condition before it"
                    yield _finding("code_first", "warning", [code], says, notes[0].citation)


def additional(claim: Claim) -> Iterator[Finding]:
    """Codes that ask for another, which is not there."""
    for code in claim.known:
        for place, notes in claim.book.places(code, "use_additional_code"):
            for note in notes if place in claim.book.system else ():
                text = note.citation.text
                asks = text.startswith(("code", "external cause code")) and note.intervals
                if asks and not _OPTIONAL.search(text) and not claim.named(note.intervals):
                    says = f"{code} asks for an additional code"
                    yield _finding("use_additional_code", "reminder", [code], says, note.citation)


def signs(claim: Claim) -> Iterator[Finding]:
    """Signs and symptoms beside the disease that they are part of."""
    for (signs, diseases), _, cited in claim.book.guidelines["sign"]:
        disease = claim.named(diseases)
        for sign in claim.named(signs) if disease else ():
            says = f"{sign} is part of {disease[0]}"
            yield _finding("integral_sign", "warning", [sign, disease[0]], says, cited)


def combined(claim: Claim) -> Iterator[Finding]:
    """Conditions that are coded as related, or in one code."""
    for groups, instead, cited in claim.book.guidelines["combination"]:
        found = [claim.named(group) for group in groups]
        if all(found):
            codes = [one[0] for one in found]
            says = f"{' and '.join(codes)} are coded together"
            alike = [one for one in instead if one[:3] == codes[0][:3]] or instead
            yield _finding("combination", "warning", codes, says, cited, alike)


def order(claim: Claim) -> Iterator[Finding]:
    """Codes that may not come first, and those that may only come first."""
    if not claim.codes or claim.codes[0] not in claim.known:
        return
    system, first = claim.book.system, claim.codes[0]
    for (group,), _, cited in claim.book.guidelines["later"]:
        if first in claim.named(group):
            yield _finding("first_listed", "error", [first], f"{first} never comes first", cited)
    if _chapter(first, system) == _FACTORS and "history of" in system[first].title.lower():
        cited = claim.book.section("I.C.21.c.4")
        yield _finding("first_listed", "error", [first], f"{first} never comes first", cited)
    for (group,), _, cited in claim.book.guidelines["first"]:
        for code in claim.named(group):
            if code != first and first not in claim.named(group):
                says = f"{code} comes first, or is not reported"
                yield _finding("first_listed", "warning", [code], says, cited)
    pregnancy = next((one for one in claim.known if _chapter(one, system) == _PREGNANCY), first)
    if _chapter(first, system) != _chapter(pregnancy, system):
        says = f"{pregnancy} comes before codes of other chapters"
        cited = claim.book.section("I.C.15.a.1")
        yield _finding("first_listed", "error", [first, pregnancy], says, cited)


def patient(claim: Claim) -> Iterator[Finding]:
    """Codes of the other sex, and of mother and newborn on one record.

    No error: Medicare has no edits of sex since October 2024.
    """
    system, sex = claim.book.system, claim.encounter.sex
    of_chapter = {_chapter(code, system): code for code in reversed(claim.known)}
    for code in claim.known if sex else ():
        title, chapter = system[code].title, _chapter(code, system)
        said = {"female"} if chapter == _PREGNANCY else set(_SEX.findall(title.lower()))
        if len(said) == 1 and sex not in said and chapter != _EXTERNAL_CAUSES:
            cited = Citation(place=code, kind="title", text=title)
            says = f"{code} is for a {said.pop()} patient"
            yield _finding("sex", "warning", [code], says, cited)
    if {_PREGNANCY, _PERINATAL} <= of_chapter.keys():
        mother, child = of_chapter[_PREGNANCY], of_chapter[_PERINATAL]
        says = f"{mother} is for the mother's record, {child} for the newborn's"
        yield _finding(
            "mother_and_newborn", "error", [mother, child], says, claim.book.section("I.C.16.a.1")
        )


def certain(claim: Claim) -> Iterator[Finding]:
    """Codes of uncertain diagnoses where the setting does not report them."""
    uncertain = [code for code in claim.known if code in claim.encounter.uncertain]
    if claim.encounter.setting == "outpatient":
        for code in uncertain:
            says = f"{code} is uncertain: an outpatient claim has what is known"
            yield _finding("uncertain", "error", [code], says, claim.book.section("IV.H"))
        return
    for (group,), _, cited in claim.book.guidelines["confirmed"]:
        for code in claim.named(group):
            if code in uncertain:
                says = f"{code} is uncertain: it is coded once confirmed"
                yield _finding("uncertain", "error", [code], says, cited)


def edited(claim: Claim) -> Iterator[Finding]:
    """What the Medicare Code Editor refuses, where its lists are loaded."""
    edits, encounter = claim.book.edits, claim.encounter
    if edits is None:
        return
    plain = {code: code.replace(".", "") for code in claim.known}
    first = next((code for code in claim.codes[:1] if code in plain), None)
    if first is not None and encounter.setting == "inpatient":
        listed = Citation(place="MCE", kind="edit", text="unacceptable principal diagnosis")
        alone = len(plain) == 1 and plain[first] in edits.never_alone
        if alone or plain[first] in edits.never_first:
            says = f"{first} is no principal diagnosis"
            yield _finding("unacceptable_principal", "error", [first], says, listed)
    for code, spelled in plain.items():
        age, least, most = edits.ages.get(spelled, ("", 0, 0))
        if age and encounter.age is not None and not least <= encounter.age <= most:
            says = f"{code} is for patients of {least} to {most} years"
            listed = Citation(place="MCE", kind="edit", text=f"age conflict: {age}")
            yield _finding("age", "error", [code], says, listed)


CHECKS: tuple[Check, ...] = (
    existing,
    complete,
    once,
    specific,
    sides,
    excludes1,
    etiology,
    additional,
    signs,
    combined,
    order,
    patient,
    certain,
    edited,
)

_PREGNANCY, _PERINATAL, _EXTERNAL_CAUSES, _FACTORS = "15", "16", "20", "21"  # chapters

_SEX = re.compile(r"\b(?:fe)?male\b(?! partner)")

# Words by which a note leaves it to the record whether there is anything to add.
_OPTIONAL = re.compile(r"\b(?:if|any|when)\b")


def _asks_first(code: str, other: str, book: CodeBook) -> bool:
    """Whether a note at `code` wants `other` first; of two that want each other none is first."""
    alone = Claim([other], book)
    return any(alone.named(note.intervals) for note in book.notes(code, "code_first"))


def _manifestation(code: str, note: Note, system: CodeSystem) -> bool:
    """Whether a code is only said of something that lies under it.

    So says a title "… classified elsewhere"; or a note that asks for what underlies, or stands at a
    title "… in …", unless it leaves open whether there is anything. All 422 codes that the Medicare
    Code Editor calls manifestations are found so.
    """
    text, place = note.citation.text, note.citation.place
    title = system[code].title
    if "classified elsewhere" in title:
        return True
    asks = text.startswith(("underlying", "the underlying")) or " in " in title
    return asks and place in system and not _OPTIONAL.search(text)


class _Side(NamedTuple):
    said: str
    rest: frozenset[str]


def _side(title: str) -> _Side | None:
    """The side that a title says, or leaves out, and its other words."""
    words = dict.fromkeys(re.findall(r"[a-z]+", title.lower()))
    said = next((_SIDES[side] for side in _SIDES if side in words), None)
    return None if said is None else _Side(said, frozenset(words) - _SIDE_WORDS)


_SIDES = {
    "bilateral": "both",
    "both": "both",
    "right": "right",
    "left": "left",
    "unspecified": "unspecified",  # the first of these in a title is what it says
}
_SIDE_WORDS = frozenset({*_SIDES, "unilateral", "of"})


def _bilateral(code: str, system: CodeSystem) -> str | None:
    """The code near by that says of both sides what `code` says of one."""
    one, stem = _side(system[code].title), system.stem(code)
    parent = system.parent(stem) or stem
    near = [*system.children(parent), *system.children(system.parent(parent) or parent)]
    for other in near:
        side = _side(system[other].title)
        if one and side and side.said == "both" and side.rest <= one.rest:
            return other
    return None


def _pairs_of_a_category(claim: Claim) -> Iterator[tuple[str, str]]:
    categories: defaultdict[str, list[str]] = defaultdict(list)
    for code in claim.known:
        categories[code[:3]].append(code)
    for codes in categories.values():
        yield from combinations(codes, 2)


def _spelled(text: str) -> str:
    """A code as the book prints it: capitals, and a dot after the third. No code stays as it is."""
    letters = re.sub(r"[^0-9A-Z]", "", text.upper())
    return f"{letters[:3]}.{letters[3:]}".rstrip(".") if letters else text


def _chapter(code: str, system: CodeSystem) -> str:
    return system[code].chapter.name


def _finding(
    rule: str,
    severity: Severity,
    codes: Sequence[str],
    message: str,
    citation: Citation,
    suggestions: Iterable[str] = (),
) -> Finding:
    return Finding(
        rule=rule,
        severity=severity,
        codes=tuple(codes),
        message=message,
        citation=citation,
        suggestions=tuple(suggestions),
    )
