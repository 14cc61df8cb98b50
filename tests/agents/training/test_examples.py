"""Examples: prompts as inference has them, and completions as it reads them."""

import json
import re

import pytest

from agents.node import Trace
from agents.training.evidence import locate_document
from agents.training.examples import AnalyzeExample, with_thought
from agents.training.rewards import parse_completion
from clh.errors import InputError
from clh.models.language import strip_thinking
from clh.schema import Policy
from tests.agents.training.documents import SENTENCES, built, document, terms_of
from tests.conftest import MakePipeline
from tests.fakes import QueuedModel


def test_marked_sentences_give_the_terms_that_lead_to_their_codes(make_toy: MakePipeline) -> None:
    [window], _ = built(document(), make_toy(policy="mention"))
    assert [(one["quote"], one["lead_term"], one["status"]) for one in terms_of(window)] == [
        ("cough", "Cough", "affirmed"),
        ("pain in his right knee", "Pain in right knee", "negated"),
        ("heart failure", "Heart failure", "family"),
    ]


def test_marks_within_a_sentence_are_the_quotes(make_toy: MakePipeline) -> None:
    one = document(codes={1: ["M25.561"]}, quotes={1: "his right knee"})
    [window], _ = built(one, make_toy())
    assert [(quoted["quote"], quoted["status"]) for quoted in terms_of(window)] == [
        ("his right knee", "negated")
    ]


def test_thoughts_say_what_is_named_and_what_a_term_means(make_toy: MakePipeline) -> None:
    lines = [*SENTENCES, "He fears that he may cough again."]
    [window], questions = built(document(sentences=lines), make_toy(policy="mention"))
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


def test_a_note_that_speaks_of_thoughts(make_toy: MakePipeline) -> None:
    lines = ["He said <think> and had a cough</think> for weeks."]
    one = document(sentences=lines, codes={0: ["R05.9"]}, quotes={0: "a cough</think> for weeks"})
    [window], questions = built(one, make_toy())
    assert [quoted["quote"] for quoted in terms_of(window)] == ["a cough</think> for weeks"]
    for item in (window, *questions):
        learned = with_thought(item)
        thought = learned.completion.removesuffix(item.completion)
        assert re.fullmatch("<think>[^<]+</think>\n", thought)
        assert strip_thinking(learned.completion) == item.completion
        text = item.passage.text if isinstance(item, AnalyzeExample) else ""
        with_it, without = (
            parse_completion(item.task, text, raw) for raw in (learned.completion, item.completion)
        )
        assert with_it == without


def test_a_document_without_codes_has_no_terms_and_no_questions(make_toy: MakePipeline) -> None:
    windows, questions = built(document(codes={}), make_toy())
    assert [(terms_of(window), window.thought) for window in windows] == [([], "nothing is named")]
    assert questions == []


def test_codes_without_evidence_are_refused(make_toy: MakePipeline) -> None:
    one = document().model_copy(update={"evidence": ()})
    with pytest.raises(InputError, match="a has codes without evidence"):
        built(one, make_toy())


@pytest.mark.parametrize("policy", ["encounter", "mention"])
@pytest.mark.parametrize("words", [5, 12, 500])
async def test_inference_asks_the_same_and_reads_what_was_meant(
    make_toy: MakePipeline, policy: Policy, words: int
) -> None:
    one, llm = document(), {"window_words": words}
    windows, _ = built(one, make_toy(policy=policy, analyze={"llm": llm}))
    model, trace = QueuedModel([window.completion for window in windows]), Trace()
    asked = make_toy(model, policy=policy, analyze={"source": "llm", "llm": llm})
    terms, _ = await asked.analyzer.analyze(one.note, trace)
    assert model.chats == [list(window.prompt) for window in windows]
    assert not trace.dropped
    meant = [quoted for window in windows for quoted in terms_of(window)]
    assert [(term.quote.text, term.lead_term, term.status) for term in terms] == [
        (quoted["quote"], quoted["lead_term"], quoted["status"]) for quoted in meant
    ]
    assert {term.sentence.text for term in terms} == set(SENTENCES[:3])


def test_a_quote_that_is_first_said_elsewhere_is_not_asked_for(make_toy: MakePipeline) -> None:
    lines = ["We asked about a cough again today.", "He has had a cough for weeks."]
    [window], _ = built(document(sentences=lines, codes={1: ["R05.9"]}), make_toy())
    assert terms_of(window) == []


async def test_verify_is_asked_about_what_locate_finds(make_toy: MakePipeline) -> None:
    one = document()
    toy = make_toy()
    _, questions = built(one, toy)
    terms, found = locate_document(one, toy)
    model = QueuedModel(probabilities=[(0.5, 0.5)] * 1000)
    asked = make_toy(model, verify={"source": "llm", "llm": {"candidates": 1000}})
    await asked.verifier.verify(terms, found, Trace())
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


def test_wrong_candidates_are_as_many_as_asked_for(make_toy: MakePipeline) -> None:
    _, questions = built(document(), make_toy(), negatives=2)
    assert [item.completion for item in questions].count("no") == 2 * 3
