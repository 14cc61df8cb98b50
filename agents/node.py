"""What makes an agent's work a node of the graph: timed, audited, its failure recorded as data."""

import asyncio
import time
import traceback
import uuid
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import prompts
from agents.state import State
from clh.audit import Dropped, Exchange, Record
from clh.errors import ClhError, ReplyError
from clh.models.language import Message
from clh.schema import Agent, AgentError, Citation, Finding, Span

Update = dict[str, Any]
"""The fields that a node adds to the state."""


class Node(Protocol):
    """What LangGraph calls."""

    async def __call__(self, state: State) -> Update:
        """The fields that the node adds to the state."""
        ...


@dataclass
class Trace:
    """The exchanges of an agent with its language model, and what the agent left out and why."""

    exchanges: list[Exchange] = field(default_factory=list)
    dropped: list[Dropped] = field(default_factory=list)

    def record_reply(self, task: str, raw: str) -> None:
        """Keep a model's reply, however bad."""
        self.exchanges.append(Exchange(prompt_sha256=prompts.sha256(task), reply=raw))

    def drop(self, reason: str, place: Span | None = None, code: str | None = None) -> None:
        """Keep the reason, one word, for leaving out a code or a place in the note."""
        start, end = (None, None) if place is None else (place.start, place.end)
        self.dropped.append(Dropped(reason, code, start, end))


Work = Callable[[State, Trace], Awaitable[Update]]
"""What an agent does: reads the state, and returns the fields that it adds."""


def build_messages(task: str, **values: Any) -> list[Message]:
    """Render a task's prompt as the messages that open a conversation."""
    prompt = prompts.render(task, **values)
    return [
        {"role": "system", "content": prompt.system},
        {"role": "user", "content": prompt.user},
    ]


def unusable_replies(agent: Agent, model: str, count: int, total: int) -> Finding:
    """The warning that some of a language model's replies could not be used."""
    return Finding(
        rule="unusable_reply",
        severity="warning",
        codes=(),
        message=f"{agent} could not use {count} of {total} replies of the language model",
        citation=Citation(place=agent, kind="model", text=model),
    )


def make_node(name: Agent, model: str, work: Work, audit: Record) -> Node:
    """The node of an agent that runs on `model`.

    A failure of the agent, or of the audit, becomes an entry of `errors`; what the agent had
    finished is kept.
    """

    async def node(state: State) -> Update:
        trace = Trace()
        update: Update = {}
        errors: list[AgentError] = []
        started = time.perf_counter()
        try:
            update = await work(state, trace)
        except ClhError as error:
            if isinstance(error, ReplyError) and error.raw:
                trace.record_reply(name, error.raw)
            errors.append(AgentError(agent=name, message=str(error)))
        except Exception as error:  # noqa: BLE001
            # Whatever breaks inside an agent ends this run, not the process that codes others.
            errors.append(AgentError(agent=name, message=_describe(error)))
        seconds = time.perf_counter() - started
        try:
            await asyncio.to_thread(
                audit.step,
                state["run_id"],
                agent=name,
                model=model,
                output=update,
                exchanges=trace.exchanges,
                dropped=trace.dropped,
                errors=errors,
                seconds=seconds,
            )
        except ClhError as error:
            errors.append(AgentError(agent="audit", message=str(error)))
        return {
            **update,
            "exchanges": trace.exchanges,
            "errors": errors,
            "timings": {name: seconds},
        }

    return node


def new_run_id() -> str:
    """A name for a run that no other run has."""
    return uuid.uuid4().hex


def failed(state: State) -> bool:
    """Whether an agent has failed; that the audit could not be written stops no agent."""
    return any(error.agent != "audit" for error in state["errors"])


def _describe(error: Exception) -> str:
    """The type of an unexpected error and where it arose; its own message may quote the note."""
    frame = traceback.extract_tb(error.__traceback__)[-1]
    return f"unexpected {type(error).__name__} in {Path(frame.filename).name}:{frame.lineno}"
