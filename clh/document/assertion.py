"""Whether what a mention names holds: the assertion status by the rules of NegEx and ConText.

Chapman et al. 2001, "A simple algorithm for identifying negated findings and diseases in discharge
summaries"; Harkema et al. 2009, "ConText". The triggers are in assertion.toml.
"""

from bisect import bisect_right
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Literal, NamedTuple, get_args

from clh.document.sentences import tokenize
from clh.schema import Status

# The first that applies is the mention's status: what is absent is absent in the family, too.
STATUSES: tuple[Status, ...] = ("negated", "family", "historical", "uncertain")
Kind = Literal["before", "after", "termination", "pseudo"]

_TRIGGERS = ""  # the key of the triggers that end at a node of the tree; tokens are never empty


class Match(NamedTuple):
    """A trigger in a sentence: the places of its first token and after its last."""

    start: int
    end: int


class Scope(NamedTuple):
    """Where a sentence's triggers of one status reach.

    A sentence has clauses, which begin where a termination does. In the clause that begins at
    `starts[i]`, triggers that precede a mention reach from `before[i]` on, and those that follow
    one reach back from `after[i]`.
    """

    starts: list[int]  # of the clauses, and the end of the sentence
    before: list[int]
    after: list[int]

    def holds(self, start: int, end: int) -> bool:
        """Whether a mention, the tokens from `start` up to `end`, is within reach.

        One that lies in two clauses never is.
        """
        clause = bisect_right(self.starts, start) - 1
        reached = self.before[clause] < start or end < self.after[clause]
        return end <= self.starts[clause + 1] and reached


class AssertionRules:
    """The triggers of all statuses."""

    def __init__(self, rules: Mapping[str, Mapping[str, Sequence[str]]]) -> None:
        """Take the phrases of assertion.toml: by status, and then by kind."""
        self._tree: dict[str, Any] = {}
        for status in STATUSES:
            for kind in get_args(Kind):
                for phrase in rules[status][kind]:
                    node = self._tree
                    for token in tokenize(phrase):
                        node = node.setdefault(token.text.lower(), {})
                    node.setdefault(_TRIGGERS, []).append((status, kind))

    def scopes(self, words: Sequence[str]) -> dict[Status, Scope]:
        """The scope of each status that a sentence has triggers of; `words` are in lower case."""
        matches: defaultdict[Status, defaultdict[Kind, list[Match]]] = defaultdict(
            lambda: defaultdict(list)
        )
        for status, kind, match in self._matches(words):
            matches[status][kind].append(match)
        return {
            status: _scope(matches[status], len(words)) for status in STATUSES if status in matches
        }

    def _matches(self, words: Sequence[str]) -> Iterator[tuple[Status, Kind, Match]]:
        for start, first in enumerate(words):
            node, end = self._tree.get(first), start + 1
            while node is not None:
                for status, kind in node.get(_TRIGGERS, ()):
                    yield status, kind, Match(start, end)
                node = node.get(words[end]) if end < len(words) else None
                end += 1


def _scope(matches: Mapping[Kind, Sequence[Match]], length: int) -> Scope:
    # A trigger right after a pseudo-trigger is switched off as well, as in negspacy.
    pseudo = {place for start, end in matches["pseudo"] for place in range(start, end + 1)}
    terminations = {start for start, _ in matches["termination"]} - pseudo
    starts = [*sorted({0, *terminations}), length]
    before, after = [length] * len(starts), [0] * len(starts)
    for start, _ in matches["before"]:
        if start not in pseudo:
            clause = bisect_right(starts, start) - 1
            before[clause] = min(before[clause], start)
    for start, end in matches["after"]:
        if start not in pseudo:
            clause = bisect_right(starts, start) - 1
            after[clause] = max(after[clause], end)
    return Scope(starts, before, after)
