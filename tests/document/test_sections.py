"""Sections: which heading or label each sentence stands under."""

import pytest

from clh.document.reader import Reader

READER = Reader()


def sections(text: str) -> dict[str, str]:
    return {sentence.text.strip(" -"): sentence.section for sentence in READER.all_sentences(text)}


NOTE = """\
CHIEF COMPLAINT: Chest pain.

FAMILY HISTORY:
Mother had breast cancer.

Father died of stroke.
MEDICATIONS:
- metformin

Assessment and Plan:
Gout
"""


def test_a_heading_covers_all_that_follows_up_to_the_next() -> None:
    assert sections(NOTE) == {
        "Chest pain.": "reason",
        "Mother had breast cancer.": "family",
        "Father died of stroke.": "family",
        "metformin": "skip",
        "Gout": "reason",
    }


def test_a_label_before_text_covers_its_line() -> None:
    assert sections("Family history: gout, asthma\nHe has a cough.") == {
        "gout, asthma": "family",
        "He has a cough.": "other",
    }
    assert sections("Skin: rash\nAllergies: penicillin\nHe has a cough.") == {
        "rash": "other",
        "penicillin": "skip",
        "He has a cough.": "other",
    }


def test_a_label_in_capitals_covers_its_paragraph() -> None:
    assert sections("ALLERGIES: penicillin\nSulfa drugs\n\nHe has a cough.") == {
        "penicillin": "skip",
        "Sulfa drugs": "skip",
        "He has a cough.": "other",
    }


def test_a_label_inside_a_section_gives_way_to_it() -> None:
    assert sections("FAMILY HISTORY:\nDiabetes.\nAllergies: penicillin\nGout.") == {
        "Diabetes.": "family",
        "penicillin": "skip",
        "Gout.": "family",
    }


@pytest.mark.parametrize("heading", ["FHx:", "** Family History **", "family history", "FH :"])
def test_a_heading_may_be_written_in_many_ways(heading: str) -> None:
    assert sections(f"{heading}\nBreast cancer") == {"Breast cancer": "family"}


def test_a_sentence_about_a_section_is_no_heading() -> None:
    assert sections("She takes her medications daily.\nGout.")["Gout."] == "other"


def test_headings_and_blank_sentences_are_left_out() -> None:
    assert list(sections("ASSESSMENT:\n\n--\n1. T2DM\n2. COVID-19\n3.")) == ["T2DM", "COVID-19"]
    assert sections("ASSESSMENT:\n\n--\n") == {}


def test_sections_that_name_no_diagnosis_are_not_read() -> None:
    read = [sentence.text for sentence in READER.sentences(NOTE)]
    assert read == ["Chest pain.", "Mother had breast cancer.", "Father died of stroke.", "Gout"]
