"""Analyze: terms are the note's own words, whichever source finds them."""

import asyncio
import itertools
import json

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from agents.analyze.llm import Quoted, Reply, locate_quote
from agents.analyze.retrieval import RetrievalAnalyzer
from agents.pipeline import Pipeline
from clh.schema import Note, Status, Term
from tests.agents.steps import run_step
from tests.conftest import MakePipeline
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


def extract(pipeline: Pipeline, note: Note) -> list[Term]:
    assert isinstance(pipeline.analyzer, RetrievalAnalyzer)
    return pipeline.analyzer.extract(note)


# --- retrieval ---------------------------------------------------------------------------------


@pytest.fixture(scope="session")
def toy(make_toy: MakePipeline) -> Pipeline:
    return make_toy()


@given(text=NOTES)
@example(text="e\u0301 hypertension\r\n\U0001f468\u200d\U0001f469 heart\r\nfailure")
def test_terms_are_verbatim_and_apart(toy: Pipeline, text: str) -> None:
    note = Note(id="n", text=text)
    terms = extract(toy, note)
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
    make_toy: MakePipeline, text: str, found: list[tuple[str, Status]]
) -> None:
    note = Note(id="n", text=text)
    added = await run_step("analyze", make_toy(), note)
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
def test_what_is_looked_up(toy: Pipeline, text: str, lead_term: str) -> None:
    [term] = extract(toy, Note(id="n", text=text))
    assert term.lead_term == lead_term


@given(text=NOTES)
def test_sentences_are_looked_up_beside_their_mentions(make_toy: MakePipeline, text: str) -> None:
    note = Note(id="n", text=text)
    mentions = extract(make_toy(), note)
    terms = extract(make_toy(analyze={"retrieval": {"sentences": True}}), note)
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
    make_toy: MakePipeline, text: str, status: Status
) -> None:
    terms = extract(make_toy(analyze={"retrieval": {"sentences": True}}), Note(id="n", text=text))
    assert [term.status for term in terms if term.is_sentence] == [status]


def test_a_long_note_is_read_to_its_end(toy: Pipeline) -> None:
    day = "The patient slept well and walked along the corridor before lunch was brought in. "
    text = day * 1_430 + "He has hypertension."
    assert len(text.split()) > 20_000
    [term] = extract(toy, Note(id="n", text=text))
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
    make_toy: MakePipeline, text: str, quote: str, found: str
) -> None:
    model = QueuedModel([replies((quote, "Failure, heart", "uncertain"))])
    note = Note(id="n", text=text)
    [term] = (await run_step("analyze", make_toy(model, analyze=LLM), note))["terms"]
    assert_verbatim(note, [term])
    assert (term.lead_term, term.status) == ("Failure, heart", "uncertain")
    assert term.quote.text == found


async def test_an_invented_quote_is_dropped_and_counted(make_toy: MakePipeline) -> None:
    model = QueuedModel([replies(("gout", "Gout", "affirmed"), ("cough", "Cough", "affirmed"))])
    added = await run_step(
        "analyze", make_toy(model, analyze=LLM), Note(id="n", text="He has a cough.")
    )
    assert quotes(added["terms"]) == ["cough"]
    [dropped] = added["audit"]["dropped"]
    assert (dropped["reason"], dropped["start"]) == ("quote_not_in_note", 0)
    assert not added["errors"]


async def test_a_bad_reply_costs_only_its_own_window(make_toy: MakePipeline) -> None:
    good = replies(("cough", "Cough", "affirmed"))
    model = QueuedModel([good, '{"terms": [', good])
    settings = {
        "analyze": {"source": "llm", "llm": {"window_words": 5}},
        "audit": {"store_text": True},
    }
    note = Note(id="n", text="First a cough came. Then a fever came. Last a cough came.")
    added = await run_step("analyze", make_toy(model, **settings), note)
    assert [term.quote.start for term in added["terms"]] == [
        note.text.index("cough"),
        note.text.rindex("cough"),
    ]
    assert len(added["audit"]["dropped"]) == 1
    assert [warning.rule for warning in added["warnings"]] == ["unusable_reply"]
    assert [exchange["reply"] for exchange in added["audit"]["exchanges"]][1] == '{"terms": ['
    assert not added["errors"]


@pytest.mark.parametrize("words", [1, 7, 40, 10_000])
async def test_windows_hold_whole_sentences_and_leave_none_out(
    make_toy: MakePipeline, words: int
) -> None:
    sentences = [f"Finding number {i} & <b>{{x}}</b> is noted here." for i in range(30)]
    model = QueuedModel([replies()] * len(sentences))
    settings = {"source": "llm", "llm": {"window_words": words}}
    await run_step(
        "analyze", make_toy(model, analyze=settings), Note(id="n", text=" ".join(sentences))
    )
    shown = [messages[-1]["content"] for messages in model.chats]
    held = [[sentence for sentence in sentences if sentence in passage] for passage in shown]
    assert list(itertools.chain.from_iterable(held)) == sentences
    assert all(len(some) == 1 or len(" ".join(some).split()) <= words for some in held)
    assert len(held) == 30 if words < 10 else len(held) < 30


async def test_sections_that_name_no_diagnosis_are_not_shown(make_toy: MakePipeline) -> None:
    text = "ASSESSMENT:\nCough.\n\nMEDICATIONS:\n- metformin\n\nPLAN:\nRest. See him soon."
    model = QueuedModel([replies()] * 2)
    await run_step("analyze", make_toy(model, analyze=LLM), Note(id="n", text=text))
    shown = [messages[-1]["content"] for messages in model.chats]
    assert ["Cough." in passage for passage in shown] == [True, False]
    assert ["Rest. See him soon." in passage for passage in shown] == [False, True]
    assert not any("metformin" in passage for passage in shown)


@given(text=NOTES, before=st.text(max_size=9), data=st.data())
def test_any_whole_words_of_a_passage_are_located_whatever_their_white_space(
    text: str, before: str, data: st.DataObject
) -> None:
    note = Note(id="n", text=f"{before} {text}")
    passage = note.span(len(before), len(note.text))
    words = passage.text.split()
    start = data.draw(st.integers(0, len(words) - 1))
    stretch = words[start : data.draw(st.integers(start + 1, len(words)))]
    found = locate_quote(note, passage, " \n ".join(stretch))
    assert found is not None
    assert note.text[found.start : found.end] == found.text
    assert found.text.split() == stretch
    assert passage.start <= found.start


@pytest.mark.parametrize(
    ("text", "quote", "start"),
    [
        ("No family history of note. Admitted with acute MI.", "MI", 47),
        ("Symptoms of MS.", "MS", 12),
        ("Oral intake is fair. RA is stable.", "RA", 21),
        ("She had HA.", "HA", 8),
        ("Pedal edema, then PE.", "PE", 18),
        ("Takes it. IT band pain.", "IT", 10),  # the same case first
        ("Mild asthma.", "ASTHMA", 5),
        ("Myeloma.", "oma", None),
    ],
)
def test_a_quote_is_not_found_inside_another_word(text: str, quote: str, start: int | None) -> None:
    note = Note(id="n", text=text)
    found = locate_quote(note, note.span(0, len(text)), quote)
    assert (found.start if found else None) == start


async def test_equal_quotes_are_the_occurrences_in_their_order(make_toy: MakePipeline) -> None:
    note = Note(id="n", text="Denies cough at night. Today he has a cough.")
    model = QueuedModel([replies(("cough", "Cough", "negated"), ("cough", "Cough", "affirmed"))])
    added = await run_step("analyze", make_toy(model, analyze=LLM), note)
    assert [(term.quote.start, term.status) for term in added["terms"]] == [
        (note.text.index("cough"), "negated"),
        (note.text.rindex("cough"), "affirmed"),
    ]


@given(text=NOTES, quote=st.text())
def test_find_takes_any_quote(text: str, quote: str) -> None:
    note = Note(id="n", text=text)
    found = locate_quote(note, note.span(0, len(text)), quote)
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
def test_no_reply_breaks_the_agent(make_toy: MakePipeline, raw: str) -> None:
    note = Note(id="n", text="He has a cough.")
    added = asyncio.run(run_step("analyze", make_toy(QueuedModel([raw]), analyze=LLM), note))
    # A model that could not be understood must not look like a note without findings.
    assert all("none of the 1 replies" in error.message for error in added["errors"])
    assert ("terms" in added) != bool(added["errors"])
    assert_verbatim(note, added.get("terms", []))
    assert len(added["audit"]["exchanges"]) >= 1


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
    make_toy: MakePipeline, said: Status, quote: str, status: Status
) -> None:
    note = Note(id="n", text="He has gout. No evidence of pulmonary embolism.")
    model = QueuedModel([replies((quote, quote, said))])
    added = await run_step("analyze", make_toy(model, analyze={"source": "llm"}), note)
    assert [(term.quote.text, term.status) for term in added["terms"]] == [(quote, status)]
