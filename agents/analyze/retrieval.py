"""Terms found by retrieval: the spans of each sentence that lie closest to the code system."""

import asyncio
import threading
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence

from agents.analyze import Progress
from agents.node import Trace
from clh.config import RetrievalAnalysis
from clh.document.reader import Mention, Reader, Sentence
from clh.models.embedder import Embedder
from clh.retrieval.index import CodeIndex, Hit
from clh.retrieval.lexical import content_words, expand
from clh.retrieval.prior import Prior
from clh.schema import Finding, Note, Status, Term

# A history is looked up as such: the book has codes for it, and they are not the disease's.
_HISTORY = {"historical": "Personal history of", "family": "Family history of"}
_JOINERS = frozenset("-'/")  # punctuation inside a mention: "X-ray", "and/or"
_LONGEST_WORD = 40  # characters; longer ones are data, not words
_WINDOW = 1_000  # tokens of the sentences whose spans are embedded at once: some 1,000 texts
_KEPT_SCORES = 50_000  # texts of a note whose scores are remembered


class RetrievalAnalyzer:
    """Takes spans of a sentence for mentions of the texts of the code system next to them.

    A span is scored against the closest texts, and by how often a corpus's annotators coded it; the
    spans of a sentence with the highest scores together are its terms. If the settings ask for it,
    each sentence is a term as a whole, too: no span of "weak and unsteady since the operation"
    means what all of it does.
    """

    def __init__(
        self,
        settings: RetrievalAnalysis,
        reader: Reader,
        embedder: Embedder,
        index: CodeIndex,
        prior: Prior | None,
    ) -> None:
        """Search `index` for spans; `prior` adds those that a corpus's annotators coded."""
        self.id = f"{embedder.id} + context rules"
        self._settings, self._reader, self._embedder = settings, reader, embedder
        self._index, self._prior = index, prior
        self._vague_words = frozenset().union(*map(content_words, reader.vague))

    async def analyze(
        self, note: Note, trace: Trace, progress: Progress | None = None
    ) -> tuple[list[Term], list[Finding]]:
        """See `agents.analyze.Analyzer.analyze`. Its thread ends soon after a cancellation."""
        cancelled = threading.Event()

        def advance(done: int, total: int) -> None:
            if cancelled.is_set():
                raise asyncio.CancelledError
            if progress is not None:
                progress(done, total)

        try:
            return await asyncio.to_thread(self.extract, note, advance), []
        finally:
            cancelled.set()

    def extract(self, note: Note, progress: Progress | None = None) -> list[Term]:
        """The terms of a note in order; those that are sentences come after the others.

        The note is read in windows of whole sentences. After each, `progress` is called with the
        number of characters read and their total; an exception that it raises ends the work.
        """
        sentences = self._reader.sentences(note.text)
        terms: list[Term] = []
        scores: dict[str, float] = {}
        for window in _windows(sentences):
            if len(scores) > _KEPT_SCORES:
                scores.clear()
            terms += [_term(note, mention) for mention in self._select(window, scores)]
            if progress is not None:
                progress(window[-1].end, len(note.text))
        return [*terms, *sentence_terms(note, sentences)] if self._settings.sentences else terms

    def _select(self, sentences: Sequence[Sentence], scores: dict[str, float]) -> list[Mention]:
        """The best mentions of some sentences; new scores are added to `scores`, by text."""
        spans = [
            (mention, expand(text))
            for sentence in sentences
            for mention in generate_spans(sentence, self._settings.span_words, self._reader)
            if (text := mention.text.lower()) not in self._reader.vague
        ]
        scores.update(self._score({text for _, text in spans if text not in scores}))
        by_sentence: defaultdict[int, list[tuple[Mention, float]]] = defaultdict(list)
        for mention, text in spans:
            by_sentence[mention.sentence.start].append((mention, scores[text]))
        return [mention for scored in by_sentence.values() for mention in select_spans(scored)]

    def _score(self, texts: Iterable[str]) -> dict[str, float]:
        """The best score of each text; 0 for those that are no mention."""
        scores = {text: max(0.0, self.prior_score(text)) for text in texts}
        promising = sorted(filter(self._is_promising, scores))
        hits = self._index.nearest(
            self._embedder.encode(promising), self._settings.neighbours, self._settings.shortlist
        )
        for text, near in zip(promising, hits, strict=True):
            scores[text] = max([scores[text], *(self.span_score(text, hit) for hit in near)])
        return scores

    def _is_promising(self, text: str) -> bool:
        """Whether some text of the code system shares half of the words, so that it may lie close.

        Embedding is slow, and a longer span around fewer shared words is hardly ever selected: the
        shorter ones in it lie closer.
        """
        shared = self._index.lexicon.most_shared(text)
        return shared > 0 and 2 * shared >= len(content_words(text))

    def span_score(self, text: str, hit: Hit) -> float:
        """The score of a span that lies close to `hit`; only positive spans can be selected.

        (closeness - min_closeness) * shared words ** length_weight: "right knee pain" beats "right
        knee" and "pain" together, and "pneumonia" a longer span around it.
        """
        settings = self._settings
        shared = content_words(text) & content_words(hit.text)
        if shared and shared <= self._vague_words:
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


def sentence_terms(note: Note, sentences: Iterable[Sentence]) -> list[Term]:
    """Each sentence as one term, affirmed only if every word of it is."""
    terms = []
    for sentence in sentences:
        statuses = (
            sentence.status(place, place)
            for place, token in enumerate(sentence.tokens)
            if _is_word(token.text)
        )
        status: Status = next((one for one in statuses if one != "affirmed"), "affirmed")
        whole = Mention(sentence, 0, len(sentence.tokens) - 1)
        terms.append(_term(note, whole, status).model_copy(update={"is_sentence": True}))
    return terms


def generate_spans(sentence: Sentence, longest: int, reader: Reader) -> Iterator[Mention]:
    """All stretches of up to `longest` words that begin and end with a content word.

    Function words are none, nor are the reader's `edges`, which speak about a mention; no span
    reaches across its `breaks`, which may turn what follows.
    """
    words = [token.text.lower() for token in sentence.tokens]
    are_words = list(map(_is_word, words))
    may_end = [
        is_word and word not in reader.edges and bool(content_words(word))
        for word, is_word in zip(words, are_words, strict=True)
    ]
    for first, begins in enumerate(may_end):
        if not begins:
            continue
        length = 0
        for last in range(first, len(words)):
            if not are_words[last]:
                if words[last] in _JOINERS:
                    continue
                break
            length += 1
            if length > longest or words[last] in reader.breaks:
                break
            if may_end[last]:
                yield Mention(sentence, first, last)


def select_spans(scored: Iterable[tuple[Mention, float]]) -> list[Mention]:
    """The non-overlapping mentions of a sentence with the highest total score.

    Weighted interval scheduling (Kleinberg and Tardos, Algorithm Design, section 6.1).
    """
    by_last: defaultdict[int, list[tuple[float, Mention]]] = defaultdict(list)
    for mention, score in scored:
        if score > 0:
            by_last[mention.last].append((score, mention))
    totals = [0.0]  # of the best choice among the mentions that end before each token
    choices: list[Mention | None] = []
    for last in range(max(by_last, default=-1) + 1):
        total, choice = totals[-1], None
        for score, mention in by_last[last]:
            if totals[mention.first] + score > total:
                total, choice = totals[mention.first] + score, mention
        totals.append(total)
        choices.append(choice)
    chosen: list[Mention] = []
    last = len(choices) - 1
    while last >= 0:
        choice = choices[last]
        if choice is not None:
            chosen.append(choice)
        last = choice.first - 1 if choice is not None else last - 1
    return chosen[::-1]


def _windows(sentences: Iterable[Sentence]) -> Iterator[list[Sentence]]:
    """The sentences in groups of some `_WINDOW` tokens."""
    window: list[Sentence] = []
    tokens = 0
    for sentence in sentences:
        window.append(sentence)
        tokens += len(sentence.tokens)
        if tokens >= _WINDOW:
            yield window
            window, tokens = [], 0
    if window:
        yield window


def _term(note: Note, mention: Mention, status: Status | None = None) -> Term:
    """The term of a mention; its status is what the sentence says, unless it is given."""
    sentence, status = mention.sentence, status or mention.status
    text = expand(mention.text.lower())
    return Term(
        quote=note.span(mention.start, mention.end),
        sentence=note.span(sentence.start, sentence.end),
        lead_term=f"{_HISTORY[status]} {text}" if status in _HISTORY else text,
        status=status,
        reason=sentence.section == "reason",
    )


def _is_word(text: str) -> bool:
    return len(text) <= _LONGEST_WORD and any(map(str.isalnum, text))
