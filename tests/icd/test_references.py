"""The codes that notes name: real notes, lists made up, and all notes of the release."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from clh.icd.references import read_references
from clh.icd.rules import Claim, load_code_book

BOOK = load_code_book()
SYSTEM = BOOK.system
CODES = sorted(SYSTEM)


def named(text: str, *codes: str) -> list[str]:
    """Those of `codes` that the text names."""
    found = set(Claim(codes, BOOK).named_by(BOOK.intervals(read_references(text, SYSTEM))))
    return [code for code in codes if code in found]


@pytest.mark.parametrize(
    ("note", "inside", "outside"),
    [
        ("type 1 diabetes mellitus (E10.-)", ["E10.9", "E10.65"], ["E11.9", "E09.9"]),
        ("diabetes (E08-E13 with .42)", ["E08.42", "E13.42"], ["E11.40", "E14.42"]),
        ("skin (E08-E13 with .62-)", ["E11.621", "E11.628"], ["E11.610"]),
        ("angiopathy (E08-E13 with .51-.52)", ["E11.51", "E11.52"], ["E11.59"]),
        ("cystitis (N30.0-, N30.1), prostatitis (N41)", ["N30.01", "N41.0"], ["N30.20"]),
        ("sequelae of stroke (I69. with final characters -20)", ["I69.320"], ["I69.321"]),
        (
            "drug (T36-T50 with fifth or sixth character 5)",
            ["T45.515A", "T36.95XA", "T40.2X5D"],
            ["T45.511A", "T36.91XA", "T51.0X1A", "T45.516A"],
        ),
        ("open fracture (S42.- with 7th character B or C)", ["S42.301B"], ["S42.301A"]),
        ("hypertension (I10-I1A)", ["I10", "I15.0", "I1A.0"], ["I20.0"]),
        ("rheumatoid factor (M05.00 to M05.8A)", ["M05.10", "M05.8A"], ["M06.00"]),
        ("abscess (K50.014, K50.114,)", ["K50.014", "K50.114"], ["K50.914"]),
        ("injury (J00-J06; J20-J22)", ["J01.00", "J21.9"], ["J10.1"]),
        ("vitamin B12 deficiency (E53.8)", ["E53.8"], ["B15.9"]),
        ("hearing loss as classified in H90.-", ["H90.0"], ["H91.90"]),
        ("fracture of neck (S12.0--S12.6.-)", ["S12.000A", "S12.600A"], ["S12.8XXA"]),
    ],
)
def test_a_note_names_codes(note: str, inside: list[str], outside: list[str]) -> None:
    assert named(note, *inside, *outside) == inside


@pytest.mark.parametrize(
    ("note", "why"),
    [
        ("tinea, any type except those in B36.-", "except"),
        ("rheumatic disease (I05-I09) unless rheumatic fever is present", "unless"),
        ("any condition in I11.- with any condition in I12.-", "any condition"),
        ("fracture (S52.- with open fracture 7th character)", "open fracture"),
        ("dementia (G31.90)", "G31.90"),
    ],
)
def test_what_is_not_understood_is_told_and_names_nothing(note: str, why: str) -> None:
    reading = read_references(note, SYSTEM)
    assert not reading.references
    assert why in reading.unread


@pytest.mark.parametrize(
    "note", ["any associated injury", "G6PD deficiency", "stage 4", "COVID-19"]
)
def test_words_alone_name_no_code(note: str) -> None:
    assert read_references(note, SYSTEM) == ((), "")


def spelled(code: str, dash: str) -> str:
    """A code as notes spell those that need more characters."""
    return f"{code}{dash}" if "." in code else f"{code}{'.-' if dash else ''}"


@given(
    st.lists(st.tuples(st.sampled_from(CODES), st.sampled_from(["", "-"])), min_size=1, max_size=5),
    st.sampled_from([", ", " and ", "; "]),
)
def test_every_list_of_codes_is_read(listed: list[tuple[str, str]], joint: str) -> None:
    reading = read_references(
        f"some disease ({joint.join(spelled(*one) for one in listed)})", SYSTEM
    )
    assert [one.first for one in reading.references] == [code for code, _ in listed]
    assert not reading.unread


@given(st.sampled_from(CODES), st.sampled_from(CODES))
def test_a_range_is_in_the_order_of_the_book(one: str, other: str) -> None:
    first, last = sorted((one, other), key=SYSTEM.position)
    assert set(named(f"({first}-{last})", one, other)) == {one, other}


def test_all_but_a_few_notes_that_name_codes_are_read() -> None:
    unread = {note.citation.text: note.unread for note in BOOK.all_notes() if note.unread}
    assert len(unread) == 9, unread
    assert sum(bool(note.intervals) for note in BOOK.all_notes()) > 9_900
