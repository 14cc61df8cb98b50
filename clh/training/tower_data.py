"""The dataset that towers are trained on: queries, texts of codes, and how the two are related."""

import random
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from datasets import Dataset, Features, List, Value
from sentence_transformers.base.sampler import DefaultBatchSampler
from sentence_transformers.sentence_transformer.data_collator import (
    SentenceTransformerDataCollator,
)
from torch import Tensor

from clh.errors import InputError
from clh.icd.index import IndexTerm
from clh.icd.tabular import CodeSystem
from clh.retrieval.lexical import searchable
from clh.training.pairs import Pair, reported_code
from clh.training.tower_losses import RELATED, RIGHT

_COLUMNS = Features(
    {
        "query": Value("string"),
        "text": Value("string"),  # null for a query that means no code
        "codes": List(Value("string")),  # that the query means
        "code": Value("string"),  # that the text stands for
    }
)


@dataclass(frozen=True)
class BatchSizes:
    """How many queries of a batch are sentences with codes, sentences without, and index terms."""

    marked: int
    unmarked: int
    terms: int

    @property
    def total(self) -> int:
        """The queries of a batch."""
        return self.marked + self.unmarked + self.terms


class TowerData:
    """The queries, by their kind, and the texts of each code."""

    def __init__(
        self,
        documents: Iterable[Sequence[Pair]],
        terms: Sequence[Pair],
        index: Iterable[IndexTerm],
        system: CodeSystem,
        sizes: BatchSizes,
    ) -> None:
        """Take documents, each a list of sentences, and the terms and index of the code system.

        Raises InputError where a batch would be larger than what there is.
        """
        self.sizes = sizes
        sentences = [pair for document in documents for pair in document]
        self.pools: dict[str, tuple[Sequence[Pair], int]] = {
            "marked": ([pair for pair in sentences if pair.codes], sizes.marked),
            "unmarked": ([pair for pair in sentences if not pair.codes], sizes.unmarked),
            "terms": (terms, sizes.terms),
        }
        for name, (pool, size) in self.pools.items():
            if len(pool) < size:
                raise InputError(f"{len(pool)} {name} to train on, {size} in a batch: lower it")
        texts: defaultdict[str, list[str]] = defaultdict(list)
        for code, text in searchable(system, index):
            reported = reported_code(code, system)
            if reported is not None and text not in texts[reported]:
                texts[reported].append(text)
        self._texts = dict(texts)
        self.titles = {code: system[code].title for code in texts}

    def draw(self, batches: int, title_share: float, seed: int) -> Dataset:
        """A dataset of so many batches in a row, each with the same number of queries of a kind.

        A query's text stands for one of its codes, drawn at random: by its title with a probability
        of `title_share`, otherwise by any of its texts.
        """
        rows = (row for batch in range(batches) for row in self._batch(batch, title_share, seed))
        return Dataset.from_list(list(rows), features=_COLUMNS)

    def _batch(self, number: int, title_share: float, seed: int) -> Iterator[dict[str, Any]]:
        rng = random.Random(f"{seed}-{number}")  # noqa: S311
        for pool, size in self.pools.values():
            for pair in rng.sample(pool, size):
                known = sorted(pair.codes & self._texts.keys())
                code = rng.choice(known) if known else None
                text = None
                if code is not None:
                    by_title = rng.random() < title_share
                    text = self.titles[code] if by_title else rng.choice(self._texts[code])
                yield {
                    "query": rng.choice(pair.texts),
                    "text": text,
                    "codes": sorted(pair.codes),
                    "code": code,
                }


class CodeRelations:
    """Which codes are right for a meaning, and which neither agree with it nor contradict it."""

    def __init__(self, system: CodeSystem, bank: Sequence[str] = ()) -> None:
        """Read the tree of the release; `bank` are the codes of the loss's bank of vectors."""
        self._system, self._bank = system, _places(bank)
        self._bank_size = len(bank)
        self._families: dict[str, frozenset[str]] = {}

    def labels(self, meanings: Sequence[frozenset[str]], codes: Sequence[str]) -> Tensor:
        """Labels of `MultiPositiveInfoNCELoss`: bool (meanings, codes + bank, 2).

        Each meaning is a set of codes. Right are these, related those above and below them.
        """
        places = _places(codes)
        labels = torch.zeros(len(meanings), len(codes) + self._bank_size, 2, dtype=torch.bool)
        for row, right in enumerate(meanings):
            around = frozenset().union(*(self._family(code) for code in right)) - right
            for kind, some in ((RIGHT, right), (RELATED, around)):
                columns = [place for code in some for place in places.get(code, ())]
                columns += [
                    len(codes) + place for code in some for place in self._bank.get(code, ())
                ]
                labels[row, columns, kind] = True
        return labels

    def _family(self, code: str) -> frozenset[str]:
        if code not in self._families:
            system = self._system
            around = [*system.ancestors(code), *system.descendants(code)]
            reported = {reported_code(relative, system) for relative in around}
            self._families[code] = frozenset(name for name in reported if name is not None)
        return self._families[code]


@dataclass
class CodeCollator(SentenceTransformerDataCollator):
    """Batches of `TowerData`: the queries, the texts of those that have one, and the relations."""

    relations: CodeRelations | None = field(default=None, repr=False)

    def __call__(self, features: list[dict[str, Any]]) -> dict[str, Any]:
        """Tokenize both columns, and label each pair of a query and a text."""
        if self.relations is None:
            raise ValueError("CodeCollator needs the relations of codes")
        with_text = [row for row in features if row["text"] is not None]
        columns = {
            "query": [row["query"] for row in features],
            "text": [row["text"] for row in with_text],
        }
        batch = {
            f"{column}_{name}": value
            for column, texts in columns.items()
            for name, value in self.preprocess_fn(texts).items()
        }
        meanings = [frozenset(row["codes"]) for row in features]
        batch["label"] = self.relations.labels(meanings, [row["code"] for row in with_text])
        return batch


class EpochBatchSampler(DefaultBatchSampler):
    """The batches of an epoch, of a dataset that holds those of all epochs in a row."""

    def __init__(
        self, dataset: Dataset, batch_size: int, drop_last: bool, *, epochs: int, **_: Any
    ) -> None:
        """`epochs` is how many the dataset holds; the rest is sentence-transformers'."""
        super().__init__(dataset, batch_size=batch_size, drop_last=drop_last)
        self._rows = len(dataset) // epochs

    def __len__(self) -> int:
        """The batches of an epoch."""
        return self._rows // int(self.batch_size)

    def __iter__(self) -> Iterator[list[int]]:
        """The rows of each batch, in order."""
        first = self.epoch * self._rows
        for start in range(first, first + self._rows, self.batch_size):
            yield list(range(start, start + self.batch_size))


def _places(codes: Sequence[str]) -> Mapping[str, list[int]]:
    """Where each code stands in a row of codes."""
    places: defaultdict[str, list[int]] = defaultdict(list)
    for place, code in enumerate(codes):
        places[code].append(place)
    return places
