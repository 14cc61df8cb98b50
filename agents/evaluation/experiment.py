"""An experiment: a split of a corpus through the agents, note by note, then scores and a report."""

import argparse
import asyncio
import hashlib
import json
import os
import sys
import warnings
from collections import Counter
from collections.abc import Callable, Coroutine, Iterator, Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import PositiveInt

import prompts
from agents.pipeline import Pipeline, run_in_order
from clh import corpora
from clh.config import Settings
from clh.corpora import Example
from clh.errors import InputError
from clh.evaluation import recipes, report
from clh.evaluation.run_folder import RunFolder, fingerprint, git_commit
from clh.evaluation.stages import CodedExample, Outcome, Steps
from clh.evaluation.summary import summarize
from clh.files import atomic_write
from clh.icd.tabular import load_tabular
from clh.models.weights import silence_bars
from clh.schema import Agent

if TYPE_CHECKING:
    from accelerate import Accelerator

Code = Callable[[Example, Pipeline, str], Coroutine[Any, Any, Outcome]]  # str: the git commit

_STEPS, _PREDICTIONS = "steps.jsonl", "predictions.jsonl"
_PAUSE = 30.0  # seconds


class ExperimentRecipe(recipes.Recipe):
    """What the recipes of experiments with agents say."""

    settings: dict[str, Any]  # over those of the profile
    concurrency: PositiveInt = 1  # notes under way; more than one only helps behind a server
    bootstrap: PositiveInt  # resamples for the 95% intervals
    worked_notes: PositiveInt  # shown whole in the report


def run(arguments: argparse.Namespace, reported: Sequence[Agent], code: Code, **flags: str) -> int:
    """Run a split through `code`, go on where a killed run stopped, and write the results.

    `reported` are the stages whose scores are written; `flags` are what the script adds to those of
    all. Returns the exit code. Raises InputError for data or flags that cannot be used.
    """
    recipe = recipes.read_recipe(arguments.recipe, ExperimentRecipe, arguments.set)
    corpus = corpora.find(arguments.dataset)
    given = {"policy": arguments.policy or corpus.policy, **recipe.settings}
    settings = Settings.load(arguments.profile or corpus.profile, **given)
    system = load_tabular()
    tracker = _tracker(arguments.track, arguments.output)
    examples = _examples(arguments, reported, gold_mentions="gold" in flags.values())
    pipeline = _load(settings)
    common = ("dataset", "split", "unit", "limit", "seed")
    config = {
        **{name: getattr(arguments, name) for name in common},
        **flags,
        "recipe": recipe.model_dump(),
        "settings": settings.model_dump(mode="json", exclude={"cache_dir", "data_dir"}),
        "prompts": {task: prompts.sha256(task) for task in prompts.tasks()},
        "models": pipeline.models,
        "data_sha256": _data_sha256(examples),
        "icd_release": system.release,
    }
    named = {"git": git_commit(), "config_hash": fingerprint(config)}
    folder = RunFolder(
        arguments.output, {**config, **named, "versions": _versions()}, (_STEPS, _PREDICTIONS)
    )
    _code_all(
        examples,
        folder,
        lambda example: code(example, pipeline, named["git"]),
        recipe.concurrency,
    )
    outcomes = _read_outcomes(examples, folder)
    result = {
        "dataset": arguments.dataset,
        "split": arguments.split,
        **summarize(
            outcomes,
            reported,
            system,
            pipeline.assigner.threshold,
            _train_counts(arguments) if "assign" in reported else None,
            recipe.bootstrap,
            arguments.seed,
        ),
        **named,
    }
    atomic_write(folder.path / "metrics.json", json.dumps(result, indent=2) + "\n")
    page = report.page(result, config, outcomes, system, recipe.worked_notes)
    atomic_write(folder.path / "report.html", page)
    report.show(result)
    if tracker is not None:
        tracker.init_trackers("clh", config=dict(_flat(config)))
        tracker.log({name: one for name, one in _flat(result) if isinstance(one, int | float)})
        tracker.end_training()
    for one in outcomes:
        for error in one.coded.errors:
            print(f"{one.example.id}: {error.agent} failed: {error.message}", file=sys.stderr)
    return int(any(one.coded.errors for one in outcomes))


def _examples(
    arguments: argparse.Namespace, reported: Sequence[Agent], gold_mentions: bool
) -> list[Example]:
    """The examples to code; InputError where the corpus lacks what the experiment needs."""
    name = arguments.dataset
    kind = corpora.find(name).codes
    if kind != "ICD-10-CM" and reported != ("analyze",):
        raise InputError(
            f"the codes of {name} are {kind}, and the agents assign ICD-10-CM: only "
            "1_analyse_agent.py and baselines.py can use it"
        )
    given = arguments.data_dir, arguments.split, arguments.unit, arguments.limit, arguments.seed
    examples = corpora.sample(name, *given)
    # Assign needs no mentions to be told which codes are gold.
    if gold_mentions and "assign" not in reported and not any(one.evidence for one in examples):
        raise InputError(
            f"{name} does not say where in the notes its codes are: there is no gold input for "
            "this agent"
        )
    return examples


def _code_all(
    examples: Sequence[Example],
    folder: RunFolder,
    code: Callable[[Example], Coroutine[Any, Any, Outcome]],
    concurrency: int,
) -> None:
    """Code the examples that the folder does not hold yet, `concurrency` at a time."""
    from tqdm import tqdm

    done = {CodedExample.model_validate_json(line).note_id for line in folder.lines(_PREDICTIONS)}
    if not done <= {example.id for example in examples}:
        raise InputError(f"{folder.path} holds other notes than the corpus: delete it")
    todo = [example for example in examples if example.id not in done]
    # A log gets a line now and then, a terminal a bar that moves.
    pause = 0.1 if sys.stderr.isatty() else _PAUSE

    async def run() -> None:
        with tqdm(total=len(examples), initial=len(done), unit="note", mininterval=pause) as bar:
            async for outcome in run_in_order(code, todo, concurrency):
                folder.append(outcome.steps.model_dump_json(), outcome.coded.model_dump_json())
                bar.update()

    asyncio.run(run())


def _read_outcomes(examples: Sequence[Example], folder: RunFolder) -> list[Outcome]:
    """What the folder holds of each example."""
    steps = {one.note_id: one for one in map(Steps.model_validate_json, folder.lines(_STEPS))}
    coded = {
        one.note_id: one
        for one in map(CodedExample.model_validate_json, folder.lines(_PREDICTIONS))
    }
    return [Outcome(example, steps[example.id], coded[example.id]) for example in examples]


def _train_counts(arguments: argparse.Namespace) -> Counter[str] | None:
    """In how many training examples each code occurs; None where the data holds no train split."""
    try:
        train = corpora.read(arguments.dataset, arguments.data_dir, "train")
        return Counter(code for example in train for code in example.codes)
    except InputError as error:
        print(f"no table by frequency in train: {error}", file=sys.stderr)
        return None


def _data_sha256(examples: Sequence[Example]) -> str:
    """The fingerprint of the notes and codes that are scored."""
    digest = hashlib.sha256()
    for example in examples:
        digest.update(example.model_dump_json().encode())
    return digest.hexdigest()


def _versions() -> dict[str, str]:
    return {name: version(name) for name in ("clh", "onnxruntime", "tokenizers", "numpy")}


def _load(settings: Settings) -> Pipeline:
    silence_bars()
    return Pipeline.load(settings)


def _tracker(name: str | None, folder: Path) -> "Accelerator | None":
    """One of the trackers that accelerate knows; InputError where it is not installed."""
    if name is None:
        return None
    from accelerate import Accelerator

    os.environ.setdefault("WANDB_MODE", "offline")  # nothing leaves the machine unless asked to
    try:
        with warnings.catch_warnings():  # of what is said below
            warnings.simplefilter("ignore")
            accelerator = Accelerator(log_with=name, project_dir=str(folder))
    except ValueError as error:
        raise InputError(f"--track {name}: {error}") from error
    if not accelerator.log_with:
        raise InputError(f"--track {name}: `pip install {name}` first")
    return accelerator


def _flat(values: Mapping[str, Any], above: str = "") -> Iterator[tuple[str, Any]]:
    """The leaves of nested mappings, named by their path."""
    for name, value in values.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{above}{name}/")
        else:
            yield f"{above}{name}", value if isinstance(value, int | float) else str(value)
