"""The code book's demands on the final set: 7th characters, and its rules for an encounter."""

from collections.abc import Sequence

from agents.assign.select import SelectedCode
from clh.icd.rules import Claim, CodeBook, Encounter, Setting, check, resolve
from clh.icd.tabular import CodeSystem
from clh.schema import Citation, Finding, Term


def complete_code(code: str, system: CodeSystem) -> str | None:
    """The code as it may be reported: with its 7th character, if it takes one.

    A note that gives nothing else means active treatment, A (guideline I.C.19.a), or the character
    for what is unspecified or does not apply, 0 or 9. None for what is not billable otherwise.
    """
    if system.billable(code):
        return code
    if system.unspecified(code) != code:  # a category may define what only codes below it take
        return None
    offered = {child[-1] for child in system.children(code)}
    character = next((character for character in "A09" if character in offered), None)
    return None if character is None else system.complete(code, character)


def add_seventh_characters(codes: Sequence[SelectedCode], system: CodeSystem) -> list[Finding]:
    """Complete the codes in place; returns a warning for each 7th character that is assumed."""
    warnings = []
    for selected in codes:
        stem = selected.code
        selected.code = complete_code(stem, system) or stem
        if selected.code == stem:
            continue
        selected.flags = (*selected.flags, "seventh_character_assumed")
        character = selected.code[-1]
        meaning = system[stem].seventh_characters[character]
        warnings.append(
            Finding(
                rule="seventh_character",
                severity="warning",
                codes=(selected.code,),
                message=f"7th character {character}, {meaning}, is assumed: check the encounter",
                citation=Citation(place=stem, kind="seventh_characters", text=meaning),
                change=f"{stem} became {selected.code}",
            )
        )
    return warnings


def apply_code_book(
    codes: Sequence[SelectedCode], terms: Sequence[Term], book: CodeBook, setting: Setting
) -> tuple[list[SelectedCode], list[Finding], dict[str, Finding]]:
    """The codes as the code book allows them, in its order.

    Returns them, the findings (what was changed, then what is left to a coder), and for each code
    that was left out the finding by which.
    """
    by_code = {selected.code: selected for selected in codes}
    confidence = {code: selected.confidence for code, selected in by_code.items()}
    certain = {term.quote for term in terms if term.status != "uncertain"}
    encounter = Encounter(
        setting=setting,
        uncertain=frozenset(
            selected.code for selected in codes if certain.isdisjoint(selected.evidence)
        ),
    )
    resolved, changes = resolve(Claim(by_code, book, encounter), confidence)
    dropped = {
        code: next(change for change in reversed(changes) if code in change.codes)
        for code in by_code
        if code not in resolved
    }
    open_findings = check(Claim(resolved, book, encounter))
    kept = [by_code[code] for code in resolved]
    return kept, [*changes, *open_findings], dropped
