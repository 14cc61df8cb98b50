"""How long commands and notes take on this machine; bench_search.py times searches.

    python experiments/bench_latency.py [--note FILE] [--long FILE] [--runs N] [--build]

Prints a table: commands as whole processes, a warm note by agent; with --long a long note, once,
and the memory that it takes; with --build the index built anew. Each is measured with all threads
and with one, in the same run.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

# Runs in a process of its own, because the number of threads is set when libraries are loaded.
WORKER = """
import asyncio, json, resource, sys, time
from pathlib import Path
from agents.pipeline import Pipeline
from clh.config import Settings
from clh.schema import Note

note_file, data_dir, runs, long_file = sys.argv[1:]
started = time.perf_counter()
pipeline = Pipeline.load(Settings.load(data_dir=data_dir))
loaded = time.perf_counter() - started

def code(file):
    text = Path(file).read_text("utf-8")
    started = time.perf_counter()
    timings = asyncio.run(pipeline.code(Note(id="n", text=text))).note.timings
    return {"all": time.perf_counter() - started, **timings}

warm = [code(note_file) for _ in range(int(runs) + 1)][1:]
long = code(long_file)["all"] if long_file else None
memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
print(json.dumps({"loaded": loaded, "warm": warm, "long": long, "memory": memory}))
"""


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--note", type=Path, default=Path("data/sample/visit.txt"))
    parser.add_argument("--long", type=Path, help="a long note, of 20,000 words say")
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--build", action="store_true", help="also build the index anew")
    arguments = parser.parse_args()

    from rich.console import Console
    from rich.table import Table

    table = Table("what", title=f"{os.cpu_count()} cores, {arguments.runs} runs")
    for threads in ("all threads", "one thread"):
        table.add_column(f"{threads}: median", justify="right")
        table.add_column("p95", justify="right")
    measured = [measure(arguments, threads) for threads in (None, 1)]
    for name in measured[0]:
        cells = [cell for rows in measured for cell in describe(rows[name])]
        table.add_row(name, *cells)
    Console().print(table)


def measure(arguments: argparse.Namespace, threads: int | None) -> dict[str, list[float]]:
    """Seconds of each thing, run by run; None for threads means as many as there are cores."""
    environment = dict(os.environ)
    if threads is not None:
        environment |= dict.fromkeys(
            ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "RAYON_NUM_THREADS"), str(threads)
        )
    clh, note = [sys.executable, "-m", "clh"], str(arguments.note)
    rows: dict[str, list[float]] = {}
    with tempfile.TemporaryDirectory() as data_dir:
        environment["CLH_DATA_DIR"] = data_dir
        run([*clh, "index", "build"], environment)  # unless it is there
        for command in (
            ["--help"],
            ["lookup", "E11.9"],
            ["check", "I50.9", "I11.0"],
            ["search", "pain in the right knee"],
            ["code", note],
        ):
            seconds = [run([*clh, *command], environment) for _ in range(arguments.runs)]
            rows[f"clh {command[0]}, cold"] = seconds
        if arguments.build:
            rows["clh index build --force"] = [
                run([*clh, "index", "build", "--force"], environment)
            ]
        worker = [sys.executable, "-c", WORKER, note, data_dir, str(arguments.runs)]
        worker.append(str(arguments.long or ""))
        output = subprocess.run(worker, env=environment, capture_output=True, check=True)  # noqa: S603
        result: dict[str, Any] = json.loads(output.stdout)
    words = len(arguments.note.read_text(encoding="utf-8").split())
    rows["the pipeline loaded"] = [result["loaded"]]
    rows[f"a note of {words} words, warm"] = [timings.pop("all") for timings in result["warm"]]
    for agent in result["warm"][0]:
        rows[f"  {agent}"] = [timings[agent] for timings in result["warm"]]
    if arguments.long is not None:
        words = len(arguments.long.read_text(encoding="utf-8").split())
        rows[f"a note of {words:,} words"] = [result["long"]]
        rows["  peak memory of that process, GB"] = [result["memory"] / 1024]
    return rows


def run(command: list[str], environment: dict[str, str]) -> float:
    """The seconds that a process takes."""
    started = time.perf_counter()
    subprocess.run(  # noqa: S603
        command,
        env=environment,
        check=True,
        capture_output=True,
    )
    return time.perf_counter() - started


def describe(seconds: list[float]) -> tuple[str, str]:
    """The median and the 95th percentile, the latter only of several runs."""
    ordered = sorted(seconds)
    p95 = ordered[min(len(ordered) - 1, int(0.95 * len(ordered)))]
    return f"{statistics.median(ordered):.3f}", f"{p95:.3f}" if len(ordered) > 1 else ""


if __name__ == "__main__":
    main()
