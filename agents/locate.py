"""Locate: for every term the codes whose texts lie closest, by meaning and by words."""

import asyncio
from typing import Any

from agents.context import Context
from agents.state import State, Trace, agent
from clh.retrieval import hybrid
from clh.schema import Candidate


@agent("locate")
async def locate(state: State, context: Context, trace: Trace) -> dict[str, Any]:
    """Find each term's candidates; all terms are one search."""
    queries = [term.lead_term for term in state["terms"]]
    return {"candidates": await asyncio.to_thread(search, queries, context)}


def search(queries: list[str], context: Context) -> list[list[Candidate]]:
    """For each query its candidates, best first: each code once, with its best text."""
    found = hybrid.search(
        queries,
        context.tower.encode(queries),
        context.index,
        context.prior,
        context.settings.locate,
    )
    return [
        [
            Candidate(
                code=one.code,
                title=context.system[one.code].title,
                matched=one.text,
                similarity=min(one.similarity, 1.0),
                lexical_score=one.lexical_score,
                length_bonus=one.length_bonus,
                prior_score=one.prior_score,
                precedent=one.precedent,
            )
            for one in best
        ]
        for best in found
    ]
