"""The corpora of the field, each read into the same examples by an adapter of its own."""

import random
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Literal, NamedTuple

from clh.corpora import (
    codiesp,
    mdace,
    meddec,
    mimic_cxr,
    mimic_iii,
    mimic_iv,
    phenotypes,
    snomed,
    table,
)
from clh.corpora.example import Evidence, Example
from clh.errors import InputError
from clh.schema import Policy

__all__ = ["CORPORA", "Corpus", "Evidence", "Example", "find", "read", "sample"]

_THREE = ("train", "dev", "test")


class Corpus(NamedTuple):
    """How a corpus is read, and what its codes mean."""

    read: Callable[[Path, str], Iterator[Example]]
    codes: str  # the code system of its gold codes
    policy: Policy  # what its annotators report
    splits: tuple[str, ...]  # empty: whatever files the folder holds
    profile: str = "cpu"  # the settings that were fitted on it, if any were


CORPORA: dict[str, Corpus] = {
    "codiesp": Corpus(codiesp.read, "ICD-10-CM", "mention", _THREE, "codiesp"),
    "codiesp-procedures": Corpus(
        partial(codiesp.read, kind="procedure"), "ICD-10-PCS", "mention", _THREE
    ),
    "codiesp-es": Corpus(partial(codiesp.read, language="es"), "ICD-10-CM", "mention", _THREE),
    "codiesp-es-procedures": Corpus(
        partial(codiesp.read, language="es", kind="procedure"), "ICD-10-PCS", "mention", _THREE
    ),
    "mdace-inpatient-icd9": Corpus(
        partial(mdace.read, setting="inpatient", revision=9), "ICD-9-CM", "encounter", _THREE
    ),
    "mdace-inpatient-icd10": Corpus(
        partial(mdace.read, setting="inpatient", revision=10), "ICD-10-CM", "encounter", _THREE
    ),
    "mdace-profee-icd9": Corpus(
        partial(mdace.read, setting="profee", revision=9), "ICD-9-CM", "encounter", _THREE
    ),
    "mdace-profee-icd10": Corpus(
        partial(mdace.read, setting="profee", revision=10), "ICD-10-CM", "encounter", _THREE
    ),
    "mimic-iii-full": Corpus(
        partial(mimic_iii.read, version="full"), "ICD-9-CM", "encounter", _THREE
    ),
    "mimic-iii-50": Corpus(partial(mimic_iii.read, version="50"), "ICD-9-CM", "encounter", _THREE),
    "mimic-iii-clean": Corpus(
        partial(mimic_iii.read, version="clean"), "ICD-9-CM", "encounter", _THREE
    ),
    "mimic-iv-icd9": Corpus(partial(mimic_iv.read, revision=9), "ICD-9-CM", "encounter", _THREE),
    "mimic-iv-icd10": Corpus(partial(mimic_iv.read, revision=10), "ICD-10-CM", "encounter", _THREE),
    "mimic-cxr": Corpus(mimic_cxr.read, "ICD-10-CM", "encounter", _THREE),
    "snomed-ct": Corpus(snomed.read, "SNOMED CT", "mention", ("train", "test")),
    "meddec": Corpus(meddec.read, "decision", "mention", _THREE),
    "phenotypes": Corpus(phenotypes.read, "phenotype", "encounter", _THREE),
    "jsonl": Corpus(table.read_jsonl, "ICD-10-CM", "encounter", ()),
    "csv": Corpus(table.read_csv, "ICD-10-CM", "encounter", ()),
    "parquet": Corpus(table.read_parquet, "ICD-10-CM", "encounter", ()),
}


def find(dataset: str) -> Corpus:
    """The corpus of that name; InputError if there is none."""
    if dataset not in CORPORA:
        raise InputError(f"there is no dataset {dataset!r}: choose one of {', '.join(CORPORA)}")
    return CORPORA[dataset]


def read(dataset: str, folder: Path, split: str) -> Iterator[Example]:
    """The examples of a split, in the publisher's order.

    `folder` is in the publisher's layout, or holds what `make prepare-data` made of it,
    `<dataset>/<split>.parquet`. Raises InputError, with file and row, for what cannot be read.
    """
    corpus = find(dataset)
    if not folder.is_dir():
        raise InputError(f"{folder} is not a folder: give the data of {dataset} as --data-dir")
    if corpus.splits and split not in corpus.splits:
        raise InputError(f"{dataset} has no split {split!r}: it has {', '.join(corpus.splits)}")
    prepared = folder / dataset
    if (prepared / f"{split}.parquet").exists():
        return table.read_parquet(prepared, split)
    return corpus.read(folder, split)


def hold_out(
    examples: Sequence[Example], share: float, seed: int
) -> tuple[list[Example], list[Example]]:
    """The examples to learn from, and a share of them that chooses among what was learned."""
    shuffled = random.Random(seed).sample(examples, len(examples))  # noqa: S311
    kept = round(len(examples) * (1 - share))
    return shuffled[:kept], shuffled[kept:]


def sample(
    dataset: str,
    folder: Path,
    split: str,
    unit: Literal["encounter", "document"],
    limit: int | None,
    seed: int,
) -> list[Example]:
    """The examples of a split that an experiment scores, in their order.

    With unit `document`, encounters are taken apart; `limit` draws that many examples at random.
    Raises InputError as `read`, and where there is nothing to score.
    """
    if limit is not None and limit < 1:
        raise InputError("--limit is how many notes to use: 1 or more")
    examples = list(read(dataset, folder, split))
    if unit == "document":
        if not any(one.evidence for one in examples):
            raise InputError(
                f"{dataset} does not say which document its codes are in: use --unit encounter"
            )
        examples = [document for one in examples for document in one.documents()]
    if not examples:
        raise InputError(f"{dataset} {split} holds no notes")
    if limit is None or limit >= len(examples):
        return examples
    chosen = random.Random(seed).sample(range(len(examples)), limit)  # noqa: S311
    return [examples[position] for position in sorted(chosen)]
