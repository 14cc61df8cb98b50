"""What the scripts that train language models share: recipe, loading, epochs, and going on.

TRL trains; a LoRA adapter, or with `lora: null` the whole model, is what comes out. After each
epoch it is written as it would ship, and scored through the interface that the agents use.
"""

import json
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from types import ModuleType
from typing import TYPE_CHECKING, Any, Literal, Protocol, TypeVar

from pydantic import Field, NonNegativeFloat, PositiveInt

from clh.errors import InputError
from clh.evaluation import recipes
from clh.files import write_folder
from clh.models import weights
from clh.models.language import LanguageModel, LocalModel, Message
from clh.training import loop

if TYPE_CHECKING:
    from datasets import Dataset
    from peft import LoraConfig
    from transformers import PreTrainedModel, PreTrainedTokenizerBase, Trainer

Task = Literal["analyze", "verify"]


class Lora(recipes.Recipe):
    """The adapter. Source: Hu et al. 2022, LoRA: Low-Rank Adaptation of Large Language Models."""

    rank: PositiveInt
    alpha: PositiveInt
    dropout: float = Field(ge=0, lt=1)
    modules: tuple[str, ...]


class Recipe(loop.Recipe):
    """What all recipes of language models say."""

    lora: Lora | None
    think: bool
    learned: dict[Task, PositiveInt]
    scored: dict[Task, PositiveInt]
    candidates: PositiveInt
    negatives: NonNegativeFloat
    max_tokens: PositiveInt
    reply_tokens: PositiveInt


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
    `weights.resolve`.
    """
    import torch
    from peft import LoraConfig
    from transformers import AutoModelForCausalLM, AutoTokenizer, set_seed

    folder, lora = weights.resolve(recipe.base, cache_dir), recipe.lora
    weights.silence_bars()
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
    dtype = torch.float32 if lora is None else weights.fast_dtype(weights.pick_device())
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


def supervised(
    student: Student, lessons: Sequence[Lesson], recipe: SupervisedRecipe, folder: Path
) -> "Trainer":
    """The trainer that teaches replies, and nothing of the questions."""
    from trl import SFTConfig, SFTTrainer  # type: ignore[attr-defined]

    return SFTTrainer(
        student.model,
        args=SFTConfig(
            **loop.settings(recipe, folder),
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
    """Train as `loop.train` does; each epoch is scored as it would be used, saved and loaded."""
    here = recipe.model_copy(update={"base": str(student.base)})  # which need not be found again

    def scores() -> Mapping[str, float]:
        with TemporaryDirectory(dir=folder) as cache:
            saved = Path(cache) / "model"
            write_folder(saved, lambda to: save(trainer, here, to))
            return score(
                LocalModel(
                    str(saved), Path(cache), max_tokens=recipe.reply_tokens, think=recipe.think
                )
            )

    loop.train(trainer, folder, scores, lambda to: save(trainer, recipe, to))


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
    adapter = get_peft_model_state_dict(model, save_embedding_layers=False)
    halves = {name: one.to("cpu", torch.float16).contiguous() for name, one in adapter.items()}
    save_file(halves, folder / weights.ADAPTER_WEIGHTS, metadata={"format": "pt"})
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
    (folder / weights.ADAPTER).write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
