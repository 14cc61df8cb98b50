"""What flows through the graph: each agent reads what is there and adds its own fields."""

import operator
from typing import Annotated, TypedDict

from clh.audit import Exchange
from clh.schema import (
    Agent,
    AgentError,
    AssignedCode,
    Candidate,
    CodedNote,
    ConsideredCode,
    Finding,
    Note,
    Term,
    Verdict,
)


class Input(TypedDict, total=False):
    """What a caller gives: the note and, to run one agent alone, what the agents before it add."""

    note: Note
    terms: list[Term]
    candidates: list[list[Candidate]]
    verdicts: list[Verdict]


class State(Input, total=False):
    """The note and everything that the nodes add to it."""

    run_id: str
    """Names the run in outputs and in the audit."""

    probabilities: dict[str, float]
    """Of codes, where assign decides by all verdicts on a code together."""

    codes: list[AssignedCode]
    """The final set, in order of reporting."""

    considered: list[ConsideredCode]
    """Codes that the note supports and assign left out, with the reason."""

    warnings: Annotated[list[Finding], operator.add]
    """What a human coder should look at."""

    exchanges: Annotated[list[Exchange], operator.add]
    """Replies of language models, with the fingerprints of the prompts."""

    errors: Annotated[list[AgentError], operator.add]
    """The agent that failed, and why; the agents after it do not run."""

    timings: Annotated[dict[Agent, float], operator.or_]
    """Seconds that each agent took."""

    coded_note: CodedNote
    """The answer."""
