"""Verify: how probably the note supports each candidate.

Three strategies: a calibrated logistic regression on similarity and shared words (`retrieval`); the
same together with a reranker that reads the likeliest codes in their sentences (`reranking`); or a
language model that answers yes or no, read by its log-probabilities (`llm`).
"""

import re
from collections.abc import Sequence
from typing import Protocol

from agents.node import Trace
from clh.schema import Candidate, Finding, Term, Verdict


class Verifier(Protocol):
    """Gives candidates their probabilities."""

    @property
    def id(self) -> str:
        """Names the models that it runs on."""
        ...

    @property
    def threshold(self) -> float:
        """The probability from which a code is assigned, fitted with the weights."""
        ...

    async def verify(
        self, terms: Sequence[Term], candidates: Sequence[Sequence[Candidate]], trace: Trace
    ) -> tuple[list[Verdict], list[Finding]]:
        """A verdict for each candidate that could be judged, and warnings."""
        ...


def keep_same_side(
    terms: Sequence[Term], candidates: Sequence[Sequence[Candidate]], trace: Trace
) -> list[list[Candidate]]:
    """The candidates of each term, less those of the other side than the note names."""
    kept = []
    for term, found in zip(terms, candidates, strict=True):
        sides = find_term_sides(term)
        fitting = []
        for candidate in found:
            if sides and not find_sides(candidate.title) <= sides:
                trace.drop("other_side", term.quote, candidate.code)
            else:
                fitting.append(candidate)
        kept.append(fitting)
    return kept


def find_term_sides(term: Term) -> set[str]:
    """The sides that the term names, or else its sentence."""
    return find_sides(term.quote.text) or find_sides(term.sentence.text)


def find_sides(text: str) -> set[str]:
    """The sides that a text names; "left" as a verb, "the patient left the ward", names none."""
    words = re.findall(r"[a-z]+", text.lower())
    if _BOTH.intersection(words):
        return {"left", "right"}
    sides = set()
    for place, word in enumerate(words):
        if word == "right" or (word == "left" and not _is_verb(words, place)):
            sides.add(word)
    return sides


_BOTH = frozenset({"bilateral", "bilaterally", "both"})
_SUBJECTS = frozenset(
    [
        "he",
        "she",
        "they",
        "it",
        "we",
        "i",
        "who",
        "patient",
        "pt",
        "mother",
        "father",
        "wife",
        "husband",
        "family",
        "has",
        "had",
        "have",
        "was",
        "were",
        "been",
        "being",
        "is",
        "are",
        "having",
        "then",
        "since",
        "when",
        "after",
        "never",
        "ever",
    ]
)
_OBJECTS = frozenset(
    [
        "the",
        "a",
        "an",
        "his",
        "her",
        "their",
        "our",
        "my",
        "against",
        "without",
        "ama",
        "before",
        "home",
        "hospital",
        "work",
        "school",
        "ward",
        "ed",
        "er",
        "clinic",
        "unit",
        "him",
        "them",
        "to",
    ]
)
_ARTICLES = frozenset(
    [
        "the",
        "on",
        "to",
        "of",
        "in",
        "from",
        "at",
        "her",
        "his",
        "and",
        "or",
        "for",
        "with",
        "by",
        "right",
    ]
)


def _is_verb(words: Sequence[str], place: int) -> bool:
    """Whether the word "left" at `place` is the verb: somebody left something."""
    before = words[place - 1] if place else ""
    after = words[place + 1] if place + 1 < len(words) else ""
    if before in _ARTICLES:
        return False
    return after in _OBJECTS or before in _SUBJECTS
