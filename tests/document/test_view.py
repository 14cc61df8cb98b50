"""The normalised view of a note: plain characters, each with its place in the note."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from clh.document.view import normalize

# What copying from a PDF or a word processor leaves behind.
PIECES = [
    *(
        "pneu-\nmonia",
        "pneu\u00ad\nmonia",
        "follow-\nup",
        "x-\r\nray",
        "Allergies-\n",
        "-\n",
        "- \r",
    ),
    *("\ufb01brillation", "e\ufb03cient", "e\u0301", "\u0301", "\u00ad", "\u200b", "\ufeff"),
    *("\u00a0", "\u2011", "\u2019s", "\r\n", "\r", "\n", "\u2028", "\f", " ", "a", "Z", "3"),
]
TEXTS = st.lists(st.sampled_from(PIECES) | st.text(max_size=5)).map("".join)


@pytest.mark.parametrize(
    ("text", "normalized"),
    [
        ("atrial \ufb01brillation", "atrial fibrillation"),
        ("e\ufb00usion, re\ufb02ux, di\ufb03culty", "effusion, reflux, difficulty"),
        ("pneu-\nmonia", "pneumonia"),
        ("pneu-  \r\n  monia", "pneumonia"),
        ("pneu\u00admonia", "pneumonia"),
        ("pneu\u00ad\nmonia", "pneumonia"),
        ("in-\nter-\nmittent", "intermittent"),
        ("seen in follow-\nup", "seen in follow-up"),
        ("chest x-\nray", "chest x-ray"),
        ("- gout\n- asthma", "- gout\n- asthma"),
        ("COVID-\n19", "COVID-\n19"),
        ("Gout -\nchronic", "Gout -\nchronic"),
        ("heart\u00a0failure", "heart failure"),
        ("well\u2011controlled", "well-controlled"),
        ("Crohn\u2019s", "Crohn's"),
        ("gout\u200b\ufeff", "gout"),
        ("Me\u0301nie\u0300re", "M\u00e9ni\u00e8re"),
        ("gout\r\nasthma\rcough\ffever", "gout\nasthma\ncough\nfever"),
    ],
)
def test_what_copying_left_behind_is_undone(text: str, normalized: str) -> None:
    assert normalize(text).text == normalized


@given(TEXTS)
def test_a_view_is_its_own_view(text: str) -> None:
    once = normalize(text).text
    assert normalize(once).text == once


@given(st.text(st.characters(codec="ascii", exclude_characters="\r\v\f-")))
def test_the_view_of_plain_text_is_the_text(text: str) -> None:
    view = normalize(text)
    assert view.text == text
    assert list(view.origins) == list(range(len(text) + 1))


@given(TEXTS)
def test_every_character_comes_from_the_note(text: str) -> None:
    view = normalize(text)
    assert len(view.origins) == len(view.text) + 1
    assert list(view.origins) == sorted(view.origins)
    assert view.origins[-1] == len(text)
    for char, origin in zip(view.text, view.origins, strict=False):
        if char.isascii() and char.isalnum() and text[origin].isascii():
            assert text[origin] == char
