"""One training run of the towers: what it learns from, its steps, and what survives a kill.

A single encoder serves queries and codes. Every code of the release is a negative of every query: a
bank of their vectors is encoded anew before each epoch, and held against the queries beside the
batch's own texts. An epoch starts from the checkpoint of the one before, so that a killed run goes
on as if it had never stopped.
"""

import json
import random
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from pydantic import Field, NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt
from torch import Tensor
from torch.nn.functional import normalize

from clh.errors import InputError, ModelError
from clh.evaluation import metrics, recipes
from clh.evaluation.metrics import Scored
from clh.evaluation.stages import CUTOFFS
from clh.files import write_folder
from clh.icd.index import IndexTerm
from clh.icd.tabular import CodeSystem
from clh.models import weights
from clh.retrieval.lexical import searchable
from clh.training.losses import backpropagate, contrast, matryoshka
from clh.training.pairs import Pair, reported_code
from clh.training.towers import TextEncoder

if TYPE_CHECKING:
    from accelerate import Accelerator

_OPTIMIZER, _STATE = "optimizer.safetensors", "state.json"


class Recipe(recipes.Recipe):
    """What recipes/train_retriever.yaml says."""

    base: str
    dimensions: PositiveInt
    prefixes: dict[PositiveInt, PositiveFloat]
    temperature: PositiveFloat
    learn_temperature: bool
    max_tokens: PositiveInt
    dropout: float = Field(ge=0, lt=1)
    attention: Literal["eager", "sdpa", "flash_attention_2"]
    held_out: float = Field(gt=0, lt=1)
    epochs: PositiveInt
    steps: PositiveInt
    marked: NonNegativeInt
    unmarked: NonNegativeInt
    terms: NonNegativeInt
    title_share: float = Field(ge=0, le=1)
    abbreviation_share: float = Field(ge=0, le=1)
    learning_rate: PositiveFloat
    head_learning_rate: PositiveFloat
    weight_decay: NonNegativeFloat
    warmup: PositiveInt
    clip: PositiveFloat
    chunk: PositiveInt
    cache_gradients: bool
    seed: NonNegativeInt


@dataclass(frozen=True)
class Batch:
    """Queries, what each means, and texts of codes."""

    queries: list[str]
    meant: list[frozenset[str]]
    texts: list[str]
    codes: list[str]


class Data:
    """What a run learns from, and the documents that choose its best epoch."""

    def __init__(
        self,
        documents: Iterable[Sequence[Pair]],
        held_out: Sequence[Sequence[Pair]],
        terms: Sequence[Pair],
        index: Iterable[IndexTerm],
        system: CodeSystem,
        recipe: Recipe,
    ) -> None:
        """Take documents, each a list of sentences, and the terms and index of the code system.

        InputError when a batch would be larger than what there is.
        """
        self.held_out = held_out
        sentences = [pair for document in documents for pair in document]
        self.pools = {
            "marked": ([pair for pair in sentences if pair.codes], recipe.marked),
            "unmarked": ([pair for pair in sentences if not pair.codes], recipe.unmarked),
            "terms": (terms, recipe.terms),
        }
        for name, (pool, size) in self.pools.items():
            if len(pool) < size:
                raise InputError(f"{len(pool)} {name} to learn from, {size} in a batch: lower it")
        texts: defaultdict[str, list[str]] = defaultdict(list)
        for code, text in searchable(system, index):
            answer = reported_code(code, system)
            if answer is not None and text not in texts[answer]:
                texts[answer].append(text)
        self.titles = {code: system[code].title for code in texts}
        self._texts = texts
        self._title_share, self._seed = recipe.title_share, recipe.seed

    def batch(self, step: int, process: int) -> Batch:
        """The batch of a step in one of several processes, always the same."""
        draw = random.Random(f"{self._seed}-{step}-{process}")  # noqa: S311
        drawn = [pair for pool, size in self.pools.values() for pair in draw.sample(pool, size)]
        known = [sorted(pair.codes & self._texts.keys()) for pair in drawn]
        codes = [draw.choice(some) for some in known if some]
        return Batch(
            [draw.choice(pair.texts) for pair in drawn],
            [pair.codes for pair in drawn],
            [self._text(code, draw) for code in codes],
            codes,
        )

    def _text(self, code: str, draw: random.Random) -> str:
        by_title = draw.random() < self._title_share
        return self.titles[code] if by_title else draw.choice(self._texts[code])


class Relations:
    """Which codes neither agree with a code nor contradict it: those above and below it."""

    def __init__(self, system: CodeSystem) -> None:
        """Read the tree of the release."""
        self._system = system
        self._families: dict[str, frozenset[str]] = {}

    def masks(self, meant: Sequence[frozenset[str]], columns: "Columns") -> tuple[Tensor, Tensor]:
        """Which codes are right for each row, and which are related: boolean (rows, columns)."""
        positive = torch.zeros(len(meant), columns.count, dtype=torch.bool)
        related = torch.zeros_like(positive)
        for row, right in enumerate(meant):
            around = frozenset().union(*(self._family(code) for code in right))
            positive[row, columns.of(right)] = True
            related[row, columns.of(around)] = True
        return positive, related & ~positive

    def _family(self, code: str) -> frozenset[str]:
        if code not in self._families:
            system = self._system
            around = [*system.ancestors(code), *system.descendants(code)]
            answers = {reported_code(one, system) for one in around}
            self._families[code] = frozenset(one for one in answers if one is not None)
        return self._families[code]


class Columns:
    """Codes in a row, and the places of each."""

    def __init__(self, codes: Sequence[str]) -> None:
        """Note the places."""
        self.count = len(codes)
        self._places: defaultdict[str, list[int]] = defaultdict(list)
        for place, code in enumerate(codes):
            self._places[code].append(place)

    def of(self, codes: Iterable[str]) -> list[int]:
        """The places of some codes, of which not all need be in the row."""
        return [place for code in codes for place in self._places.get(code, ())]


class Training:
    """The encoder and its optimizer, epoch by epoch, in one process or in several.

    Each process draws batches of its own; gradients are averaged.
    """

    def __init__(
        self,
        encoder: TextEncoder,
        data: Data,
        system: CodeSystem,
        recipe: Recipe,
        accelerator: "Accelerator",
    ) -> None:
        """Get ready for the first epoch."""
        self._encoder = encoder.to(accelerator.device)
        self._data, self._recipe, self._accelerator = data, recipe, accelerator
        self._relations = Relations(system)
        start = torch.tensor(recipe.temperature, device=accelerator.device).log()
        self._log_temperature = torch.nn.Parameter(start, requires_grad=recipe.learn_temperature)
        named = dict(encoder.named_parameters())
        head = [named.pop(name) for name in list(named) if name.startswith("head.")]
        groups: list[dict[str, Any]] = [
            {"params": [*named.values()]},
            {"params": head, "lr": recipe.head_learning_rate},
            {"params": [self._log_temperature], "weight_decay": 0},
        ]
        self._optimizer = torch.optim.AdamW(
            groups,
            lr=recipe.learning_rate,
            weight_decay=recipe.weight_decay,
            fused=True,
        )
        self._rates = [group["lr"] for group in self._optimizer.param_groups]
        self._codes = list(data.titles)
        self._bank_columns = Columns(self._codes)
        self._bank = self._encode_titles()

    def epoch(self, number: int, progress: Callable[[], None]) -> dict[str, float]:
        """Train for an epoch, the first of which is 1; returns its scores."""
        started = time.perf_counter()
        steps = range((number - 1) * self._recipe.steps, number * self._recipe.steps)
        losses = []
        for step in steps:
            losses.append(self._step(step))
            progress()
        self._bank = self._encode_titles()
        seconds = time.perf_counter() - started
        return {
            "epoch": number,
            "loss": float(np.mean(losses)),
            **self.recall(),
            "temperature": self._log_temperature.exp().item(),
            "seconds": seconds,
        }

    def recall(self) -> dict[str, float]:
        """Of the codes of the held-out documents, each ranked by its title's closest sentence."""
        notes = []
        bank = normalize(self._bank, dim=1)
        kept = min(max(CUTOFFS), len(bank))
        for number, document in enumerate(self._data.held_out):
            gold = frozenset().union(*(pair.codes for pair in document))
            queries = normalize(self._encode([pair.texts[0] for pair in document]), dim=1)
            best = (queries @ bank.T).max(dim=0).values.topk(kept)
            ranked = {
                self._codes[row]: score
                for row, score in zip(best.indices.tolist(), best.values.tolist(), strict=True)
            }
            notes.append(Scored(str(number), gold, ranked))
        scores = metrics.rank_scores([note for note in notes if note.gold], CUTOFFS)
        return {f"recall@{k}": scores[f"recall@{k}"] for k in CUTOFFS}

    def save(self, folder: Path, log: Sequence[Mapping[str, float]]) -> None:
        """Write a checkpoint whole, or leave the one before."""
        from safetensors.torch import save_file

        moments = {
            f"{position}.{name}": value
            for position, one in self._optimizer.state_dict()["state"].items()
            for name, value in one.items()
        }

        def write(to: Path) -> None:
            self._encoder.save(to, torch.float32)
            save_file(
                {**moments, "log_temperature": self._log_temperature.detach()}, to / _OPTIMIZER
            )
            (to / _STATE).write_text(json.dumps(log), encoding="utf-8")

        write_folder(folder, write)

    def export(self, folder: Path) -> None:
        """Write the towers as they ship: float16."""
        write_folder(folder, lambda to: self._encoder.save(to, torch.float16))

    def restore(self, folder: Path) -> list[dict[str, float]]:
        """Go on from a checkpoint, whose weights the encoder has; returns the epochs so far."""
        from safetensors import SafetensorError
        from safetensors.torch import load_file

        try:
            log: list[dict[str, float]] = json.loads((folder / _STATE).read_text(encoding="utf-8"))
            moments = load_file(folder / _OPTIMIZER)
            self._log_temperature.data = moments.pop("log_temperature")
            saved = self._optimizer.state_dict()
            saved["state"] = defaultdict(dict)
            for key, value in moments.items():
                position, _, name = key.partition(".")
                saved["state"][int(position)][name] = value
            self._optimizer.load_state_dict(saved)
        except (OSError, ValueError, KeyError, SafetensorError) as error:
            raise ModelError(f"the checkpoint {folder} cannot be read: delete it") from error
        return log

    def _step(self, step: int) -> float:
        recipe, accelerator = self._recipe, self._accelerator
        torch.manual_seed(hash((recipe.seed, step, accelerator.process_index)) % 2**32)
        batch = self._data.batch(step, accelerator.process_index)
        chunks, order = _chunks([*batch.queries, *batch.texts], recipe.chunk)
        positive, ignored = self._relations.masks(batch.meant, Columns(batch.codes))
        right, related = self._relations.masks(batch.meant, self._bank_columns)
        masks = [one.to(accelerator.device) for one in (positive, ignored, right | related)]

        def loss(parts: list[Tensor]) -> Tensor:
            vectors = torch.cat(parts)[order]
            queries, texts = vectors[: len(batch.queries)], vectors[len(batch.queries) :]
            temperature = self._log_temperature.exp()

            def at_prefix(of: Sequence[Tensor]) -> Tensor:
                return contrast(of[0], of[1], masks[0], masks[1], temperature, of[2], masks[2])

            return matryoshka(at_prefix, [queries, texts, self._bank], recipe.prefixes)

        self._encoder.train()
        calls = [partial(self._vectors, self._encoder, chunk) for chunk in chunks]
        value = backpropagate(calls, loss, recipe.cache_gradients)
        parameters = [one for one in self._encoder.parameters() if one.grad is not None]
        for one in parameters:
            one.grad = accelerator.reduce(one.grad, reduction="mean")
        torch.nn.utils.clip_grad_norm_(parameters, recipe.clip)
        for group, rate in zip(self._optimizer.param_groups, self._rates, strict=True):
            group["lr"] = rate * self._share(step)
        self._optimizer.step()
        self._optimizer.zero_grad()
        return value

    def _vectors(self, encoder: TextEncoder, texts: Sequence[str]) -> Tensor:
        with self._accelerator.autocast():
            vectors: Tensor = encoder(encoder.tokens(texts, self._recipe.max_tokens))
        return vectors.float()

    def _encode(self, texts: Sequence[str]) -> Tensor:
        """Vectors without gradients, in the order of the texts, not normalised."""
        # A copy in the dtype of the search, which is faster and what the towers will be used in.
        dtype = weights.fast_dtype(self._accelerator.device.type)
        encoder = deepcopy(self._encoder).to(dtype).eval()
        chunks, order = _chunks(texts, 2 * self._recipe.chunk)
        with torch.no_grad():
            return torch.cat([self._vectors(encoder, chunk) for chunk in chunks])[order]

    def _encode_titles(self) -> Tensor:
        """The bank: the title of every code; each process encodes its share."""
        titles = list(self._data.titles.values())
        processes, this = self._accelerator.num_processes, self._accelerator.process_index
        size = -(-len(titles) // processes)
        share = (titles * 2)[this * size : (this + 1) * size]  # as many for each, the last wraps
        gathered: Tensor = self._accelerator.gather(self._encode(share))
        return gathered[: len(titles)]

    def _share(self, step: int) -> float:
        """The share of the learning rate: up in a straight line, then down to nothing."""
        recipe = self._recipe
        left = 1 - step / (recipe.epochs * recipe.steps)
        return min((step + 1) / recipe.warmup, left)


def _chunks(texts: Sequence[str], size: int) -> tuple[list[list[str]], Tensor]:
    """The texts by length, which saves padding, and the rows that put them back in order."""
    by_length = sorted(range(len(texts)), key=lambda row: len(texts[row]))
    chunks = [
        [texts[row] for row in by_length[start : start + size]]
        for start in range(0, len(texts), size)
    ]
    return chunks, torch.tensor(by_length).argsort()
