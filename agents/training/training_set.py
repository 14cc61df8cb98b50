"""A run's training set: its examples, made once, and the folder that they are kept in."""

import argparse
import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from pydantic import TypeAdapter

import prompts
from agents.pipeline import Pipeline
from agents.training.evaluation import evaluate
from agents.training.evidence import find_codes
from agents.training.examples import AGENT_EXAMPLE, AgentExample, draw_examples, with_thought
from agents.training.split import DocumentSplit
from clh import corpora
from clh.config import Settings
from clh.evaluation.run_folder import RunFolder, git_commit
from clh.files import atomic_write
from clh.models import weights
from clh.models.language import LanguageModel
from clh.schema import Shape
from clh.training.language import LanguageModelRecipe
from clh.training.trainer import TrainerRecipe

ShapeT = TypeVar("ShapeT", bound=Shape)


@dataclass(frozen=True)
class TrainingSet:
    """The examples that a model is trained on, and those that choose its best epoch."""

    train: list[AgentExample]
    held_out: list[AgentExample]
    pipeline: Pipeline
    folder: RunFolder

    def evaluate(self, model: LanguageModel) -> dict[str, float]:
        """The scores of a model on the held-out documents: see `score_predictions`."""
        return asyncio.run(evaluate(self.held_out, model))

    def find_codes(self, lead_terms: Sequence[str]) -> list[list[str]]:
        """The codes that locate finds for each of some lead terms."""
        return find_codes(lead_terms, self.pipeline.retriever, self.pipeline.system)


def load_training_set(
    arguments: argparse.Namespace, recipe: LanguageModelRecipe, *files: str
) -> TrainingSet:
    """The examples of a run, made once, and its folder, in which each of `files` grows by lines.

    The documents held out are those that the towers hold out, too. No example shows a sentence of
    theirs, nor of the splits of `arguments.unseen`. Raises InputError for data that cannot be used.
    """
    split = DocumentSplit.read(arguments, recipe)
    pipeline = load_pipeline(arguments.dataset, recipe.candidates)
    config = {
        **run_config(split, pipeline, recipe),
        "prompts": {task: prompts.sha256(task) for task in recipe.train_examples},
    }
    folder = RunFolder(arguments.output, config, files)
    unseen = split.unseen_sentences(pipeline.reader)
    train = cached_jsonl(
        folder.path / "train.jsonl",
        AGENT_EXAMPLE,
        lambda: draw_examples(split.train, pipeline, recipe, recipe.train_examples, unseen),
    )
    return TrainingSet(
        train=list(map(with_thought, train)) if recipe.think else train,
        held_out=cached_jsonl(
            folder.path / "held_out.jsonl",
            AGENT_EXAMPLE,
            lambda: draw_examples(split.held_out, pipeline, recipe, recipe.held_out_examples),
        ),
        pipeline=pipeline,
        folder=folder,
    )


def load_pipeline(dataset: str, candidates: int) -> Pipeline:
    """The agents that examples of a dataset are made with, `candidates` for each term.

    Without a prior: it was counted on the very documents that are trained on, and would lead every
    term to their codes. Without whole sentences: a model is to name mentions.
    """
    corpus = corpora.find(dataset)
    settings = Settings.load(
        corpus.profile,
        policy=corpus.policy,
        analyze={"retrieval": {"sentences": False}},
        locate={"prior": "", "candidates": candidates},
        verify={"source": "retrieval"},
        assign={"weights": ""},
    )
    return Pipeline.load(settings)


def run_config(split: DocumentSplit, pipeline: Pipeline, recipe: TrainerRecipe) -> dict[str, Any]:
    """What makes a run another run."""
    base = weights.resolve(recipe.base, pipeline.settings.cache_dir)
    return {
        "recipe": recipe.model_dump(mode="json"),
        **split.describe(),
        "settings": pipeline.settings.hash,
        "models": pipeline.models,
        "base": weights.model_id(recipe.base, base),
        "icd_release": pipeline.system.release,
        "git": git_commit(),
    }


def cached_jsonl(
    file: Path, shape: TypeAdapter[ShapeT], make: Callable[[], list[ShapeT]]
) -> list[ShapeT]:
    """The lines of a file, which is written first if it is not there."""
    if not file.exists():
        lines = (shape.dump_json(row).decode() + "\n" for row in make())
        atomic_write(file, "".join(lines))
    return [
        shape.validate_json(line) for line in file.read_bytes().decode("utf-8").split("\n")[:-1]
    ]
