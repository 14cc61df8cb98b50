"""What all runs of a Hugging Face trainer share: settings, epochs, and going on after a kill."""

import argparse
import json
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, Any

from pydantic import Field, NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt

from clh.evaluation import recipes, runs
from clh.files import write_folder
from clh.models import weights

if TYPE_CHECKING:
    from transformers import Trainer

BEST = "score"  # of the held-out documents, by which the best epoch is kept

_LOG = "log.jsonl"
_CHECKPOINT, _STATE = "checkpoint", "trainer_state.json"  # as transformers names them
_NO_MEANS = frozenset({"epoch", "step", "num_tokens"})  # of steps, that say nothing of an epoch


class Recipe(recipes.Recipe):
    """What all recipes of such runs say."""

    base: str
    held_out: float = Field(gt=0, lt=1)
    epochs: PositiveInt
    batch: PositiveInt
    accumulate: PositiveInt
    learning_rate: PositiveFloat
    warmup: NonNegativeInt
    weight_decay: NonNegativeFloat
    clip: PositiveFloat
    gradient_checkpointing: bool
    checkpoint_steps: PositiveInt
    seed: NonNegativeInt


def parser(doc: str | None, recipe: str) -> argparse.ArgumentParser:
    """The flags of these scripts, as for `training_parser`."""
    flags = recipes.training_parser(doc, recipe)
    flags.add_argument(
        "--unseen",
        nargs="*",
        default=["dev"],
        metavar="SPLIT",
        help="splits of which no sentence is learned; default: dev",
    )
    return flags


def settings(recipe: Recipe, folder: Path) -> dict[str, Any]:
    """What the trainers' arguments have in common."""
    import torch

    return {
        "output_dir": str(folder),
        "num_train_epochs": recipe.epochs,
        "per_device_train_batch_size": recipe.batch,
        "gradient_accumulation_steps": recipe.accumulate,
        "learning_rate": recipe.learning_rate,
        "warmup_steps": recipe.warmup,
        "weight_decay": recipe.weight_decay,
        "max_grad_norm": recipe.clip,
        "gradient_checkpointing": recipe.gradient_checkpointing,
        "bf16": weights.fast_dtype(weights.pick_device()) == torch.bfloat16,
        "use_cpu": not torch.accelerator.is_available(),
        "dataloader_pin_memory": torch.accelerator.is_available(),
        "save_strategy": "steps",
        "save_steps": recipe.checkpoint_steps,
        "save_total_limit": 1,
        "logging_steps": 1,
        "report_to": "none",
        "disable_tqdm": True,
        "seed": recipe.seed,
    }


def train(
    trainer: "Trainer",
    folder: Path,
    score: Callable[[], Mapping[str, float]],
    save: Callable[[Path], None],
) -> None:
    """Train to the end, from the last whole checkpoint if there is one.

    What `save` writes of the best epoch is kept in `folder`/best. log.jsonl has a line for each
    epoch, 0 being the base: the means of what the trainer logs of its steps, and what `score` says.
    """
    from tqdm import tqdm
    from transformers import PrinterCallback, TrainerCallback

    class Epochs(TrainerCallback):
        def __init__(self) -> None:
            self._log = _read(folder / _LOG)
            self._started = time.perf_counter()

        def on_train_begin(self, *_: Any, **__: Any) -> None:
            state = trainer.state
            done = int(state.epoch or 0)
            self._log = self._log[: done + 1]  # later epochs will come again
            if len(self._log) <= done:  # the base, or killed between an epoch's end and its score
                self._end(done)
            self._bar = tqdm(total=state.max_steps, initial=state.global_step, unit="step")

        def on_step_end(self, *_: Any, **__: Any) -> None:
            self._bar.update()

        def on_epoch_end(self, *_: Any, **__: Any) -> None:
            self._end(round(trainer.state.epoch or 0))

        def on_train_end(self, *_: Any, **__: Any) -> None:
            self._bar.close()

        def _end(self, epoch: int) -> None:
            import torch

            means = _means(trainer.state.log_history, epoch)
            seconds = time.perf_counter() - self._started
            with torch.random.fork_rng():  # scoring may draw, and training must not notice
                scores = score()
            self._log.append({"epoch": epoch, **means, **scores, "seconds": seconds})
            tqdm.write(json.dumps({k: round(v, 4) for k, v in self._log[-1].items()}))
            if epoch and scores[BEST] == max(one[BEST] for one in self._log[1:]):
                write_folder(folder / "best", save)
            runs.write(folder / _LOG, "".join(json.dumps(one) + "\n" for one in self._log))
            self._started = time.perf_counter()

    trainer.create_model_card = _no_card  # type: ignore[method-assign]
    trainer.add_callback(Epochs())
    trainer.remove_callback(PrinterCallback)
    trainer.train(resume_from_checkpoint=_last_checkpoint(folder))


def _no_card(*_: Any, **__: Any) -> None:
    """Nothing, where trainers write a model card that knows neither base nor data."""


def _last_checkpoint(folder: Path) -> str | None:
    """The newest checkpoint that was written to its end: its state is the last of its files."""
    whole = [file.parent for file in folder.glob(f"{_CHECKPOINT}-*/{_STATE}")]
    return str(max(whole, key=lambda one: int(one.name.rpartition("-")[2]))) if whole else None


def _means(history: Iterable[Mapping[str, float]], epoch: int) -> dict[str, float]:
    """The means of what was logged of an epoch's steps."""
    logged: defaultdict[str, list[float]] = defaultdict(list)
    for one in history:
        if epoch - 1 < one["epoch"] <= epoch:
            for name in one.keys() - _NO_MEANS:
                logged[name].append(one[name])
    return {name: fmean(values) for name, values in sorted(logged.items())}


def _read(file: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []
