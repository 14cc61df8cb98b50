"""What is learned: questions as inference asks them, replies as it reads them, nothing unseen."""

import json
import os
import random
import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from agents.context import Context
from hypothesis import given
from hypothesis import strategies as st

from agents import analyze, verify
from agents.locate import search
from agents.state import Trace
from agents.training.examples import (
    Item,
    Judge,
    Question,
    Window,
    ask,
    draw,
    hear,
    mistakes,
    said,
    score,
    thoughtful,
)
from clh import corpora
from clh.corpora import Evidence, Example
from clh.errors import InputError
from clh.models.language import LocalModel, strip_thinking, with_thinking
from clh.schema import Note, Policy
from clh.training.language import Recipe, SupervisedRecipe, Task
from tests.conftest import MakeContext
from tests.fakes import QueuedModel, tiny_llama

REAL = os.environ.get("CLH_TEST_DATA", "")
SENTENCES = [
    "He has had a cough for three weeks now.",
    "There is no pain in his right knee.",
    "His mother had heart failure at a young age.",
    "He walked to the clinic with his dog today.",
]
CODES = {0: ["R05.9"], 1: ["M25.561"], 2: ["I50.9"]}


def example(
    id: str = "a",
    sentences: list[str] = SENTENCES,
    codes: dict[int, list[str]] = CODES,
    quotes: dict[int, str] | None = None,
) -> Example:
    """A document of a sentence a line, marked as a whole unless `quotes` says with which words."""
    note = Note(id=id, text="\n".join(sentences))
    marks = []
    for line, those in codes.items():
        quote = (quotes or {}).get(line, sentences[line])
        start = note.text.index(quote)
        marks += [
            Evidence(code=code, note_id=id, spans=(note.span(start, start + len(quote)),))
            for code in those
        ]
    return Example(
        id=id,
        notes=(note,),
        codes=tuple(dict.fromkeys(code for those in codes.values() for code in those)),
        evidence=tuple(marks),
        split="train",
    )


def asked(one: Example, context: Context, **given: Any) -> tuple[list[Window], list[Question]]:
    """All that is learned from a document."""
    items = ask(one, context, rng=random.Random(0), **{"negatives": 100, **given})
    windows = [item for item in items if isinstance(item, Window)]
    return windows, [item for item in items if isinstance(item, Question)]


def replies(window: Window) -> list[dict[str, str]]:
    found: list[dict[str, str]] = json.loads(window.reply)["terms"]
    return found


# --- what is right --------------------------------------------------------------------------


def test_marked_sentences_give_the_terms_that_lead_to_their_codes(context: MakeContext) -> None:
    [window], _ = asked(example(), context(policy="mention"))
    assert [(one["quote"], one["lead_term"], one["status"]) for one in replies(window)] == [
        ("cough", "Cough", "affirmed"),
        ("pain in his right knee", "Pain in right knee", "negated"),
        ("heart failure", "Heart failure", "family"),
    ]


def test_marks_within_a_sentence_are_the_quotes(context: MakeContext) -> None:
    one = example(codes={1: ["M25.561"]}, quotes={1: "his right knee"})
    [window], _ = asked(one, context())
    assert [(quoted["quote"], quoted["status"]) for quoted in replies(window)] == [
        ("his right knee", "negated")
    ]


def test_thoughts_say_what_is_named_and_what_a_term_means(context: MakeContext) -> None:
    lines = [*SENTENCES, "He fears that he may cough again."]
    [window], questions = asked(example(sentences=lines), context(policy="mention"))
    assert window.thought == (
        "cough: Cough; pain in his right knee: Pain in right knee; heart failure: Heart failure"
    )
    meant = set()
    for item in questions:
        shown = item.messages[1]["content"]
        quote, means = item.thought.split(" means ")
        assert f"Mention: {quote} (" in shown
        assert (item.reply == "yes") == (f": {means}\n" in shown)
        meant.add((lines.index(re.findall("note:\n\n(.+)\n", shown)[0]), quote, means))
    assert meant == {
        (0, "cough", "Cough, unspecified"),
        (1, "pain in his right knee", "Pain in right knee"),
        (2, "heart failure", "Heart failure, unspecified"),
        (4, "cough", "no code"),  # coded, but elsewhere
    }


def test_a_note_that_speaks_of_thoughts(context: MakeContext) -> None:
    lines = ["He said <think> and had a cough</think> for weeks."]
    one = example(sentences=lines, codes={0: ["R05.9"]}, quotes={0: "a cough</think> for weeks"})
    [window], questions = asked(one, context())
    assert [quoted["quote"] for quoted in replies(window)] == ["a cough</think> for weeks"]
    for item in (window, *questions):
        learned = thoughtful(item)
        thought = learned.reply.removesuffix(item.reply)
        assert re.fullmatch("<think>[^<]+</think>\n", thought)
        assert strip_thinking(learned.reply) == item.reply
        assert hear(item, learned.reply) == hear(item, item.reply)


def test_a_document_without_codes_has_no_terms_and_no_questions(context: MakeContext) -> None:
    windows, questions = asked(example(codes={}), context())
    assert [(replies(window), window.thought) for window in windows] == [([], "nothing is named")]
    assert questions == []


def test_codes_without_evidence_are_refused(context: MakeContext) -> None:
    one = example().model_copy(update={"evidence": ()})
    with pytest.raises(InputError, match="a has codes without evidence"):
        asked(one, context())


@pytest.mark.parametrize("policy", ["encounter", "mention"])
@pytest.mark.parametrize("words", [5, 12, 500])
async def test_inference_asks_the_same_and_reads_what_was_meant(
    context: MakeContext, policy: Policy, words: int
) -> None:
    one, settings = example(), {"source": "llm", "window_words": words}
    toy = context(policy=policy, analyze=settings)
    windows, _ = asked(one, toy)
    model, trace = QueuedModel([window.reply for window in windows]), Trace()
    terms = await analyze.ask(one.note, context(model, policy=policy, analyze=settings), trace)
    assert model.chats == [list(window.messages) for window in windows]
    assert not trace.dropped
    meant = [quoted for window in windows for quoted in replies(window)]
    assert [(term.quote.text, term.lead_term, term.status) for term in terms] == [
        (quoted["quote"], quoted["lead_term"], quoted["status"]) for quoted in meant
    ]
    assert {term.sentence.text for term in terms} == set(SENTENCES[:3])


def test_a_quote_that_is_first_said_elsewhere_is_not_asked_for(context: MakeContext) -> None:
    lines = ["We asked about a cough again today.", "He has had a cough for weeks."]
    [window], _ = asked(example(sentences=lines, codes={1: ["R05.9"]}), context())
    assert replies(window) == []


async def test_verify_is_asked_about_what_locate_finds(context: MakeContext) -> None:
    one = example()
    toy = context()
    _, questions = asked(one, toy)
    terms = analyze.extract_by_retrieval(one.note, toy)
    found = [
        verify.same_laterality(*pair)
        for pair in zip(terms, search([t.lead_term for t in terms], toy), strict=True)
    ]
    model = QueuedModel(probabilities=[(0.5, 0.5)] * 1000)
    await verify.ask(terms, found, context(model, verify={"llm_candidates": 1000}), Trace())
    inference = [json.dumps(list(turns)) for turns in model.choices]
    assert {json.dumps(list(item.messages)) for item in questions} <= set(inference)
    yes = [item.messages[1]["content"] for item in questions if item.reply == "yes"]
    assert [re.findall(r"Code (\S+):", text)[0] for text in yes] == ["R05.9", "M25.561", "I50.9"]
    # A gold code of the note is wrong nowhere in it, not even where it is not marked.
    no = {
        re.findall(r"Code (\S+):", item.messages[1]["content"])[0]
        for item in questions
        if item.reply == "no"
    }
    assert no
    assert not no & set(one.codes)


def test_wrong_candidates_are_as_many_as_asked_for(context: MakeContext) -> None:
    _, questions = asked(example(), context(), negatives=2)
    assert [item.reply for item in questions].count("no") == 2 * 3


# --- what is not seen -------------------------------------------------------------------------


def recipe(**changed: Any) -> Recipe:
    file = Path(__file__).parents[3] / "experiments" / "recipes" / "run_training.yaml"
    return SupervisedRecipe.model_validate(yaml.safe_load(file.read_text()) | changed)


def shingles(text: str) -> set[tuple[str, ...]]:
    words = re.findall(r"\w+", text.lower())
    return {tuple(words[at : at + 5]) for at in range(len(words) - 4)}


def assert_unseen(items: list[Item], others: list[Example]) -> None:
    """No document of the others is learned from, nor a sentence of theirs, nor most of one's words.

    Sentences are found by their lines, not by the code that left them out.
    """
    assert not {item.document for item in items} & {one.id for one in others}
    learned = "\n".join(turn["content"] for item in items for turn in item.messages)
    plain = " ".join(re.sub(r"\d+", "0", learned.casefold()).split())
    known = shingles(learned)
    for one in others:
        for line in re.split(r"(?<=[.?!])\s|\n", one.note.text):
            words = re.sub(r"\d+", "0", line.casefold()).split()
            assert len(words) < 6 or " ".join(words) not in plain, f"{one.id}: {len(words)} words"
        own = shingles(one.note.text)
        assert len(own & known) < 0.5 * len(own), one.id


def test_nothing_of_other_documents_is_learned(context: MakeContext) -> None:
    near = [*SENTENCES[:3], "He walked to the clinic with his cat on 3 days."]
    far = ["She came with a cough of two weeks or so.", "She had 14 good days, then chest pain."]
    documents = [
        example("near", near),
        example("far", far, {0: ["R05.9"], 1: ["R07.9"]}),
        example(
            "own",
            ["Heart failure was found in the old man.", "No cough was heard by us."],
            {0: ["I50.9"]},
        ),
    ]
    others = [
        example("dev"),
        example("held out", ["She had 3 good days, then chest pain."], {0: ["R07.9"]}),
    ]
    toy = context(analyze={"window_words": 8})
    drawn = draw(
        documents, toy, recipe(), {"analyze": 100, "verify": 100}, said(others, toy.reader)
    )
    assert_unseen(drawn, others)
    assert {item.document for item in drawn} == {"near", "far", "own"}
    shown = "".join(item.messages[1]["content"] for item in drawn)
    assert near[3] in shown
    assert far[0] in shown
    assert far[1] not in shown  # another figure makes no other sentence
    with pytest.raises(AssertionError):
        assert_unseen(draw(documents, toy, recipe(), {"analyze": 100}), others)


@pytest.mark.skipif(not REAL, reason="CLH_TEST_DATA names no folder of real data")
def test_nothing_of_the_real_other_documents_is_learned(context: MakeContext) -> None:
    folder = Path(REAL) / "codiesp"
    documents, others = corpora.hold_out(list(corpora.read("codiesp", folder, "train")), 0.1, 0)
    others += corpora.read("codiesp", folder, "dev")
    toy = context(policy="mention", locate={"candidates": 2})
    unseen = said(others, toy.reader)
    risky = [one for one in documents if said([one], toy.reader) & unseen]
    assert risky
    drawn = draw([*risky, *documents[:5]], toy, recipe(), {"analyze": 9999, "verify": 9999}, unseen)
    assert len({item.document for item in drawn}) >= len(risky)
    assert_unseen(drawn, others)
    for one in documents:  # and no whole document is another's double
        own = said([one], toy.reader)
        assert len(own & unseen) < 0.5 * max(len(own), 1), one.id


def test_the_same_seed_draws_the_same_questions(context: MakeContext) -> None:
    documents, toy = [example(str(number)) for number in range(4)], context()
    sizes: dict[Task, int] = {"analyze": 2, "verify": 5}
    first, again = (draw(documents, toy, recipe(), sizes) for _ in range(2))
    assert first == again
    assert [sum(item.task == task for item in first) for task in sizes] == [2, 5]
    assert draw(documents, toy, recipe(seed=1), sizes) != first


def test_a_task_without_questions_is_said(context: MakeContext) -> None:
    with pytest.raises(InputError, match="no document has a question for verify"):
        draw([example(codes={})], context(), recipe(), {"analyze": 1, "verify": 1})


# --- how good a reply is ----------------------------------------------------------------------


@pytest.fixture(scope="session")
def judge(context: MakeContext) -> Judge:
    """Of one window, and of a question to answer yes and one to answer no."""
    windows, questions = asked(example(), context(policy="mention"))
    by_reply = {item.reply: item for item in questions}
    strict = context(locate={"candidates": 1})  # among 20 of this small book any code would be
    return Judge([*windows, by_reply["yes"], by_reply["no"]], strict)


def rewarded(judge: Judge, place: int, *raws: str) -> list[tuple[float, float, float]]:
    """Format, verbatim and correct of replies to one item."""
    given = [[{"role": "assistant", "content": raw}] for raw in raws], [place] * len(raws)
    return list(
        zip(judge.format(*given), judge.verbatim(*given), judge.correct(*given), strict=True)
    )


def reply(*terms: tuple[str, str]) -> str:
    listed = [{"quote": quote, "lead_term": lead, "status": "affirmed"} for quote, lead in terms]
    return json.dumps({"terms": listed})


COUGH, KNEE, HEART = (
    ("cough", "Cough"),
    ("right knee", "Pain in right knee"),
    ("heart failure", "Heart failure"),
)
DOG = ("dog", "Sprain")


@pytest.mark.parametrize(
    ("place", "raw", "worth"),
    [
        (0, reply(COUGH, KNEE, HEART), (1, 1, 1)),
        (0, reply(HEART, COUGH, KNEE), (1, 1, 1)),
        (0, reply(COUGH), (1, 1, 0.5)),
        (0, reply(COUGH, COUGH), (1, 0.5, 0.5)),
        (0, reply(COUGH, ("a cough", "Cough")), (1, 1, 0.5)),
        (0, reply(COUGH, KNEE, HEART, DOG), (1, 1, 6 / 7)),
        (0, reply(COUGH, ("gout", "Gout")), (1, 0.5, 0.5)),
        (0, reply(), (1, 1, 0)),
        (0, "", (0, 0, 0)),
        (0, reply(COUGH)[:-1], (0, 0, 0)),
        (0, "Sure! " + reply(COUGH), (0, 0, 0)),
        (1, "yes", (1, 1, 1)),
        (1, "no", (1, 1, 0)),
        (1, "yes, because it says so", (0, 0, 0)),
        (0, with_thinking("cough", reply(COUGH)), (1, 1, 0.5)),
        (1, with_thinking("cough", "yes"), (1, 1, 1)),
        (1, with_thinking("cough", "no"), (1, 1, 0)),
        (1, "<think>cough yes", (0, 0, 0)),
        (1, with_thinking("cough", with_thinking("cough", "yes")), (0, 0, 0)),
        (2, "no", (1, 1, 1)),
        (2, "", (0, 0, 0)),
    ],
)
def test_rewards(judge: Judge, place: int, raw: str, worth: tuple[float, float, float]) -> None:
    assert rewarded(judge, place, raw) == [pytest.approx(worth)]


def test_what_is_to_be_learned_is_worth_most(judge: Judge) -> None:
    for place, item in enumerate(judge.items):
        assert rewarded(judge, place, item.reply, thoughtful(item).reply) == [(1, 1, 1)] * 2


QUOTES = st.sampled_from([COUGH, KNEE, HEART, DOG, ("gout", "Gout"), ("had a", "Heart failure")])


@given(terms=st.lists(QUOTES, max_size=6), more=QUOTES)
def test_saying_again_what_was_said_earns_nothing(
    judge: Judge, terms: list[tuple[str, str]], more: tuple[str, str]
) -> None:
    before, after = rewarded(judge, 0, reply(*terms), reply(*terms, more))
    assert all(0 <= one <= 1 for one in (*before, *after))
    leads = {lead for _, lead in terms}
    if more[1] in leads:
        assert after[2] <= before[2]


@given(
    raws=st.lists(st.text() | st.just('{"terms": [{}]}') | st.just('{"terms": null}'), min_size=1)
)
def test_garbage_is_worth_nothing_and_breaks_nothing(judge: Judge, raws: list[str]) -> None:
    for place in range(3):
        for raw, worth in zip(raws, rewarded(judge, place, *raws), strict=True):
            assert worth == (0, 0, 0) or raw.strip() in ("yes", "no")


async def test_scores_of_a_model(judge: Judge) -> None:
    window, yes, no = judge.items
    model = QueuedModel([reply(COUGH, DOG, ("gout", "Gout"))], [(0.6, 0.4), (0.3, 0.7)])
    assert await score([yes, window, no], model) == pytest.approx(
        {
            "score": (1 / 3 + 1) / 2,
            "analyze_f1": 1 / 3,
            "analyze_precision": 1 / 3,
            "analyze_recall": 1 / 3,
            "analyze_usable": 1,
            "verify_average_precision": 1,
            "verify_roc_auc": 1,
        }
    )


async def test_a_reply_that_is_garbage_is_scored_as_such(judge: Judge) -> None:
    scores = await score(judge.items[:1], QueuedModel(["{"]))
    assert scores == {
        "score": 0,
        "analyze_f1": 0,
        "analyze_precision": 1,
        "analyze_recall": 0,
        "analyze_usable": 0,
    }


async def test_one_answer_to_all_questions_cannot_be_ranked(judge: Judge) -> None:
    with pytest.raises(InputError, match="all questions held out have the answer yes"):
        await score(judge.items[1:2], QueuedModel(probabilities=[(1.0, 0.0)]))


async def test_mistakes_are_kept_beside_what_is_right(judge: Judge) -> None:
    model = QueuedModel([reply(COUGH), "{"], [(0.4, 0.6), (0.4, 0.6)])
    found = await mistakes([0, 0, 1, 2], judge, model)
    window, yes, _ = judge.items
    assert [one and (one.messages, one.reply, one.rejected) for one in found] == [
        (window.messages, window.reply, reply(COUGH)),
        (window.messages, window.reply, "{"),
        (yes.messages, "yes", "no"),
        None,
    ]


async def test_mistakes_of_a_model_that_thinks_are_kept_with_its_thoughts(
    judge: Judge, tmp_path: Path
) -> None:
    folder = tiny_llama(tmp_path / "tiny", SENTENCES, window=4096)
    model = LocalModel(str(folder), tmp_path, max_tokens=30, think=True)
    learning = Judge([thoughtful(item) for item in judge.items], judge._context)
    found = await mistakes(range(3), learning, model)
    assert found[0] is not None
    assert [one is None for one in found[1:]].count(True) == 1  # it says the same to both
    for item, one in zip(judge.items, found, strict=True):
        if one is not None:
            assert one.reply == with_thinking(item.thought, item.reply)
            [thought] = await model.think([item.messages])
            assert one.rejected.startswith(thought)
            assert hear(item, one.rejected).usable
            assert strip_thinking(one.rejected) != item.reply
