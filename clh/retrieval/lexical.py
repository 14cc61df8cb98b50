"""Words: what the code system's texts say, and how much of it a mention shares."""

import math
import re
import tomllib
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from functools import cache, lru_cache
from importlib.resources import files
from pathlib import Path
from typing import Self
from zipfile import BadZipFile

import numpy as np
import Stemmer
from numpy.typing import NDArray

from clh.icd.index import IndexTerm
from clh.icd.tabular import CodeSystem

# The book's own words for "nothing more is known": a plain mention means just that.
_UNSAID = re.compile(
    r",\s*unspecified (?:organism|site|severity|cause|type|depth|stage|degree|level|whether|as to)"
    r"\b[^,]*|,[^,]*\bnot specified\b"
    r"|,?\s*\b(?:unspecified|NOS|NEC|not elsewhere classified|not otherwise specified)\b",
    re.IGNORECASE,
)
_NONESSENTIAL = re.compile(r"\s*\([^)]*\)")
_WORD = re.compile(r"[^\W_]+(?:'[^\W_]+)?")
_NO_CONTENT = 1e-9  # added to weights, so that a text without content is not covered
_FUNCTION_WORDS = frozenset(
    [
        "a",
        "an",
        "and",
        "any",
        "are",
        "as",
        "at",
        "be",
        "been",
        "by",
        "due",
        "for",
        "from",
        "had",
        "has",
        "have",
        "having",
        "he",
        "her",
        "his",
        "in",
        "into",
        "is",
        "it",
        "its",
        "of",
        "on",
        "or",
        "other",
        "she",
        "that",
        "the",
        "their",
        "this",
        "to",
        "was",
        "were",
        "which",
        "while",
        "who",
        "with",
    ]
)


def plain(text: str) -> str:
    """A title or term as a clinician would write it: "Pneumonia", for an unspecified organism's.

    Nonessential modifiers, "hypertension (arterial) (benign)", and words such as "unspecified" and
    "NOS" are left out: by the conventions of the book (guidelines I.A.6 and I.A.7) a mention
    without them means the same.
    """
    kept = " ".join(_UNSAID.sub(" ", _NONESSENTIAL.sub("", text)).split())
    return kept.replace(" ,", ",").strip(" ,;:")


def searchable(system: CodeSystem, index: Iterable[IndexTerm] = ()) -> list[tuple[str, str]]:
    """(code, text) of everything a mention may be close to, each pair once.

    Titles, inclusion terms and includes notes of every stem, then the index terms.
    """
    pairs: dict[tuple[str, str], None] = {}
    for code in system.stems():
        entry = system[code]
        for text in (entry.title, *entry.inclusion_terms, *entry.includes):
            pairs[code, plain(text)] = None
    for term in index:
        if term.code is not None:
            pairs[system.normalize(term.code), plain(term.text)] = None
    return [(code, text) for code, text in pairs if content_words(text)]


def expand(text: str) -> str:
    """The text in the code book's words: "HTN" is hypertension, "cancer" malignant neoplasm."""
    pattern, synonyms = _synonyms()
    return pattern.sub(lambda found: synonyms[found[0].lower()], text)


def query(text: str) -> str:
    """A piece of a note as locate looks it up: on one line, in the code book's words."""
    return expand(" ".join(text.split()))


@lru_cache(maxsize=20_000)
def content_words(text: str) -> frozenset[str]:
    """The stemmed words of a text, less those that carry no content.

    Kept until `forget_texts` is called, as the spans of a note share texts that lie close to them.
    """
    words = _WORD.findall(text.lower())
    return frozenset(_stem(word) for word in words if word not in _FUNCTION_WORDS)


def forget_texts() -> None:
    """Drop what is kept of texts; a note's words do not stay in memory after the note."""
    content_words.cache_clear()


def stems(text: str) -> list[str]:
    """The words of a text in order, stemmed."""
    return [_stem(word) for word in _WORD.findall(text.lower())]


def phrases(text: str, longest: int) -> list[str]:
    """All stretches of up to `longest` words that begin and end with content, stemmed."""
    words = _WORD.findall(text.lower())
    content = [word not in _FUNCTION_WORDS for word in words]
    stemmed = list(map(_stem, words))
    return [
        " ".join(stemmed[start:end])
        for start in range(len(words))
        for end in range(start + 1, min(start + longest, len(words)) + 1)
        if content[start] and content[end - 1]
    ]


class Lexicon:
    """How much each word tells, by how few texts of the code system use it."""

    def __init__(self, rows: Mapping[str, NDArray[np.int64]], texts: int) -> None:
        """Take the rows of the texts that hold each word, and how many texts there are."""
        self._rows, self._texts = rows, texts
        self._rarest = math.log(1 + texts)  # the weight of a word that no text has
        self._weights = {
            word: math.log((1 + texts) / (1 + len(places))) for word, places in rows.items()
        }
        self._totals = np.full(texts, _NO_CONTENT)
        for word, places in rows.items():
            self._totals[places] += self._weight(word)

    @classmethod
    def of(cls, texts: Sequence[str]) -> Self:
        """The words of some texts."""
        rows: defaultdict[str, list[int]] = defaultdict(list)
        for row, text in enumerate(texts):
            for word in content_words(text):
                rows[word].append(row)
        sorted_rows = {word: np.array(rows[word]) for word in sorted(rows)}
        return cls(sorted_rows, len(texts))

    def save(self, file: Path) -> None:
        """Write what `load` reads."""
        rows = [*self._rows.values()]
        ends = np.cumsum([len(places) for places in rows], dtype=np.int64)
        together = np.concatenate([np.empty(0, np.int64), *rows])
        np.savez(
            file, words=np.array([*self._rows], str), ends=ends, rows=together, texts=self._texts
        )

    @classmethod
    def load(cls, file: Path) -> Self:
        """What `save` wrote; ValueError or OSError for anything else."""
        try:
            with file.open("rb") as stream, np.load(stream) as saved:
                words, rows = saved["words"].tolist(), np.split(saved["rows"], saved["ends"][:-1])
                return cls(dict(zip(words, rows, strict=True)), int(saved["texts"]))
        except (BadZipFile, EOFError, KeyError) as error:
            raise ValueError(f"{file} holds no words") from error

    def coverage(self, text: str, by: str) -> float:
        """The share of `text`'s content, from 0 to 1, that the words of `by` hold.

        Words weigh by their inverse document frequency; a text without content is not covered.
        """
        words, held = content_words(text), content_words(by)
        # Exact sums: a set has no order, and plain ones would differ from run to run.
        total = math.fsum(map(self._weight, words))
        return math.fsum(map(self._weight, words & held)) / total if total else 0.0

    def coverages(self, by: str) -> NDArray[np.float64]:
        """The coverage of every text, in the order they were given: shape (texts,)."""
        held = np.zeros(self._texts)
        for word in sorted(content_words(by)):
            if word in self._rows:
                held[self._rows[word]] += self._weight(word)
        shares: NDArray[np.float64] = held / self._totals
        return shares

    def most_shared(self, text: str) -> int:
        """The largest number of content words that `text` has in common with any one text."""
        rows = [self._rows[word] for word in content_words(text) if word in self._rows]
        if len(rows) < 2:  # noqa: PLR2004
            return len(rows)
        return int(np.bincount(np.concatenate(rows)).max())

    def _weight(self, word: str) -> float:
        return self._weights.get(word, self._rarest)


@cache
def _synonyms() -> tuple[re.Pattern[str], dict[str, str]]:
    file = files("clh.retrieval") / "synonyms.toml"
    synonyms = tomllib.loads(file.read_text(encoding="utf-8"))
    longest_first = sorted(synonyms, key=len, reverse=True)
    pattern = "|".join(map(re.escape, longest_first))
    return re.compile(rf"\b(?:{pattern})\b", re.IGNORECASE), synonyms


def _stem(word: str) -> str:
    return str(_STEMMER.stemWord(word))


_STEMMER = Stemmer.Stemmer("english", 0)  # Snowball's; it keeps no words
