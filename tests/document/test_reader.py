"""Reading notes: where sentences end, which section they stand in, what their mentions mean."""

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from clh.document.reader import Reader

READER = Reader()
LONG_LINE = "He was seen in the emergency department with chest pain that"


def sentences(text: str) -> list[str]:
    return [sentence.tokens.text.strip() for sentence in READER.sentences(text)]


def sections(text: str) -> dict[str, str]:
    return {
        sentence.tokens.text.strip(" -\n"): sentence.section for sentence in READER.sentences(text)
    }


def status(marked: str) -> str:
    """The status of the mention in [brackets]."""
    match = re.search(r"\[(.+)\]", marked)
    assert match is not None
    text = marked.replace(match[0], match[1])
    for sentence in READER.sentences(text):
        mention = sentence.tokens.doc.char_span(match.start(), match.start() + len(match[1]))
        assert mention is not None
        if sentence.tokens.start <= mention.start and mention.end <= sentence.tokens.end:
            return READER.statuses([(sentence, mention)])[0]
    raise AssertionError(f"no sentence holds {match[0]}")


# --- sentences ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("She has asthma. She smokes.", ["She has asthma.", "She smokes."]),
        (f"{LONG_LINE}\nradiates to the arm.", [f"{LONG_LINE}\nradiates to the arm."]),
        (f"{LONG_LINE}\r\nradiates to the arm.", [f"{LONG_LINE}\r\nradiates to the arm."]),
        (f"{LONG_LINE}.\nno edema", [f"{LONG_LINE}.", "no edema"]),
        (f"{LONG_LINE}\n\nno edema", [LONG_LINE, "no edema"]),
        ("Gout\nAsthma\nknee pain", ["Gout", "Asthma", "knee pain"]),
        ("- gout\n- asthma\n* cough", ["- gout", "- asthma", "* cough"]),
        ("1. Pneumonia\n2. Gout", ["Pneumonia", "Gout"]),
        ("1. T2DM\n2. COVID-19", ["T2DM", "COVID-19"]),
        ("Seen by Dr. Smith for gout.", ["Seen by Dr. Smith for gout."]),
        ("Takes 2.5 mg of warfarin.", ["Takes 2.5 mg of warfarin."]),
        ("", []),
        ("\n \n", []),
        ("ASSESSMENT:\n\n--\n", []),
    ],
)
def test_sentences(text: str, expected: list[str]) -> None:
    assert sentences(text) == expected


@given(
    st.lists(
        st.text(max_size=8)
        | st.sampled_from(
            ["\n", "\r\n", "\n\n", ". ", ": ", "- ", "no fever", "Family history", LONG_LINE]
        )
    ).map("".join)
)
def test_sentences_lie_in_the_note_in_order(text: str) -> None:
    end = 0
    for sentence in READER.sentences(text):
        tokens = sentence.tokens
        assert text[tokens.start_char : tokens.end_char] == tokens.text
        assert tokens.start_char >= end
        end = tokens.end_char
        for token in tokens:
            assert text[token.idx : token.idx + len(token)] == token.text


@given(
    st.lists(
        st.sampled_from(["gout", "Asthma", "no", "Dr.", "T2DM", "2.5 mg", LONG_LINE])
        | st.sampled_from(["\n", "\n\n", ".", ":", "-", ","])
    ).map(" ".join)
)
def test_no_word_gets_lost_between_sentences(text: str) -> None:
    words = re.findall(r"[A-Za-z]+", text)
    assert re.findall(r"[A-Za-z]+", " ".join(sentences(text))) == words


# --- sections -------------------------------------------------------------------------------

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


# --- statuses -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "sentence",
    [
        "She denies [chest pain] or palpitations.",
        "She denies fever, chills, or [night sweats].",
        "No evidence of [deep vein thrombosis] on duplex.",
        "Review of systems is negative for [cough].",
        "Lungs are clear without [wheezing].",
        "[Edema]: none",
        "[Pulmonary embolism] was ruled out by CT.",
        "[Jaundice] not noted.",
        "[Delirium] has resolved.",
        "No history of [stroke].",
        "FAMILY HISTORY:\nNo [breast cancer].",
        "Mother denies any [seizures].",
        "[Sepsis] has been ruled out.",
    ],
)
def test_negated(sentence: str) -> None:
    assert status(sentence) == "negated"


@pytest.mark.parametrize(
    "sentence",
    [
        "Her mother had [breast cancer] at 45.",
        "Family history of [colon cancer].",
        "[Huntington disease] runs in the family.",
        "FAMILY HISTORY:\nFather with hypertension.\n[Diabetes] in a sibling.",
        "Fhx: [gout], asthma",
        "Family history of possible [lupus].",
    ],
)
def test_family(sentence: str) -> None:
    assert status(sentence) == "family"


@pytest.mark.parametrize(
    "sentence",
    [
        "History of [breast cancer], treated in 2009.",
        "He is s/p [myocardial infarction] in 2015.",
        "PMH: h/o [DVT] on warfarin.",
        "[Asthma] as a child, uses no inhaler.",
        "[Lymphoma] in remission.",
    ],
)
def test_historical(sentence: str) -> None:
    assert status(sentence) == "historical"


@pytest.mark.parametrize(
    "sentence",
    [
        "Possible [pneumonia] in the left base.",
        "Findings are concerning for [appendicitis].",
        "[Sarcoidosis] is suspected.",
        "[Pneumonia] cannot be excluded.",
        "[Pneumonia] cannot be ruled out.",
        "Likely [viral gastroenteritis].",
        "Rule out [myocardial infarction].",
        "CT abdomen to r/o [appendicitis].",
        "We are unable to rule out [malignancy].",
        "MRI to evaluate for [meniscal tear].",
        "Return for [fever] or worsening pain.",
        "The risks include bleeding, which may need surgery. Risks of a [stroke] were explained.",
        "The risks of surgery include infection, which may be severe, and [stroke].",
    ],
)
def test_uncertain(sentence: str) -> None:
    assert status(sentence) == "uncertain"


@pytest.mark.parametrize(
    "sentence",
    [
        "She has [type 2 diabetes] with hyperglycemia.",
        "No fever, but he has [cough].",
        "No fever.\n[Cough] for a week.",
        "Denies chest pain; reports [palpitations].",
        "Chest X-ray shows no effusion. There is [pneumonia].",
        "[Cellulitis] of the leg; no abscess.",
        "[Hypertension] is not well controlled.",
        "There is no improvement in [back pain].",
        "There is no doubt that this is [shingles].",
        "Past medical history of [hypertension].",
        "Three-day history of [vomiting].",
        "Man with a history of smoking who presents with [chest pain].",
        "His mother reports that he has had [diarrhea] for two days.",
        "Family history: none\nAssessment: [Gout]",
        "FAMILY HISTORY:\nBreast cancer.\n\nASSESSMENT:\n[Gout]",
    ],
)
def test_affirmed(sentence: str) -> None:
    assert status(sentence) == "affirmed"


def test_mentions_of_one_note_are_judged_apart() -> None:
    (sentence,) = READER.sentences("No fever, but he has cough and possible pneumonia.")
    mentions = [
        (sentence, token)
        for word in ("fever", "cough", "pneumonia")
        for token in [sentence.tokens.doc[i : i + 1] for i in range(len(sentence.tokens.doc))]
        if token.text == word
    ]

    assert READER.statuses(mentions) == ["negated", "affirmed", "uncertain"]
    assert READER.statuses(mentions[::-1]) == ["uncertain", "affirmed", "negated"]
    assert READER.statuses([]) == []
