"""Coding one note: the graph run once, from start to end."""

from collections.abc import Callable

from langsmith import tracing_context

from agents.context import Context
from agents.graph import graph
from agents.state import Input
from clh.retrieval.lexical import forget_texts
from clh.schema import CodedNote, Note


async def code(
    note: Note, context: Context, on_step: Callable[[str], None] | None = None
) -> CodedNote:
    """The note's codes; an agent that fails is in `errors`, with what came before it kept.

    `on_step` is called with the name of each node as it ends.
    """
    # LangGraph would send its traces, and the note with them, to whatever server LANGSMITH_*
    # variables of the user's other projects name. Patient text stays here.
    try:
        with tracing_context(enabled=False):
            async for step in graph.astream(
                Input(note=note), context=context, stream_mode="updates"
            ):
                for name, added in step.items():
                    if on_step is not None:
                        on_step(name)
                    if name == "finish":
                        coded: CodedNote = added["coded_note"]
    finally:
        forget_texts()
    return coded
