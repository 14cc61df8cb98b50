"""Counting what a corpus uses codes for: what a prior is made of."""

import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from clh.corpora import Example
from clh.document.reader import Reader
from clh.files import atomic_write
from clh.icd.tabular import CodeSystem
from clh.models.weights import weights_folder
from clh.retrieval.index import CodeIndex
from clh.retrieval.precedents import Precedents
from clh.retrieval.prior import PRECEDENTS, PRIOR, Prior, Weights
from clh.training.pairs import sentence_pairs, stem_code


class Counting(NamedTuple):
    """How phrases are counted: see `clh.retrieval.precedents.Precedents.count`."""

    longest: int
    doubt: float
    least: float


Counts = tuple[dict[str, int], Precedents]


def count_codes(
    examples: Sequence[Example], system: CodeSystem, reader: Reader, counting: Counting
) -> Counts:
    """The number of notes with each code of the release, without 7th characters, and precedents.

    Raises InputError for an example that has codes but no evidence.
    """
    notes = Counter(
        stem
        for example in examples
        for stem in {stem_code(code, system) for code in example.codes}
        if stem is not None
    )
    documents = sentence_pairs(examples, system, reader, stem_code)
    sentences = ((pair.texts[0], pair.codes) for pairs in documents for pair in pairs)
    return dict(sorted(notes.items())), Precedents.count(sentences, *counting)


def recount(
    name: str, examples: Sequence[Example], index: CodeIndex, system: CodeSystem, reader: Reader
) -> Prior:
    """The prior `name` as it would be if it had been counted on these examples.

    A prior knows too much of the documents that it was counted on: what trains on documents finds
    its candidates with a prior that was counted on others.
    """
    prior = json.loads((weights_folder(name) / PRIOR).read_text())
    counting = Counting(prior["longest"], prior["doubt"], prior["least"])
    weights = Weights(prior["weight"], prior["precedent_weight"])
    counts = count_codes(examples, system, reader, counting)
    return Prior("recounted", weights, *counts, index, system)


def save_prior(folder: Path, weights: Weights, counting: Counting, counts: Counts) -> None:
    """Write what `Prior.load` reads into `folder`."""
    notes, precedents = counts
    prior = {
        "weight": weights.notes,
        "precedent_weight": weights.precedents,
        **counting._asdict(),
        "notes": notes,
    }
    folder.mkdir(parents=True, exist_ok=True)
    atomic_write(folder / PRIOR, json.dumps(prior, indent=1) + "\n")
    precedents.save(folder / PRECEDENTS)
