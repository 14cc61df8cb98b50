"""The Alphabetic Index as the publisher prints it, and files that are no such thing."""

import os
from functools import cache
from pathlib import Path

import pytest

from clh.errors import InputError
from clh.icd.index import IndexTerm, read_index
from clh.icd.tabular import load_tabular

FIXTURES = Path(__file__).parent / "fixtures"


def fixture_terms(name: str) -> dict[str, IndexTerm]:
    return {term.text: term for term in read_index(FIXTURES / name)}


def test_a_term_is_its_path_from_the_main_term_in_the_order_of_the_file() -> None:
    assert [term.text for term in read_index(FIXTURES / "diseases.xml")] == [
        "Alder anomaly or syndrome",
        "Amyloidosis",
        "Amyloidosis, heart",
        "Pneumonia NEC",
        "Pneumonia NEC, community acquired",
        "Pneumonia NEC, in",
        "Pneumonia NEC, in, influenza",
        "Pneumonia NEC, in, massive",
        "Pneumonia NEC, strangulation",
        "Pneumonia NEC, lightning",
    ]


def test_nonessential_modifiers_leave_the_title_and_the_words_after_them_stay() -> None:
    terms = fixture_terms("diseases.xml")
    assert terms["Pneumonia NEC"].modifiers == ("acute", "lobe(s)")
    assert terms["Alder anomaly or syndrome"].modifiers == ("-Reilly", "leukocyte granulation")
    assert terms["Pneumonia NEC, community acquired"].modifiers == ()


def test_codes_are_as_printed() -> None:
    terms = fixture_terms("diseases.xml")
    assert terms["Pneumonia NEC, in, massive"].code == "J10.0-"
    assert terms["Pneumonia NEC, in"].code is None
    heart = terms["Amyloidosis, heart"]
    assert (heart.code, heart.manifestation) == ("E85.4", "I43")


def test_cross_references_are_as_printed() -> None:
    terms = fixture_terms("diseases.xml")
    assert terms["Pneumonia NEC"].see_also == "Bronchopneumonia"
    assert terms["Pneumonia NEC"].see is None
    assert terms["Pneumonia NEC, in, influenza"].see == "Influenza, with, pneumonia"
    assert terms["Pneumonia NEC, strangulation"].see == "category T71"
    assert terms["Pneumonia NEC, lightning"].see == "subcategory T75.0"


def test_each_filled_cell_of_a_table_is_a_term_that_ends_in_its_column() -> None:
    codes = [(term.text, term.code) for term in read_index(FIXTURES / "table.xml")]
    assert codes == [
        ("1-propanol, Poisoning Accidental (unintentional)", "T51.3X1"),
        ("Acid NEC, Poisoning Accidental (unintentional)", "T54.2X1"),
        ("Acid NEC, Adverse effect", "T54.2-"),
        ("Acid NEC, book-leaf, Poisoning Accidental (unintentional)", "C06.89"),
        ("Acid NEC, carbolic", None),
    ]


def test_the_cells_of_a_row_share_its_modifiers_and_references() -> None:
    terms = fixture_terms("table.xml")
    for column in ("Poisoning Accidental (unintentional)", "Adverse effect"):
        cell = terms[f"Acid NEC, {column}"]
        assert (cell.modifiers, cell.see_also) == (("corrosive",), "Alkali")
    assert terms["Acid NEC, carbolic"].see == "Phenol"


def test_a_bracketed_explanation_in_a_table_is_no_manifestation_code() -> None:
    term = fixture_terms("table.xml")["Acid NEC, book-leaf, Poisoning Accidental (unintentional)"]
    assert term.manifestation is None


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        ("Pneumonia: J18.9", "is not XML"),
        ((FIXTURES / "diseases.xml").read_text("utf-8")[:600], "cut short"),
        ("<ICD10CM.tabular/>", "is not the Alphabetic Index"),
        ((FIXTURES / "addenda.xml").read_text("utf-8"), "a term has no title"),
        ((FIXTURES / "unheaded.xml").read_text("utf-8"), "a cell has no column heading"),
    ],
    ids=["text", "truncated", "other document", "addenda", "no column headings"],
)
def test_a_file_that_is_no_index_is_refused_in_one_line(
    tmp_path: Path, content: str, complaint: str
) -> None:
    path = tmp_path / "index.xml"
    path.write_text(content, "utf-8")
    with pytest.raises(InputError, match=complaint) as caught:
        read_index(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"absent\.xml: No such file"):
        read_index(tmp_path / "absent.xml")


OFFICIAL_FILES = [
    ("icd10cm-index-2025-rebuilt.xml", 81_024, 62_721),
    ("icd10cm-eindex-April-1-2026-XML.xml", 8_090, 6_671),
    ("icd10cm-neoplasm-April-1-2026-XML.xml", 9_138, 9_020),
    ("icd10cm-drug-April-1-2026-XML.xml", 40_262, 40_036),
]


@cache
def official(name: str) -> list[IndexTerm]:
    """The terms of an official file; skips the test where there is none."""
    path = Path(os.environ.get("CLH_TEST_DATA", "")) / "icd10cm" / name
    if "CLH_TEST_DATA" not in os.environ or not path.exists():
        pytest.skip("CLH_TEST_DATA names no folder with icd10cm/ in it")
    return read_index(path)


@pytest.mark.parametrize(("name", "lines", "coded"), OFFICIAL_FILES)
def test_official_files_are_read_whole_and_their_codes_are_in_the_release(
    name: str, lines: int, coded: int
) -> None:
    terms = official(name)
    tabular = load_tabular()
    codes = [term.code for term in terms if term.code is not None]
    assert (len(terms), len(codes)) == (lines, coded)
    for code in codes:
        tabular.normalize(code)
    assert all(title == " ".join(title.split()) != "" for term in terms for title in term.path)


def test_the_official_index_of_diseases_has_its_main_terms() -> None:
    terms = official("icd10cm-index-2025-rebuilt.xml")
    assert sum(len(term.path) == 1 for term in terms) == 8_100
    by_text = {term.text: term for term in terms}
    assert by_text["Abasia"].modifiers == ("-astasia", "hysterical")
    assert by_text["Asthma, asthmatic"].code == "J45.909"
    assert by_text["Abandonment"].see == "Maltreatment"
