"""What the scripts that train language models share: recipe, loading, training and saving.

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
from clh.training import trainer
from clh.training.trainer import TrainerRecipe, trainer_arguments

if TYPE_CHECKING:
    from datasets import Dataset
    from peft import LoraConfig
    from transformers import PreTrainedModel, PreTrainedTokenizerBase, Trainer

Task = Literal["analyze", "verify"]


class LoraRecipe(recipes.Recipe):
    """The adapter. Source: Hu et al. 2022, LoRA: Low-Rank Adaptation of Large Language Models."""

    rank: PositiveInt
    alpha: PositiveInt
    dropout: float = Field(ge=0, lt=1)
    modules: tuple[str, ...]


class LanguageModelRecipe(TrainerRecipe):
    """What all recipes of language models have."""

    lora: LoraRecipe | None
    think: bool
    train_examples: dict[Task, PositiveInt]
    held_out_examples: dict[Task, PositiveInt]
    candidates: PositiveInt
    negatives: NonNegativeFloat
    max_tokens: PositiveInt
    reply_tokens: PositiveInt


class SftRecipe(LanguageModelRecipe):
    """What recipes/run_training.yaml says."""

    packing: bool
    neftune: NonNegativeFloat


class PromptCompletion(Protocol):
    """A prompt, and the completion that is right."""

    @property
    def prompt(self) -> Sequence[Message]:
        """The turns before the completion."""
        ...

    @property
    def completion(self) -> str:
        """What the model should reply."""
        ...


ExampleT = TypeVar("ExampleT", bound=PromptCompletion)


@dataclass(frozen=True)
class TrainableModel:
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


def load_model(
    recipe: LanguageModelRecipe,
    cache_dir: Path,
    unsloth: ModuleType | None = None,
    *,
    vllm: bool = False,
) -> TrainableModel:
    """The base, ready to train; with unsloth its adapter is on it already.

    `vllm` lets vLLM generate, which only unsloth's models can. Raises ModelError as
    `weights.resolve`.
    """
    from transformers import set_seed

    folder = weights.resolve(recipe.base, cache_dir)
    weights.silence_bars()
    set_seed(recipe.seed)
    if unsloth is not None:
        return _load_with_unsloth(folder, recipe, unsloth, vllm=vllm)

    import torch
    from peft import LoraConfig
    from transformers import AutoModelForCausalLM, AutoTokenizer

    lora, adapter = recipe.lora, None
    if lora is not None:
        adapter = LoraConfig(
            r=lora.rank,
            lora_alpha=lora.alpha,
            lora_dropout=lora.dropout,
            target_modules=list(lora.modules),
            task_type="CAUSAL_LM",
        )
    # Weights that stay as they are may be coarse; those that take small steps may not.
    dtype = torch.float32 if lora is None else weights.fast_dtype(weights.pick_device())
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype)
    return TrainableModel(folder, model, AutoTokenizer.from_pretrained(folder), adapter)


def _load_with_unsloth(
    folder: Path, recipe: LanguageModelRecipe, unsloth: ModuleType, *, vllm: bool
) -> TrainableModel:
    lora = recipe.lora
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
    return TrainableModel(folder, model, tokenizer, None)


def select_fitting(
    examples: Iterable[ExampleT], tokenizer: "PreTrainedTokenizerBase", max_tokens: int
) -> list[ExampleT]:
    """The examples of at most `max_tokens`, less those that TRL would read in another way.

    It tokenizes what the chat template makes of a conversation, where a control token in a note
    would count as one; `LocalModel` takes it for text. Raises InputError if none is left.
    """

    def fits(example: PromptCompletion) -> bool:
        turns: Any = [*example.prompt, *assistant_turn(example.completion)]
        text = "".join(turn["content"] for turn in turns)
        return (
            not any(control in text for control in tokenizer.all_special_tokens)
            and len(tokenizer.apply_chat_template(turns, return_dict=False)) <= max_tokens
        )

    fitting = list(filter(fits, examples))
    if not fitting:
        raise InputError(f"no example to train on fits {max_tokens} tokens: raise max_tokens")
    return fitting


def assistant_turn(text: str) -> list[Message]:
    """A completion as TRL takes it: the model's turn."""
    return [{"role": "assistant", "content": text}]


def to_dataset(rows: Iterable[Mapping[str, Any]]) -> "Dataset":
    """Rows as a dataset that TRL takes."""
    from datasets import Dataset, disable_progress_bars

    disable_progress_bars()
    return Dataset.from_list([dict(row) for row in rows])


def sft_trainer(
    trainable: TrainableModel,
    examples: Sequence[PromptCompletion],
    recipe: SftRecipe,
    folder: Path,
) -> "Trainer":
    """The trainer that teaches completions, and nothing of the prompts."""
    from trl import SFTConfig, SFTTrainer  # type: ignore[attr-defined]

    return SFTTrainer(
        trainable.model,
        args=SFTConfig(
            **trainer_arguments(recipe, folder),
            max_length=recipe.max_tokens,
            completion_only_loss=True,
            packing=recipe.packing,
            neftune_noise_alpha=recipe.neftune or None,
        ),
        train_dataset=to_dataset(
            {"prompt": list(example.prompt), "completion": assistant_turn(example.completion)}
            for example in select_fitting(examples, trainable.tokenizer, recipe.max_tokens)
        ),
        processing_class=trainable.tokenizer,
        peft_config=trainable.adapter,
    )


def train_model(
    trained: "Trainer",
    trainable: TrainableModel,
    recipe: LanguageModelRecipe,
    folder: Path,
    evaluate: Callable[[LanguageModel], Mapping[str, float]],
) -> None:
    """Train as `trainer.train` does; each epoch is scored as it would be used, saved and loaded."""
    # The base by its folder: its name need not be found again from a temporary one.
    local = recipe.model_copy(update={"base": str(trainable.base)})

    def scores() -> Mapping[str, float]:
        with TemporaryDirectory(dir=folder) as cache:
            saved = Path(cache) / "model"
            write_folder(saved, lambda to: save_model(trained, local, to))
            return evaluate(
                LocalModel(
                    str(saved), Path(cache), max_tokens=recipe.reply_tokens, think=recipe.think
                )
            )

    trainer.train(trained, folder, scores, lambda to: save_model(trained, recipe, to))


def save_model(trained: "Trainer", recipe: LanguageModelRecipe, folder: Path) -> None:
    """Write the adapter in float16, as PEFT and vLLM read it, or the whole model."""
    import torch
    from peft import get_peft_model_state_dict
    from safetensors.torch import save_file

    model: Any = trained.model
    if recipe.lora is None:
        model.save_pretrained(folder)
        tokenizer: Any = trained.processing_class
        tokenizer.save_pretrained(folder)
        return
    adapter = get_peft_model_state_dict(model, save_embedding_layers=False)
    halves = {name: value.to("cpu", torch.float16).contiguous() for name, value in adapter.items()}
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
