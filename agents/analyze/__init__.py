"""Analyze: the note's codable mentions, each a verbatim quote with its lead term and status.

Two strategies: spans of each sentence that lie close to the code system (`retrieval`), or a
language model that reads the note window by window (`llm`).
"""

from collections.abc import Callable
from typing import Protocol

from agents.node import Trace
from clh.schema import Finding, Note, Term

Progress = Callable[[int, int], None]
"""Called with the number of characters read so far, and how many there are."""


class Analyzer(Protocol):
    """Finds the terms of a note."""

    @property
    def id(self) -> str:
        """Names the models that it runs on."""
        ...

    async def analyze(
        self, note: Note, trace: Trace, progress: Progress | None = None
    ) -> tuple[list[Term], list[Finding]]:
        """The terms, in the order of the note, and warnings."""
        ...
