"""Terms found by a language model that reads the note in windows of whole sentences."""

import re
from collections import Counter
from collections.abc import Iterable, Iterator
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

from agents.analyze import Progress
from agents.node import Trace, build_messages, unusable_replies
from clh.config import LlmAnalysis
from clh.document.reader import Reader, Sentence
from clh.errors import ReplyError
from clh.models.language import LanguageModel
from clh.schema import Finding, Note, Policy, Span, Status, Term


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


class LlmAnalyzer:
    """Asks a language model for the terms of each window."""

    def __init__(
        self, model: LanguageModel, reader: Reader, settings: LlmAnalysis, policy: Policy
    ) -> None:
        """`policy` is told to the model: what counts."""
        self.id = model.id
        self._model, self._reader = model, reader
        self._settings, self._policy = settings, policy

    async def analyze(
        self, note: Note, trace: Trace, progress: Progress | None = None
    ) -> tuple[list[Term], list[Finding]]:
        """See `agents.analyze.Analyzer.analyze`.

        All windows of a note are one call, so there is no progress. Raises ReplyError if no reply
        can be used.
        """
        sentences = self._reader.all_sentences(note.text)
        windows = list(split_windows(sentences, self._settings.window_words))
        passages = [passage_of(note, window) for window in windows]
        questions = [
            build_messages("analyze", text=passage.text, policy=self._policy)
            for passage in passages
        ]
        replies = await self._model.chat(questions, Reply)
        terms: dict[Span, Term] = {}
        unusable = 0
        for window, passage, reply in zip(windows, passages, replies, strict=True):
            trace.record_reply("analyze", reply.raw)
            if isinstance(reply, ReplyError):
                unusable += 1
                trace.drop("unusable_reply", passage)
                continue
            for term in self._read_terms(note, window, passage, reply.value.terms, trace):
                terms.setdefault(term.quote, term)
        if unusable and unusable == len(windows):
            raise ReplyError(f"none of the {unusable} replies of {self.id} could be used")
        found = sorted(terms.values(), key=lambda term: term.quote.start)
        if unusable:
            return found, [unusable_replies("analyze", self.id, unusable, len(windows))]
        return found, []

    def _read_terms(
        self,
        note: Note,
        window: list[Sentence],
        passage: Span,
        quoted: Iterable[Quoted],
        trace: Trace,
    ) -> Iterator[Term]:
        """The terms of a reply, each at its place; the n-th equal quote is the n-th occurrence."""
        seen: Counter[str] = Counter()
        for term in quoted:
            key = " ".join(term.quote.split()).lower()
            quote = locate_quote(note, passage, term.quote, seen[key])
            seen[key] += 1
            if quote is None:
                trace.drop("quote_not_in_note", passage)
                continue
            sentence = next(one for one in window if one.end > quote.start)
            # A quote may begin in a heading, or run on into the next sentence.
            start = min(sentence.start, quote.start)
            end = max(sentence.end, quote.end)
            yield Term(
                quote=quote,
                sentence=note.span(start, end),
                lead_term=term.lead_term,
                status=reconcile_status(term.status, quote, sentence),
                reason=sentence.section == "reason",
            )


def reconcile_status(status: Status, quote: Span, sentence: Sentence) -> Status:
    """The model's status, unless it affirms what the reader's rules find denied or another's.

    A small model overlooks "no evidence of"; the rules do not.
    """
    if status != "affirmed" or quote.start < sentence.start:
        return status
    return sentence.mention(quote.start, min(quote.end, sentence.end)).status


def split_windows(sentences: Iterable[Sentence], words: int) -> Iterator[list[Sentence]]:
    """All sentences of a note but the skipped ones, in windows of at most `words`.

    A longer sentence has a window of its own, and none goes on after sentences that are skipped.
    """
    window: list[Sentence] = []
    length = 0
    for sentence in sentences:
        if window and (sentence.is_skipped or length + len(sentence.tokens) > words):
            yield window
            window, length = [], 0
        if not sentence.is_skipped:
            window.append(sentence)
            length += len(sentence.tokens)
    if window:
        yield window


def passage_of(note: Note, window: list[Sentence]) -> Span:
    """The stretch of the note from a window's first sentence to its last."""
    return note.span(window[0].start, window[-1].end)


def locate_quote(note: Note, passage: Span, quote: str, occurrence: int = 0) -> Span | None:
    """Where the passage has the words of `quote`, but for case and line breaks.

    Whole words only: "MI" is not in "family". Occurrences in the same case come first; beyond the
    last occurrence it is that one. None if there is none.
    """
    words = r"\s+".join(map(re.escape, quote.split()))
    if not words:
        return None
    pattern = rf"(?<!\w){words}(?!\w)"
    places = [match.span() for match in re.finditer(pattern, passage.text)]
    places = places or [match.span() for match in re.finditer(pattern, passage.text, re.IGNORECASE)]
    if not places:
        return None
    start, end = places[min(occurrence, len(places) - 1)]
    return note.span(passage.start + start, passage.start + end)
