"""Words: what a text says once the book's own phrases are left out, and how much another says."""

import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from clh.icd.index import IndexTerm
from clh.retrieval.lexical import Lexicon, content_words, expand, plain, searchable
from tests.fakes import toy_system

TEXTS = [text for _, text in searchable(toy_system())]
PHRASES = st.sampled_from(TEXTS) | st.text(max_size=20) | st.just("the left knee and zzz")
LEXICON = Lexicon.of(TEXTS)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Heart failure, unspecified", "Heart failure"),
        ("Pain in unspecified knee", "Pain in knee"),
        ("Unspecified systolic (congestive) heart failure", "systolic heart failure"),
        ("hypertension (arterial) (benign) (essential)", "hypertension"),
        ("Asthma NOS", "Asthma"),
        ("Other joint disorder, not elsewhere classified", "Other joint disorder"),
        ("Gout", "Gout"),
        ("Noser's nostril", "Noser's nostril"),
        ("Unspecified", ""),
    ],
)
def test_plain_says_what_a_clinician_would(text: str, expected: str) -> None:
    assert plain(text) == expected


def test_all_that_a_code_is_called_can_be_searched() -> None:
    pairs = searchable(toy_system())

    assert len(pairs) == len(set(pairs))
    assert {text for code, text in pairs if code == "I50.9"} == {
        "Heart failure",
        "Congestive heart disease",
        "Congestive heart failure",
    }
    assert ("E11", "diabetes") in pairs  # an includes note
    assert ("I10", "hypertension") in pairs


def test_a_7th_character_is_not_searched_for() -> None:
    codes = {code for code, _ in searchable(toy_system())}
    assert "S83.411" in codes
    assert not codes & {"S83.411A", "S83.411D", "S83.411S"}


def test_index_terms_are_added_under_the_code_they_spell() -> None:
    terms = [
        IndexTerm(("Failure", "heart", "congestive"), code="I50.9"),
        IndexTerm(("Gonalgia",), code="M25.56-"),
        IndexTerm(("Grippe",), see="Influenza"),
        IndexTerm(("Diabetes",), code="E11.9"),
    ]
    added = [pair for pair in searchable(toy_system(), terms) if pair not in BARE]
    assert added == [
        ("I50.9", "Failure, heart, congestive"),
        ("M25.56", "Gonalgia"),
        ("E11.9", "Diabetes"),
    ]


BARE = searchable(toy_system())


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("HTN", "hypertension"),
        ("Pt with HTN, afib.", "Pt with hypertension, atrial fibrillation."),
        ("CHF/COPD", "congestive heart failure/chronic obstructive pulmonary disease"),
        ("acute hypoxic respiratory failure", "acute respiratory failure with hypoxia"),
        ("chfs and htnx", "chfs and htnx"),
        ("MS and PE", "MS and PE"),  # either means several things
        ("", ""),
    ],
)
def test_expand_puts_a_text_in_the_books_words(text: str, expected: str) -> None:
    assert expand(text) == expected


@pytest.mark.parametrize(
    ("one", "other"),
    [("Fractures of the femur", "femur fracture"), ("PNEUMONIA", "pneumonia"), ("of the", "")],
)
def test_words_are_compared_by_stem_and_without_function_words(one: str, other: str) -> None:
    assert content_words(one) == content_words(other)


@given(PHRASES, PHRASES)
def test_coverage_is_a_share_and_grows_with_what_covers(text: str, by: str) -> None:
    covered = LEXICON.coverage(text, by)

    assert 0 <= covered <= LEXICON.coverage(text, f"{by} {text}") <= 1
    assert LEXICON.coverage(text, "") == 0
    assert LEXICON.coverage(text, f"{text} {by}") == bool(content_words(text))


@given(by=st.text() | st.sampled_from(TEXTS))
def test_the_coverage_of_all_texts_is_that_of_each(by: str) -> None:
    each = [LEXICON.coverage(text, by) for text in TEXTS]
    assert LEXICON.coverages(by).tolist() == pytest.approx(each, abs=1e-6)


def test_rare_words_weigh_more() -> None:
    rare = LEXICON.coverage("Pain in right knee", by="right")
    common = LEXICON.coverage("Pain in right knee", by="knee")
    assert 0 < common < rare < 1


def test_coverage_is_the_same_in_every_run() -> None:
    code = (
        "from tests.retrieval.test_lexical import *;"
        "print([LEXICON.coverage(' '.join(TEXTS[i:i + 9]), TEXTS[i]) for i in range(40)])"
    )
    runs = {
        subprocess.run(
            [sys.executable, "-c", code],
            env={"PYTHONHASHSEED": seed, "PYTHONPATH": ":".join(sys.path)},
            check=True,
            capture_output=True,
        ).stdout
        for seed in "12"
    }
    assert len(runs) == 1
