"""One agent run by itself, and what to run it on."""

from typing import Any

from agents.pipeline import Pipeline
from clh.schema import Agent, Candidate, Note, Status, Term


async def run_step(agent: Agent, pipeline: Pipeline, note: Note, **given: Any) -> dict[str, Any]:
    """The state after one agent, with the agent's record in the audit under `audit`."""
    coded = await pipeline.run_agents([agent], {"note": note, **given})  # type: ignore[typeddict-item]
    [record] = pipeline.audit.show(coded.note.run_id)["steps"]  # type: ignore[attr-defined]
    return {**coded.state, "audit": record}


def term(note: Note, quote: str, status: Status = "affirmed", lead_term: str = "") -> Term:
    """The term that `quote` is in a note of one sentence."""
    start = note.text.index(quote)
    return Term(
        quote=note.span(start, start + len(quote)),
        sentence=note.span(0, len(note.text)),
        lead_term=lead_term or quote,
        status=status,
    )


def candidate(
    pipeline: Pipeline, code: str, similarity: float = 1.0, matched: str = ""
) -> Candidate:
    """A candidate that lay close by its title."""
    title = pipeline.system[code].title
    return Candidate(code=code, title=title, matched=matched or title, similarity=similarity)
