"""An example through one agent alone, on gold or predicted input, or through all."""

import hashlib
import json

import pytest

from agents.evaluation.oracle import run_agent, run_pipeline
from clh.corpora.example import Evidence, Example
from clh.evaluation.stages import Outcome
from clh.schema import Agent, Note
from tests.conftest import MakePipeline
from tests.fakes import QueuedModel

NOTE = Note(id="n1", text="He has high blood pressure. No cough. Sprain of the knee.")
GOLD = {"I10": "high blood pressure", "R05.9": "cough", "S83.411A": "Sprain of the knee"}
GIT = "0123abc"


def example(*codes: str, evidence: bool = True) -> Example:
    def found(quote: str) -> Evidence:
        start = NOTE.text.index(quote)
        code = next(code for code, words in GOLD.items() if words == quote)
        return Evidence(code=code, note_id="n1", spans=(NOTE.span(start, start + len(quote)),))

    return Example(
        id="e",
        notes=(NOTE,),
        codes=codes,
        evidence=tuple(found(GOLD[code]) for code in codes) if evidence else (),
        split="dev",
    )


def assigned(outcome: Outcome) -> list[str]:
    return [one.code for one in outcome.coded.codes]


def quotes(outcome: Outcome) -> list[str]:
    text = outcome.example.note.text
    return [text[term.start : term.end] for term in outcome.steps.terms]


async def test_all_agents_code_as_the_command_line_does(make_toy: MakePipeline) -> None:
    outcome = await run_pipeline(example(*GOLD), make_toy(policy="mention"), GIT)
    assert set(assigned(outcome)) >= {"I10", "R05.9"}
    assert outcome.coded.gold == tuple(GOLD)
    assert outcome.steps.run_id == outcome.coded.run_id
    assert (outcome.steps.git, outcome.steps.note_sha256) == (GIT, NOTE.sha256)
    assert quotes(outcome)[:2] == ["high blood pressure", "cough"]
    for scores in (outcome.steps.retrieved, outcome.steps.verified):
        assert "I10" in scores
        assert [*scores.values()] == sorted(scores.values(), reverse=True)


@pytest.mark.parametrize("agent", ["analyze", "locate", "verify", "assign"])
async def test_on_predicted_input_an_agent_gets_what_the_whole_gives_it(
    make_toy: MakePipeline, agent: Agent
) -> None:
    one, all_ = example(*GOLD), make_toy(policy="mention")
    outcome, reference = (
        await run_agent(agent, "predicted", one, all_, GIT),
        await run_pipeline(one, all_, GIT),
    )
    assert outcome.steps.terms == reference.steps.terms
    if agent != "analyze":
        assert outcome.steps.retrieved == reference.steps.retrieved
    if agent == "assign":
        assert outcome.coded.codes == reference.coded.codes
    assert list(outcome.coded.timings)[-1] == agent


async def test_locate_searches_for_gold_mentions(make_toy: MakePipeline) -> None:
    outcome = await run_agent("locate", "gold", example("I10", "R05.9"), make_toy(), GIT)
    assert quotes(outcome) == ["high blood pressure", "cough"]
    assert assigned(outcome) == list(outcome.steps.retrieved)
    assert {"I10", "R05.9"} <= set(assigned(outcome)[:4])
    ranked = outcome.coded.codes
    assert [one.sequence for one in ranked] == [*range(1, len(ranked) + 1)]
    assert [one.confidence for one in ranked] == sorted(
        (one.confidence for one in ranked), reverse=True
    )
    text = outcome.example.note.text
    for span in (span for one in ranked for span in one.evidence):
        assert text[span.start : span.end] == span.text


async def test_locate_searches_for_every_sentence(make_toy: MakePipeline) -> None:
    outcome = await run_agent("locate", "sentences", example("I10"), make_toy(), GIT)
    assert quotes(outcome) == ["He has high blood pressure.", "No cough.", "Sprain of the knee."]


async def test_gold_candidates_hold_the_gold_codes(make_toy: MakePipeline) -> None:
    few = make_toy(locate={"candidates": 1})
    outcome = await run_agent("verify", "gold", example(*GOLD), few, GIT)
    # S83.419 lies closer to the mention than the gold code, which is there without its character.
    assert set(outcome.steps.retrieved) >= {"I10", "R05.9", "S83.411"}
    assert set(outcome.steps.verified) <= set(outcome.steps.retrieved)


@pytest.mark.parametrize("evidence", [True, False])
async def test_assign_gets_certain_verdicts_for_gold_codes(
    make_toy: MakePipeline, evidence: bool
) -> None:
    one = example(*GOLD, evidence=evidence)
    outcome = await run_agent("assign", "gold", one, make_toy(policy="mention"), GIT)
    assert set(assigned(outcome)) == set(GOLD)
    assert {code.confidence for code in outcome.coded.codes} == {1.0}


async def test_assign_alone_shows_what_it_drops(make_toy: MakePipeline) -> None:
    retired = example("I10").model_copy(update={"codes": ("I10", "I50", "Q99.999")})
    outcome = await run_agent("assign", "gold", retired, make_toy(policy="mention"), GIT)
    assert assigned(outcome) == ["I10"]  # a category and a code of another release are not codes


async def test_what_a_model_was_asked_and_said_is_kept_by_its_hash(make_toy: MakePipeline) -> None:
    model = QueuedModel(["nonsense"])
    llm = make_toy(model, analyze={"source": "llm"})
    outcome = await run_pipeline(example("I10"), llm, GIT)
    [exchange] = outcome.steps.exchanges
    assert exchange.reply_sha256 == hashlib.sha256(b"nonsense").hexdigest()
    assert len(exchange.prompt_sha256) == len(exchange.reply_sha256)

    model = QueuedModel(probabilities=[(0.9, 0.1)] * 99)
    llm = make_toy(model, verify={"source": "llm"})
    outcome = await run_pipeline(example("I10"), llm, GIT)
    replies = [exchange.reply_sha256 for exchange in outcome.steps.exchanges]
    assert hashlib.sha256(json.dumps([0.9, 0.1]).encode()).hexdigest() in replies


async def test_an_agent_that_fails_is_part_of_the_outcome(make_toy: MakePipeline) -> None:
    broken = make_toy(QueuedModel([RuntimeError("no memory")]), analyze={"source": "llm"})
    for outcome in (
        await run_pipeline(example("I10"), broken, GIT),
        await run_agent("verify", "predicted", example("I10"), broken, GIT),
    ):
        assert [error.agent for error in outcome.coded.errors] == ["analyze"]
        assert assigned(outcome) == []
        assert outcome.steps.retrieved == {}
