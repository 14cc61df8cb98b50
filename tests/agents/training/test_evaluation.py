"""Scores of a model on examples, and the preference pairs of its mistakes."""

from functools import partial
from pathlib import Path

import pytest

from agents.training.evaluation import evaluate
from agents.training.evidence import find_codes
from agents.training.examples import AgentExample, AnalyzeExample, with_thought
from agents.training.preference_pairs import make_pairs
from agents.training.rewards import FindCodes, parse_completion
from clh.errors import InputError
from clh.models.language import LocalModel, strip_thinking, with_thinking
from tests.agents.training.documents import SENTENCES, built, document
from tests.agents.training.test_rewards import COUGH, DOG, reply
from tests.conftest import MakePipeline
from tests.fakes import QueuedModel, tiny_llama


@pytest.fixture(scope="session")
def examples(make_toy: MakePipeline) -> list[AgentExample]:
    """A window, a candidate that is right and one that is wrong."""
    windows, candidates = built(document(), make_toy(policy="mention"))
    by_answer = {example.completion: example for example in candidates}
    return [*windows, by_answer["yes"], by_answer["no"]]


@pytest.fixture(scope="session")
def search(make_toy: MakePipeline) -> FindCodes:
    toy = make_toy(locate={"candidates": 1})
    return partial(find_codes, retriever=toy.retriever, system=toy.system)


async def test_scores_of_a_model(examples: list[AgentExample]) -> None:
    window, yes, no = examples
    model = QueuedModel([reply(COUGH, DOG, ("gout", "Gout"))], [(0.6, 0.4), (0.3, 0.7)])
    assert await evaluate([yes, window, no], model) == pytest.approx(
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


async def test_a_reply_that_is_garbage_is_scored_as_such(examples: list[AgentExample]) -> None:
    scores = await evaluate(examples[:1], QueuedModel(["{"]))
    assert scores == {
        "score": 0,
        "analyze_f1": 0,
        "analyze_precision": 1,
        "analyze_recall": 0,
        "analyze_usable": 0,
    }


async def test_one_answer_to_all_cannot_be_ranked(examples: list[AgentExample]) -> None:
    with pytest.raises(InputError, match="all held-out examples of verify have the answer yes"):
        await evaluate(examples[1:2], QueuedModel(probabilities=[(1.0, 0.0)]))


async def test_a_pair_is_the_right_completion_and_a_worse_one(
    examples: list[AgentExample], search: FindCodes
) -> None:
    window, yes, no = examples
    model = QueuedModel([reply(COUGH), "{"], [(0.4, 0.6), (0.4, 0.6)])
    pairs = await make_pairs([window, window, yes, no], model, search)
    assert [pair and (pair.prompt, pair.completion, pair.rejected) for pair in pairs] == [
        (window.prompt, window.completion, reply(COUGH)),
        (window.prompt, window.completion, "{"),
        (yes.prompt, "yes", "no"),
        None,
    ]


async def test_pairs_of_a_model_that_thinks_have_its_thoughts(
    examples: list[AgentExample], search: FindCodes, tmp_path: Path
) -> None:
    folder = tiny_llama(tmp_path / "tiny", SENTENCES, window=4096)
    model = LocalModel(str(folder), tmp_path, max_tokens=30, think=True)
    pairs = await make_pairs(list(map(with_thought, examples)), model, search)
    assert pairs[0] is not None
    assert [pair is None for pair in pairs[1:]].count(True) == 1  # it says the same to both
    for example, pair in zip(examples, pairs, strict=True):
        if pair is not None:
            assert pair.completion == with_thinking(example.thought, example.completion)
            [thought] = await model.think([example.prompt])
            assert pair.rejected.startswith(thought)
            passage = example.passage.text if isinstance(example, AnalyzeExample) else ""
            assert parse_completion(example.task, passage, pair.rejected).usable
            assert strip_thinking(pair.rejected) != example.completion
