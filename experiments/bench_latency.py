"""How long commands and a note take on this machine; bench_search.py times searches.

    python experiments/bench_latency.py [--note FILE] [--runs N] [--threads N]

Prints a table: the index as it is built and opened, commands as whole processes, and a warm note by
agent. Nothing is read from the user's caches, and nothing is kept.
"""

import argparse
import asyncio
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from clh.config import Settings

_COMMANDS = (["--help"], ["lookup", "I10"], ["check", "I10", "E11.9"])


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--note", type=Path, default=Path("data/sample/visit.txt"))
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--threads", type=int, help="one for each core by default")
    arguments = parser.parse_args()
    if arguments.threads:  # before any library reads it
        os.environ["OMP_NUM_THREADS"] = os.environ["RAYON_NUM_THREADS"] = str(arguments.threads)

    from rich.console import Console
    from rich.table import Table

    from clh.config import Settings

    threads = arguments.threads or f"{os.cpu_count()} cores'"
    table = Table(title=f"{threads} threads, {arguments.runs} runs")
    for name in ("what", "median", "p95"):
        table.add_column(name, justify="left" if name == "what" else "right")

    def add_row(what: str, seconds: list[float]) -> None:
        ordered = sorted(seconds)
        p95 = ordered[min(len(ordered) - 1, int(0.95 * len(ordered)))]
        table.add_row(what, _show(statistics.median(ordered)), _show(p95))

    with tempfile.TemporaryDirectory() as folder:
        os.environ |= {"CLH_CACHE_DIR": folder, "CLH_DATA_DIR": folder}
        settings = Settings.load()
        for what, seconds in time_index(settings, arguments.runs).items():
            add_row(what, seconds)
        for command in (*_COMMANDS, ["code", str(arguments.note)]):
            add_row(f"clh {' '.join(command)}", time_command(command, arguments.runs))
        for what, seconds in time_note(settings, arguments.note, arguments.runs).items():
            add_row(what, seconds)
    Console().print(table)


def time_index(settings: "Settings", runs: int) -> dict[str, list[float]]:
    """Seconds to build the index, once, and to open it."""
    from clh.icd.tabular import load_tabular
    from clh.retrieval.index import open_index

    system = load_tabular()
    return {
        "the index, built": _times(1, lambda: open_index(settings, system)),
        "the index, opened": _times(runs, lambda: open_index(settings, system)),
    }


def time_command(command: list[str], runs: int) -> list[float]:
    """Seconds that a command takes as a process of its own."""

    def run() -> None:
        subprocess.run([sys.executable, "-m", "clh", *command], check=True, capture_output=True)  # noqa: S603

    return _times(runs, run)


def time_note(settings: "Settings", file: Path, runs: int) -> dict[str, list[float]]:
    """Seconds for a note after a first one, altogether and by agent."""
    from agents.pipeline import Pipeline
    from clh.notes import read_note

    pipeline = Pipeline.load(settings)
    note, _ = read_note(file, settings.note_bytes)

    async def code() -> list[dict[str, float]]:
        return [dict((await pipeline.code(note)).note.timings) for _ in range(runs + 1)]

    warm = asyncio.run(code())[1:]
    words = len(note.text.split())
    return {
        f"a note of {words} words, warm": [sum(timings.values()) for timings in warm],
        **{f"  {agent}": [timings[agent] for timings in warm] for agent in warm[0]},
    }


def _times(runs: int, work: Callable[[], object]) -> list[float]:
    return [_time(work) for _ in range(runs)]


def _time(work: Callable[[], object]) -> float:
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


_MILLISECONDS = 0.1  # seconds below which they are shown


def _show(seconds: float) -> str:
    return f"{seconds:.2f} s" if seconds > _MILLISECONDS else f"{seconds * 1000:.2f} ms"


if __name__ == "__main__":
    main()
