"""Reading a note: its sentences and sections, and whether what a mention names holds.

Sentences and negation are spaCy's and negspacy's (NegEx); the other statuses are the same algorithm
with other phrases, as ConText has it. The phrases lie in reader.toml.
"""

import itertools
import tomllib
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.resources import files

import spacy
from negspacy.negation import Negex
from negspacy.termsets import LANGUAGES
from spacy.language import Language
from spacy.tokens import Doc, Token
from spacy.tokens import Span as Tokens

from clh.retrieval.lexical import content_words
from clh.schema import Status

# The first that applies is the mention's status: what is absent is absent in the family, too.
_STATUSES: tuple[Status, ...] = ("negated", "family", "historical", "uncertain")
_NEGATIONS = LANGUAGES["en_clinical"]
_MENTIONS = "mentions"
_LINE, _PARAGRAPH = 1, 2  # line breaks that end what a label covers
_WRAPPED = 50  # characters: a line this long that ends in mid-sentence was wrapped, not ended


@dataclass(frozen=True)
class Sentence:
    """A sentence of the note and the section that it stands in."""

    tokens: Tokens
    section: str  # family, skip, reason, other


class Reader:
    """Splits notes and tells statuses; holds the rules, and nothing of any note."""

    def __init__(self) -> None:
        """Load the rules."""
        rules = tomllib.loads((files("clh.document") / "reader.toml").read_text(encoding="utf-8"))
        self._kinds = {
            heading: kind for kind, headings in rules["sections"].items() for heading in headings
        }
        self.breaks = frozenset(rules["mentions"]["breaks"])
        self.edges = frozenset(rules["mentions"]["edges"])
        self.never = frozenset(rules["mentions"]["never"])
        self.never_words = frozenset().union(*map(content_words, self.never))
        self._nlp = spacy.blank("en")
        self._nlp.max_length = 10**9  # spaCy's limit guards its parser, which is not used
        self._nlp.add_pipe("sentencizer")
        self._contexts = {status: _negex(self._nlp, status, rules[status]) for status in _STATUSES}

    def sentences(self, text: str) -> list[Sentence]:
        """The sentences of a note in order, headings and blank ones left out."""
        doc = self._nlp(text)
        for token in doc[1:]:
            if _ends_line(token.nbor(-1)):
                token.is_sent_start = not _continues(token)
        found: list[Sentence] = []
        standing = section = "other"  # of the heading above, and of the text at hand
        reach = _LINE
        for tokens in doc.sents:
            if _line_breaks(tokens) >= reach:
                section, reach = standing, _LINE
            body, kind = self._heading(tokens)
            if kind is not None:
                section = kind
                if not _says_something(body):
                    standing = kind
                # A label before text covers its line, or its paragraph when written as a heading.
                reach = _PARAGRAPH if tokens[0].is_upper else _LINE
            if _says_something(body):
                found.append(Sentence(body, section))
        return found

    def statuses(self, mentions: Sequence[tuple[Sentence, Tokens]]) -> list[Status]:
        """The status of each mention, given the sentence it stands in; sentence by sentence."""
        statuses: list[Status] = []
        for _, group in itertools.groupby(mentions, key=lambda mention: mention[0].tokens.start):
            statuses += self._of_one_sentence(list(group))
        return statuses

    def _of_one_sentence(self, mentions: list[tuple[Sentence, Tokens]]) -> list[Status]:
        sentence = mentions[0][0]
        # A document of its own: a note's length would make NegEx slow, and no cue reaches further.
        doc = sentence.tokens.as_doc()
        first = sentence.tokens.start
        doc.spans[_MENTIONS] = [doc[t.start - first : t.end - first] for _, t in mentions]
        for status, context in self._contexts.items():
            for tokens in doc.spans[_MENTIONS]:
                tokens._.set(status, False)
            context(doc)
        return [self._status(sentence, tokens) for tokens in doc.spans[_MENTIONS]]

    def _status(self, sentence: Sentence, tokens: Tokens) -> Status:
        for status in _STATUSES:
            if tokens._.get(status) or status == sentence.section:
                return status
        return "affirmed"

    def _heading(self, tokens: Tokens) -> tuple[Tokens, str | None]:
        """A sentence without the heading it begins with, and the kind of section that opens."""
        for colon in (token for token in tokens[:8] if token.text == ":"):
            kind = self._kinds.get(_bare(tokens[: colon.i - tokens.start]))
            if kind is not None:
                return tokens[colon.i + 1 - tokens.start :], kind
        kind = self._kinds.get(_bare(tokens))
        return (tokens[:0], kind) if kind is not None else (tokens, None)


def _negex(nlp: Language, status: Status, rules: dict[str, list[str]]) -> Negex:
    base = _NEGATIONS if status == "negated" else {}
    return Negex(
        nlp,
        name=status,
        extension_name=status,
        span_keys=[_MENTIONS],
        neg_termset={
            "pseudo_negations": [*base.get("pseudo_negations", []), *rules["not_really"]],
            "preceding_negations": [*base.get("preceding_negations", []), *rules["before"]],
            "following_negations": [*base.get("following_negations", []), *rules["after"]],
            "termination": [*base.get("termination", []), *rules["until"]],
        },
    )


def _bare(tokens: Tokens) -> str:
    return tokens.text.strip(" \t\r\n:.-*•#").lower()


def _says_something(tokens: Tokens) -> bool:
    return any(char.isalpha() for char in tokens.text)  # T2DM and COVID-19 say something, too


def _line_breaks(tokens: Tokens) -> int:
    """How many line breaks stand right before a sentence."""
    if tokens.start == 0:
        return 0
    above = tokens.doc[tokens.start - 1]
    return above.text.count("\n") if above.is_space else 0


def _ends_line(token: Token) -> bool:
    return "\n" in token.text or "\r" in token.text


def _continues(token: Token) -> bool:
    """Whether the line that begins with `token` goes on with the sentence of the line above."""
    doc: Doc = token.doc
    line_break = token.nbor(-1)
    if line_break.text.count("\n") > 1 or not token.text[0].islower() or line_break.i == 0:
        return False
    first = line_break.i
    while first > 0 and not _ends_line(doc[first - 1]):
        first -= 1
    length = line_break.idx - doc[first].idx
    return length >= _WRAPPED and doc[line_break.i - 1].text[-1] not in ".!?:;"
