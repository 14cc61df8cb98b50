"""The order of a claim: what comes before what, and what may come first."""

import re
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from clh.icd.rules.book import CodeBook, InstructionalNote
from clh.icd.rules.claim import Claim
from clh.icd.tabular import FACTORS, PREGNANCY, CodeSystem
from clh.schema import Citation

# Words by which a note leaves it to the record whether there is anything to add.
OPTIONAL = re.compile(r"\b(?:if|any|when)\b")


@dataclass(frozen=True, slots=True)
class Demand:
    """The "code first" notes at one place that apply to a code of a claim.

    One of `others`, the claim's codes that the notes name, comes before `code`; each has its note.
    Where the notes only give examples ("such as"), or are printed at a block or chapter, they are
    not `strict`: the code may come before the others, but not first of all.
    """

    code: str
    notes: tuple[InstructionalNote, ...]
    others: Mapping[str, InstructionalNote]
    strict: bool

    def is_broken(self, claim: Claim) -> bool:
        """Whether all of the others come after the code, and that is not allowed."""
        index = claim.index(self.code)
        return (
            bool(self.others)
            and (self.strict or index == 0)
            and all(claim.index(other) > index for other in self.others)
        )

    def forbids_first(self, system: CodeSystem) -> bool:
        """Whether the code needs another before it which the claim does not have."""
        return not self.others and is_manifestation(self.code, self.notes[0], system)


def find_demands(claim: Claim) -> Iterator[Demand]:
    """The demands on each code of the claim. Of two codes that each want the other first, none is.

    Notes about adverse effects apply to codes of adverse effects alone.
    """
    book = claim.book
    wanted_first = {
        code: {
            other
            for note in book.notes(code, "code_first")
            for other in claim.named_by(note.intervals)
        }
        for code in claim.known
    }
    for code in claim.known:
        is_adverse = book.system[code].title.startswith("Adverse effect")
        for place, notes in book.notes_by_place(code, "code_first"):
            texts = [note.citation.text for note in notes]
            if is_adverse or not any("adverse effect" in text for text in texts):
                others: dict[str, InstructionalNote] = {}
                for note in notes:
                    for other in claim.named_by(note.intervals):
                        if other != code and code not in wanted_first[other]:
                            others.setdefault(other, note)
                strict = place in book.system and not any("such as" in text for text in texts)
                yield Demand(code, notes, others, strict)


def is_manifestation(code: str, note: InstructionalNote, system: CodeSystem) -> bool:
    """Whether a code, to which a "code first" note applies, is only reported with its cause.

    It is if its title has "classified elsewhere", or if the note asks for what underlies or the
    title has "in", unless the note leaves open whether there is anything. So all 422 codes are
    found that the Medicare Code Editor calls manifestations.
    """
    title, text = system[code].title, note.citation.text
    if "classified elsewhere" in title:
        return True
    asks = text.startswith(("underlying", "the underlying")) or " in " in title
    return asks and note.citation.place in system and not OPTIONAL.search(text)


def reasons_never_first(code: str, book: CodeBook) -> Iterator[Citation]:
    """The guidelines by which a code of the release is never the first of a claim."""
    for (group,), _, citation in book.guidelines["never_first"]:
        if book.names(group, code):
            yield citation
    entry = book.system[code]
    if entry.chapter.name == FACTORS and "history of" in entry.title.lower():
        yield book.section("I.C.21.c.4")


def find_pregnancy(claim: Claim) -> str | None:
    """The claim's first code of pregnancy: one has to lead the claim."""
    return next((code for code in claim.known if _is_of_pregnancy(code, claim)), None)


def order_by_notes(claim: Claim) -> list[str]:
    """The codes, each once, in an order that breaks no demand, as far as that can be.

    Each code stays where it is, but if a demand on it is broken, the first of the others comes
    right before it, and before that what it demands in turn. An order that breaks none stays as it
    is. Where demands go round in a circle, they are left as they are.
    """
    demands: defaultdict[str, list[Demand]] = defaultdict(list)
    for demand in find_demands(claim):
        if demand.others:
            demands[demand.code].append(demand)
    movable = _outside_circles(claim.known, demands)
    ordered: dict[str, None] = {}

    def place(code: str) -> None:  # it ends, as it only goes on to codes outside circles
        for demand in demands.get(code, ()):
            if (demand.strict or not ordered) and demand.others.keys().isdisjoint(ordered.keys()):
                before = next((other for other in demand.others if other in movable), None)
                if before is not None:
                    place(before)
        ordered[code] = None

    for code in claim.codes:
        if code not in ordered:
            place(code)
    return list(ordered)


def find_leader(claim: Claim) -> str | None:
    """The first code that no rule forbids to lead the claim; None if there is none."""
    book = claim.book
    needs_other = {
        demand.code
        for demand in find_demands(claim)
        if demand.others or demand.forbids_first(book.system)
    }
    pregnant = find_pregnancy(claim) is not None
    for code in claim.known:
        if (
            code not in needs_other
            and not any(reasons_never_first(code, book))
            and (not pregnant or _is_of_pregnancy(code, claim))
        ):
            return code
    return None


def _outside_circles(
    codes: Sequence[str], demands: Mapping[str, Sequence[Demand]]
) -> dict[str, None]:
    """The codes from which no way along demands leads into a circle."""
    outside = dict.fromkeys(code for code in codes if code not in demands)
    waiting = list(demands)
    while met := [
        code
        for code in waiting
        if all(demand.others.keys() <= outside.keys() for demand in demands[code])
    ]:
        outside |= dict.fromkeys(met)
        waiting = [code for code in waiting if code not in outside]
    return outside


def _is_of_pregnancy(code: str, claim: Claim) -> bool:
    return claim.book.system[code].chapter.name == PREGNANCY
