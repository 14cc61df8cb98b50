"""The split of documents: nothing of what is held out is trained on."""

import os
import re
from pathlib import Path

import pytest

from agents.training.examples import AgentExample, draw_examples
from agents.training.split import sentence_keys
from clh import corpora
from clh.corpora import Example
from clh.errors import InputError
from clh.training.language import Task
from tests.agents.training.documents import SENTENCES, document, recipe
from tests.conftest import MakePipeline

REAL = os.environ.get("CLH_TEST_DATA", "")


def shingles(text: str) -> set[tuple[str, ...]]:
    words = re.findall(r"\w+", text.lower())
    return {tuple(words[at : at + 5]) for at in range(len(words) - 4)}


def assert_unseen(items: list[AgentExample], others: list[Example]) -> None:
    """No document of the others is learned from, nor a sentence of theirs, nor most of one's words.

    Sentences are found by their lines, not by the code that left them out.
    """
    assert not {item.document for item in items} & {one.id for one in others}
    learned = "\n".join(turn["content"] for item in items for turn in item.prompt)
    plain = " ".join(re.sub(r"\d+", "0", learned.casefold()).split())
    known = shingles(learned)
    for one in others:
        for line in re.split(r"(?<=[.?!])\s|\n", one.note.text):
            words = re.sub(r"\d+", "0", line.casefold()).split()
            assert len(words) < 6 or " ".join(words) not in plain, f"{one.id}: {len(words)} words"
        own = shingles(one.note.text)
        assert len(own & known) < 0.5 * len(own), one.id


def test_nothing_of_other_documents_is_learned(make_toy: MakePipeline) -> None:
    near = [*SENTENCES[:3], "He walked to the clinic with his cat on 3 days."]
    far = ["She came with a cough of two weeks or so.", "She had 14 good days, then chest pain."]
    documents = [
        document("near", near),
        document("far", far, {0: ["R05.9"], 1: ["R07.9"]}),
        document(
            "own",
            ["Heart failure was found in the old man.", "No cough was heard by us."],
            {0: ["I50.9"]},
        ),
    ]
    others = [
        document("dev"),
        document("held out", ["She had 3 good days, then chest pain."], {0: ["R07.9"]}),
    ]
    toy = make_toy(analyze={"llm": {"window_words": 8}})
    drawn = draw_examples(
        documents, toy, recipe(), {"analyze": 100, "verify": 100}, sentence_keys(others, toy.reader)
    )
    assert_unseen(drawn, others)
    assert {item.document for item in drawn} == {"near", "far", "own"}
    shown = "".join(item.prompt[1]["content"] for item in drawn)
    assert near[3] in shown
    assert far[0] in shown
    assert far[1] not in shown  # another figure makes no other sentence
    with pytest.raises(AssertionError):
        assert_unseen(draw_examples(documents, toy, recipe(), {"analyze": 100}), others)


@pytest.mark.skipif(not REAL, reason="CLH_TEST_DATA names no folder of real data")
def test_nothing_of_the_real_other_documents_is_learned(make_toy: MakePipeline) -> None:
    folder = Path(REAL) / "codiesp"
    documents, others = corpora.hold_out(list(corpora.read("codiesp", folder, "train")), 0.1, 0)
    others += corpora.read("codiesp", folder, "dev")
    toy = make_toy(policy="mention", locate={"candidates": 2})
    unseen = sentence_keys(others, toy.reader)
    risky = [one for one in documents if sentence_keys([one], toy.reader) & unseen]
    assert risky
    drawn = draw_examples(
        [*risky, *documents[:5]], toy, recipe(), {"analyze": 9999, "verify": 9999}, unseen
    )
    assert len({item.document for item in drawn}) >= len(risky)
    assert_unseen(drawn, others)
    for one in documents:  # and no whole document is another's double
        own = sentence_keys([one], toy.reader)
        assert len(own & unseen) < 0.5 * max(len(own), 1), one.id


def test_the_same_seed_draws_the_same_questions(make_toy: MakePipeline) -> None:
    documents, toy = [document(str(number)) for number in range(4)], make_toy()
    sizes: dict[Task, int] = {"analyze": 2, "verify": 5}
    first, again = (draw_examples(documents, toy, recipe(), sizes) for _ in range(2))
    assert first == again
    assert [sum(item.task == task for item in first) for task in sizes] == [2, 5]
    assert draw_examples(documents, toy, recipe(seed=1), sizes) != first


def test_a_task_without_examples_is_refused(make_toy: MakePipeline) -> None:
    with pytest.raises(InputError, match="no document has an example for verify"):
        draw_examples([document(codes={})], make_toy(), recipe(), {"analyze": 1, "verify": 1})
