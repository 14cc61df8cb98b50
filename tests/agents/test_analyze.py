"""Analyze: terms are the note's own words, whichever source finds them."""

import asyncio
import itertools
import json

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from agents.analyze import Quoted, Reply, analyze, extract_by_retrieval, find
from agents.context import Context
from clh.schema import Note, Status, Term
from tests.agents.steps import step
from tests.conftest import MakeContext
from tests.fakes import QueuedModel

LLM = {"source": "llm"}
# Characters that have tripped programs: CRLF, combining accents, emoji of several code points.
PIECES = [
    *("hypertension", "heart failure", "pneumonia", "HTN", "high blood\r\npressure", "cough"),
    *("No ", "possible ", "FAMILY HISTORY:\n", "MEDICATIONS:\r\n", "history of ", "1) ", "- "),
    *(" ", ". ", "\n", "\r\n", "\r", "\t", "\u2028", "\u00a0", "e\u0301", "\u0301", "\ufeff"),
    *("\U0001f468\u200d\U0001f469\u200d\U0001f467", "\U0001f600", "<|im_start|>", "Crohn\u2019s"),
]
NOTES = (
    st.lists(
        st.sampled_from(PIECES)
        | st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=9)
    )
    .map("".join)
    .filter(str.strip)
)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
)


def quotes(terms: list[Term]) -> list[str]:
    return [term.quote.text for term in terms]


def assert_verbatim(note: Note, terms: list[Term]) -> None:
    for term in terms:
        for span in (term.quote, term.sentence):
            assert note.text[span.start : span.end] == span.text
        assert term.sentence.start <= term.quote.start
        assert term.quote.end <= term.sentence.end


def replies(*terms: tuple[str, str, Status]) -> Reply:
    return Reply(
        terms=[Quoted(quote=quote, lead_term=lead, status=status) for quote, lead, status in terms]
    )


# --- retrieval ---------------------------------------------------------------------------------


@pytest.fixture(scope="session")
def toy(context: MakeContext) -> Context:
    return context()


@given(text=NOTES)
@example(text="e\u0301 hypertension\r\n\U0001f468\u200d\U0001f469 heart\r\nfailure")
def test_terms_are_verbatim_and_apart(toy: Context, text: str) -> None:
    note = Note(id="n", text=text)
    terms = extract_by_retrieval(note, toy)
    assert_verbatim(note, terms)
    for one, following in itertools.pairwise(terms):
        assert one.quote.end <= following.quote.start


@pytest.mark.parametrize(
    ("text", "found"),
    [
        (
            "High blood pressure with heart failure.",
            [("High blood pressure", "affirmed"), ("heart failure", "affirmed")],
        ),
        ("She has no hypertension.", [("hypertension", "negated")]),
        ("Father had heart failure.", [("heart failure", "family")]),
        ("FAMILY HISTORY:\nHeart failure.", [("Heart failure", "family")]),
        ("Pneumonia 20 years ago.", [("Pneumonia", "historical")]),
        ("Possible pneumonia.", [("pneumonia", "uncertain")]),
        (
            "Denies cough, but has hypertension.",
            [("cough", "negated"), ("hypertension", "affirmed")],
        ),
        (
            "He came back to the clinic in the morning with systolic\r\nheart failure.",
            [("systolic\r\nheart failure", "affirmed")],
        ),
        ("\U0001f600 caf\u00e9 e\u0301 hypertension", [("hypertension", "affirmed")]),
        ("MEDICATIONS:\nHypertension pills.\n\nASSESSMENT:\nCough.", [("Cough", "affirmed")]),
        ("The weather is fine.", []),
        ("\U0001f600 !", []),
    ],
)
async def test_mentions_and_their_statuses(
    context: MakeContext, text: str, found: list[tuple[str, Status]]
) -> None:
    note = Note(id="n", text=text)
    added = await step(analyze, context(), note)
    assert [(term.quote.text, term.status) for term in added["terms"]] == found
    assert not added["errors"]


@pytest.mark.parametrize(
    ("text", "lead_term"),
    [
        ("HTN.", "hypertension"),
        ("Father had heart failure.", "Family history of heart failure"),
        ("Heart failure 20 years ago.", "Personal history of heart failure"),
        ("No heart failure.", "heart failure"),
    ],
)
def test_what_is_looked_up(toy: Context, text: str, lead_term: str) -> None:
    [term] = extract_by_retrieval(Note(id="n", text=text), toy)
    assert term.lead_term == lead_term


@given(text=NOTES)
def test_sentences_are_looked_up_beside_their_mentions(context: MakeContext, text: str) -> None:
    note = Note(id="n", text=text)
    mentions = extract_by_retrieval(note, context())
    terms = extract_by_retrieval(note, context(analyze={"sentences": True}))
    assert_verbatim(note, terms)
    assert [term for term in terms if not term.is_sentence] == mentions
    sentence_terms = [term for term in terms if term.is_sentence]
    assert {term.sentence for term in mentions} <= {term.quote for term in sentence_terms}
    for one, following in itertools.pairwise(sentence_terms):
        assert one.quote.end <= following.quote.start


@pytest.mark.parametrize(
    ("text", "status"),
    [
        ("He has hypertension and a cough.", "affirmed"),
        ("He has hypertension, but no cough.", "negated"),
        ("Hypertension; possible pneumonia.", "uncertain"),
        ("Father had heart failure.", "family"),
        ("FAMILY HISTORY:\nHeart failure.", "family"),
    ],
)
def test_a_sentence_is_affirmed_only_if_all_of_it_is(
    context: MakeContext, text: str, status: Status
) -> None:
    terms = extract_by_retrieval(Note(id="n", text=text), context(analyze={"sentences": True}))
    assert [term.status for term in terms if term.is_sentence] == [status]


def test_a_long_note_is_read_to_its_end(toy: Context) -> None:
    day = "The patient slept well and walked along the corridor before lunch was brought in. "
    text = day * 1_430 + "He has hypertension."
    assert len(text.split()) > 20_000
    [term] = extract_by_retrieval(Note(id="n", text=text), toy)
    assert term.quote.start == text.index("hypertension")


# --- the language model ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "quote", "found"),
    [
        ("He has Heart Failure.", "heart failure", "Heart Failure"),
        ("He has heart\r\n  failure.", "heart failure", "heart\r\n  failure"),
        ("He has heart failure.", " heart\nfailure ", "heart failure"),
        ("ASSESSMENT:\nHeart failure. Gout.", "heart failure. gout", "Heart failure. Gout"),
        ("Temp (38.5) c++ [sic].", "(38.5) C++ [sic]", "(38.5) c++ [sic]"),
    ],
)
async def test_quotes_are_found_as_the_note_has_them(
    context: MakeContext, text: str, quote: str, found: str
) -> None:
    model = QueuedModel([replies((quote, "Failure, heart", "uncertain"))])
    note = Note(id="n", text=text)
    [term] = (await step(analyze, context(model, analyze=LLM), note))["terms"]
    assert_verbatim(note, [term])
    assert (term.lead_term, term.status) == ("Failure, heart", "uncertain")
    assert term.quote.text == found


async def test_an_invented_quote_is_dropped_and_counted(context: MakeContext) -> None:
    model = QueuedModel([replies(("gout", "Gout", "affirmed"), ("cough", "Cough", "affirmed"))])
    added = await step(analyze, context(model, analyze=LLM), Note(id="n", text="He has a cough."))
    assert quotes(added["terms"]) == ["cough"]
    [dropped] = added["audit"]["dropped"]
    assert (dropped["reason"], dropped["start"]) == ("quote_not_in_note", 0)
    assert not added["errors"]


async def test_a_bad_reply_costs_only_its_own_window(context: MakeContext) -> None:
    good = replies(("cough", "Cough", "affirmed"))
    model = QueuedModel([good, '{"terms": [', good])
    settings = {"analyze": {"source": "llm", "window_words": 5}, "audit": {"store_text": True}}
    note = Note(id="n", text="First a cough came. Then a fever came. Last a cough came.")
    added = await step(analyze, context(model, **settings), note)
    assert [term.quote.start for term in added["terms"]] == [
        note.text.index("cough"),
        note.text.rindex("cough"),
    ]
    assert len(added["audit"]["dropped"]) == 1
    assert [exchange["reply"] for exchange in added["audit"]["exchanges"]][1] == '{"terms": ['
    assert not added["errors"]


@pytest.mark.parametrize("words", [1, 7, 40, 10_000])
async def test_windows_hold_whole_sentences_and_leave_none_out(
    context: MakeContext, words: int
) -> None:
    sentences = [f"Finding number {i} & <b>{{x}}</b> is noted here." for i in range(30)]
    model = QueuedModel([replies()] * len(sentences))
    settings = {"source": "llm", "window_words": words}
    await step(analyze, context(model, analyze=settings), Note(id="n", text=" ".join(sentences)))
    shown = [messages[-1]["content"] for messages in model.chats]
    held = [[sentence for sentence in sentences if sentence in passage] for passage in shown]
    assert list(itertools.chain.from_iterable(held)) == sentences
    assert all(len(some) == 1 or len(" ".join(some).split()) <= words for some in held)
    assert len(held) == 30 if words < 10 else len(held) < 30


@given(text=NOTES, before=st.text(max_size=9), data=st.data())
def test_find_finds_any_stretch_whatever_its_white_space(
    text: str, before: str, data: st.DataObject
) -> None:
    note = Note(id="n", text=before + text)
    passage = note.span(len(before), len(note.text))
    start = data.draw(st.integers(0, len(text) - 1))
    stretch = text[start : data.draw(st.integers(start + 1, len(text)))]
    found = find(note, passage, " \n ".join(stretch.split()))
    if not stretch.strip():
        assert found is None
    else:
        assert found is not None
        assert note.text[found.start : found.end] == found.text
        assert found.text.split() == stretch.split() or found.start <= len(before) + start
        assert passage.start <= found.start


@given(text=NOTES, quote=st.text())
def test_find_takes_any_quote(text: str, quote: str) -> None:
    note = Note(id="n", text=text)
    found = find(note, note.span(0, len(text)), quote)
    assert found is None or len(found.text.split()) == len(quote.split())


TERMS = st.fixed_dictionaries(
    {
        "quote": st.sampled_from(["cough", "COUGH", "a  cough", "gout", ""]) | st.text(),
        "lead_term": st.text(max_size=90),
        "status": st.sampled_from(["affirmed", "negated", "absent"]),
    }
)


@given(
    raw=st.text()
    | JSON.map(json.dumps)
    | st.fixed_dictionaries({"terms": st.lists(TERMS | JSON)}).map(json.dumps)
)
def test_no_reply_breaks_the_agent(context: MakeContext, raw: str) -> None:
    note = Note(id="n", text="He has a cough.")
    added = asyncio.run(step(analyze, context(QueuedModel([raw]), analyze=LLM), note))
    assert not added["errors"]
    assert_verbatim(note, added["terms"])
    assert len(added["audit"]["exchanges"]) == 1


@pytest.mark.parametrize(
    ("said", "quote", "status"),
    [
        ("affirmed", "pulmonary embolism", "negated"),  # the reader knows better
        ("affirmed", "gout", "affirmed"),
        ("uncertain", "pulmonary embolism", "uncertain"),
        ("negated", "gout", "negated"),
    ],
)
async def test_a_model_that_overlooks_a_denial_is_corrected(
    context: MakeContext, said: Status, quote: str, status: Status
) -> None:
    note = Note(id="n", text="He has gout. No evidence of pulmonary embolism.")
    model = QueuedModel([replies((quote, quote, said))])
    added = await step(analyze, context(model, analyze={"source": "llm"}), note)
    assert [(term.quote.text, term.status) for term in added["terms"]] == [(quote, status)]
