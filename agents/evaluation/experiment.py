"""An experiment: a split of a corpus through the agents, note by note, then scores and a report."""

import argparse
import asyncio
import hashlib
import json
import os
import statistics
import sys
import warnings
from collections import Counter
from collections.abc import Callable, Coroutine, Iterator, Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import PositiveInt

import prompts
from agents.context import Context
from clh import corpora
from clh.config import Settings
from clh.corpora import Example
from clh.errors import InputError
from clh.evaluation import metrics, report, runs, stages
from clh.evaluation.stages import CodedExample, Outcome, Steps
from clh.icd.tabular import CodeSystem, load_tabular
from clh.models.weights import silence_bars
from clh.retrieval.index import open_index
from clh.schema import Agent

if TYPE_CHECKING:
    from accelerate import Accelerator

Code = Callable[[Example, Context, str], Coroutine[Any, Any, Outcome]]  # str: the git commit

_STEPS, _PREDICTIONS = "steps.jsonl", "predictions.jsonl"
_HOUR = 3600
_PAUSE = 30.0  # seconds


class Recipe(runs.Recipe):
    """What the recipes of experiments with agents say."""

    settings: dict[str, Any]  # over those of the profile
    bootstrap: PositiveInt  # resamples for the 95% intervals
    worked_notes: PositiveInt  # shown whole in the report


def run(arguments: argparse.Namespace, reported: Sequence[Agent], code: Code, **flags: str) -> int:
    """Run a split through `code`, go on where a killed run stopped, and write the results.

    `reported` are the stages whose scores are written; `flags` are what the script adds to those of
    all. Returns the exit code. Raises InputError for data or flags that cannot be used.
    """
    recipe = runs.read_recipe(arguments.recipe, Recipe)
    corpus = corpora.find(arguments.dataset)
    given = {"policy": arguments.policy or corpus.policy, **recipe.settings}
    settings = Settings.load(arguments.profile or corpus.profile, **given)
    system = load_tabular()
    tracker = _tracker(arguments.track, arguments.output)
    examples = _examples(arguments, reported, gold_mentions="gold" in flags.values())
    context = _load(settings, system)
    common = ("dataset", "split", "unit", "limit", "seed")
    config = {
        **{name: getattr(arguments, name) for name in common},
        **flags,
        "recipe": recipe.model_dump(),
        "settings": settings.model_dump(mode="json", exclude={"cache_dir", "data_dir"}),
        "prompts": {task: prompts.sha256(task) for task in prompts.tasks()},
        "models": context.models,
        "data_sha256": _data_sha256(examples),
        "icd_release": system.release,
    }
    named = {"git": runs.git_commit(), "config_hash": runs.fingerprint(config)}
    folder = runs.Folder(
        arguments.output, {**config, **named, "versions": _versions()}, (_STEPS, _PREDICTIONS)
    )
    _code_all(examples, folder, lambda example: code(example, context, named["git"]))
    outcomes = [
        Outcome(example, Steps.model_validate_json(steps), CodedExample.model_validate_json(coded))
        for example, steps, coded in zip(
            examples, folder.lines(_STEPS), folder.lines(_PREDICTIONS), strict=True
        )
    ]
    threshold = settings.assign.threshold
    result = {
        "dataset": arguments.dataset,
        "split": arguments.split,
        "n_notes": len(outcomes),
        "code_space": len(system),
        "stages": _stages(outcomes, reported, system, threshold),
        "ci95": _intervals(outcomes, reported, system, recipe.bootstrap, arguments.seed),
        **(_tables(outcomes, system, threshold, arguments) if "assign" in reported else {}),
        "speed": _speed(outcomes),
        "failed_notes": sum(bool(one.coded.errors) for one in outcomes),
        **named,
    }
    runs.write(folder.path / "metrics.json", json.dumps(result, indent=2) + "\n")
    page = report.page(result, config, outcomes, system, recipe.worked_notes)
    runs.write(folder.path / "report.html", page)
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
    folder: runs.Folder,
    code: Callable[[Example], Coroutine[Any, Any, Outcome]],
) -> None:
    """Code the examples that the folder does not hold yet."""
    from tqdm import tqdm

    done = [CodedExample.model_validate_json(line).note_id for line in folder.lines(_PREDICTIONS)]
    if done != [one.id for one in examples[: len(done)]]:
        raise InputError(f"{folder.path} holds other notes than the corpus: delete it")
    with asyncio.Runner() as runner:
        # A log gets a line now and then, a terminal a bar that moves.
        pause = 0.1 if sys.stderr.isatty() else _PAUSE
        progress = tqdm(examples, unit="note", initial=len(done), mininterval=pause)
        for example in examples[len(done) :]:
            outcome = runner.run(code(example))
            folder.append(outcome.steps.model_dump_json(), outcome.coded.model_dump_json())
            progress.update()


def _stages(
    outcomes: Sequence[Outcome], reported: Sequence[Agent], system: CodeSystem, threshold: float
) -> dict[Agent, dict[str, Any]]:
    scores: dict[Agent, Callable[[], dict[str, Any]]] = {
        "analyze": lambda: stages.analyze_scores(outcomes),
        "locate": lambda: stages.locate_scores(outcomes, system),
        "verify": lambda: stages.verify_scores(outcomes, system, threshold),
        "assign": lambda: stages.assign_scores(outcomes, system, threshold),
    }
    return {agent: scores[agent]() for agent in reported}


def _intervals(
    outcomes: Sequence[Outcome],
    reported: Sequence[Agent],
    system: CodeSystem,
    samples: int,
    seed: int,
) -> dict[str, Any]:
    """95% intervals of what the last stage is judged by, notes resampled."""
    if reported[-1] == "locate":
        with_prior, without = stages.located(outcomes, system)
        recall = [f"recall@{k}" for k in stages.CUTOFFS]
        no_prior = metrics.bootstrap(without, recall, samples=samples, seed=seed)
        return metrics.bootstrap(with_prior, recall, samples=samples, seed=seed) | {
            "no_prior": no_prior
        }
    judged_by = {
        "analyze": [],
        "verify": ["map"],
        "assign": ["micro_f1", "micro_precision", "micro_recall", "macro_f1", "exact_match", "map"],
    }[reported[-1]]
    notes = stages.scored(one.coded for one in outcomes)
    intervals = metrics.bootstrap(notes, judged_by, samples=samples, seed=seed) if judged_by else {}
    if reported[-1] == "assign":
        considered = stages.considered(outcomes, system)
        ranking = metrics.bootstrap(considered, ["map"], samples=samples, seed=seed)
        return {**intervals, "ranking_map": ranking["map"]}
    return intervals


def _tables(
    outcomes: Sequence[Outcome],
    system: CodeSystem,
    threshold: float,
    arguments: argparse.Namespace,
) -> dict[str, Any]:
    """Where codes are lost or invented, and scores by chapter and by frequency in train."""
    notes = stages.scored(one.coded for one in outcomes)
    trained_on = _train_counts(arguments)
    misses = Counter(one.why for one in stages.misses(outcomes, system, threshold))
    extras = Counter(one.what for one in stages.extras(outcomes, system))
    return {
        "funnel": stages.funnel(outcomes, system, threshold),
        "misses": {why: misses[why] for why in stages.MISSES},
        "extras": {what: extras[what] for what in stages.EXTRAS},
        "chapters": [group._asdict() for group in metrics.by_chapter(notes, system)],
        "bands": [group._asdict() for group in metrics.by_band(notes, trained_on)]
        if trained_on is not None
        else None,
    }


def _train_counts(arguments: argparse.Namespace) -> Counter[str] | None:
    """In how many training examples each code occurs; None where the data holds no train split."""
    try:
        train = corpora.read(arguments.dataset, arguments.data_dir, "train")
        return Counter(code for example in train for code in example.codes)
    except InputError as error:
        print(f"no table by frequency in train: {error}", file=sys.stderr)
        return None


def _speed(outcomes: Sequence[Outcome]) -> dict[str, float]:
    """Seconds that the agents took for a note, loading left out."""
    seconds = sorted(sum(one.coded.timings.values()) for one in outcomes)
    p95 = seconds[min(len(seconds) - 1, int(0.95 * len(seconds)))]
    return {
        "notes_per_hour": round(_HOUR * len(seconds) / sum(seconds), 1),
        "p50_seconds": round(statistics.median(seconds), 4),
        "p95_seconds": round(p95, 4),
    }


def _data_sha256(examples: Sequence[Example]) -> str:
    """The fingerprint of the notes and codes that are scored."""
    digest = hashlib.sha256()
    for example in examples:
        digest.update(example.model_dump_json().encode())
    return digest.hexdigest()


def _versions() -> dict[str, str]:
    return {name: version(name) for name in ("clh", "torch", "transformers", "faiss-cpu")}


def _load(settings: Settings, system: CodeSystem) -> Context:
    silence_bars()
    return Context.load(settings, open_index(settings, system))


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
