"""What the rules find: over the whole release, in claims made up, and what they rest on."""

import json
import os
import re
import time
from pathlib import Path

import pytest

from clh.errors import InputError
from clh.icd.rules import Claim, Encounter, check, load_code_book, resolve
from clh.icd.rules.book import Interval
from clh.icd.rules.claim import MAX_CODES
from clh.icd.tabular import EXTERNAL_CAUSES, FACTORS

BOOK = load_code_book()
SYSTEM = BOOK.system
ALL = list(SYSTEM)
BILLABLE = [code for code in SYSTEM if SYSTEM.billable(code)]
PAIRED = [note for note in BOOK.all_notes() if note.citation.kind == "excludes1" and note.intervals]


def rules(*codes: str, **known: object) -> set[str]:
    encounter = Encounter(**known)  # type: ignore[arg-type]
    return {one.rule for one in check(Claim(codes, BOOK, encounter))}


def test_a_code_alone_has_the_findings_that_its_own_flags_call_for() -> None:
    for code, entry in SYSTEM.items():
        found = [one for one in check(Claim([code], BOOK)) if one.severity != "reminder"]
        assert {one.rule for one in found} - {"code_first"} == called_for(code), code
        assert all(one.codes == (code,) and one.citation.text for one in found)
        if "classified elsewhere" in entry.title and entry.code_first:
            assert "code_first" in {one.rule for one in found}, code
        for one in found:
            assert bool(one.suggestions) is (one.rule in ("seventh_character", "not_billable"))


def called_for(code: str) -> set[str]:
    """The rules that a code breaks alone, less code first."""
    entry, rules = SYSTEM[code], set()
    if SYSTEM.extensions(code):
        rules.add("seventh_character")
    elif not entry.billable:
        rules.add("not_billable")
    history = entry.chapter.name == FACTORS and "istory of" in entry.title
    supplementary = re.match("B9[5-7]", code) or entry.title.startswith("Underdosing")
    if entry.chapter.name == EXTERNAL_CAUSES or history or supplementary:
        rules.add("first_listed")
    return rules


@pytest.mark.skipif("CLH_TEST_DATA" not in os.environ, reason="CLH_TEST_DATA names no folder")
def test_every_manifestation_of_the_medicare_code_editor_needs_its_etiology_first() -> None:
    listed = Path(os.environ["CLH_TEST_DATA"]) / "icd10cm" / "mce_edits.json"
    codes = [
        one["code"] for one in json.loads(listed.read_text())["codes"]["manifestation_not_pdx"]
    ]
    assert len(codes) > 400
    assert [code for code in codes if "code_first" not in rules(code)] == []


@pytest.mark.parametrize(
    ("code", "sex", "fits"),
    [
        ("C50.911", "male", False),  # of right female breast
        ("C50.921", "male", True),
        ("N40.0", "female", True),  # the title does not say so
        ("Z31.81", "female", True),  # male factor infertility in female patient
        ("Z31.441", "female", True),  # male partner
        ("N39.3", "male", True),  # stress incontinence (female) (male)
    ],
)
def test_a_title_may_say_whose_code_it_is(code: str, sex: str, fits: bool) -> None:
    assert ("sex" not in rules(code, sex=sex)) is fits
    assert "sex" not in rules(code)


def test_the_sex_in_an_external_cause_is_not_the_patients() -> None:
    assert "sex" not in rules("T74.11XA", "Y07.031", sex="female")


def test_a_block_of_one_category_does_not_hide_its_notes() -> None:
    findings = check(Claim(["B20", "O98.711"], BOOK))
    assert ("code_first", ("B20", "O98.711")) in {(one.rule, one.codes) for one in findings}
    assert "excludes1" in rules("Z18.11", "Z95.812")
    assert "use_additional_code" in rules("C50.911")


def test_a_category_says_less_than_its_own_unspecified_code() -> None:
    for codes in (["A37.9", "A37.90"], ["A37.90", "A37.9"]):
        found = [one for one in check(Claim(codes, BOOK)) if one.rule == "less_specific"]
        assert [one.codes for one in found] == [("A37.9", "A37.90")]


def test_an_unknown_code_is_found() -> None:
    [finding] = check(Claim(["XYZ"], BOOK))
    assert (finding.rule, finding.severity, finding.codes) == ("unknown", "error", ("XYZ",))


@pytest.mark.parametrize(
    "codes",
    [
        [code for code in SYSTEM if code.startswith("S52")][:MAX_CODES],
        [code for code in SYSTEM if code.startswith("H40")],
        [f"{letter}{number:03}.99" for letter in "XQW" for number in range(600)],
        [note.citation.place for note in PAIRED if note.citation.place in SYSTEM][:MAX_CODES],
    ],
    ids=["fractures", "sides", "unknown", "excluded"],
)
def test_a_long_claim_is_checked_and_resolved_in_seconds(codes: list[str]) -> None:
    started = time.process_time()
    check(Claim(codes, BOOK))
    resolve(Claim(codes, BOOK))
    assert time.process_time() - started < 10


def test_too_many_codes_for_a_claim_are_refused() -> None:
    Claim(["I10"] * MAX_CODES, BOOK)
    with pytest.raises(InputError, match=r"2,001 codes are too many for one claim") as caught:
        Claim(["I10"] * (MAX_CODES + 1), BOOK)
    assert "\n" not in str(caught.value)


def test_every_excludes1_statement_is_found_in_both_directions() -> None:
    statements = 0
    for note in PAIRED:
        here = carriers(note.citation.place)
        for interval in note.intervals:
            excluded = named(interval)
            kept = [code for code in here if code not in excluded]
            for pair in zip((kept[0], kept[-1]), (excluded[0], excluded[-1]), strict=True):
                for codes in (pair, pair[::-1]):
                    assert "excludes1" in rules(*codes), note
            statements += 1
    assert statements > 5_600


def carriers(place: str) -> list[str]:
    """The billable codes that a note at a code, block or chapter applies to."""
    if place in SYSTEM:
        return [code for code in (place, *SYSTEM.descendants(place)) if SYSTEM.billable(code)]
    return [
        code
        for code in BILLABLE
        if place in (SYSTEM[code].block.name, f"Chapter {SYSTEM[code].chapter.name}")
    ]


def named(interval: Interval) -> list[str]:
    """The billable codes of an interval."""
    start, end, characters = interval
    return [
        code
        for code in ALL[start:end]
        if SYSTEM.billable(code)
        and (characters is None or characters.search(code.replace(".", "")))
    ]
