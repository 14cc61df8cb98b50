"""Tokens and sentences of a note, in one pass over its text."""

import re
import unicodedata
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from clh.document.view import normalize

LONGEST = 150  # tokens of a sentence; of 25,000 in published notes none has more than 100
_WRAPPED = 50  # characters: a line this long that ends in mid-sentence was wrapped, not ended

# The bounds on repetition are far beyond any word: they keep data that is none in small pieces.
_TOKEN = re.compile(
    r"""
    (?: Dr | Mr | Mrs | Ms | Prof | St | Jr | vs | (?<! \u00b0 ) [^\W\d_]
      | (?: [A-Z] \. ){1,20} [A-Z] | Ph\.D | e\.g | i\.e | [ap]\.m
    ) \. (?! \w )                         # a period that ends no sentence
  | (?: and/or | w/o ) \b
  | [^\W_]{1,200}
    (?:
      (?: \. (?! [A-Z] )                  # 2.5 and p.o, not end.Next
        | (?<= \b [^\W\d_] ) \.            # p.Gly12
        | ' (?! [sS] \b )                  # don't
        | (?<= \d ) [,:] (?= \d )          # 1,000 and 10:30
        | / (?= \d )                       # 120/80
        | (?<= [^\W\d_] ) - (?= \d )       # COVID-19
        | [&@]                             # A&P
      ) [^\W_]{1,200}
    ){0,20}
  | ' [sS] \b                              # after "Crohn"
  | ([^\w\s]) \1* | _+
    """,
    re.VERBOSE,
)
# Where too long a sentence is cut, the best places first: after these marks, or before these words.
_CUT_AFTER = (frozenset(";"), frozenset(".:!?"), frozenset(","))
_CUT_BEFORE = frozenset(["and", "but", "or", "then", "that", "which", "while", "who", "with"])


class Token(NamedTuple):
    """A word or punctuation mark: its normalised text and its place in the note."""

    text: str
    start: int
    end: int
    space: str  # the white space before it, normalised

    @property
    def line_breaks(self) -> int:
        """How many line breaks stand right before the token."""
        return self.space.count("\n")


def tokenize(text: str) -> Iterator[Token]:
    """The tokens of a note in order; all that lies between them is white space."""
    view = normalize(text)
    end = 0
    for found in _TOKEN.finditer(view.text):
        start, space = found.start(), view.text[end : found.start()]
        end = found.end()
        yield Token(found[0], view.origins[start], view.origins[end], space)


def split_sentences(text: str) -> Iterator[list[Token]]:
    """The tokens of each sentence of a note, at most `LONGEST`.

    A sentence ends with a full stop, exclamation or question mark, and with its line unless that
    was wrapped. A longer one is cut at its clauses.
    """
    sentence: list[Token] = []
    line = 0  # where the line begins
    ended = False  # whether the sentence has its last mark; quotes and brackets may follow
    for token in tokenize(text):
        if token.line_breaks:
            begins = ended or not (sentence and _continues(sentence[-1], line, token))
            line = token.start
        else:
            begins = ended and not _closes(sentence[-1], token)
        if begins:
            yield from _cut(sentence)
            sentence = []
        sentence.append(token)
        ended = _is_end(token) or (ended and not begins)
    yield from _cut(sentence)


def join_tokens(tokens: Sequence[Token]) -> str:
    """The normalised text of adjacent tokens, on one line."""
    return "".join([f" {token.text}" if token.space else token.text for token in tokens]).strip()


def _continues(last: Token, line: int, token: Token) -> bool:
    """Whether `token`, first of its line, goes on with the line that began at `line`."""
    return (
        token.line_breaks == 1
        and token.text[0].islower()
        and last.end - line >= _WRAPPED
        and last.text[-1] not in ".!?:;"
    )


def _closes(last: Token, token: Token) -> bool:
    """Whether a token after the end of a sentence belongs to it, as in 'He said "no."'."""
    is_punctuation = unicodedata.category(token.text[0]).startswith("P")
    return not token.space and (is_punctuation or not _is_end(last))


def _is_end(token: Token) -> bool:
    return token.text == "." or token.text[0] in "!?"


def _cut(sentence: list[Token]) -> Iterator[list[Token]]:
    """The sentence, in pieces of at most `LONGEST` tokens; of no tokens, nothing."""
    start = 0
    while len(sentence) - start > LONGEST:
        end = _clause_end(sentence, start)
        yield sentence[start:end]
        start = end
    if start < len(sentence):
        yield sentence[start:]


def _clause_end(sentence: list[Token], start: int) -> int:
    """Where to cut a long sentence: the last of the best places in the later half of its piece."""
    places = range(start + LONGEST, start + LONGEST // 2, -1)
    for marks in _CUT_AFTER:
        for place in places:
            if sentence[place - 1].text[0] in marks:
                return place
    return next((place for place in places if sentence[place].text in _CUT_BEFORE), places[0])
