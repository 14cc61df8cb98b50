"""Patients from four CSV files, laid out as Two-Tower has them, and a tower trained on them.

    icd       code, title; optional description and synonyms, which are read after the title
    patients  encounter_id, and what is known of age, sex (F or M), note_text, and of each lab in a
              column lab_...; an empty cell was not measured
    labels    encounter_id, code: a line for each code of an encounter
    splits    encounter_id, split: train, val or test

Other columns are not read. Every code of the first file is one to be found.
"""

import csv
import math
from collections import Counter, defaultdict
from collections.abc import Callable, Container, Iterator, Sequence
from copy import deepcopy
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, TypeVar, get_args

import numpy as np
import torch
from pydantic import (
    BaseModel,
    FiniteFloat,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    ValidationError,
)
from torch import Tensor
from torch.nn.functional import normalize

from clh.document.reader import Reader
from clh.errors import InputError
from clh.evaluation import metrics, recipes
from clh.evaluation.metrics import Scored
from clh.evaluation.stages import CUTOFFS
from clh.models.embedder import Embedder, Vectors
from clh.training.losses import contrast, matryoshka
from clh.training.patient_tower import EhrTower, PatientTower, Scaler

Split = Literal["train", "val", "test"]

BEST = "map"  # on val, by which the best epoch is kept: it tells rankings of few codes apart, too

_LONGEST_CELL = 2**31 - 1  # characters; Python's csv would stop at 131,072


class Recipe(recipes.Recipe):
    """What recipes/train_patients.yaml says."""

    hidden: PositiveInt
    prefixes: tuple[PositiveInt, ...]
    temperature: PositiveFloat
    epochs: PositiveInt
    batch: PositiveInt
    learning_rate: PositiveFloat
    weight_decay: NonNegativeFloat
    kept: PositiveInt
    bootstrap: PositiveInt
    seed: NonNegativeInt


# --- the files -------------------------------------------------------------------------------


class _Code(BaseModel):
    code: str
    title: str
    description: str = ""
    synonyms: str = ""


class _Patient(BaseModel):
    encounter_id: str
    age: FiniteFloat | None = None
    sex: Literal["F", "M"] | None = None
    note_text: str = ""
    labs: dict[str, FiniteFloat]

    @property
    def values(self) -> dict[str, float]:
        """What was measured."""
        age = {} if self.age is None else {"age": self.age}
        sex = {} if self.sex is None else {"sex": float(self.sex == "M")}
        return age | sex | self.labs


class _Label(BaseModel):
    encounter_id: str
    code: str


class _Placed(BaseModel):
    encounter_id: str
    split: Split


_Row = TypeVar("_Row", bound=BaseModel)


@dataclass(frozen=True)
class Encounter:
    """A stay of a patient; `values` are of `Tables.features`, NaN where not measured."""

    id: str
    text: str
    values: tuple[float, ...]
    codes: frozenset[str]


@dataclass(frozen=True)
class Tables:
    """The four files: each code's text, what the values are of, and the encounters of a split."""

    texts: dict[str, str]
    features: tuple[str, ...]
    encounters: dict[Split, list[Encounter]]


def read_tables(icd: Path, patients: Path, labels: Path, splits: Path) -> Tables:
    """The files as the module describes them; InputError that names file, line and problem."""
    codes, people, placed = _by_id(icd, _Code), _by_id(patients, _Patient), _by_id(splits, _Placed)
    gold: defaultdict[str, set[str]] = defaultdict(set)
    for where, label in _rows(labels, _Label):
        _check(label.code, codes, where, icd)
        _check(label.encounter_id, people, where, patients)
        gold[label.encounter_id].add(label.code)
    for name, (where, _) in placed.items():
        _check(name, people, where, patients)

    features = sorted({one for _, patient in people.values() for one in patient.values})
    encounters: dict[Split, list[Encounter]] = {split: [] for split in get_args(Split)}
    for name, (where, patient) in people.items():
        _check(name, placed, where, splits)
        measured = patient.values
        if not patient.note_text and not measured:
            raise InputError(f"{where}: {name} has neither a note nor a value: leave it out")
        values = tuple(measured.get(feature, math.nan) for feature in features)
        one = Encounter(name, patient.note_text, values, frozenset(gold[name]))
        encounters[placed[name][1].split].append(one)
    for split in ("train", "val"):
        if not any(one.codes for one in encounters[split]):
            raise InputError(f"{splits}: no encounter of {split} has codes: give it some")
    texts = {
        code: "; ".join(filter(None, (row.title, row.description, row.synonyms)))
        for code, (_, row) in codes.items()
    }
    return Tables(texts, tuple(features), encounters)


def _by_id(file: Path, shape: type[_Row]) -> dict[str, tuple[str, _Row]]:
    """The rows, and where each stands, by the first of their columns, which no two share."""
    column = next(iter(shape.model_fields))
    found: dict[str, tuple[str, _Row]] = {}
    for where, row in _rows(file, shape):
        name = getattr(row, column)
        if name in found:
            raise InputError(f"{where}: {name} comes twice: leave one out")
        found[name] = where, row
    return found


def _check(name: str, known: Container[str], where: str, file: Path) -> None:
    if name not in known:
        raise InputError(f"{where}: {name} is not in {file}: add it there, or leave it out here")


def _rows(file: Path, shape: type[_Row]) -> Iterator[tuple[str, _Row]]:
    """Each row, and where it ends; an empty cell is as if its column were not there."""
    csv.field_size_limit(_LONGEST_CELL)
    try:
        with file.open(encoding="utf-8-sig", newline="") as lines:
            reader = csv.reader(lines, strict=True)
            header = next(reader, [])
            for cells in filter(None, reader):
                where = f"{file}, line {reader.line_num}"
                if len(cells) != len(header):
                    raise InputError(
                        f"{where}: {len(cells)} cells, and {len(header)} columns in the first line:"
                        " put cells with commas in double quotes"
                    )
                named = zip(header, map(str.strip, cells), strict=True)
                row: dict[str, Any] = {column: cell for column, cell in named if cell}
                row["labs"] = {name: row[name] for name in row if name.startswith("lab_")}
                try:
                    yield where, shape.model_validate(row)
                except ValidationError as error:
                    problem = error.errors()[0]
                    raise InputError(f"{where}, {problem['loc'][-1]}: {problem['msg']}") from None
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise InputError(f"{file} cannot be read ({error}): save it as CSV in UTF-8") from error


# --- what the tower reads --------------------------------------------------------------------


def note_vectors(notes: Sequence[str], tower: Embedder) -> Tensor:
    """One row per note, the normalised mean of its sentences' vectors; 0 where nothing is said."""
    reader = Reader()
    sentences = [[sentence.text for sentence in reader.all_sentences(note)] for note in notes]
    encoded = torch.from_numpy(tower.encode([text for note in sentences for text in note]))
    parts = encoded.split_with_sizes([len(note) for note in sentences])
    return normalize(torch.stack([part.sum(dim=0) for part in parts]), dim=1)


class Codes:
    """The codes to be found, with their vectors and kin."""

    def __init__(self, names: Sequence[str], vectors: Vectors) -> None:
        """Of rows of vectors, L2-normalised."""
        self.names, self.vectors = list(names), torch.from_numpy(vectors)
        self._place = {name: place for place, name in enumerate(names)}
        self._kin: dict[str, set[int]] = {name: set() for name in names}
        for name in names:  # I50 is above I50.2, which is above I50.21
            for above in (name[:end] for end in range(1, len(name)) if name[:end] in self._place):
                self._kin[name].add(self._place[above])
                self._kin[above].add(self._place[name])

    def masks(self, encounters: Sequence[Encounter]) -> tuple[Tensor, Tensor]:
        """Which are right, and which are above or below what is: boolean (encounters, codes)."""
        positive = torch.zeros(len(encounters), len(self.names), dtype=torch.bool)
        related = torch.zeros_like(positive)
        for row, one in enumerate(encounters):
            positive[row, [self._place[code] for code in one.codes]] = True
            related[row, [place for code in one.codes for place in self._kin[code]]] = True
        return positive, related & ~positive


class Part:
    """The encounters of a split, as the tower reads them."""

    def __init__(self, encounters: Sequence[Encounter], tower: Embedder) -> None:
        """Encode their notes."""
        self.encounters = encounters
        self.texts = note_vectors([one.text for one in encounters], tower)
        self.values = torch.tensor([one.values for one in encounters], dtype=torch.float64)

    def similarity(self, tower: PatientTower, codes: Codes) -> Tensor:
        """The cosine of each encounter and each code: (encounters, codes)."""
        with torch.no_grad():
            vectors: Tensor = tower(self.texts, self.values)
        return vectors @ codes.vectors.T

    def ranked(self, scores: Tensor, codes: Codes, kept: int) -> list[Scored]:
        """The best codes of each encounter by scores (encounters, codes); ties in file order."""
        order = scores.argsort(dim=1, descending=True, stable=True)[:, :kept]
        best = zip(order.tolist(), scores.gather(1, order).tolist(), strict=True)
        return [
            Scored(one.id, one.codes, {codes.names[at]: s for at, s in zip(*row, strict=True)})
            for one, row in zip(self.encounters, best, strict=True)
        ]


def log_frequency(train: Part, codes: Codes) -> Tensor:
    """The log of each code's share of the training encounters, one more added to both counts."""
    counts = Counter(code for one in train.encounters for code in one.codes)
    shares = [(counts[code] + 1) / (len(train.encounters) + 1) for code in codes.names]
    return torch.tensor(shares).log()


# --- training --------------------------------------------------------------------------------


def train_tower(
    train: Part,
    val: Part,
    codes: Codes,
    features: Sequence[str],
    recipe: Recipe,
    progress: Callable[[], object],
) -> tuple[PatientTower, list[dict[str, float]]]:
    """The tower at its best epoch on val, and the scores of each, of which 0 is before training.

    Multi-positive InfoNCE: all codes of an encounter are right, all others wrong but for those
    above and below a right one. The codes' and the notes' vectors stay as they are.
    """
    torch.manual_seed(recipe.seed)
    dimensions = codes.vectors.shape[1]
    scaler = Scaler.fit(features, train.values.numpy())
    tower = PatientTower(EhrTower(scaler, recipe.hidden, dimensions))
    optimizer = torch.optim.AdamW(
        tower.parameters(), lr=recipe.learning_rate, weight_decay=recipe.weight_decay
    )
    prefixes = {one: 1.0 for one in (*recipe.prefixes, dimensions) if one <= dimensions}

    def on_val() -> dict[str, float]:
        best = val.ranked(val.similarity(tower, codes), codes, recipe.kept)
        scores = metrics.rank_scores(best, CUTOFFS)
        return {name: scores[name] for name in (BEST, *(f"recall@{k}" for k in CUTOFFS))}

    def step(rows: Tensor) -> float:
        positive, ignored = codes.masks([train.encounters[row] for row in rows.tolist()])

        def at_prefix(of: Sequence[Tensor]) -> Tensor:
            return contrast(of[0], of[1], positive, ignored, recipe.temperature)

        vectors = tower(train.texts[rows], train.values[rows])
        loss = matryoshka(at_prefix, [vectors, codes.vectors], prefixes)
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        return loss.item()

    log = [{"epoch": 0, **on_val()}]
    best = deepcopy(tower.state_dict())
    for epoch in range(1, recipe.epochs + 1):
        shuffled = torch.randperm(len(train.encounters))
        starts = range(0, len(shuffled), recipe.batch)
        losses = [step(shuffled[start : start + recipe.batch]) for start in starts]
        log.append({"epoch": epoch, "loss": float(np.mean(losses)), **on_val()})
        if log[-1][BEST] > max(one[BEST] for one in log[:-1]):
            best = deepcopy(tower.state_dict())
        progress()
    tower.load_state_dict(best)
    return tower, log


# --- scores ----------------------------------------------------------------------------------


def best_threshold(notes: Sequence[Scored]) -> float:
    """The score from which on codes make the sets with the highest micro-F1."""
    right = [code in note.gold for note in notes for code in note.predicted]
    given = [score for note in notes for score in note.predicted.values()]
    curve = metrics.precision_recall(given, right, sum(len(note.gold) for note in notes))
    total = np.maximum(curve.precision + curve.recall, np.finfo(np.float64).tiny)
    return float(curve.threshold[(curve.precision * curve.recall / total).argmax()])


def score(
    notes: Sequence[Scored], threshold: float, codes: Sequence[str], samples: int, seed: int
) -> dict[str, Any]:
    """Scores of the rankings and, for `micro_f1`, of the sets of codes that reach the threshold."""
    sets = [
        replace(note, predicted={c: s for c, s in note.predicted.items() if s >= threshold})
        for note in notes
    ]
    of_ranks = metrics.rank_scores(notes, at=(5, *CUTOFFS))
    ranks = ["map", "precision@5", *(f"recall@{k}" for k in CUTOFFS)]
    return {
        "micro_f1": metrics.set_scores(sets)["micro_f1"],
        "threshold": threshold,
        **{name: of_ranks[name] for name in ranks},
        **metrics.roc_auc(notes, codes),
        "ci95": {
            **metrics.bootstrap(sets, ["micro_f1"], samples, seed),
            **metrics.bootstrap(notes, ranks, samples, seed),
        },
    }
