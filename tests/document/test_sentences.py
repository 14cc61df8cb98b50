"""Tokens and sentences: where they begin and end, and that any text is read in linear time."""

import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from clh.document.sentences import LONGEST, join_tokens, split_sentences, tokenize
from tests.document.test_view import TEXTS

LONG_LINE = "He was seen in the emergency department with chest pain that"


def words(text: str) -> list[str]:
    return [token.text for token in tokenize(text)]


def sentences(text: str) -> list[str]:
    return [join_tokens(tokens) for tokens in split_sentences(text)]


# --- tokens ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "tokens"),
    [
        ("No fever, chills.", ["No", "fever", ",", "chills", "."]),
        ("follow-up x-ray", ["follow", "-", "up", "x", "-", "ray"]),
        ("COVID-19 at L4-L5", ["COVID-19", "at", "L4", "-", "L5"]),
        ("and/or mg/dl, BP 120/80", ["and/or", "mg", "/", "dl", ",", "BP", "120/80"]),
        ("h/o gout w/o tophi", ["h", "/", "o", "gout", "w/o", "tophi"]),
        ("2.5 mg at 10:30, 1,000 units", ["2.5", "mg", "at", "10:30", ",", "1,000", "units"]),
        ("Crohn's isn't Crohn\u2019s", ["Crohn", "'s", "isn't", "Crohn", "'s"]),
        ("Dr. Smith vs. J. Doe", ["Dr.", "Smith", "vs.", "J.", "Doe"]),
        ("38.5 \u00b0C. The U.S. team", ["38.5", "\u00b0", "C", ".", "The", "U.S.", "team"]),
        ("pain.He (see p.Gly12)", ["pain", ".", "He", "(", "see", "p.Gly12", ")"]),
        ("Edema:none A&P", ["Edema", ":", "none", "A&P"]),
        ("----- ... ___ ??", ["-----", "...", "___", "??"]),
        ("pneu-\nmonia", ["pneumonia"]),
        ("\ufb01brillation", ["fibrillation"]),
    ],
)
def test_tokens(text: str, tokens: list[str]) -> None:
    assert words(text) == tokens


def test_a_token_is_quoted_as_the_note_has_it() -> None:
    text = "He has pneu-\nmonia and \ufb01brillation."
    quotes = {token.text: text[token.start : token.end] for token in tokenize(text)}
    assert quotes["pneumonia"] == "pneu-\nmonia"
    assert quotes["fibrillation"] == "\ufb01brillation"


@given(TEXTS)
def test_tokens_lie_in_the_note_in_order(text: str) -> None:
    end = 0
    for token in tokenize(text):
        assert end <= token.start < token.end <= len(text)
        assert token.text
        assert not any(map(str.isspace, token.text))
        end = token.end


@given(st.text(st.characters(codec="ascii", exclude_characters="-")))
def test_a_plain_text_is_its_tokens_and_white_space(text: str) -> None:
    end = 0
    for token in tokenize(text):
        assert not text[end : token.start].strip()
        assert text[token.start : token.end] == token.text
        end = token.end
    assert not text[end:].strip()


# --- sentences ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("She has asthma. She smokes.", ["She has asthma.", "She smokes."]),
        (f"{LONG_LINE}\nradiates to the arm.", [f"{LONG_LINE} radiates to the arm."]),
        (f"{LONG_LINE}\r\nradiates to the arm.", [f"{LONG_LINE} radiates to the arm."]),
        (f"{LONG_LINE}.\nno edema", [f"{LONG_LINE}.", "no edema"]),
        (f"{LONG_LINE}\n\nno edema", [LONG_LINE, "no edema"]),
        ("Gout\nAsthma\nknee pain", ["Gout", "Asthma", "knee pain"]),
        ("- gout\n- asthma\n* cough", ["- gout", "- asthma", "* cough"]),
        ("1. Pneumonia\n2. Gout", ["1.", "Pneumonia", "2.", "Gout"]),
        ("Seen by Dr. Smith for gout.", ["Seen by Dr. Smith for gout."]),
        ("Takes 2.5 mg of warfarin.", ["Takes 2.5 mg of warfarin."]),
        (
            'He said "no." (He smiled.) Then he left.',
            ['He said "no."', "(He smiled.)", "Then he left."],
        ),
        ("Is it gout? No! Wait...and see.", ["Is it gout?", "No!", "Wait...and see."]),
        ("", []),
        ("\n \n", []),
    ],
)
def test_sentences(text: str, expected: list[str]) -> None:
    assert sentences(text) == expected


@given(
    st.lists(
        st.sampled_from(["gout", "Asthma", "no", "Dr.", "T2DM", "2.5 mg", LONG_LINE])
        | st.sampled_from(["\n", "\n\n", ".", ":", "-", ","])
    ).map(" ".join)
)
def test_sentences_leave_no_token_out(text: str) -> None:
    assert [token for tokens in split_sentences(text) for token in tokens] == [*tokenize(text)]


@pytest.mark.parametrize(
    ("clause", "last", "first"),
    [
        ("denies fever, cough; ", ";", "denies"),
        ("denies fever, cough ", ",", "cough"),
        ("fever and cough ", "fever", "and"),
        ("fever ", "fever", "fever"),
    ],
)
def test_a_sentence_without_end_is_cut_at_its_clauses(clause: str, last: str, first: str) -> None:
    pieces = list(split_sentences(clause * 1_000))
    assert all(len(piece) <= LONGEST for piece in pieces)
    assert all(len(piece) > LONGEST // 2 for piece in pieces[:-1])
    assert {piece[-1].text for piece in pieces[:-1]} == {last}
    assert {piece[0].text for piece in pieces[1:]} == {first}


# --- hostile text ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    "text",
    [
        "the patient denies cough and has pain in the left knee " * 12_700,  # 700 KB in one line
        ":" * 40_000,
        ": " * 40_000,
        "word " * 20_000,
        "([{" * 20_000 + "gout" + "}])" * 20_000,
        "x" * 1_000_000,
        "a." * 300_000,
        "1/" * 300_000,
        "ab-\n" * 150_000,
        "a-" + " " * 1_000_000,
        "e" + "\u0301" * 500_000,
        "\ufb03" * 200_000,
        "\u00ad \n" * 200_000,
    ],
    ids=lambda text: repr(text[:12]),
)
def test_any_text_is_read_in_linear_time(text: str) -> None:
    started = time.process_time()
    longest = max(map(len, split_sentences(text)))
    assert time.process_time() - started < 20  # it takes some 2 s; quadratic would be hours
    assert longest <= LONGEST
