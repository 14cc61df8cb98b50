"""Analyze: the note's codable mentions, each a verbatim quote with its lead term and status.

Two sources: spans of each sentence that lie close to the code system, or the language model.
"""

import asyncio
import re
from collections import defaultdict
from collections.abc import Iterable, Iterator
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field
from spacy.tokens import Span as Tokens

from agents.context import Context
from agents.state import State, Trace, agent, conversation
from clh.config import Analyze
from clh.document.reader import Reader, Sentence
from clh.errors import ReplyError
from clh.retrieval.index import Hit
from clh.retrieval.lexical import content_words, expand
from clh.schema import Note, Span, Status, Term

Mention = tuple[Sentence, Tokens]

# A history is looked up as such: the book has codes for it, and they are not the disease's.
_HISTORY = {"historical": "Personal history of", "family": "Family history of"}
_JOINERS = frozenset("-'/\u2019")  # punctuation inside a mention: "X-ray", "Crohn's", "and/or"
_LONGEST_WORD = 40  # characters; longer ones are data, not words


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
    """The terms whose words lie close to some text of the code system, or that a corpus codes.

    If the settings say so, each sentence as a whole, too: no span of "weak and unsteady since the
    operation" says what all of it does.
    """
    settings = context.settings.analyze
    sentences = [one for one in context.reader.sentences(note.text) if one.section != "skip"]
    mentions = [
        (sentence, tokens)
        for sentence in sentences
        for tokens in spans(sentence.tokens, settings.span_words, context.reader)
        if _squeezed(tokens) not in context.reader.never
    ]
    texts = sorted({expand(_squeezed(tokens)) for _, tokens in mentions})
    near = context.index.nearest(
        context.tower.encode(texts), settings.neighbours, settings.shortlist
    )
    weights = {
        text: max([prior_score(text, context), *(weight(text, hit, context) for hit in hits)])
        for text, hits in zip(texts, near, strict=True)
    }
    weighed = [(mention, weights[expand(_squeezed(mention[1]))]) for mention in mentions]
    best = segment(weighed)
    terms = [
        _term(note, sentence, tokens, status)
        for (sentence, tokens), status in zip(best, context.reader.statuses(best), strict=True)
    ]
    return [*terms, *sentence_terms(note, sentences, context)] if settings.sentences else terms


def sentence_terms(note: Note, sentences: Iterable[Sentence], context: Context) -> list[Term]:
    """Each sentence as one term, affirmed only if every word of it is."""
    terms = []
    for sentence in sentences:
        tokens = sentence.tokens
        words = [(sentence, tokens.doc[one.i : one.i + 1]) for one in tokens if _is_word(one.text)]
        said = context.reader.statuses(words)
        status: Status = next((one for one in said if one != "affirmed"), "affirmed")
        term = _term(note, sentence, tokens, status)
        terms.append(term.model_copy(update={"is_sentence": True}))
    return terms


def spans(sentence: Tokens, longest: int, reader: Reader) -> Iterator[Tokens]:
    """All stretches of up to `longest` words that begin and end with a word that says something.

    Function words say nothing, nor do the reader's `edges`, which speak about a mention; none
    reaches across its `breaks`, which may turn what follows.
    """

    def says_something(text: str) -> bool:
        return bool(content_words(text)) and text.lower() not in reader.edges

    for first in sentence:
        if not (_is_word(first.text) and says_something(first.text)):
            continue
        words = 0
        for last in sentence[first.i - sentence.start :]:
            if last.is_space:
                continue
            if not _is_word(last.text):
                if last.text in _JOINERS:
                    continue
                break
            words += 1
            if words > longest or last.lower_ in reader.breaks:
                break
            if says_something(last.text):
                yield sentence.doc[first.i : last.i + 1]


def weight(text: str, hit: Hit, context: Context) -> float:
    """How much is gained by taking `text` for a mention of what `hit` says; nothing if negative.

    What their closeness exceeds the minimum by, times a power of the words they share: "right knee
    pain" beats "right knee" and "pain" together, and "pneumonia" a stretch of words around it.
    """
    settings = context.settings.analyze
    shared = content_words(text) & content_words(hit.text)
    if shared and shared <= context.reader.never_words:
        return 0.0
    # A text that says more is less close: "right knee" is near to every ill of it.
    closeness = hit.score * (1 + context.index.lexicon.coverage(hit.text, by=text)) / 2
    gain: float = max(1, len(shared)) ** settings.length_weight
    return (closeness - settings.min_closeness) * gain


def prior_score(text: str, context: Context) -> float:
    """How much is gained by taking `text` for a mention that the corpus's annotators coded."""
    if context.prior is None:
        return 0.0
    settings = context.settings.analyze
    gain: float = max(1, len(content_words(text))) ** settings.length_weight
    return (context.prior.precedents.share(text) - settings.min_precedent) * gain


def segment(weighed: Iterable[tuple[Mention, float]]) -> list[Mention]:
    """The mentions, none overlapping, that weigh most together: weighted interval scheduling."""
    by_end: defaultdict[int, list[tuple[float, Mention]]] = defaultdict(list)
    for mention, gain in weighed:
        if gain > 0:
            by_end[mention[1].end].append((gain, mention))
    totals = [0.0]  # of the best choice among the mentions that end by each token
    choices: list[Mention | None] = [None]
    for end in range(1, max(by_end, default=0) + 1):
        total, choice = totals[-1], None
        for gain, mention in by_end[end]:
            if totals[mention[1].start] + gain > total:
                total, choice = totals[mention[1].start] + gain, mention
        totals.append(total)
        choices.append(choice)
    chosen: list[Mention] = []
    end = len(choices) - 1
    while end > 0:
        choice = choices[end]
        if choice is None:
            end -= 1
        else:
            chosen.append(choice)
            end = choice[1].start
    return chosen[::-1]


async def ask(note: Note, context: Context, trace: Trace) -> list[Term]:
    """The terms that the language model finds, window by window."""
    terms: dict[Span, Term] = {}
    read = list(windows(context.reader.sentences(note.text), context.settings.analyze))
    passages = [note.span(one[0].tokens.start_char, one[-1].tokens.end_char) for one in read]
    questions = [
        conversation("analyze", text=passage.text, policy=context.settings.policy)
        for passage in passages
    ]
    replies = await context.ask().chat(questions, Reply)
    for window, passage, reply in zip(read, passages, replies, strict=True):
        trace.heard("analyze", reply.raw)
        if isinstance(reply, ReplyError):
            trace.drop("unusable_reply", passage)
            continue
        for quoted in reply.value.terms:
            quote = find(note, passage, quoted.quote)
            if quote is None:
                trace.drop("quote_not_in_note", passage)
                continue
            within = next(s for s in window if s.tokens.end_char > quote.start)
            # A quote may begin in a heading, or run on into the next sentence.
            start = min(within.tokens.start_char, quote.start)
            end = max(within.tokens.end_char, quote.end)
            terms[quote] = Term(
                quote=quote,
                sentence=note.span(start, end),
                lead_term=quoted.lead_term,
                status=reconcile_status(quoted.status, quote, within, context.reader),
                reason=within.section == "reason",
            )
    return sorted(terms.values(), key=lambda term: term.quote.start)


def reconcile_status(said: Status, quote: Span, sentence: Sentence, reader: Reader) -> Status:
    """The model's status, unless it affirms what the sentence denies or tells of others.

    A small model overlooks "no evidence of"; the rules of the reader do not.
    """
    whole = sentence.tokens
    end = min(quote.end, whole.end_char)
    tokens = whole.doc.char_span(quote.start, end, alignment_mode="expand")
    if said != "affirmed" or tokens is None or tokens.start < whole.start:
        return said
    [read] = reader.statuses([(sentence, tokens)])
    return read


def windows(sentences: Iterable[Sentence], settings: Analyze) -> Iterator[list[Sentence]]:
    """The sentences in windows that the model reads at once; a long one has a window of its own."""
    window: list[Sentence] = []
    words = 0
    for sentence in sentences:
        if window and words + len(sentence.tokens) > settings.window_words:
            yield window
            window, words = [], 0
        window.append(sentence)
        words += len(sentence.tokens)
    if window:
        yield window


def find(note: Note, passage: Span, quote: str) -> Span | None:
    """Where the passage says `quote`, but for case and line breaks; the span is the note's own."""
    words = r"\s+".join(map(re.escape, quote.split()))
    found = re.search(words, passage.text, re.IGNORECASE) if words else None
    return note.span(passage.start + found.start(), passage.start + found.end()) if found else None


def _term(note: Note, sentence: Sentence, tokens: Tokens, status: Status) -> Term:
    mention = expand(_squeezed(tokens))
    return Term(
        quote=_span(note, tokens),
        sentence=_span(note, sentence.tokens),
        lead_term=f"{_HISTORY[status]} {mention}" if status in _HISTORY else mention,
        status=status,
        reason=sentence.section == "reason",
    )


def _span(note: Note, tokens: Tokens) -> Span:
    return note.span(tokens.start_char, tokens.end_char)


def _squeezed(tokens: Tokens) -> str:
    return " ".join(tokens.text.lower().split())


def _is_word(text: str) -> bool:
    return any(map(str.isalnum, text)) and len(text) <= _LONGEST_WORD
