"""How long a note takes on this machine; bench_search.py times searches.

    python experiments/bench_latency.py [--note FILE] [--runs N]

Prints a table: commands as whole processes, and a warm note by agent.
"""

import argparse
import asyncio
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--note", type=Path, default=Path("data/sample/visit.txt"))
    parser.add_argument("--runs", type=int, default=5)
    arguments = parser.parse_args()

    import torch
    from agents.code import code
    from agents.context import Context
    from rich.console import Console
    from rich.table import Table

    from clh.config import Settings
    from clh.icd.tabular import load_tabular
    from clh.notes import read_note
    from clh.retrieval.index import open_index

    table = Table(title=f"{torch.get_num_threads()} threads, {arguments.runs} runs")
    table.add_column("what")
    table.add_column("median", justify="right")
    table.add_column("p95", justify="right")

    def row(what: str, seconds: list[float]) -> None:
        ordered = sorted(seconds)
        p95 = ordered[min(len(ordered) - 1, int(0.95 * len(ordered)))]
        table.add_row(what, _show(statistics.median(ordered)), _show(p95))

    with tempfile.TemporaryDirectory() as data_dir:
        settings = Settings.load(data_dir=data_dir)
        system = load_tabular()
        index = open_index(settings, system)  # the first time it is built, which is not measured
        row("the index, opened", _times(arguments.runs, lambda: open_index(settings, system)))

        clh = [sys.executable, "-m", "clh"]
        note = str(arguments.note)
        row("clh --help", _times(arguments.runs, lambda: _run([*clh, "--help"])))
        row("clh code, cold", _times(arguments.runs, lambda: _run([*clh, "code", note])))

        context = Context.load(settings, index)
        given, _ = read_note(arguments.note, settings.note_bytes)
        timings = [asyncio.run(code(given, context)).timings for _ in range(arguments.runs + 1)]
        words = len(given.text.split())
        warm = timings[1:]
        row(f"a note of {words} words, warm", [sum(one.values()) for one in warm])
        for agent in warm[0]:
            row(f"  {agent}", [one[agent] for one in warm])

    Console().print(table)


def _times(runs: int, work: Callable[[], object]) -> list[float]:
    return [_time(work) for _ in range(runs)]


def _time(work: Callable[[], object]) -> float:
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def _run(command: list[str]) -> None:
    subprocess.run(command, check=True, capture_output=True)  # noqa: S603


_MILLISECONDS = 0.1  # seconds below which they are shown


def _show(seconds: float) -> str:
    return f"{seconds:.2f} s" if seconds > _MILLISECONDS else f"{seconds * 1000:.2f} ms"


if __name__ == "__main__":
    main()
