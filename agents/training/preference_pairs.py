"""Preference pairs for DPO: the right completion of a prompt, and a model's own that is worse."""

import asyncio
from collections.abc import Callable, Sequence

from agents.analyze.llm import Reply
from agents.training.examples import AgentExample, VerifyExample
from agents.training.rewards import FindCodes, code_f1_reward, reward_columns
from agents.training.training_set import TrainingSet
from agents.verify.llm import ANSWERS
from clh.errors import ReplyError
from clh.models.language import LanguageModel, LocalModel, Message
from clh.schema import Shape

PAIRS = "pairs.jsonl"  # a line for each example: its pair, or null
BATCH = 64  # examples that a model completes before their pairs are written down


class PreferencePair(Shape):
    """A prompt, the right completion, and the model's own, which is worse."""

    prompt: tuple[Message, ...]
    completion: str
    rejected: str


def collect_pairs(
    data: TrainingSet, load_model: Callable[[], LanguageModel], find_codes: FindCodes
) -> list[PreferencePair]:
    """The pairs of all training examples; those that the run's folder has are not made again.

    `load_model` is called only if there are others.
    """
    from tqdm import tqdm

    done = len(data.folder.lines(PAIRS))
    if done < len(data.train):
        model = load_model()
        with tqdm(total=len(data.train), initial=done, unit="example") as bar:
            for start in range(done, len(data.train), BATCH):
                batch = data.train[start : start + BATCH]
                for pair in asyncio.run(make_pairs(batch, model, find_codes)):
                    data.folder.append("null" if pair is None else pair.model_dump_json())
                    bar.update()
    return [
        PreferencePair.model_validate_json(line)
        for line in data.folder.lines(PAIRS)
        if line != "null"
    ]


async def make_pairs(
    examples: Sequence[AgentExample], model: LanguageModel, find_codes: FindCodes
) -> list[PreferencePair | None]:
    """For each example its pair; None where the model's own completion is as good."""
    own = await complete(examples, model)
    rows = [reward_columns(example) for example in examples]
    columns = {name: [row[name] for row in rows] for name in rows[0]}
    best, reached = (
        code_f1_reward(
            [[{"role": "assistant", "content": text}] for text in completions],
            **columns,
            find_codes=find_codes,
        )
        for completions in ([example.completion for example in examples], own)
    )
    # A choice is made after a thought, which `choose` does not return.
    verify = [example.prompt for example in examples if isinstance(example, VerifyExample)]
    thoughts = iter(await model.think(verify) if isinstance(model, LocalModel) else [])
    rejected = [
        next(thoughts, "") + text if isinstance(example, VerifyExample) else text
        for example, text in zip(examples, own, strict=True)
    ]
    return [
        PreferencePair(prompt=example.prompt, completion=example.completion, rejected=text)
        if reward < most
        else None
        for example, text, reward, most in zip(examples, rejected, reached, best, strict=True)
    ]


async def complete(examples: Sequence[AgentExample], model: LanguageModel) -> list[str]:
    """What a model replies to each prompt, however bad."""
    verify = [example.prompt for example in examples if isinstance(example, VerifyExample)]
    analyze = [example.prompt for example in examples if not isinstance(example, VerifyExample)]
    probabilities = iter(await model.choose(verify, ANSWERS))
    replies = iter(await model.chat(analyze, Reply))
    return [
        _likelier(next(probabilities)) if isinstance(example, VerifyExample) else next(replies).raw
        for example in examples
    ]


def _likelier(probabilities: Sequence[float] | ReplyError) -> str:
    """The answer that a model would give, or what it replied instead."""
    if isinstance(probabilities, ReplyError):
        return probabilities.raw
    return ANSWERS[probabilities.index(max(probabilities))]
