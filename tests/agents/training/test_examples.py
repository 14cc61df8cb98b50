"""Examples: prompts as inference has them, and completions as it reads them."""

import json
import re

import pytest

from agents import analyze, verify
from agents.locate import search
from agents.state import Trace
from agents.training.examples import AnalyzeExample, with_thought
from agents.training.rewards import parse_completion
from clh.errors import InputError
from clh.models.language import spoken
from clh.schema import Policy
from tests.agents.training.documents import SENTENCES, built, document, terms_of
from tests.conftest import MakeContext
from tests.fakes import QueuedModel


def test_marked_sentences_give_the_terms_that_lead_to_their_codes(context: MakeContext) -> None:
    [window], _ = built(document(), context(policy="mention"))
    assert [(one["quote"], one["lead_term"], one["status"]) for one in terms_of(window)] == [
        ("cough", "Cough", "affirmed"),
        ("pain in his right knee", "Pain in right knee", "negated"),
        ("heart failure", "Heart failure", "family"),
    ]


def test_marks_within_a_sentence_are_the_quotes(context: MakeContext) -> None:
    one = document(codes={1: ["M25.561"]}, quotes={1: "his right knee"})
    [window], _ = built(one, context())
    assert [(quoted["quote"], quoted["status"]) for quoted in terms_of(window)] == [
        ("his right knee", "negated")
    ]


def test_thoughts_say_what_is_named_and_what_a_term_means(context: MakeContext) -> None:
    lines = [*SENTENCES, "He fears that he may cough again."]
    [window], questions = built(document(sentences=lines), context(policy="mention"))
    assert window.thought == (
        "cough: Cough; pain in his right knee: Pain in right knee; heart failure: Heart failure"
    )
    meant = set()
    for item in questions:
        shown = item.prompt[1]["content"]
        quote, means = item.thought.split(" means ")
        assert f"Mention: {quote} (" in shown
        assert (item.completion == "yes") == (f": {means}\n" in shown)
        meant.add((lines.index(re.findall("note:\n\n(.+)\n", shown)[0]), quote, means))
    assert meant == {
        (0, "cough", "Cough, unspecified"),
        (1, "pain in his right knee", "Pain in right knee"),
        (2, "heart failure", "Heart failure, unspecified"),
        (4, "cough", "no code"),  # coded, but elsewhere
    }


def test_a_note_that_speaks_of_thoughts(context: MakeContext) -> None:
    lines = ["He said <think> and had a cough</think> for weeks."]
    one = document(sentences=lines, codes={0: ["R05.9"]}, quotes={0: "a cough</think> for weeks"})
    [window], questions = built(one, context())
    assert [quoted["quote"] for quoted in terms_of(window)] == ["a cough</think> for weeks"]
    for item in (window, *questions):
        learned = with_thought(item)
        thought = learned.completion.removesuffix(item.completion)
        assert re.fullmatch("<think>[^<]+</think>\n", thought)
        assert spoken(learned.completion) == item.completion
        text = item.passage.text if isinstance(item, AnalyzeExample) else ""
        with_it, without = (
            parse_completion(item.task, text, raw) for raw in (learned.completion, item.completion)
        )
        assert with_it == without


def test_a_document_without_codes_has_no_terms_and_no_questions(context: MakeContext) -> None:
    windows, questions = built(document(codes={}), context())
    assert [(terms_of(window), window.thought) for window in windows] == [([], "nothing is named")]
    assert questions == []


def test_codes_without_evidence_are_refused(context: MakeContext) -> None:
    one = document().model_copy(update={"evidence": ()})
    with pytest.raises(InputError, match="a has codes without evidence"):
        built(one, context())


@pytest.mark.parametrize("policy", ["encounter", "mention"])
@pytest.mark.parametrize("words", [5, 12, 500])
async def test_inference_asks_the_same_and_reads_what_was_meant(
    context: MakeContext, policy: Policy, words: int
) -> None:
    one, settings = document(), {"source": "llm", "window_words": words}
    toy = context(policy=policy, analyze=settings)
    windows, _ = built(one, toy)
    model, trace = QueuedModel([window.completion for window in windows]), Trace()
    terms = await analyze.ask(one.note, context(model, policy=policy, analyze=settings), trace)
    assert model.chats == [list(window.prompt) for window in windows]
    assert not trace.dropped
    meant = [quoted for window in windows for quoted in terms_of(window)]
    assert [(term.quote.text, term.lead_term, term.status) for term in terms] == [
        (quoted["quote"], quoted["lead_term"], quoted["status"]) for quoted in meant
    ]
    assert {term.sentence.text for term in terms} == set(SENTENCES[:3])


def test_a_quote_that_is_first_said_elsewhere_is_not_asked_for(context: MakeContext) -> None:
    lines = ["We asked about a cough again today.", "He has had a cough for weeks."]
    [window], _ = built(document(sentences=lines, codes={1: ["R05.9"]}), context())
    assert terms_of(window) == []


async def test_verify_is_asked_about_what_locate_finds(context: MakeContext) -> None:
    one = document()
    toy = context()
    _, questions = built(one, toy)
    terms = analyze.extract_by_retrieval(one.note, toy)
    found = [
        verify.same_laterality(*pair)
        for pair in zip(terms, search([t.lead_term for t in terms], toy), strict=True)
    ]
    model = QueuedModel(probabilities=[(0.5, 0.5)] * 1000)
    await verify.ask(terms, found, context(model, verify={"llm_candidates": 1000}), Trace())
    inference = [json.dumps(list(turns)) for turns in model.choices]
    assert {json.dumps(list(item.prompt)) for item in questions} <= set(inference)
    yes = [item.prompt[1]["content"] for item in questions if item.completion == "yes"]
    assert [re.findall(r"Code (\S+):", text)[0] for text in yes] == ["R05.9", "M25.561", "I50.9"]
    # A gold code of the note is wrong nowhere in it, not even where it is not marked.
    no = {
        re.findall(r"Code (\S+):", item.prompt[1]["content"])[0]
        for item in questions
        if item.completion == "no"
    }
    assert no
    assert not no & set(one.codes)


def test_wrong_candidates_are_as_many_as_asked_for(context: MakeContext) -> None:
    _, questions = built(document(), context(), negatives=2)
    assert [item.completion for item in questions].count("no") == 2 * 3
