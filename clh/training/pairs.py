"""The examples that towers are trained on: texts, and the codes that they mean.

Codes are as locate reports them: without a 7th character, and for a category the code of a mention
that gives no further detail.
"""

import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from clh.corpora import Example
from clh.document.reader import Reader
from clh.errors import InputError
from clh.icd.index import IndexTerm
from clh.icd.tabular import CodeSystem
from clh.retrieval.lexical import plain, query


@dataclass(frozen=True, slots=True)
class Pair:
    """Wordings with one meaning, and the codes for it; a sentence may have none."""

    texts: tuple[str, ...]
    codes: frozenset[str]


def sentence_pairs(
    examples: Iterable[Example],
    system: CodeSystem,
    reader: Reader,
    name_code: Callable[[str, CodeSystem], str | None] | None = None,
) -> list[list[Pair]]:
    """For each example all its sentences, with the codes marked in them.

    `name_code` turns a marked code into the one that is trained on, or None; by default it is
    `reported_code`. Raises InputError for an example that has codes but no evidence, from which
    no sentence can be trained on.
    """
    name_code = name_code or reported_code
    documents = []
    for example in examples:
        if example.codes and not example.evidence:
            raise InputError(f"{example.id} has codes without evidence: towers learn from evidence")
        note = example.note
        marks = [
            (span.start, span.end, named)
            for code in dict.fromkeys(evidence.code for evidence in example.evidence)
            if (named := name_code(code, system)) is not None
            for span in example.spans(code)
        ]
        pairs = []
        for sentence in reader.sentences(note.text):
            codes = frozenset(
                code for start, end, code in marks if start < sentence.end and sentence.start < end
            )
            pairs.append(Pair((query(sentence.text),), codes))
        documents.append(pairs)
    return documents


def index_pairs(
    terms: Sequence[IndexTerm], system: CodeSystem, abbreviations: Mapping[str, str]
) -> list[Pair]:
    """The terms of the Alphabetic Index: each as printed, in spoken order, and with its modifiers.

    A term that refers to another (`see`, `see also`) has that one's codes. `abbreviations` gives
    the short form of a phrase, with which each wording is repeated.
    """
    codes_of: defaultdict[str, set[str]] = defaultdict(set)
    for term in terms:
        if term.code is not None:
            code = reported_code(system.normalize(term.code), system)
            for key in (_key(term.text), _key(", ".join(_first_forms(term)))):
                codes_of[key].update([code] if code is not None else [])
    pairs = []
    for term in terms:
        texts = list(dict.fromkeys(_wordings(term)))
        own = codes_of[_key(term.text)] if term.code is not None else set()
        referred = (codes_of.get(_key(see), set()) for see in (term.see, term.see_also) if see)
        codes = own.union(*referred)
        if codes:
            pairs.append(Pair(tuple(add_abbreviated(texts, abbreviations)), frozenset(codes)))
    return pairs


def add_abbreviated(texts: Sequence[str], abbreviations: Mapping[str, str]) -> list[str]:
    """The texts, and each again with the phrases that clinicians abbreviate in their short form."""
    longest = max((len(phrase.split()) for phrase in abbreviations), default=0)
    abbreviated = []
    for text in texts:
        words, shortened = text.split(), []
        while words:
            sizes = range(min(longest, len(words)), 0, -1)
            phrases = {size: " ".join(words[:size]).lower() for size in sizes}
            size = next((size for size in sizes if phrases[size] in abbreviations), 1)
            shortened.append(abbreviations.get(phrases.get(size, ""), words[0]))
            words = words[size:]
        abbreviated.append(" ".join(shortened))
    return list(dict.fromkeys([*texts, *abbreviated]))


def read_abbreviations(file: Path, least_share: float) -> dict[str, str]:
    """Phrase -> short form, of lines `short form <TAB> phrase <TAB> share of its uses`.

    Senses below `least_share` are left out. Raises InputError for a file that has other lines.
    """
    short: dict[str, str] = {}
    try:
        lines = file.read_text(encoding="utf-8").splitlines()
        for number, line in enumerate(lines, start=1):  # noqa: B007
            form, phrase, share = line.split("\t")
            if float(share) >= least_share:
                short.setdefault(phrase.lower(), form)
    except OSError as error:
        raise InputError(f"cannot read {file}: {error.strerror}") from error
    except ValueError as error:
        raise InputError(
            f"{file}, line {number}: give short form, phrase and share, with tabs between"
        ) from error
    return short


def reported_code(code: str, system: CodeSystem) -> str | None:
    """The code that locate reports for `code`; None for one that the release lacks."""
    return system.reported(code) if code in system else None


def stem_code(code: str, system: CodeSystem) -> str | None:
    """The code without its 7th character, as annotators write it; None as in `reported_code`."""
    return system.stem(code) if code in system else None


def _wordings(term: IndexTerm) -> Iterable[str]:
    yield term.text
    spoken = " ".join(reversed(_first_forms(term)))
    yield spoken
    for modifier in term.modifiers:
        yield f"{modifier} {spoken}"


def _first_forms(term: IndexTerm) -> list[str]:
    """The path without other forms of its words: "Hemorrhage" of "Hemorrhage, hemorrhagic"."""
    return [plain(part).partition(",")[0] for part in term.path]


def _key(text: str) -> str:
    return " ".join(re.findall(r"\w+", text.lower()))
