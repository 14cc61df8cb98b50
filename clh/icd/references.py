"""The codes that a note of the Tabular List names: lists, ranges, dashes, "E08-E13 with .61".

A note is read to the end or not at all. Where it names codes in a way that is not understood, or
codes that the release lacks, `unread` says so and no rule rests on it.
"""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from clh.icd.tabular import CodeSystem


@dataclass(frozen=True, slots=True)
class Reference:
    """The codes from `first` to `last` in tabular order, and all below them.

    `characters`, if any, is found in each of them, written without its dot.
    """

    first: str
    last: str
    characters: re.Pattern[str] | None = None


class Reading(NamedTuple):
    """What a note names, and what of it is not understood; both are empty if it names no code."""

    references: tuple[Reference, ...] = ()
    unread: str = ""


def read_references(note: str, system: CodeSystem) -> Reading:
    """The codes that a note names, such as "diabetes mellitus (E08-E13 with .42)"."""
    mentions = list(_MENTION.finditer(note))
    if mentions and (limit := _LIMIT.search(note)):
        return Reading(unread=limit[0])
    references = []
    for mention, condition in zip(mentions, _conditions(note, mentions), strict=True):
        first = mention["first"]
        last = mention["last"] or first
        characters = _characters(condition) if condition else None
        if not {first, last} <= system.keys() or (condition and characters is None):
            return Reading(unread=(mention[0] + condition).strip(", "))
        references.append(Reference(first, last, characters))
    return Reading(tuple(references))


_CODE = r"[A-Z]\d[0-9A-Z](?:\.[0-9A-Z]{1,4})?(?![0-9A-Za-z])"
_MENTION = re.compile(
    rf"(?<!vitamin )\b(?P<first>{_CODE})(?:\.?-{{0,2}}(?:-| to )(?P<last>{_CODE}))?\.?-?"
)
_JOINT = re.compile(r"[,;.]? ?(?:and |or )?")  # between members of a list

# Words by which a note takes back some of the codes that it names.
_LIMIT = re.compile(r"\b(?:except (?:as|those) in|unless)\b.*")

# What codes have to have: "with .61-", "with final characters -20", "with sixth character 5".
_CONDITION = re.compile(r"\)?,? ?with [^)]*")
_CHARACTERS = re.compile(
    r"\)?,? ?with (?:(?P<place>[\w ]+?)[ -]characters? )?"
    r"(?P<values>[.-]?[0-9A-Z]{1,3}-?(?:(?:-|,? (?:or )?|\. )[.-]?[0-9A-Z]{1,3}-?)*)"
)
_PLACES = {
    None: "^...{}",  # after the dot
    "final": "{}(?:$|(?<=^.{{6}}).$)",  # of the code less its 7th
    "5th": "^.{{4}}{}",
    "fifth": "^.{{4}}{}",
    "fifth to sixth": "^.{{4}}{}",
    "sixth": "^.{{5}}{}",
    "fifth or sixth": "^.{{4}}{}(?:X|$)|^.{{5}}{}",  # the last but for the 7th
    "fifth or six": "^.{{4}}{}(?:X|$)|^.{{5}}{}",
    "seventh": "^.{{6}}{}",
    "7th": "^.{{6}}{}",
}


def _conditions(note: str, mentions: Sequence[re.Match[str]]) -> Iterator[str]:
    """For each mention the condition after it, or after its list, on its codes' characters."""
    for place, mention in enumerate(mentions):
        end = mention.end()
        for follower in mentions[place + 1 :]:
            if _JOINT.fullmatch(note, end, follower.start()):
                end = follower.end()
        condition = _CONDITION.match(note, end)
        yield condition[0] if condition else ""


def _characters(condition: str) -> re.Pattern[str] | None:
    """What the codes have to match, or None if the condition is of another kind."""
    parts = _CHARACTERS.fullmatch(condition)
    if parts is None or parts["place"] not in _PLACES:
        return None
    pattern = _PLACES[parts["place"]]
    values = re.findall(r"[0-9A-Z]+(?:-\.?[0-9A-Z]+)?", parts["values"])
    return re.compile("|".join(pattern.format(*2 * [_any_of(value)]) for value in values))


def _any_of(value: str) -> str:
    """A value or a range of them as a pattern: "61", "1-4", "51-.52"."""
    first, _, last = value.replace(".", "").partition("-")
    return f"{first[:-1]}[{first[-1]}-{(last or first)[-1]}]"
