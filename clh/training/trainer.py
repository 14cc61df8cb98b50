"""What all runs of a Hugging Face trainer share: arguments, epochs, and going on after a kill.

Trainers of transformers, sentence-transformers and TRL are the same class underneath. They do the
steps, checkpoints and restarts; a callback scores each epoch and keeps the best.
"""

import argparse
import json
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, Any

from pydantic import Field, NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt

from clh.evaluation import recipes
from clh.files import atomic_write, write_folder
from clh.models import weights

if TYPE_CHECKING:
    from transformers import Trainer

SCORE = "score"  # on the held-out documents, by which the best epoch is kept unless told otherwise

_LOG = "log.jsonl"
_CHECKPOINT, _STATE = "checkpoint", "trainer_state.json"  # as transformers names them
_COUNTERS = frozenset({"epoch", "step", "num_tokens"})  # logged with each step, and no measures


class TrainerRecipe(recipes.Recipe):
    """What all recipes of such runs have."""

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


def training_parser(doc: str | None, recipe: str) -> argparse.ArgumentParser:
    """The flags of `recipes.training_parser`, and the splits that nothing may be learned from."""
    parser = recipes.training_parser(doc, recipe)
    parser.add_argument(
        "--unseen",
        nargs="*",
        default=["dev"],
        metavar="SPLIT",
        help="splits of which no sentence is trained on; default: dev",
    )
    return parser


def trainer_arguments(recipe: TrainerRecipe, folder: Path) -> dict[str, Any]:
    """The arguments that a recipe gives any trainer, by their names in `TrainingArguments`."""
    return {
        **common_arguments(folder),
        "num_train_epochs": recipe.epochs,
        "per_device_train_batch_size": recipe.batch,
        "gradient_accumulation_steps": recipe.accumulate,
        "learning_rate": recipe.learning_rate,
        "warmup_steps": recipe.warmup,
        "weight_decay": recipe.weight_decay,
        "max_grad_norm": recipe.clip,
        "gradient_checkpointing": recipe.gradient_checkpointing,
        "save_strategy": "steps",
        "save_steps": recipe.checkpoint_steps,
        "seed": recipe.seed,
    }


def common_arguments(folder: Path) -> dict[str, Any]:
    """The arguments that no recipe changes: where to compute, what to log, what to leave out."""
    import torch

    return {
        "output_dir": str(folder),
        "bf16": weights.fast_dtype(weights.pick_device()) == torch.bfloat16,
        "use_cpu": not torch.accelerator.is_available(),
        "dataloader_pin_memory": torch.accelerator.is_available(),
        "save_total_limit": 1,
        "logging_steps": 1,
        "report_to": "none",
        "disable_tqdm": True,
    }


def train(
    trainer: "Trainer",
    folder: Path,
    evaluate: Callable[[], Mapping[str, float]],
    save: Callable[[Path], None],
    best: str = SCORE,
) -> None:
    """Train to the end, from the last whole checkpoint if there is one.

    What `save` writes of the epoch with the highest `best` is kept in `folder`/best. log.jsonl has
    a line for each epoch, of which 0 is the base: the means of what the trainer logs of its steps,
    and what `evaluate` gives. Of several processes all evaluate, and the first one writes.
    """
    from tqdm import tqdm
    from transformers import PrinterCallback, TrainerCallback

    class EpochLog(TrainerCallback):
        def __init__(self) -> None:
            self._rows = read_log(folder)
            self._started = time.perf_counter()

        def on_train_begin(self, *_: Any, **__: Any) -> None:
            state = trainer.state
            done = int(state.epoch or 0)
            self._rows = self._rows[: done + 1]  # later epochs will come again
            if len(self._rows) <= done:  # the base, or killed between an epoch's end and its score
                self._end_epoch(done)
            self._bar = tqdm(
                total=state.max_steps,
                initial=state.global_step,
                unit="step",
                disable=not trainer.is_world_process_zero(),
            )

        def on_step_end(self, *_: Any, **__: Any) -> None:
            self._bar.update()

        def on_epoch_end(self, *_: Any, **__: Any) -> None:
            self._end_epoch(round(trainer.state.epoch or 0))

        def on_train_end(self, *_: Any, **__: Any) -> None:
            self._bar.close()

        def _end_epoch(self, epoch: int) -> None:
            import torch

            means = _means(trainer.state.log_history, epoch)
            seconds = time.perf_counter() - self._started
            with torch.random.fork_rng():  # scoring may draw, and training must not notice
                scores = evaluate()
            self._rows.append({"epoch": epoch, **means, **scores, "seconds": seconds})
            if trainer.is_world_process_zero():
                tqdm.write(json.dumps({k: round(v, 4) for k, v in self._rows[-1].items()}))
                if epoch and scores[best] == max(row[best] for row in self._rows[1:]):
                    write_folder(folder / "best", save)
                lines = (json.dumps(row) + "\n" for row in self._rows)
                atomic_write(folder / _LOG, "".join(lines))
            trainer.accelerator.wait_for_everyone()
            self._started = time.perf_counter()

    trainer.create_model_card = _write_no_card  # type: ignore[method-assign]
    trainer.add_callback(EpochLog())
    trainer.remove_callback(PrinterCallback)
    trainer.train(resume_from_checkpoint=_last_checkpoint(folder))


def read_log(folder: Path) -> list[dict[str, float]]:
    """The lines of a run's log.jsonl, by epoch; none before it has begun."""
    file = folder / _LOG
    return [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []


def _write_no_card(*_: Any, **__: Any) -> None:
    """In place of a trainer's model card, which would name neither the base model nor the data."""


def _last_checkpoint(folder: Path) -> str | None:
    """The newest checkpoint that was written to its end: its state is the last of its files."""
    whole = [file.parent for file in folder.glob(f"{_CHECKPOINT}-*/{_STATE}")]
    return str(max(whole, key=lambda path: int(path.name.rpartition("-")[2]))) if whole else None


def _means(history: Iterable[Mapping[str, float]], epoch: int) -> dict[str, float]:
    """The means of what was logged of an epoch's steps."""
    logged: defaultdict[str, list[float]] = defaultdict(list)
    for row in history:
        if epoch - 1 < row["epoch"] <= epoch:
            for name in row.keys() - _COUNTERS:
                logged[name].append(row[name])
    return {name: fmean(values) for name, values in sorted(logged.items())}
