"""Verifiable rewards of completions, as functions that TRL calls.

Each reward is from 0 to 1, and no higher for a longer completion that adds nothing right. TRL
passes the columns of the dataset by their names: those of `reward_columns`.
"""

import functools
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from types import MappingProxyType
from typing import Any, NamedTuple

from agents.analyze.llm import Reply, locate_quote
from agents.training.evidence import Mark
from agents.training.examples import AgentExample, AnalyzeExample
from agents.verify.llm import ANSWERS
from clh.errors import ReplyError
from clh.models import language
from clh.schema import Note, Span
from clh.training.language import Task

Completions = Sequence[Sequence[Mapping[str, str]]]  # each a list of one message
FindCodes = Callable[[Sequence[str]], Sequence[Collection[str]]]  # of each lead term


class ParsedCompletion(NamedTuple):
    """What inference reads in a completion."""

    usable: bool
    quotes: int = 0  # given, in the passage or not
    lead_terms: Mapping[Span, str] = MappingProxyType({})  # of the quotes that are in the passage


def parse_completion(task: Task, passage: str, raw: str) -> ParsedCompletion:
    """What inference reads in a completion; `usable` is False if it cannot use it."""
    if task == "verify":
        return ParsedCompletion(language.strip_thinking(raw) in ANSWERS)
    try:
        quoted = language.Reply.parse(raw, Reply).value.terms
    except ReplyError:
        return ParsedCompletion(False)
    note = Note(id="passage", text=passage)
    whole = note.span(0, len(passage))
    seen: Counter[str] = Counter()
    found: dict[Span, str] = {}
    for term in quoted:
        key = " ".join(term.quote.split()).lower()
        place = locate_quote(note, whole, term.quote, seen[key])
        seen[key] += 1
        if place is not None:
            found.setdefault(place, term.lead_term)
    return ParsedCompletion(True, len(quoted), found)


def reward_columns(example: AgentExample) -> dict[str, Any]:
    """The columns of a dataset that the reward functions take, and `prompt`."""
    passage: str = ""
    marks: tuple[Mark, ...] = ()
    if isinstance(example, AnalyzeExample):
        passage, marks = example.passage.text, example.marks
    return {
        "prompt": list(example.prompt),
        "task": example.task,
        "passage": passage,
        "reference": example.completion,
        "gold_codes": sorted({mark.code for mark in marks}),
    }


def format_reward(
    completions: Completions, task: Sequence[Task], passage: Sequence[str], **_: Any
) -> list[float]:
    """1 for a completion that inference can read, otherwise 0.

    Example:
        >>> completions = [[{"role": "assistant", "content": "yes"}],
        ...                [{"role": "assistant", "content": "Yes, I think so."}]]
        >>> format_reward(completions, task=["verify", "verify"], passage=["", ""])
        [1.0, 0.0]

    """
    return [float(parsed.usable) for parsed in _parse(completions, task, passage)]


def verbatim_reward(
    completions: Completions, task: Sequence[Task], passage: Sequence[str], **_: Any
) -> list[float]:
    """The share of a completion's quotes that are in the passage; 0 for one that is unusable.

    Example:
        >>> reply = '{"terms": [' + ", ".join(
        ...     '{"quote": "%s", "lead_term": "Cough", "status": "affirmed"}' % quote
        ...     for quote in ("dry cough", "wheezing")) + "]}"
        >>> completions = [[{"role": "assistant", "content": reply}]]
        >>> verbatim_reward(completions, task=["analyze"], passage=["He has a dry cough."])
        [0.5]

    """
    return [
        parsed.usable * ratio(len(parsed.lead_terms), parsed.quotes)
        for parsed in _parse(completions, task, passage)
    ]


def code_f1_reward(
    completions: Completions,
    task: Sequence[Task],
    passage: Sequence[str],
    reference: Sequence[str],
    gold_codes: Sequence[Collection[str]],
    find_codes: FindCodes,
    **_: Any,
) -> list[float]:
    """How right a completion is.

    For analyze, the F1 of the codes that its lead terms lead to, by `find_codes`, against the gold
    codes: see `code_f1`. For verify, 1 if it is the answer of the reference, otherwise 0.

    Example:
        >>> reply = '{"terms": [{"quote": "cough", "lead_term": "Cough", "status": "affirmed"}]}'
        >>> completions = [[{"role": "assistant", "content": reply}]]
        >>> code_f1_reward(
        ...     completions,
        ...     task=["analyze"],
        ...     passage=["Cough and fever."],
        ...     reference=[""],
        ...     gold_codes=[["R05.9", "R50.9"]],
        ...     find_codes=lambda lead_terms: [["R05.9", "R05.1"] for _ in lead_terms],
        ... )
        [0.6666666666666666]

    """
    parsed = _parse(completions, task, passage)
    lead_terms = sorted({term for reply in parsed for term in reply.lead_terms.values()})
    codes = dict(zip(lead_terms, find_codes(lead_terms), strict=True))
    rewards = []
    for row, reply in enumerate(parsed):
        if task[row] == "verify":
            answer = language.strip_thinking(_text(completions[row]))
            rewards.append(float(answer == language.strip_thinking(reference[row])))
        else:
            found = [codes[term] for term in reply.lead_terms.values()]
            rewards.append(reply.usable * code_f1(found, gold_codes[row]))
    return rewards


def reward_functions(
    names: Iterable[str], find_codes: FindCodes
) -> list[Callable[..., list[float]]]:
    """The reward functions of these names, as TRL calls them."""
    code_f1_of = functools.partial(code_f1_reward, find_codes=find_codes)
    functools.update_wrapper(code_f1_of, code_f1_reward)  # TRL logs rewards by __name__
    functions: dict[str, Callable[..., list[float]]] = {
        "format_reward": format_reward,
        "verbatim_reward": verbatim_reward,
        "code_f1_reward": code_f1_of,
    }
    return [functions[name] for name in names]


def code_f1(found: Sequence[Collection[str]], gold: Collection[str]) -> float:
    """F1 of what terms lead to, each to some codes, against the gold codes.

    Right are the gold codes that a term leads to, wrong the terms that lead to none. So a term that
    leads only where another does changes nothing.
    """
    reached = set(gold) & set().union(*found)
    wrong = sum(reached.isdisjoint(codes) for codes in found)
    return ratio(2 * len(reached), len(reached) + wrong + len(set(gold)))


def ratio(part: int, whole: int) -> float:
    """Part of the whole; all of nothing is 1."""
    return part / whole if whole else 1.0


def _parse(
    completions: Completions, task: Sequence[Task], passage: Sequence[str]
) -> list[ParsedCompletion]:
    return [
        parse_completion(*row[:2], _text(row[2]))
        for row in zip(task, passage, completions, strict=True)
    ]


def _text(completion: Sequence[Mapping[str, str]]) -> str:
    return "".join(turn["content"] for turn in completion)
