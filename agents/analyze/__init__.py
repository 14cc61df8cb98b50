"""Analyze: the note's codable mentions, each a verbatim quote with its lead term and status.

Two sources: spans of each sentence that lie close to the code system, or the language model.
"""

import asyncio
import re
from collections.abc import Iterable, Iterator
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field

from agents.analyze.retrieval import RetrievalAnalyzer
from agents.context import Context
from agents.state import State, Trace, agent, conversation
from clh.config import Analyze
from clh.document.reader import Sentence
from clh.errors import ReplyError
from clh.schema import Note, Span, Status, Term


class Quoted(BaseModel):
    """One term as the language model gives it."""

    model_config = ConfigDict(extra="forbid")

    quote: Annotated[str, Field(min_length=1, max_length=120)]
    lead_term: Annotated[str, Field(min_length=1, max_length=80)]
    status: Status


class Reply(BaseModel):
    """What the language model answers about one window of the note."""

    model_config = ConfigDict(extra="forbid")

    terms: Annotated[list[Quoted], Field(max_length=12)]


@agent("analyze")
async def analyze(state: State, context: Context, trace: Trace) -> dict[str, Any]:
    """Find the note's terms."""
    note = state["note"]
    if context.settings.analyze.source == "llm":
        return {"terms": await ask(note, context, trace)}
    return {"terms": await asyncio.to_thread(extract_by_retrieval, note, context)}


def extract_by_retrieval(note: Note, context: Context) -> list[Term]:
    """The terms whose words lie close to some text of the code system, or that a corpus codes."""
    analyzer = RetrievalAnalyzer(
        context.settings.analyze, context.reader, context.tower, context.index, context.prior
    )
    return analyzer.extract(note)


async def ask(note: Note, context: Context, trace: Trace) -> list[Term]:
    """The terms that the language model finds, window by window."""
    terms: dict[Span, Term] = {}
    read = list(windows(context.reader.all_sentences(note.text), context.settings.analyze))
    passages = [note.span(window[0].start, window[-1].end) for window in read]
    questions = [
        conversation("analyze", text=passage.text, policy=context.settings.policy)
        for passage in passages
    ]
    replies = await context.ask().chat(questions, Reply)
    for window, passage, reply in zip(read, passages, replies, strict=True):
        trace.heard("analyze", reply.raw)
        if isinstance(reply, ReplyError):
            trace.drop(f"window {passage.start}:{passage.end}", "the model's reply is not usable")
            continue
        for quoted in reply.value.terms:
            quote = find(note, passage, quoted.quote)
            if quote is None:
                trace.drop(f"window {passage.start}:{passage.end}", "a quote is not in the note")
                continue
            within = next(sentence for sentence in window if sentence.end > quote.start)
            # A quote may begin in a heading, or run on into the next sentence.
            start = min(within.start, quote.start)
            end = max(within.end, quote.end)
            terms[quote] = Term(
                quote=quote,
                sentence=note.span(start, end),
                lead_term=quoted.lead_term,
                status=reconcile_status(quoted.status, quote, within),
                reason=within.section == "reason",
            )
    return sorted(terms.values(), key=lambda term: term.quote.start)


def reconcile_status(said: Status, quote: Span, sentence: Sentence) -> Status:
    """The model's status, unless it affirms what the sentence denies or tells of others.

    A small model overlooks "no evidence of"; the rules of the reader do not.
    """
    if said != "affirmed" or quote.start < sentence.start:
        return said
    return sentence.mention(quote.start, min(quote.end, sentence.end)).status


def windows(sentences: Iterable[Sentence], settings: Analyze) -> Iterator[list[Sentence]]:
    """All sentences of a note in windows that the model reads at once, without skipped sections.

    A long sentence has a window of its own.
    """
    window: list[Sentence] = []
    words = 0
    for sentence in sentences:
        if window and (sentence.is_skipped or words + len(sentence.tokens) > settings.window_words):
            yield window
            window, words = [], 0
        if not sentence.is_skipped:
            window.append(sentence)
            words += len(sentence.tokens)
    if window:
        yield window


def find(note: Note, passage: Span, quote: str) -> Span | None:
    """Where the passage says `quote`, but for case and line breaks; the span is the note's own."""
    words = r"\s+".join(map(re.escape, quote.split()))
    found = re.search(words, passage.text, re.IGNORECASE) if words else None
    return note.span(passage.start + found.start(), passage.start + found.end()) if found else None
