"""Assertion status: what a sentence says about whether its mentions hold."""

import itertools
import re
from collections import defaultdict

import pytest
from hypothesis import given
from hypothesis import strategies as st

from clh.document.assertion import STATUSES, AssertionRules
from clh.document.reader import Reader

READER = Reader()


def status(marked: str) -> str:
    """The status of the mention in [brackets]."""
    match = re.search(r"\[([^]]+)\]", marked)
    assert match is not None
    text = marked.replace(match[0], match[1])
    end = match.start() + len(match[1])
    [mention] = [
        sentence.mention(match.start(), end)
        for sentence in READER.all_sentences(text)
        if sentence.start <= match.start() and end <= sentence.end
    ]
    assert text[mention.start : mention.end] == match[1]
    return mention.status


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


@pytest.mark.parametrize(
    ("sentence", "expected"),
    [
        ("She doesn\u2019t have [gout].", "negated"),
        ("PSYCHIATRIC:  [Depression]:  none.", "negated"),
        ("No evi-\ndence of [pneu-\nmonia].", "negated"),
        ("No sign of \ufb01stula or [in\ufb02ammation].", "negated"),
        ("[Depression],\u00a0resolved.", "negated"),
    ],
)
def test_triggers_are_read_whatever_copying_made_of_them(sentence: str, expected: str) -> None:
    assert status(sentence) == expected


def test_mentions_of_one_sentence_are_judged_apart() -> None:
    text = "No fever, but he has cough and possible pneumonia."
    [sentence] = READER.sentences(text)
    found = {
        word: sentence.mention(text.index(word), text.index(word) + len(word)).status
        for word in ("fever", "cough", "pneumonia")
    }
    assert found == {"fever": "negated", "cough": "affirmed", "pneumonia": "uncertain"}


# --- the algorithm ----------------------------------------------------------------------------

RULES = {
    status: {
        "before": ["no", "no sign of"],
        "after": ["not seen", "is absent"],
        "termination": ["but", "is but"],
        "pseudo": ["no increase", "not only"],
    }
    for status in STATUSES
}
WORDS = ["no", "sign", "of", "increase", "not", "seen", "only", "is", "absent", "but", "gout"]


def is_reached(words: list[str], first: int, last: int) -> bool:
    """NegEx as its authors give it, mention by mention."""
    found = defaultdict(list)
    for kind, phrases in RULES["negated"].items():
        for phrase in map(str.split, phrases):
            for start in range(len(words) - len(phrase) + 1):
                if words[start : start + len(phrase)] == phrase:
                    found[kind].append((start, start + len(phrase)))
    pseudo = found.pop("pseudo", [])
    for kind in found:
        found[kind] = [
            (start, end)
            for start, end in found[kind]
            if not any(begins <= start <= ends for begins, ends in pseudo)
        ]
    bounds = sorted({0, len(words), *(start for start, _ in found["termination"])})
    for start, end in itertools.pairwise(bounds):
        if start <= first and last < end:
            return any(start <= begins < first for begins, _ in found["before"]) or any(
                start <= begins < end and ends > last + 1 for begins, ends in found["after"]
            )
    return False


@given(st.lists(st.sampled_from(WORDS), min_size=1, max_size=25), st.data())
def test_scopes_are_those_of_negex(words: list[str], data: st.DataObject) -> None:
    first = data.draw(st.integers(0, len(words) - 1))
    last = data.draw(st.integers(first, len(words) - 1))
    scope = AssertionRules(RULES).scopes(words).get("negated")
    assert (scope is not None and scope.holds(first, last + 1)) == is_reached(words, first, last)
