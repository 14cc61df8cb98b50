"""Terms found by retrieval: the spans of each sentence that lie close to the code system."""

import asyncio
from collections import defaultdict
from collections.abc import Iterable, Iterator

from spacy.tokens import Span as Tokens

from agents.node import Trace
from clh.config import RetrievalAnalysis
from clh.document.reader import Reader, Sentence
from clh.models.embedder import Tower
from clh.retrieval.index import CodeIndex, Hit
from clh.retrieval.lexical import content_words, expand
from clh.retrieval.prior import Prior
from clh.schema import Finding, Note, Span, Status, Term

Mention = tuple[Sentence, Tokens]

# A history is looked up as such: the book has codes for it, and they are not the disease's.
_HISTORY = {"historical": "Personal history of", "family": "Family history of"}
_JOINERS = frozenset("-'/\u2019")  # punctuation inside a mention: "X-ray", "Crohn's", "and/or"
_LONGEST_WORD = 40  # characters; longer ones are data, not words


class RetrievalAnalyzer:
    """Takes spans of a sentence for mentions of the texts of the code system next to them."""

    def __init__(
        self,
        settings: RetrievalAnalysis,
        reader: Reader,
        embedder: Tower,
        index: CodeIndex,
        prior: Prior | None,
    ) -> None:
        """Search `index` for spans; `prior` adds those that a corpus's annotators coded."""
        self.id = f"{embedder.id} + negspacy"
        self._settings, self._reader, self._embedder = settings, reader, embedder
        self._index, self._prior = index, prior

    async def analyze(self, note: Note, trace: Trace) -> tuple[list[Term], list[Finding]]:
        """See `agents.analyze.Analyzer.analyze`."""
        return await asyncio.to_thread(self.extract, note), []

    def extract(self, note: Note) -> list[Term]:
        """The terms whose words lie close to some text of the code system, or that a corpus codes.

        If the settings ask for it, each sentence is a term as a whole, too: no span of "weak and
        unsteady since the operation" means what all of it does.
        """
        settings, reader = self._settings, self._reader
        sentences = [
            sentence for sentence in reader.sentences(note.text) if sentence.section != "skip"
        ]
        mentions = [
            (sentence, tokens)
            for sentence in sentences
            for tokens in generate_spans(sentence.tokens, settings.span_words, reader)
            if _squeezed(tokens) not in reader.never
        ]
        texts = sorted({expand(_squeezed(tokens)) for _, tokens in mentions})
        near = self._index.nearest(
            self._embedder.encode(texts), settings.neighbours, settings.shortlist
        )
        scores = {
            text: max([self.prior_score(text), *(self.span_score(text, hit) for hit in hits)])
            for text, hits in zip(texts, near, strict=True)
        }
        scored = [(mention, scores[expand(_squeezed(mention[1]))]) for mention in mentions]
        best = select_spans(scored)
        terms = [
            _term(note, sentence, tokens, status)
            for (sentence, tokens), status in zip(best, reader.statuses(best), strict=True)
        ]
        return [*terms, *self.sentence_terms(note, sentences)] if settings.sentences else terms

    def sentence_terms(self, note: Note, sentences: Iterable[Sentence]) -> list[Term]:
        """Each sentence as one term, affirmed only if every word of it is."""
        terms = []
        for sentence in sentences:
            tokens = sentence.tokens
            words = [
                (sentence, tokens.doc[token.i : token.i + 1])
                for token in tokens
                if _is_word(token.text)
            ]
            statuses = self._reader.statuses(words)
            status: Status = next((found for found in statuses if found != "affirmed"), "affirmed")
            term = _term(note, sentence, tokens, status)
            terms.append(term.model_copy(update={"is_sentence": True}))
        return terms

    def span_score(self, text: str, hit: Hit) -> float:
        """The score of a span that lies close to `hit`; only positive spans can be selected.

        (closeness - min_closeness) * shared words ** length_weight: "right knee pain" beats "right
        knee" and "pain" together, and "pneumonia" a longer span around it.
        """
        settings = self._settings
        shared = content_words(text) & content_words(hit.text)
        if shared and shared <= self._reader.never_words:
            return 0.0
        # A text that says more is less close: "right knee" is near to every ill of it.
        closeness = hit.score * (1 + self._index.lexicon.coverage(hit.text, by=text)) / 2
        gain: float = max(1, len(shared)) ** settings.length_weight
        return (closeness - settings.min_closeness) * gain

    def prior_score(self, text: str) -> float:
        """The score of a span that the corpus's annotators coded, as `span_score`."""
        if self._prior is None:
            return 0.0
        settings = self._settings
        gain: float = max(1, len(content_words(text))) ** settings.length_weight
        return (self._prior.precedents.share(text) - settings.min_precedent) * gain


def generate_spans(sentence: Tokens, longest: int, reader: Reader) -> Iterator[Tokens]:
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


def select_spans(scored: Iterable[tuple[Mention, float]]) -> list[Mention]:
    """The non-overlapping mentions with the highest total score: weighted interval scheduling."""
    by_end: defaultdict[int, list[tuple[float, Mention]]] = defaultdict(list)
    for mention, gain in scored:
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
