"""Locate: for every term the codes whose texts lie closest, by meaning."""

import asyncio
from typing import Any

from agents.context import Context
from agents.state import State, Trace, agent
from clh.schema import Candidate


@agent("locate")
async def locate(state: State, context: Context, trace: Trace) -> dict[str, Any]:
    """Find each term's candidates; all terms are one search."""
    queries = [term.lead_term for term in state["terms"]]
    return {"candidates": await asyncio.to_thread(search, queries, context)}


def search(queries: list[str], context: Context) -> list[list[Candidate]]:
    """For each query the nearest codes, best first.

    A category stands for the code that the book gives to a mention without more detail, and each
    code comes once, with the text that lies closest.
    """
    settings, system = context.settings.locate, context.system
    vectors = context.tower.encode(queries)
    # Several texts lead to one code, so more texts than codes are looked at.
    hits = context.index.nearest(vectors, 2 * settings.candidates, settings.shortlist)
    found: list[list[Candidate]] = []
    for near in hits:
        candidates: dict[str, Candidate] = {}
        for hit in near:
            code = system.unspecified(hit.code) or hit.code
            candidates.setdefault(
                code,
                Candidate(
                    code=code, title=system[code].title, matched=hit.text, score=min(hit.score, 1.0)
                ),
            )
        found.append(list(candidates.values())[: settings.candidates])
    return found
