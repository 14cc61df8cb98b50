"""Which documents a model is trained on, which are held out, and what it must not see."""

import argparse
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Self

from clh import corpora
from clh.corpora import Example
from clh.document.reader import Reader
from clh.training.trainer import TrainerRecipe

_SHORTEST = 5  # words; a shorter sentence is in many notes


@dataclass(frozen=True)
class DocumentSplit:
    """The documents that are trained on, those held out, and others that must not be seen."""

    dataset: str
    train: list[Example]
    held_out: list[Example]
    others: list[Example]

    @classmethod
    def read(cls, arguments: argparse.Namespace, recipe: TrainerRecipe) -> Self:
        """The train split, a share of which is held out, and the splits of `arguments.unseen`."""
        name, folder = arguments.dataset, arguments.data_dir
        examples = list(corpora.read(name, folder, "train"))[: arguments.limit]
        train, held_out = corpora.hold_out(examples, recipe.held_out, recipe.seed)
        others = [
            example for split in arguments.unseen for example in corpora.read(name, folder, split)
        ]
        return cls(name, train, held_out, others)

    def unseen_sentences(self, reader: Reader) -> set[str]:
        """The sentences that must not be trained on, by their keys."""
        return sentence_keys([*self.held_out, *self.others], reader)

    def describe(self) -> dict[str, Any]:
        """What the documents are, for a run's config."""
        return {
            "dataset": self.dataset,
            "documents": len(self.train),
            "held_out": len(self.held_out),
            "unseen": dict(Counter(example.split for example in self.others)),
        }


def sentence_keys(examples: Sequence[Example], reader: Reader) -> set[str]:
    """The keys of all sentences of some documents that have one."""
    return {
        sentence_key(sentence.text)
        for example in examples
        for sentence in reader.all_sentences(example.note.text)
    } - {""}


def sentence_key(sentence: str) -> str:
    """A sentence by its words, all figures alike; "" for one of few words, which proves nothing."""
    words = re.findall(r"\w+", re.sub(r"\d+", "0", sentence.casefold()))
    return " ".join(words) if len(words) >= _SHORTEST else ""
