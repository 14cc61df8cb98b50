"""One agent run by itself, and what to run it on."""

from typing import Any

from langgraph.runtime import Runtime

from agents.context import Context
from agents.state import Node
from clh.schema import Candidate, Note, Status, Term

RUN = "f" * 32


async def step(node: Node, context: Context, note: Note, **state: Any) -> dict[str, Any]:
    """What a node adds to the state, with its record in the audit under `audit`."""
    context.audit.begin(RUN, note, context.settings.hash, context.settings.model_dump_json())
    given: Any = {"run_id": RUN, "note": note, **state}
    added = await node(given, runtime=Runtime(context=context))
    [record] = context.audit.show(RUN)["steps"]
    return {**added, "audit": record}


def term(note: Note, quote: str, status: Status = "affirmed", lead_term: str = "") -> Term:
    """The term that `quote` is in a note of one sentence."""
    start = note.text.index(quote)
    return Term(
        quote=note.span(start, start + len(quote)),
        sentence=note.span(0, len(note.text)),
        lead_term=lead_term or quote,
        status=status,
    )


def candidate(context: Context, code: str, score: float = 1.0, matched: str = "") -> Candidate:
    """A candidate that lay close by its title."""
    title = context.system[code].title
    return Candidate(code=code, title=title, matched=matched or title, similarity=score)
