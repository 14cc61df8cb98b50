"""Verify: probabilities, fitted or asked for."""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from agents.pipeline import Pipeline
from agents.verify import find_sides
from agents.verify.reranking import RerankingVerifier, combination_features
from agents.verify.retrieval import RetrievalVerifier, retrieval_features
from clh.errors import ModelError, ReplyError
from clh.models.language import Messages
from clh.models.logistic import Logistic
from clh.models.reranker import Reranker
from clh.retrieval.lexical import Lexicon
from clh.schema import Candidate, Note
from tests.agents.steps import candidate, run_step, term
from tests.conftest import MakePipeline
from tests.fakes import QueuedModel

NOTE = Note(id="n", text="He has heart failure & <b>pain</b> in his right knee.")
TITLES = st.text() | st.sampled_from(["Heart failure", "Other heart failure", "pain in right knee"])
LEXICON = Lexicon.of(["heart failure", "systolic heart failure", "pain in right knee"])


@given(
    lead_term=TITLES.filter(bool),
    found=st.lists(st.tuples(TITLES, TITLES, st.floats(0, 1)), min_size=1),
)
def test_features_lie_within_0_and_1(lead_term: str, found: list[tuple[str, str, float]]) -> None:
    candidates = [
        Candidate(code="I50.9", title=title, matched=matched, similarity=score)
        for title, matched, score in found
    ]
    measured = retrieval_features(
        term(NOTE, "heart failure", lead_term=lead_term), candidates, LEXICON
    )
    assert len(measured) == len(candidates)
    assert all(0 <= value <= 1 for row in measured for value in row.values())


SHARE = st.floats(0, 1)


@given(weight=st.floats(0, 50), intercept=st.floats(-50, 50), low=SHARE, high=SHARE, other=SHARE)
def test_probability_rises_with_what_speaks_for_a_code(
    weight: float, intercept: float, low: float, high: float, other: float
) -> None:
    low, high = sorted((low, high))
    verifier = Logistic("any", intercept, {"for": weight, "other": -1.0})
    less = verifier.probability({"for": low, "other": other})
    more = verifier.probability({"for": high, "other": other})
    assert 0 <= less <= more <= 1


def test_the_shipped_verifier_knows_every_feature_and_prefers_the_same_words(
    make_toy: MakePipeline,
) -> None:
    toy = make_toy()
    shipped = Logistic.load("verify-retrieval")
    heart = term(NOTE, "heart failure")
    same = candidate(toy, "I50.9", matched="heart failure")
    apart = candidate(toy, "M25.561", similarity=0.3)
    first, second = retrieval_features(heart, [same, apart], toy.index.lexicon)
    assert set(shipped.coefficients) == set(first)
    assert shipped.probability(first) > shipped.probability(second)


def test_a_verifier_that_is_not_there() -> None:
    with pytest.raises(ModelError, match="no model 'none': give a path"):
        Logistic.load("none")


async def test_every_candidate_of_every_term_gets_a_verdict(make_toy: MakePipeline) -> None:
    toy = make_toy()
    terms = [term(NOTE, "heart failure"), term(NOTE, "right knee")]
    candidates = [
        [candidate(toy, "I50.9", 0.9), candidate(toy, "I50.21", 0.7)],
        [candidate(toy, "M25.561", 0.8)],
    ]
    verdicts = (await run_step("verify", toy, NOTE, terms=terms, candidates=candidates))["verdicts"]
    assert [(verdict.term, verdict.code) for verdict in verdicts] == [
        (0, "I50.9"),
        (0, "I50.21"),
        (1, "M25.561"),
    ]
    assert verdicts[0].probability > verdicts[1].probability


def reranking(toy: Pipeline, reranker: Reranker, calibrator: Logistic) -> Pipeline:
    """The pipeline with a verifier that reads two codes of a note."""
    assert isinstance(toy.verifier, RetrievalVerifier)
    return replace(toy, verifier=RerankingVerifier(toy.verifier, reranker, calibrator, top_k=2))


class Reader:
    """A reranker that believes only titles whose first word the sentence has."""

    def __init__(self) -> None:
        self.id = "a reader"
        self.read: list[tuple[str, str]] = []

    def score(self, pairs: Sequence[tuple[str, str]]) -> NDArray[np.float32]:
        self.read += pairs
        said = [title.split()[0].lower() in text.lower() for text, title in pairs]
        return np.where(said, 3.0, -3.0).astype(np.float32)


async def test_what_is_read_counts_for_all_verdicts_on_a_code(make_toy: MakePipeline) -> None:
    toy, reader = make_toy(), Reader()
    weights = {"retrieval": 0.0, "rank": 0.0, "read": 1.0, "encoder": 1.0}
    calibrator = Logistic("by hand", -1.0, weights)
    terms = [term(NOTE, "heart failure"), term(NOTE, "pain"), term(NOTE, "right knee")]
    candidates = [
        [candidate(toy, "I50.9", 0.9), candidate(toy, "R05.9", 0.2)],
        [candidate(toy, "M25.561", 0.6), candidate(toy, "I50.9", 0.5)],
        [candidate(toy, "M25.561", 0.8)],
    ]
    given: dict[str, Any] = {"terms": terms, "candidates": candidates}
    before = (await run_step("verify", toy, NOTE, **given))["verdicts"]
    reads = reranking(toy, reader, calibrator)
    after = (await run_step("verify", reads, NOTE, **given))["verdicts"]
    title = toy.system["I50.9"].title
    # Each of the two likeliest codes is read once, at the term that it is best for.
    assert reader.read == [
        (f"heart failure: {NOTE.text}", title),
        (f"right knee: {NOTE.text}", toy.system["M25.561"].title),
    ]
    assert [(one.term, one.code) for one in after] == [(one.term, one.code) for one in before]
    # A code that was not read is judged by that, and says nothing of reading.
    assert after[1].probability == pytest.approx(0.2689, abs=1e-4)
    assert after[1].reranker_logit is None
    said = {one.code: one.probability for one in after}
    assert all(one.probability == said[one.code] for one in after)
    assert said["I50.9"] == pytest.approx(0.9526, abs=1e-4)
    assert said["M25.561"] == pytest.approx(0.9526, abs=1e-4)
    assert after[0].reranker_logit == 3.0


async def test_a_code_is_read_at_a_mention_rather_than_at_its_sentence(
    make_toy: MakePipeline,
) -> None:
    toy, reader = make_toy(), Reader()
    sentence = term(NOTE, NOTE.text).model_copy(update={"is_sentence": True})
    terms = [term(NOTE, "heart failure"), term(NOTE, "right knee"), sentence]
    candidates = [
        [candidate(toy, "I50.9", 0.3), candidate(toy, "R05.9", 0.4)],
        [candidate(toy, "I50.9", 0.2)],
        [candidate(toy, "M25.561", 0.9), candidate(toy, "I50.9", 0.8)],
    ]
    reads = reranking(toy, reader, Logistic("by hand", 0.0, defaultdict(float)))
    await run_step("verify", reads, NOTE, terms=terms, candidates=candidates)
    # The sentence chooses which codes are read: the third has a lower rank than both of its own.
    assert reader.read == [
        (f"{NOTE.text}: {NOTE.text}", toy.system["M25.561"].title),
        (f"heart failure: {NOTE.text}", toy.system["I50.9"].title),
    ]


def test_the_shipped_reading_knows_what_is_weighed_and_trusts_it() -> None:
    shipped = Logistic.load("verify-codiesp")
    odds = {
        name: shipped.probability(combination_features(*said))
        for name, said in {
            "believed": (0.0, 1.0, 3.0),
            "doubted": (0.0, 1.0, -3.0),
            "ranked low": (0.0, 0.5, 3.0),
            "not read": (0.0, 0.5, None),
        }.items()
    }
    assert odds["believed"] > odds["doubted"]
    assert odds["believed"] > odds["ranked low"] > odds["not read"]


class Listening(QueuedModel):
    """Remembers how it was asked."""

    def __init__(self, probabilities: list[tuple[float, float]]) -> None:
        super().__init__(probabilities=probabilities)
        self.asked: list[tuple[int, tuple[str, ...]]] = []

    async def choose(
        self, conversations: Sequence[Messages], options: Sequence[str]
    ) -> list[list[float]]:
        self.asked.append((len(conversations), tuple(options)))
        return await super().choose(conversations, options)


async def test_all_questions_about_a_note_are_one_call(
    make_toy: MakePipeline,
) -> None:
    model = Listening([(0.9, 0.1), (0.2, 0.8), (0.6, 0.4)])
    toy = make_toy(model, verify={"source": "llm", "llm": {"candidates": 2}})
    terms = [term(NOTE, "heart failure", "uncertain"), term(NOTE, "right knee")]
    candidates = [
        [candidate(toy, "I50.9"), candidate(toy, "I50.21"), candidate(toy, "I50.22")],
        [candidate(toy, "E11.9")],
    ]
    added = await run_step("verify", toy, NOTE, terms=terms, candidates=candidates)
    assert model.asked == [(3, ("yes", "no"))]
    assert [(v.term, v.code, v.probability) for v in added["verdicts"]] == [
        (0, "I50.9", 0.9),
        (0, "I50.21", 0.2),
        (1, "E11.9", 0.6),
    ]
    questions = ["".join(turn["content"] for turn in turns) for turns in model.choices]
    # What the questions about a term share comes first, so that it is computed once.
    before, of_first = questions[0].split("I50.9", 1)
    assert questions[1].startswith(before)
    assert NOTE.text in before
    assert "heart failure (uncertain)" in before
    assert "Congestive heart failure NOS" in of_first  # an inclusion term
    assert "gestational diabetes (O24.4-)" not in questions[2]  # that is said of E11, not E11.9


async def test_a_model_that_fails_is_an_error_and_no_verdict(make_toy: MakePipeline) -> None:
    toy = make_toy(QueuedModel(), verify={"source": "llm"})
    state = {"terms": [term(NOTE, "heart failure")], "candidates": [[candidate(toy, "I50.9")]]}
    added = await run_step("verify", toy, NOTE, **state)
    assert "verdicts" not in added
    assert [error.agent for error in added["errors"]] == ["verify"]


class Mumbling(QueuedModel):
    """Answers every other question with neither yes nor no."""

    async def choose(self, conversations: Sequence[Messages], options: Sequence[str]) -> list[Any]:
        return [
            [0.9, 0.1] if place % 2 else ReplyError("no answer", "perhaps")
            for place in range(len(conversations))
        ]


async def test_an_unusable_answer_costs_only_its_own_candidate(make_toy: MakePipeline) -> None:
    toy = make_toy(Mumbling(), verify={"source": "llm"})
    candidates = [[candidate(toy, "I50.9"), candidate(toy, "I50.21")]]
    added = await run_step(
        "verify", toy, NOTE, terms=[term(NOTE, "heart failure")], candidates=candidates
    )
    assert [verdict.code for verdict in added["verdicts"]] == ["I50.21"]
    assert added["errors"] == []
    [warning] = added["warnings"]
    assert (warning.rule, warning.severity) == ("unusable_reply", "warning")
    assert "1 of 2 replies" in warning.message


async def test_no_usable_answer_at_all_is_a_failure(make_toy: MakePipeline) -> None:
    toy = make_toy(Mumbling(), verify={"source": "llm"})
    state = {"terms": [term(NOTE, "heart failure")], "candidates": [[candidate(toy, "I50.9")]]}
    added = await run_step("verify", toy, NOTE, **state)
    assert [error.agent for error in added["errors"]] == ["verify"]


@pytest.mark.parametrize(
    ("text", "sides"),
    [
        ("Pain in the left knee", {"left"}),
        ("pain in her left and right knees", {"left", "right"}),
        ("bilateral knee pain", {"left", "right"}),
        ("The patient left the ward with knee pain", set()),
        ("She left without being seen; pain in the right knee", {"right"}),
        ("He left AMA.", set()),
        ("Left hip fracture", {"left"}),
        ("weakness, left more than right", {"left", "right"}),
        ("pain on the left with swelling", {"left"}),
        ("the mass was on the left.", {"left"}),
    ],
)
def test_left_as_a_verb_is_not_a_side(text: str, sides: set[str]) -> None:
    assert find_sides(text) == sides
