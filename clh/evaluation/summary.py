"""The figures of an experiment: scores by stage, intervals, error tables and speed."""

import statistics
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

from clh.evaluation import metrics, stages
from clh.evaluation.stages import Outcome
from clh.icd.tabular import CodeSystem
from clh.schema import Agent

_HOUR = 3600  # seconds


def summarize(
    outcomes: Sequence[Outcome],
    agents: Sequence[Agent],
    system: CodeSystem,
    threshold: float,
    trained_on: Counter[str] | None,
    samples: int,
    seed: int,
) -> dict[str, Any]:
    """The figures of metrics.json for the stages `agents`, the last of which gets intervals.

    `trained_on` counts the training examples of each code, if there are any; intervals are of
    `samples` bootstrap resamples.
    """
    return {
        "n_notes": len(outcomes),
        "code_space": len(system),
        "threshold": threshold,
        "stages": _stages(outcomes, agents, system, threshold),
        "ci95": _intervals(outcomes, agents, system, samples, seed),
        **(_tables(outcomes, system, threshold, trained_on) if "assign" in agents else {}),
        "speed": _speed(outcomes),
        "failed_notes": sum(bool(outcome.coded.errors) for outcome in outcomes),
    }


def _stages(
    outcomes: Sequence[Outcome], agents: Sequence[Agent], system: CodeSystem, threshold: float
) -> dict[Agent, dict[str, Any]]:
    scores: dict[Agent, Callable[[], dict[str, Any]]] = {
        "analyze": lambda: stages.analyze_scores(outcomes),
        "locate": lambda: stages.locate_scores(outcomes, system),
        "verify": lambda: stages.verify_scores(outcomes, system, threshold),
        "assign": lambda: stages.assign_scores(outcomes, system, threshold),
    }
    return {agent: scores[agent]() for agent in agents}


def _intervals(
    outcomes: Sequence[Outcome],
    agents: Sequence[Agent],
    system: CodeSystem,
    samples: int,
    seed: int,
) -> dict[str, Any]:
    """95% intervals of what the last stage is judged by, notes resampled."""
    if agents[-1] == "locate":
        with_prior, without = stages.rank_retrieved(outcomes, system)
        recall = [f"recall@{k}" for k in stages.CUTOFFS]
        no_prior = metrics.bootstrap(without, recall, samples=samples, seed=seed)
        return metrics.bootstrap(with_prior, recall, samples=samples, seed=seed) | {
            "no_prior": no_prior
        }
    judged_by = {
        "analyze": [],
        "verify": ["map"],
        "assign": ["micro_f1", "micro_precision", "micro_recall", "macro_f1", "exact_match", "map"],
    }[agents[-1]]
    notes = stages.score_notes(outcome.coded for outcome in outcomes)
    intervals = metrics.bootstrap(notes, judged_by, samples=samples, seed=seed) if judged_by else {}
    if agents[-1] == "assign":
        considered = stages.rank_codes(outcomes, system)
        ranking = metrics.bootstrap(considered, ["map"], samples=samples, seed=seed)
        return {**intervals, "ranking_map": ranking["map"]}
    return intervals


def _tables(
    outcomes: Sequence[Outcome],
    system: CodeSystem,
    threshold: float,
    trained_on: Counter[str] | None,
) -> dict[str, Any]:
    """Where codes are lost or invented, and scores by chapter and by frequency in train."""
    notes = stages.score_notes(outcome.coded for outcome in outcomes)
    misses = Counter(one.why for one in stages.find_false_negatives(outcomes, system, threshold))
    extras = Counter(one.what for one in stages.find_false_positives(outcomes, system))
    return {
        "funnel": stages.count_funnel(outcomes, system, threshold),
        "misses": {why: misses[why] for why in stages.MISSES},
        "extras": {what: extras[what] for what in stages.EXTRAS},
        "chapters": [group._asdict() for group in metrics.by_chapter(notes, system)],
        "bands": [group._asdict() for group in metrics.by_band(notes, trained_on)]
        if trained_on is not None
        else None,
    }


def _speed(outcomes: Sequence[Outcome]) -> dict[str, float]:
    """Seconds that the agents took for a note, loading left out."""
    seconds = sorted(sum(outcome.coded.timings.values()) for outcome in outcomes)
    p95 = seconds[min(len(seconds) - 1, int(0.95 * len(seconds)))]
    return {
        "notes_per_hour": round(_HOUR * len(seconds) / sum(seconds), 1),
        "p50_seconds": round(statistics.median(seconds), 4),
        "p95_seconds": round(p95, 4),
    }
