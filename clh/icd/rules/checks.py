"""The checks of a claim: each yields findings, and each finding cites what it rests on.

Most rules are the release's own: its notes, titles and tree. What only the Official Guidelines
state is in guidelines.toml.
"""

import re
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import lru_cache
from itertools import combinations, product
from typing import NamedTuple, get_args

from clh.icd.rules.claim import Claim
from clh.icd.rules.sequencing import (
    OPTIONAL,
    Demand,
    find_demands,
    find_pregnancy,
    reasons_never_first,
)
from clh.icd.tabular import EXTERNAL_CAUSES, PERINATAL, PREGNANCY, CodeSystem
from clh.schema import Citation, Finding, Severity

Check = Callable[[Claim], Iterator[Finding]]


def check(claim: Claim) -> list[Finding]:
    """All findings, those that forbid the claim first."""
    found = [finding for check_rule in CHECKS for finding in check_rule(claim)]
    return sorted(found, key=lambda finding: get_args(Severity).index(finding.severity))


def check_exists(claim: Claim) -> Iterator[Finding]:
    """Codes that the release does not have, with those that may have been meant."""
    system = claim.book.system
    for code in dict.fromkeys(claim.codes):
        if code in system:
            continue
        ends = range(len(code) - 1, 2, -1)
        stem = next((code[:end] for end in ends if code[:end] in system), None)
        extensions = system.extensions(stem) if stem else ()
        if extensions:
            is_complete = len(code) == len(extensions[0])
            why = "does not take this one" if is_complete else "takes it in the 7th place, after X"
            message = f"{code} has a wrong 7th character: {stem} {why}"
            meant = [extension for extension in extensions if extension[-1] == code[-1]]
            yield _finding(
                "seventh_character",
                "error",
                [code],
                message,
                claim.book.section("I.A.5"),
                meant or extensions,
            )
        elif stem and system.billable(stem):
            message = f"{code} is not a code: {stem} is complete"
            yield _finding("unknown", "error", [code], message, claim.book.section("I.B.2"), [stem])
        else:
            message = f"{code} is not in ICD-10-CM {system.release}"
            near = system.nearest(code)
            yield _finding("unknown", "error", [code], message, claim.book.section("I.A.2"), near)


def check_billable(claim: Claim) -> Iterator[Finding]:
    """Codes that are not billable, with those below them."""
    system = claim.book.system
    for code in claim.known:
        if system.billable(code):
            continue
        if below := system.extensions(code):
            message = f"{code} lacks its 7th character"
            yield _finding(
                "seventh_character", "error", [code], message, claim.book.section("I.A.5"), below
            )
        else:
            message = f"{code} is not billable: a code below it is"
            below = system.children(code)
            yield _finding(
                "not_billable", "error", [code], message, claim.book.section("I.B.2"), below
            )


def check_duplicates(claim: Claim) -> Iterator[Finding]:
    """Codes that come twice."""
    for code, count in Counter(claim.codes).items():
        if count > 1:
            message = f"{code} comes {count} times: a code is reported once"
            yield _finding("duplicate", "error", [code], message, claim.book.section("I.B.12"))


def check_specificity(claim: Claim) -> Iterator[Finding]:
    """Codes beside others that say the same in more detail."""
    system, section = claim.book.system, claim.book.section("I.B.2")
    for codes in _by_category(claim):
        order = {code: index for index, code in enumerate(codes)}
        found = {
            (vague, detailed): sorted((order[vague], order[detailed]))
            for detailed in codes
            for vague in _possibly_vaguer(detailed, system)
            if vague in order and system.vaguer(vague, than=detailed)
        }
        for vague, detailed in sorted(found, key=found.__getitem__):
            message = f"{detailed} says more than {vague}"
            yield _finding("less_specific", "warning", [vague, detailed], message, section)


def check_laterality(claim: Claim) -> Iterator[Finding]:
    """Right and left where one code is for both, and codes that differ in their side alone."""
    system, section = claim.book.system, claim.book.section("I.B.13")
    for codes in _by_category(claim):
        for code, other in _alike_but_for_side(codes, system):
            sides = {_sided(system[code].title).side, _sided(system[other].title).side}
            if sides == {"right", "left"}:
                if (both := _bilateral(code, system)) is not None:
                    message = f"{both} says what {code} and {other} say"
                    yield _finding("laterality", "warning", [code, other], message, section, [both])
            elif len(sides) > 1:
                message = f"{code} and {other} differ in their side only"
                yield _finding("laterality", "warning", [code, other], message, section)


def check_excludes1(claim: Claim) -> Iterator[Finding]:
    """Codes beside others that an Excludes1 note forbids there."""
    seen = set()
    for code in claim.known:
        for note in claim.book.notes(code, "excludes1"):
            excluded = list(claim.named_by(note.intervals))
            if code in excluded:  # the note is about another part of where it is printed
                continue
            for other in excluded:
                if frozenset((code, other)) not in seen:
                    seen.add(frozenset((code, other)))
                    message = f"{code} excludes {other}, unless the two conditions are unrelated"
                    yield _finding("excludes1", "error", [code, other], message, note.citation)


def check_manifestation(claim: Claim) -> Iterator[Finding]:
    """Manifestations without, or before, the disease that is to be coded first."""
    system = claim.book.system
    for demand in find_demands(claim):
        code, citation = demand.code, demand.notes[0].citation
        if demand.is_broken(claim):
            yield code_first_finding(demand)
        elif demand.forbids_first(system):
            if claim.index(code) == 0:
                message = f"{code} never comes first: the underlying condition does"
                yield _finding("code_first", "error", [code], message, citation)
            elif demand.strict and all(note.intervals for note in demand.notes):
                message = f"{code} lacks the underlying condition before it"
                yield _finding("code_first", "warning", [code], message, citation)


def code_first_finding(demand: Demand) -> Finding:
    """The finding of a demand that is broken."""
    other, note = next(iter(demand.others.items()))
    message = f"{other} comes before {demand.code}"
    return _finding("code_first", "error", [demand.code, other], message, note.citation)


def check_use_additional(claim: Claim) -> Iterator[Finding]:
    """Codes that ask for another, which is not there."""
    for code in claim.known:
        for place, notes in claim.book.notes_by_place(code, "use_additional_code"):
            for note in notes if place in claim.book.system else ():
                text = note.citation.text
                asks = text.startswith(("code", "external cause code")) and note.intervals
                if asks and not OPTIONAL.search(text) and not any(claim.named_by(note.intervals)):
                    message = f"{code} asks for an additional code"
                    yield _finding(
                        "use_additional_code", "reminder", [code], message, note.citation
                    )


def check_integral_signs(claim: Claim) -> Iterator[Finding]:
    """Signs and symptoms beside the disease that they are part of."""
    for (signs, diseases), _, citation in claim.book.guidelines["integral_sign"]:
        if (disease := next(claim.named_by(diseases), None)) is not None:
            for sign in claim.named_by(signs):
                message = f"{sign} is part of {disease}"
                yield _finding("integral_sign", "warning", [sign, disease], message, citation)


def check_combination(claim: Claim) -> Iterator[Finding]:
    """Conditions that are coded as related, or in one code."""
    for groups, instead, citation in claim.book.guidelines["combination"]:
        codes = [code for group in groups if (code := next(claim.named_by(group), None))]
        if len(codes) == len(groups):
            message = f"{' and '.join(codes)} are coded together"
            same_category = [code for code in instead if code[:3] == codes[0][:3]]
            yield _finding(
                "combination", "warning", codes, message, citation, same_category or instead
            )


def check_sequence(claim: Claim) -> Iterator[Finding]:
    """Codes that may not come first, and those that may only come first."""
    if not claim.codes or claim.codes[0] not in claim.known:
        return
    book, first = claim.book, claim.codes[0]
    for citation in reasons_never_first(first, book):
        yield _finding("first_listed", "error", [first], f"{first} never comes first", citation)
    for (group,), _, citation in book.guidelines["only_first"]:
        misplaced = [] if book.names(group, first) else claim.named_by(group)
        for code in misplaced:
            message = f"{code} comes first, or is not reported"
            yield _finding("first_listed", "warning", [code], message, citation)
    pregnancy = find_pregnancy(claim)
    if pregnancy is not None and book.system[first].chapter.name != PREGNANCY:
        message = f"{pregnancy} comes before codes of other chapters"
        yield _finding(
            "first_listed", "error", [first, pregnancy], message, book.section("I.C.15.a.1")
        )


def check_demographics(claim: Claim) -> Iterator[Finding]:
    """Codes of the other sex, and of mother and newborn on one record.

    No finding about sex is an error: Medicare has no edits of sex since October 2024.
    """
    system, sex = claim.book.system, claim.encounter.sex
    for code in claim.known if sex else ():
        title, chapter = system[code].title, system[code].chapter.name
        sexes = {"female"} if chapter == PREGNANCY else set(_SEX.findall(title.lower()))
        if len(sexes) == 1 and sex not in sexes and chapter != EXTERNAL_CAUSES:
            citation = Citation(place=code, kind="title", text=title)
            message = f"{code} is for a {sexes.pop()} patient"
            yield _finding("sex", "warning", [code], message, citation)
    by_chapter = {system[code].chapter.name: code for code in reversed(claim.known)}
    if {PREGNANCY, PERINATAL} <= by_chapter.keys():
        mother, child = by_chapter[PREGNANCY], by_chapter[PERINATAL]
        message = f"{mother} is for the mother's record, {child} for the newborn's"
        citation = claim.book.section("I.C.16.a.1")
        yield _finding("mother_and_newborn", "error", [mother, child], message, citation)


def check_uncertain(claim: Claim) -> Iterator[Finding]:
    """Codes of uncertain diagnoses where the setting does not report them."""
    uncertain = [code for code in claim.known if code in claim.encounter.uncertain]
    if claim.encounter.setting == "outpatient":
        for code in uncertain:
            message = f"{code} is uncertain: an outpatient claim has what is known"
            yield _finding("uncertain", "error", [code], message, claim.book.section("IV.H"))
        return
    for (group,), _, citation in claim.book.guidelines["confirmed"]:
        for code in claim.named_by(group):
            if code in uncertain:
                message = f"{code} is uncertain: it is coded once confirmed"
                yield _finding("uncertain", "error", [code], message, citation)


def check_mce(claim: Claim) -> Iterator[Finding]:
    """What the Medicare Code Editor refuses, where its lists are loaded."""
    edits, encounter = claim.book.edits, claim.encounter
    if edits is None:
        return
    undotted = {code: code.replace(".", "") for code in claim.known}
    first = next((code for code in claim.codes[:1] if code in undotted), None)
    if first is not None and encounter.setting == "inpatient":
        is_alone = len(undotted) == 1 and undotted[first] in edits.never_alone
        if is_alone or undotted[first] in edits.never_first:
            message = f"{first} is not acceptable as principal diagnosis"
            citation = Citation(place="MCE", kind="edit", text="unacceptable principal diagnosis")
            yield _finding("unacceptable_principal", "error", [first], message, citation)
    for code, spelling in undotted.items():
        category, youngest, oldest = edits.ages.get(spelling, ("", 0, 0))
        if category and encounter.age is not None and not youngest <= encounter.age <= oldest:
            message = f"{code} is for patients of {youngest} to {oldest} years"
            citation = Citation(place="MCE", kind="edit", text=f"age conflict: {category}")
            yield _finding("age", "error", [code], message, citation)


CHECKS: tuple[Check, ...] = (
    check_exists,
    check_billable,
    check_duplicates,
    check_specificity,
    check_laterality,
    check_excludes1,
    check_manifestation,
    check_use_additional,
    check_integral_signs,
    check_combination,
    check_sequence,
    check_demographics,
    check_uncertain,
    check_mce,
)

_SEX = re.compile(r"\b(?:fe)?male\b(?! partner)")


def _by_category(claim: Claim) -> Iterator[list[str]]:
    """The claim's codes, each once, of every category of which it has several."""
    categories: defaultdict[str, list[str]] = defaultdict(list)
    for code in claim.known:
        categories[code[:3]].append(code)
    return (codes for codes in categories.values() if len(codes) > 1)


def _possibly_vaguer(code: str, system: CodeSystem) -> set[str]:
    """The codes above, and the unspecified ones of these: all that may be vaguer than the code."""
    above = system.ancestors(code)
    unspecified = (system.unspecified(ancestor) for ancestor in above)
    return {*above, *filter(None, unspecified)}


class _Sided(NamedTuple):
    side: str  # "" where the title is not about one
    words: frozenset[str]  # the others of the title


@lru_cache(maxsize=10_000)
def _sided(title: str) -> _Sided:
    """The side that a title names, or leaves unspecified."""
    words = dict.fromkeys(re.findall(r"[a-z]+", title.lower()))
    side = next((_SIDES[word] for word in _SIDES if word in words), "")
    return _Sided(side, frozenset(words) - _SIDE_WORDS)


_SIDES = {
    "bilateral": "both",
    "both": "both",
    "right": "right",
    "left": "left",
    "unspecified": "unspecified",  # the first of these that is in a title counts
}
_SIDE_WORDS = frozenset({*_SIDES, "unilateral", "of"})


def _alike_but_for_side(codes: Sequence[str], system: CodeSystem) -> list[tuple[str, str]]:
    """The pairs of codes whose titles differ in nothing but their side, in the order of the codes.

    A title for both sides may leave out "eye". In the whole release that is 176,000 pairs.
    """
    by_words: defaultdict[frozenset[str], list[int]] = defaultdict(list)
    for index, code in enumerate(codes):
        if (sided := _sided(system[code].title)).side:
            by_words[sided.words].append(index)
    pairs = {pair for group in by_words.values() for pair in combinations(group, 2)}
    for words, group in by_words.items():
        both = [index for index in group if _sided(system[codes[index]].title).side == "both"]
        for more_words, others in by_words.items() if both else ():
            if words < more_words:
                pairs |= {(min(pair), max(pair)) for pair in product(both, others)}
    return [(codes[index], codes[other]) for index, other in sorted(pairs)]


def _bilateral(code: str, system: CodeSystem) -> str | None:
    """The code near by that is for both sides what `code` is for one."""
    words, stem = _sided(system[code].title).words, system.stem(code)
    parent = system.parent(stem) or stem
    near = [*system.children(parent), *system.children(system.parent(parent) or parent)]
    for other in near:
        sided = _sided(system[other].title)
        if sided.side == "both" and sided.words <= words:
            return other
    return None


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
