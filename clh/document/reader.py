"""Reading a note: its sentences, the sections they stand in, and the status of its mentions."""

import tomllib
from bisect import bisect_left, bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from importlib.resources import files
from typing import Any

from clh.document.assertion import STATUSES, AssertionRules, Scope
from clh.document.sections import Sections
from clh.document.sentences import Token, join_tokens, split_sentences
from clh.schema import Status


@dataclass(frozen=True)
class Sentence:
    """A sentence of a note, without the heading before it."""

    tokens: tuple[Token, ...]
    section: str  # family, skip, reason, other
    _scopes: Mapping[Status, Scope] = field(repr=False)

    @property
    def start(self) -> int:
        """Where it starts in the note."""
        return self.tokens[0].start

    @property
    def end(self) -> int:
        """Where it ends in the note."""
        return self.tokens[-1].end

    @property
    def is_skipped(self) -> bool:
        """Whether its section names no diagnosis of the patient, so that none is looked for."""
        return self.section == "skip"

    @cached_property
    def text(self) -> str:
        """Its normalised text, on one line."""
        return join_tokens(self.tokens)

    def mention(self, start: int, end: int) -> "Mention":
        """What the note has from `start` up to `end`, widened to whole tokens of the sentence."""
        first = bisect_right(self.tokens, start, key=lambda token: token.end)
        last = bisect_left(self.tokens, end, key=lambda token: token.start) - 1
        return Mention(self, first, last)

    def status(self, first: int, last: int) -> Status:
        """The status of what the tokens from place `first` to `last` name."""
        for status in STATUSES:
            scope = self._scopes.get(status)
            if status == self.section or (scope is not None and scope.holds(first, last + 1)):
                return status
        return "affirmed"


@dataclass(frozen=True)
class Mention:
    """A stretch of a sentence: its tokens from place `first` to place `last`."""

    sentence: Sentence
    first: int
    last: int

    @property
    def start(self) -> int:
        """Where it starts in the note."""
        return self.sentence.tokens[self.first].start

    @property
    def end(self) -> int:
        """Where it ends in the note."""
        return self.sentence.tokens[self.last].end

    @property
    def text(self) -> str:
        """Its normalised text, on one line."""
        return join_tokens(self.sentence.tokens[self.first : self.last + 1])

    @property
    def status(self) -> Status:
        """Whether what it names holds."""
        return self.sentence.status(self.first, self.last)


class Reader:
    """Splits notes into sentences by the rules in the .toml files; keeps nothing of any note.

    `breaks` are words that no mention reaches across, with `edges` none begins or ends, and the
    phrases that are `vague` name no diagnosis by themselves; all in lower case.
    """

    def __init__(self) -> None:
        """Load the rules."""
        self._sections = Sections(_load("sections.toml"))
        self._assertion = AssertionRules(_load("assertion.toml"))
        mentions = _load("mentions.toml")
        self.breaks = frozenset(mentions["breaks"])
        self.edges = frozenset(mentions["edges"])
        self.vague = frozenset(mentions["vague"])

    def all_sentences(self, text: str) -> list[Sentence]:
        """The sentences of a note in order, without headings and those that have no letters."""
        return [
            Sentence(tuple(tokens), section, self._scopes(tokens))
            for tokens, section in self._sections.assign(split_sentences(text))
        ]

    def sentences(self, text: str) -> list[Sentence]:
        """The sentences in which diagnoses are looked for: those of sections that may name one."""
        return [sentence for sentence in self.all_sentences(text) if not sentence.is_skipped]

    def _scopes(self, tokens: Sequence[Token]) -> Mapping[Status, Scope]:
        return self._assertion.scopes([token.text.lower() for token in tokens])


def _load(name: str) -> dict[str, Any]:
    return tomllib.loads((files("clh.document") / name).read_text(encoding="utf-8"))
