"""Time coarse-to-fine search beside exact search, and count what it finds of it.

    python experiments/bench_search.py --output OUT

Exact search is a product with all vectors at all dimensions. Each query is searched both ways in
turn: first among the texts of the release, then among fewer and more of them. What the release
lacks is made up, each vector part of the way from one text to another. Queries are the lines of
--queries or, by default, stretches of words of the notes in data/sample, which is what analyze
looks up. `found` is the share of the exact nearest texts that coarse-to-fine search has among as
many; `batched` is a query's time when all are one search, as those of a note are. Takes 10 GB of
memory.

Writes OUT/metrics.json and plot.svg, the cost of a search by the number of vectors.
"""

import io
import json
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from pydantic import NonNegativeInt, PositiveInt

from clh.errors import InputError
from clh.evaluation import recipes
from clh.evaluation.run_folder import git_commit
from clh.files import atomic_write

if TYPE_CHECKING:
    from clh.config import Locate
    from clh.models.embedder import Vectors
    from clh.retrieval.index import CodeIndex

T = TypeVar("T")

SAMPLE = Path(__file__).parents[1] / "data" / "sample"
WAYS = ("exact", "coarse_to_fine")
SAME = 2e-6  # scores that differ by less count as equal: the two ways round differently
AT_ONCE = 50_000  # vectors made up at once, which bounds memory


class SearchRecipe(recipes.Recipe):
    """The values of recipes/bench_search.yaml."""

    threads: PositiveInt
    k: PositiveInt
    queries: PositiveInt
    longest: PositiveInt
    rounds: PositiveInt
    sizes: tuple[PositiveInt, ...]
    queries_at_size: PositiveInt
    bootstrap: PositiveInt
    seed: NonNegativeInt


def main() -> int:
    """Measure, print, write."""
    parser = recipes.recipe_parser(__doc__, "experiments/recipes/bench_search.yaml")
    parser.add_argument("--output", type=Path, required=True, help="folder of the results")
    parser.add_argument("--queries", type=Path, help="a text file, one query a line")
    arguments = recipes.parse_arguments(parser)
    recipe = recipes.read_recipe(arguments.recipe, SearchRecipe, arguments.set)
    texts = read_queries(arguments.queries, recipe)

    from threadpoolctl import threadpool_limits

    threadpool_limits(recipe.threads)

    from clh.config import Settings
    from clh.icd.tabular import load_tabular
    from clh.models.embedder import load_embedder
    from clh.retrieval.index import open_index

    settings = Settings.load()
    locate = settings.locate
    system = load_tabular()
    index = open_index(settings, system)
    tower = load_embedder(settings.towers.query, settings)
    tower.encode(texts[:1])
    embed = milliseconds([timed(tower.encode, [text]) for text in texts])
    queries = tower.encode(texts)

    rows = [{"made_up": 0, **compare(index, queries, locate.shortlist, recipe)}]
    rows += compare_sizes(index, queries, locate, recipe)
    print_table(rows, recipe.threads)
    print(f"embedding a query takes {embed['median']:.1f} ms, p95 {embed['p95']:.1f} ms")

    report = {
        "recipe": recipe.model_dump(mode="json"),
        "locate": locate.model_dump(mode="json"),
        "dimensions": queries.shape[1],
        "icd_release": system.release,
        "tower": tower.id,
        "git": git_commit(),
        "queries": len(texts),
        "embed_ms": embed,
        "searches_ms": rows,
    }
    arguments.output.mkdir(parents=True, exist_ok=True)
    atomic_write(arguments.output / "metrics.json", json.dumps(report, indent=2) + "\n")
    atomic_write(arguments.output / "plot.svg", plot(rows))
    return 0


def read_queries(file: Path | None, recipe: SearchRecipe) -> list[str]:
    """A seeded sample of the file's lines or, without a file, of the default queries.

    Each is put in the words of the code book, as the agents do. Raises InputError for a file that
    cannot be read or has no queries.
    """
    import numpy as np

    from clh.retrieval.lexical import expand

    if file is None:
        notes = sorted(SAMPLE.glob("*.txt"))
        words = [line.split() for note in notes for line in note.read_text("utf-8").splitlines()]
        texts = [
            " ".join(line[start : start + length])
            for line in words
            for length in range(1, recipe.longest + 1)
            for start in range(len(line) - length + 1)
        ]
    else:
        try:
            texts = [line for line in file.read_text("utf-8").splitlines() if line.strip()]
        except (OSError, UnicodeDecodeError) as error:
            raise InputError(f"{file} cannot be read: {error}") from error
        if not texts:
            raise InputError(f"{file} holds no query: give one a line")
    different = sorted(set(texts))
    rng = np.random.default_rng(recipe.seed)
    chosen = rng.permutation(len(different))[: recipe.queries]
    return [expand(different[place]) for place in chosen]


def compare(
    index: "CodeIndex", queries: "Vectors", shortlist: int, recipe: SearchRecipe
) -> dict[str, Any]:
    """Milliseconds of both ways, and what coarse-to-fine search finds, with a 95% interval.

    The interval is of a percentile bootstrap of the queries.
    """
    import numpy as np

    vectors = index.vectors()

    def exact(asked: "Vectors") -> list[float]:
        nearest = np.partition(asked @ vectors.T, -recipe.k, axis=1)[:, -recipe.k :]
        return [float(score) for score in nearest.min(axis=1)]

    def coarse_to_fine(batch: "Vectors") -> list[list[float]]:
        return [[hit.score for hit in hits] for hits in index.nearest(batch, recipe.k, shortlist)]

    searches = dict(zip(WAYS, (exact, coarse_to_fine), strict=True))
    spent: dict[str, list[float]] = {way: [] for way in WAYS}
    for _ in range(recipe.rounds):
        for query in queries:
            for way, search in searches.items():
                spent[way].append(timed(search, query[None]))
    times = {
        way: {
            **milliseconds(spent[way]),
            "batched": 1000 * timed(search, queries) / len(queries),
        }
        for way, search in searches.items()
    }

    found = [
        sum(score > farthest - SAME for score in scores) / recipe.k
        for farthest, scores in zip(exact(queries), coarse_to_fine(queries), strict=True)
    ]
    rng = np.random.default_rng(recipe.seed)
    resampled = rng.choice(found, (recipe.bootstrap, len(found))).mean(axis=1)
    return {
        "vectors": len(index),
        **times,
        "speed_up": times["exact"]["median"] / times["coarse_to_fine"]["median"],
        "found": float(np.mean(found)),
        "found_ci95": np.quantile(resampled, (0.025, 0.975)).tolist(),
    }


def compare_sizes(
    index: "CodeIndex", queries: "Vectors", locate: "Locate", recipe: SearchRecipe
) -> list[dict[str, Any]]:
    """The comparison at each size of the recipe, with fewer queries and a single round."""
    from tqdm import tqdm

    from clh.retrieval.index import CodeIndex

    few, once = queries[: recipe.queries_at_size], recipe.model_copy(update={"rounds": 1})
    rows = []
    for size in tqdm(recipe.sizes, unit="size"):
        vectors = resize(index.vectors(), size, recipe.seed)
        sized = CodeIndex.build([("", "")] * size, vectors, locate.coarse_dim)
        del vectors  # 3 GB of a million
        made_up = max(0, size - len(index))
        rows.append({"made_up": made_up, **compare(sized, few, locate.shortlist, once)})
    return rows


def resize(vectors: "Vectors", size: int, seed: int) -> "Vectors":
    """A sample of `size` vectors, or all of them with more made up, each between two of them."""
    import numpy as np

    rng = np.random.default_rng(seed)
    if size <= len(vectors):
        return vectors[rng.permutation(len(vectors))[:size]]
    grown = np.empty((size, vectors.shape[1]), dtype=np.float32)
    grown[: len(vectors)] = vectors
    for start in range(len(vectors), size, AT_ONCE):
        made = grown[start : start + AT_ONCE]
        left, right = rng.integers(len(vectors), size=(2, len(made)))
        part = rng.random((len(made), 1), dtype=np.float32) / 2
        made[:] = (1 - part) * vectors[left] + part * vectors[right]
        made /= np.linalg.norm(made, axis=1, keepdims=True)
    return grown


def timed(work: Callable[[T], object], given: T) -> float:
    """Seconds that `work` takes."""
    started = time.perf_counter()
    work(given)
    return time.perf_counter() - started


def milliseconds(seconds: Sequence[float]) -> dict[str, float]:
    """Median and 95th percentile."""
    import numpy as np

    median, p95 = 1000 * np.quantile(seconds, (0.5, 0.95))
    return {"median": float(median), "p95": float(p95)}


def print_table(rows: Sequence[dict[str, Any]], threads: int) -> None:
    """Print the times of both ways by the number of vectors, and what is found."""
    from rich.console import Console
    from rich.table import Table

    title = f"exact and coarse-to-fine search, milliseconds a query, {threads} threads"
    table = Table(title=title, box=None)
    for name in ("vectors", "exact", "p95", "coarse", "p95", "batched", "speed-up"):
        table.add_column(name, justify="right")
    table.add_column("found, %")
    for row in rows:
        exact, coarse = (row[way] for way in WAYS)
        low, high = row["found_ci95"]
        table.add_row(
            f"{row['vectors']:,}",
            *(f"{way[name]:.2f}" for way in (exact, coarse) for name in ("median", "p95")),
            f"{coarse['batched']:.2f}",
            f"{row['speed_up']:.1f}",
            f"{row['found']:.1%} [{low:.1%}, {high:.1%}]".replace("%", ""),
        )
    Console().print(table)


def plot(rows: Sequence[dict[str, Any]]) -> str:
    """Milliseconds by vectors, median to 95th percentile, as SVG."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(5, 3.4), layout="constrained")
    axes = figure.subplots()
    by_size = sorted(rows, key=lambda row: row["vectors"])
    sizes = [row["vectors"] for row in by_size]
    for way in WAYS:
        median, p95 = ([row[way][name] for row in by_size] for name in ("median", "p95"))
        (line,) = axes.plot(sizes, median, marker=".", label=way.replace("_", " "))
        axes.fill_between(sizes, median, p95, alpha=0.2, color=line.get_color())
    axes.axvline(rows[0]["vectors"], linestyle=":", color="grey", label="texts of the release")
    axes.set(xscale="log", yscale="log", xlabel="vectors", ylabel="milliseconds, median to p95")
    axes.legend()
    file = io.StringIO()
    figure.savefig(file, format="svg")
    return file.getvalue()


if __name__ == "__main__":
    recipes.run_script(main)
