"""Counting what a corpus uses codes for: what a prior is made of."""

import json
from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple

from clh.corpora import Example
from clh.document.reader import Reader
from clh.icd.tabular import CodeSystem
from clh.models.weights import weights_folder
from clh.retrieval.index import CodeIndex
from clh.retrieval.precedents import Precedents
from clh.retrieval.prior import PRIOR, Prior, Weights
from clh.training.pairs import sentence_pairs, written


class Counting(NamedTuple):
    """How phrases are counted: see `clh.retrieval.precedents.Precedents.count`."""

    longest: int
    doubt: float
    least: float


def count(
    examples: Sequence[Example], system: CodeSystem, reader: Reader, how: Counting
) -> tuple[dict[str, int], Precedents]:
    """The number of notes with each code of the release, without 7th characters, and precedents.

    Raises InputError for an example that has codes but no evidence.
    """
    notes = Counter(
        code
        for example in examples
        for code in {written(one, system) for one in example.codes}
        if code is not None
    )
    documents = sentence_pairs(examples, system, reader, written)
    sentences = ((pair.texts[0], pair.codes) for pairs in documents for pair in pairs)
    return dict(sorted(notes.items())), Precedents.count(sentences, *how)


def recount(
    name: str, examples: Sequence[Example], index: CodeIndex, system: CodeSystem, reader: Reader
) -> Prior:
    """The prior `name` as it would be had it been counted on these examples.

    On documents that a prior was counted on it knows too much: what learns from them, learns with
    one that was counted on others.
    """
    given = json.loads((weights_folder(name) / PRIOR).read_text())
    how = Counting(given["longest"], given["doubt"], given["least"])
    weights = Weights(given["weight"], given["precedent_weight"])
    return Prior("recounted", weights, *count(examples, system, reader, how), index, system)
