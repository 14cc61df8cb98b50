"""What flows through the graph, and what makes an agent's work a node of it."""

import operator
import time
import traceback
import uuid
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Protocol, TypedDict

from langgraph.runtime import Runtime

import prompts
from agents.context import Context, default_context
from clh.audit import Dropped, Exchange
from clh.errors import ClhError, ReplyError
from clh.models.language import Message
from clh.schema import (
    Agent,
    AgentError,
    AssignedCode,
    Candidate,
    CodedNote,
    Finding,
    Note,
    Span,
    Term,
    Verdict,
)


class Input(TypedDict):
    """What a caller gives."""

    note: Note


class State(Input, total=False):
    """What the nodes add: each its own field."""

    run_id: str
    terms: list[Term]
    candidates: list[list[Candidate]]
    verdicts: list[Verdict]
    probabilities: dict[str, float]  # of codes, as assign decides by
    codes: list[AssignedCode]
    warnings: list[Finding]
    errors: Annotated[list[AgentError], operator.add]
    timings: Annotated[dict[Agent, float], operator.or_]
    coded_note: CodedNote


class Output(TypedDict):
    """What a caller gets."""

    coded_note: CodedNote


@dataclass
class Trace:
    """What an agent said to its model and heard, and what it left out and why."""

    exchanges: list[Exchange] = field(default_factory=list)
    dropped: list[Dropped] = field(default_factory=list)

    def heard(self, task: str, raw: str) -> None:
        """Keep a model's reply, however bad."""
        self.exchanges.append(Exchange(prompt_sha256=prompts.sha256(task), reply=raw))

    def drop(self, reason: str, place: Span | None = None, code: str | None = None) -> None:
        """Keep the reason, one word, for leaving out a code or a place in the note."""
        start, end = (None, None) if place is None else (place.start, place.end)
        self.dropped.append(Dropped(reason, code, start, end))


def conversation(task: str, **values: Any) -> list[Message]:
    """A task's prompt as the messages that open a conversation."""
    prompt = prompts.render(task, **values)
    return [
        {"role": "system", "content": prompt.system},
        {"role": "user", "content": prompt.user},
    ]


Work = Callable[[State, Context, Trace], Awaitable[dict[str, Any]]]


class Node(Protocol):
    """What LangGraph calls."""

    async def __call__(self, state: State, *, runtime: Runtime[Context]) -> dict[str, Any]:
        """The fields that the node adds to the state."""
        ...


def agent(name: Agent) -> Callable[[Work], Node]:
    """Make a node of an agent's work: timed, written to the audit, its failure recorded as data."""

    def decorate(work: Work) -> Node:
        async def node(state: State, *, runtime: Runtime[Context]) -> dict[str, Any]:
            context = runtime.context or default_context()
            trace = Trace()
            added: dict[str, Any] = {}
            errors: list[AgentError] = []
            started = time.perf_counter()
            try:
                added = await work(state, context, trace)
            except ClhError as error:
                if isinstance(error, ReplyError):
                    trace.heard(name, error.raw)
                errors = [AgentError(agent=name, message=str(error))]
            except Exception as error:  # noqa: BLE001
                # Whatever breaks inside an agent ends this run, not the process that codes others.
                errors = [AgentError(agent=name, message=_where(error))]
            seconds = time.perf_counter() - started
            context.audit.step(
                state["run_id"],
                agent=name,
                model=context.models[name],
                output=added,
                exchanges=trace.exchanges,
                dropped=trace.dropped,
                errors=errors,
                seconds=seconds,
            )
            return {**added, "errors": errors, "timings": {name: seconds}}

        node.__name__ = name
        node.__doc__ = work.__doc__
        return node

    return decorate


def _where(error: Exception) -> str:
    """What broke and where; not the error's own words, which may quote the note."""
    frame = traceback.extract_tb(error.__traceback__)[-1]
    return f"unexpected {type(error).__name__} in {Path(frame.filename).name}:{frame.lineno}"


async def begin(state: State, *, runtime: Runtime[Context]) -> dict[str, Any]:
    """Name the run and open its audit record."""
    context = runtime.context or default_context()
    run_id = uuid.uuid4().hex
    settings = context.settings
    context.audit.begin(run_id, state["note"], settings.hash, settings.model_dump_json())
    return {"run_id": run_id}


async def finish(state: State, *, runtime: Runtime[Context]) -> dict[str, Any]:
    """Put together the coded note, of all that the agents have added."""
    context = runtime.context or default_context()
    coded = CodedNote(
        note_id=state["note"].id,
        run_id=state["run_id"],
        icd_release=context.system.release,
        policy=context.settings.policy,
        codes=tuple(state.get("codes", ())),
        warnings=tuple(state.get("warnings", ())),
        errors=tuple(state["errors"]),
        models=context.models,
        timings={name: round(seconds, 4) for name, seconds in state["timings"].items()},
    )
    context.audit.finish(coded)
    return {"coded_note": coded}


def unless_failed(following: str) -> Callable[[State], str]:
    """The edge to the following node, or to `finish` once an agent has failed."""

    def go_on(state: State) -> str:
        return "finish" if state["errors"] else following

    return go_on
