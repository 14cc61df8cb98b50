"""Training of the patient tower, and the rankings that it makes."""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from copy import deepcopy
from typing import Any

import numpy as np
import torch
from pydantic import NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt
from torch import Tensor
from torch.nn.functional import normalize

from clh.document.reader import Reader
from clh.evaluation import metrics, recipes
from clh.evaluation.metrics import Scored
from clh.evaluation.stages import CUTOFFS
from clh.evaluation.thresholds import apply_threshold, best_threshold
from clh.models.embedder import Embedder, Vectors
from clh.training.losses import matryoshka, symmetric_info_nce
from clh.training.patients.tables import PatientEncounter, Split
from clh.training.patients.tower import EhrTower, PatientTower, Scaler

BEST = "map"  # on val, by which the best epoch is kept: it tells rankings of few codes apart, too


class PatientRecipe(recipes.Recipe):
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


def note_vectors(notes: Sequence[str], tower: Embedder) -> Tensor:
    """One row per note, the normalised mean of its sentences' vectors; 0 without a sentence."""
    reader = Reader()
    sentences = [[sentence.text for sentence in reader.all_sentences(note)] for note in notes]
    encoded = torch.from_numpy(tower.encode([text for note in sentences for text in note]))
    parts = encoded.split_with_sizes([len(note) for note in sentences])
    return normalize(torch.stack([part.sum(dim=0) for part in parts]), dim=1)


class Codes:
    """The codes to be found, with their vectors and relatives."""

    def __init__(self, names: Sequence[str], vectors: Vectors) -> None:
        """`vectors` has a row for each code, L2-normalised."""
        self.names, self.vectors = list(names), torch.from_numpy(vectors)
        self._place = {name: place for place, name in enumerate(names)}
        self._relatives: dict[str, set[int]] = {name: set() for name in names}
        for name in names:  # I50 is above I50.2, which is above I50.21
            for above in (name[:end] for end in range(1, len(name)) if name[:end] in self._place):
                self._relatives[name].add(self._place[above])
                self._relatives[above].add(self._place[name])

    def masks(self, encounters: Sequence[PatientEncounter]) -> tuple[Tensor, Tensor]:
        """Which are right, and which are above or below what is: boolean (encounters, codes)."""
        positive = torch.zeros(len(encounters), len(self.names), dtype=torch.bool)
        related = torch.zeros_like(positive)
        for row, encounter in enumerate(encounters):
            positive[row, [self._place[code] for code in encounter.codes]] = True
            places = [place for code in encounter.codes for place in self._relatives[code]]
            related[row, places] = True
        return positive, related & ~positive


class EncodedSplit:
    """The encounters of a split, as the tower reads them."""

    def __init__(self, encounters: Sequence[PatientEncounter], tower: Embedder) -> None:
        """Encode their notes."""
        self.encounters = encounters
        self.texts = note_vectors([encounter.text for encounter in encounters], tower)
        values = [encounter.values for encounter in encounters]
        self.values = torch.tensor(values, dtype=torch.float64)

    def similarity(self, tower: PatientTower, codes: Codes) -> Tensor:
        """The cosine of each encounter and each code: (encounters, codes)."""
        with torch.no_grad():
            vectors: Tensor = tower(self.texts, self.values)
        return vectors @ codes.vectors.T

    def rank(self, scores: Tensor, codes: Codes, most: int) -> list[Scored]:
        """The best codes of each encounter by scores (encounters, codes); ties in file order."""
        order = scores.argsort(dim=1, descending=True, stable=True)[:, :most]
        best = zip(order.tolist(), scores.gather(1, order).tolist(), strict=True)
        return [
            Scored(
                encounter.id,
                encounter.codes,
                {codes.names[at]: score for at, score in zip(*row, strict=True)},
            )
            for encounter, row in zip(self.encounters, best, strict=True)
        ]


def log_frequency(train: EncodedSplit, codes: Codes) -> Tensor:
    """The log of each code's share of the training encounters, one more added to both counts."""
    counts = Counter(code for encounter in train.encounters for code in encounter.codes)
    shares = [(counts[code] + 1) / (len(train.encounters) + 1) for code in codes.names]
    return torch.tensor(shares).log()


def train_tower(
    train: EncodedSplit,
    val: EncodedSplit,
    codes: Codes,
    features: Sequence[str],
    recipe: PatientRecipe,
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
    prefixes = {size: 1.0 for size in (*recipe.prefixes, dimensions) if size <= dimensions}

    def evaluate() -> dict[str, float]:
        ranked = val.rank(val.similarity(tower, codes), codes, recipe.kept)
        scores = metrics.rank_scores(ranked, CUTOFFS)
        return {name: scores[name] for name in (BEST, *(f"recall@{k}" for k in CUTOFFS))}

    def step(rows: Tensor) -> float:
        positive, ignored = codes.masks([train.encounters[row] for row in rows.tolist()])

        def at_prefix(vectors: Sequence[Tensor]) -> Tensor:
            patients, texts = vectors
            return symmetric_info_nce(patients, texts, positive, ignored, recipe.temperature)

        patients = tower(train.texts[rows], train.values[rows])
        loss = matryoshka(at_prefix, [patients, codes.vectors], prefixes)
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        return loss.item()

    log = [{"epoch": 0, **evaluate()}]
    best = deepcopy(tower.state_dict())
    for epoch in range(1, recipe.epochs + 1):
        shuffled = torch.randperm(len(train.encounters))
        starts = range(0, len(shuffled), recipe.batch)
        losses = [step(shuffled[start : start + recipe.batch]) for start in starts]
        log.append({"epoch": epoch, "loss": float(np.mean(losses)), **evaluate()})
        if log[-1][BEST] > max(row[BEST] for row in log[:-1]):
            best = deepcopy(tower.state_dict())
        progress()
    tower.load_state_dict(best)
    return tower, log


def rankings(
    split: EncodedSplit, tower: PatientTower, codes: Codes, frequency: Tensor, recipe: PatientRecipe
) -> dict[str, list[Scored]]:
    """The codes of each encounter by their frequency in train, by the tower, and by both."""
    similarity = split.similarity(tower, codes)
    scores = {
        "frequency": frequency.expand_as(similarity),
        "tower": similarity,
        "both": similarity / recipe.temperature + frequency,
    }
    return {name: split.rank(by, codes, recipe.kept) for name, by in scores.items()}


def evaluate_splits(
    splits: Mapping[Split, EncodedSplit], tower: PatientTower, codes: Codes, recipe: PatientRecipe
) -> dict[str, dict[str, Any]]:
    """Scores of the rankings of val and, if there is one, of test, whose thresholds val sets."""
    frequency = log_frequency(splits["train"], codes)
    thresholds: dict[str, float] = {}
    report: dict[str, dict[str, Any]] = {}
    evaluated: tuple[Split, ...] = ("val", "test")
    for name in evaluated:
        if name not in splits:
            continue
        ranked = rankings(splits[name], tower, codes, frequency, recipe)
        report[name] = {"encounters": len(splits[name].encounters)}
        for ranking, notes in ranked.items():
            threshold = thresholds.setdefault(ranking, best_threshold(notes))
            report[name][ranking] = score(
                notes, threshold, codes.names, recipe.bootstrap, recipe.seed
            )
        report[name]["both_over_frequency"] = metrics.compare(
            ranked["both"], ranked["frequency"], BEST, recipe.bootstrap, recipe.seed
        )._asdict()
    return report


def score(
    notes: Sequence[Scored], threshold: float, codes: Sequence[str], samples: int, seed: int
) -> dict[str, Any]:
    """Scores of the rankings and, for `micro_f1`, of the sets of codes that reach the threshold."""
    sets = apply_threshold(notes, threshold)
    rank_scores = metrics.rank_scores(notes, at=(5, *CUTOFFS))
    names = ["map", "precision@5", *(f"recall@{k}" for k in CUTOFFS)]
    return {
        "micro_f1": metrics.set_scores(sets)["micro_f1"],
        "threshold": threshold,
        **{name: rank_scores[name] for name in names},
        **metrics.roc_auc(notes, codes),
        "ci95": {
            **metrics.bootstrap(sets, ["micro_f1"], samples, seed),
            **metrics.bootstrap(notes, names, samples, seed),
        },
    }
