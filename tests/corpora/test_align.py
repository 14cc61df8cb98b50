"""Aligning CodiEsp: every line of English finds its Spanish sentence, or none does."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from clh.corpora.align import align, translation
from clh.schema import Note


def note(text: str) -> Note:
    return Note(id="1", text=text)


def texts(spanish: str, english: str) -> list[tuple[str, str]]:
    return [(a.text, b.text) for a, b in align(note(spanish), note(english))]


def test_a_sentence_goes_with_its_line_and_blank_ones_with_none() -> None:
    spanish = "Mujer sana. Niega alergias.\n\nAcude por tos.\n\n"
    english = "Healthy woman.\nShe denies allergies.\n1.\nShe comes with a cough.\n"

    assert texts(spanish, english) == [
        ("Mujer sana.", "Healthy woman."),
        ("Niega alergias.", "She denies allergies."),
        ("Acude por tos.", "She comes with a cough."),
    ]


@pytest.mark.parametrize(
    "sentence",
    ["Mide 3 cm. El borde es liso.", "Lo vio el Dr. Pérez en consulta.", "Ver Fig. 2 del caso."],
)
def test_abbreviations_do_not_end_a_sentence(sentence: str) -> None:
    assert texts(f"{sentence} Fue dado de alta.", "A\nB") == [
        (sentence, "A"),
        ("Fue dado de alta.", "B"),
    ]


@pytest.mark.parametrize("english", ["All in one line.", "One.\nTwo.\nThree."])
def test_another_number_of_lines_aligns_nothing(english: str) -> None:
    assert texts("Mujer sana. Niega alergias.", english) == []


words = st.text("aeiouñlmrst", min_size=2, max_size=8)
sentences = st.lists(words, min_size=1, max_size=6)
paragraphs = st.lists(sentences, max_size=4)  # an empty one is a blank line


@given(document=st.lists(paragraphs, min_size=1, max_size=5), gap=st.sampled_from([" ", "  "]))
def test_any_layout_aligns(document: list[list[list[str]]], gap: str) -> None:
    document = [*document, [["fin"]]]
    written = [[f"El {gap.join(words)} paciente." for words in sentences] for sentences in document]
    spanish = "\n".join(gap.join(sentences) for sentences in written)
    expected = [sentence for sentences in written for sentence in sentences or [""]]
    english = "\n".join(f"{number}." for number in range(len(expected)))

    assert texts(spanish, english) == [
        (sentence, f"{number}.") for number, sentence in enumerate(expected) if sentence
    ]


@pytest.mark.parametrize(
    ("pieces", "lines"),
    [
        ([(0, 5)], ["A"]),
        ([(6, 17)], ["A", "B"]),  # over the end of a sentence
        ([(18, 26), (0, 5)], ["A", "B"]),  # in the order of the text
        ([(11, 12)], []),  # between sentences
    ],
)
def test_the_translation_of_pieces(pieces: list[tuple[int, int]], lines: list[str]) -> None:
    spanish = note("Mujer sana. Niega alergias.")
    pairs = align(spanish, note("A\nB"))

    found = translation([spanish.span(*piece) for piece in pieces], pairs)

    assert [line.text for line in found] == lines
