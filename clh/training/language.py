"""What the scripts that train language models share: recipe, loading, epochs, and going on.

TRL trains; a LoRA adapter, or with `lora: null` the whole model, is what comes out. After each
epoch it is written as it would ship, and scored through the interface that the agents use.
"""

import argparse
import json
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from tempfile import TemporaryDirectory
from types import ModuleType
from typing import TYPE_CHECKING, Any, Literal, Protocol, TypeVar

from pydantic import Field, NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt

from clh import models, runs
from clh.errors import InputError
from clh.llm import LanguageModel, LocalModel, Message

if TYPE_CHECKING:
    from datasets import Dataset
    from peft import LoraConfig
    from transformers import PreTrainedModel, PreTrainedTokenizerBase, Trainer

Task = Literal["analyze", "verify"]
BEST = "score"  # of the held-out documents, by which the best epoch is kept

_LOG = "log.jsonl"
_CHECKPOINT, _STATE = "checkpoint", "trainer_state.json"  # as transformers names them
_NO_MEANS = frozenset({"epoch", "step", "num_tokens"})  # of steps, that say nothing of an epoch


class Lora(runs.Recipe):
    """The adapter. Source: Hu et al. 2022, LoRA: Low-Rank Adaptation of Large Language Models."""

    rank: PositiveInt
    alpha: PositiveInt
    dropout: float = Field(ge=0, lt=1)
    modules: tuple[str, ...]


class Recipe(runs.Recipe):
    """What all recipes of language models say."""

    base: str
    lora: Lora | None
    learned: dict[Task, PositiveInt]
    scored: dict[Task, PositiveInt]
    candidates: PositiveInt
    negatives: NonNegativeFloat
    held_out: float = Field(gt=0, lt=1)
    max_tokens: PositiveInt
    reply_tokens: PositiveInt
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


class SupervisedRecipe(Recipe):
    """What recipes/run_training.yaml says."""

    packing: bool
    neftune: NonNegativeFloat


class Lesson(Protocol):
    """A conversation, and the reply that it should have."""

    @property
    def messages(self) -> Sequence[Message]:
        """The turns up to the reply."""
        ...

    @property
    def reply(self) -> str:
        """What the model should say."""
        ...


LessonT = TypeVar("LessonT", bound=Lesson)


@dataclass(frozen=True)
class Student:
    """A model to train, the folder it is from, and the adapter it will get unless it has one."""

    base: Path
    model: "PreTrainedModel"
    tokenizer: "PreTrainedTokenizerBase"
    adapter: "LoraConfig | None"


def parser(doc: str | None, recipe: str) -> argparse.ArgumentParser:
    """The flags of these scripts, as for `runs.learner`."""
    flags = runs.learner(doc, recipe)
    flags.add_argument(
        "--unseen",
        nargs="*",
        default=["dev"],
        metavar="SPLIT",
        help="splits of which no sentence is learned; default: dev",
    )
    return flags


def find_unsloth(*, needed: Iterable[str] = ()) -> ModuleType | None:
    """unsloth, to be imported before TRL; None, and a line that says why, where it cannot run.

    `needed` are packages that have to be there, too.
    """
    import importlib

    import torch

    why = "there is no GPU"
    if torch.cuda.is_available():
        try:
            for name in needed:
                importlib.import_module(name)
            return importlib.import_module("unsloth")
        except (ImportError, NotImplementedError) as error:  # the latter for a GPU it does not know
            why = str(error)
    print(f"unsloth cannot run ({why}): TRL and PEFT train instead", file=sys.stderr)
    return None


def load(
    recipe: Recipe, cache_dir: Path, unsloth: ModuleType | None = None, *, vllm: bool = False
) -> Student:
    """The base, ready to train; with unsloth its adapter is on it already.

    `vllm` lets vLLM generate, which only unsloth's models can. Raises ModelError as
    `models.resolve`.
    """
    import torch
    from peft import LoraConfig
    from transformers import AutoModelForCausalLM, AutoTokenizer, set_seed

    folder, lora = models.resolve(recipe.base, cache_dir), recipe.lora
    models.silence_bars()
    set_seed(recipe.seed)
    if unsloth is not None:
        model, tokenizer = unsloth.FastLanguageModel.from_pretrained(
            str(folder),
            max_seq_length=recipe.max_tokens + recipe.reply_tokens,
            load_in_4bit=False,
            full_finetuning=lora is None,
            fast_inference=vllm,
            **({} if lora is None else {"max_lora_rank": lora.rank}),
        )
        if lora is not None:
            model = unsloth.FastLanguageModel.get_peft_model(
                model,
                r=lora.rank,
                lora_alpha=lora.alpha,
                lora_dropout=lora.dropout,
                target_modules=list(lora.modules),
                use_gradient_checkpointing="unsloth" if recipe.gradient_checkpointing else False,
                random_state=recipe.seed,
            )
        return Student(folder, model, tokenizer, None)
    # Weights that stay as they are may be coarse; those that take small steps may not.
    dtype = torch.float32 if lora is None else models.fast_dtype()
    adapter = (
        None
        if lora is None
        else LoraConfig(
            r=lora.rank,
            lora_alpha=lora.alpha,
            lora_dropout=lora.dropout,
            target_modules=list(lora.modules),
            task_type="CAUSAL_LM",
        )
    )
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype)
    return Student(folder, model, AutoTokenizer.from_pretrained(folder), adapter)


def fitting(
    lessons: Iterable[LessonT], tokenizer: "PreTrainedTokenizerBase", most: int
) -> list[LessonT]:
    """The lessons of at most `most` tokens, less those that TRL would read in another way.

    It tokenizes what the chat template makes of a conversation, where a control token in a note
    would count as one; `LocalModel` takes it for text. Raises InputError if none is left.
    """

    def fits(lesson: Lesson) -> bool:
        turns: Any = [*lesson.messages, *said(lesson.reply)]
        text = "".join(turn["content"] for turn in turns)
        return (
            not any(control in text for control in tokenizer.all_special_tokens)
            and len(tokenizer.apply_chat_template(turns, return_dict=False)) <= most
        )

    kept = list(filter(fits, lessons))
    if not kept:
        raise InputError(f"nothing to learn from fits {most} tokens: raise max_tokens")
    return kept


def said(reply: str) -> list[Message]:
    """The model's turn."""
    return [{"role": "assistant", "content": reply}]


def rows(columns: Iterable[Mapping[str, Any]]) -> "Dataset":
    """A dataset of TRL's."""
    from datasets import Dataset, disable_progress_bars

    disable_progress_bars()
    return Dataset.from_list([dict(one) for one in columns])


def settings(recipe: Recipe, folder: Path) -> dict[str, Any]:
    """What TRL's configurations have in common."""
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
        "bf16": models.fast_dtype() == torch.bfloat16,
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


def supervised(
    student: Student, lessons: Sequence[Lesson], recipe: SupervisedRecipe, folder: Path
) -> "Trainer":
    """The trainer that teaches replies, and nothing of the questions."""
    from trl import SFTConfig, SFTTrainer  # type: ignore[attr-defined]

    return SFTTrainer(
        student.model,
        args=SFTConfig(
            **settings(recipe, folder),
            max_length=recipe.max_tokens,
            completion_only_loss=True,
            packing=recipe.packing,
            neftune_noise_alpha=recipe.neftune or None,
        ),
        train_dataset=rows(
            {"prompt": list(one.messages), "completion": said(one.reply)}
            for one in fitting(lessons, student.tokenizer, recipe.max_tokens)
        ),
        processing_class=student.tokenizer,
        peft_config=student.adapter,
    )


def train(
    trainer: "Trainer",
    student: Student,
    recipe: Recipe,
    folder: Path,
    score: Callable[[LanguageModel], Mapping[str, float]],
) -> None:
    """Train to the end, from the last whole checkpoint if there is one.

    The best epoch is kept in `folder`/best. log.jsonl has a line for each epoch, 0 being the base:
    the means of what TRL logs of its steps, and what `score` makes of the model.
    """
    from tqdm import tqdm
    from transformers import PrinterCallback, TrainerCallback

    here = recipe.model_copy(update={"base": str(student.base)})  # which need not be found again

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
            means = _means(trainer.state.log_history, epoch)
            seconds = time.perf_counter() - self._started
            scores = _scores(trainer, here, folder, score)
            self._log.append({"epoch": epoch, **means, **scores, "seconds": seconds})
            tqdm.write(json.dumps({k: round(v, 4) for k, v in self._log[-1].items()}))
            if epoch and scores[BEST] == max(one[BEST] for one in self._log[1:]):
                runs.write_folder(folder / "best", lambda to: save(trainer, recipe, to))
            runs.write(folder / _LOG, "".join(json.dumps(one) + "\n" for one in self._log))
            self._started = time.perf_counter()

    trainer.add_callback(Epochs())
    trainer.remove_callback(PrinterCallback)
    trainer.train(resume_from_checkpoint=_last_checkpoint(folder))


def save(trainer: "Trainer", recipe: Recipe, folder: Path) -> None:
    """Write the adapter in float16, as PEFT and vLLM read it, or the whole model."""
    import torch
    from peft import get_peft_model_state_dict
    from safetensors.torch import save_file

    model: Any = trainer.model
    if recipe.lora is None:
        model.save_pretrained(folder)
        tokenizer: Any = trainer.processing_class
        tokenizer.save_pretrained(folder)
        return
    weights = get_peft_model_state_dict(model, save_embedding_layers=False)
    halves = {name: one.to("cpu", torch.float16).contiguous() for name, one in weights.items()}
    save_file(halves, folder / models.ADAPTER_WEIGHTS, metadata={"format": "pt"})
    config = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": recipe.base,
        "r": recipe.lora.rank,
        "lora_alpha": recipe.lora.alpha,
        "lora_dropout": recipe.lora.dropout,
        "target_modules": sorted(recipe.lora.modules),
        "inference_mode": True,
    }
    (folder / models.ADAPTER).write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")


def _scores(
    trainer: "Trainer",
    recipe: Recipe,
    folder: Path,
    score: Callable[[LanguageModel], Mapping[str, float]],
) -> Mapping[str, float]:
    """What `score` makes of the model as it stands, saved and loaded as it would be for use."""
    import torch

    # Loading draws random numbers, and training must not notice.
    with TemporaryDirectory(dir=folder) as cache, torch.random.fork_rng():
        saved = Path(cache) / "model"
        runs.write_folder(saved, lambda to: save(trainer, recipe, to))
        return score(LocalModel(str(saved), Path(cache), max_tokens=recipe.reply_tokens))


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
