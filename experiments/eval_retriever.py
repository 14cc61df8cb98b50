"""Score towers on a split of a corpus: exact search, every sentence a query, no prior.

    python experiments/eval_retriever.py --dataset codiesp --data-dir DIR --split dev
        --towers all-MiniLM-L6-v2 clh-towers --output OUT

Each tower is scored at each prefix of its vectors, and at all dimensions also with what shared
words add (`clh.retrieval.hybrid`), in three views: `sentences`, the marked sentences by themselves
and the codes marked in them; `notes`, a note's codes, each ranked by its best sentence; `unseen`,
the same for the codes that no training note has. Codes are scored as locate reports them in
`sentences`, and as the corpus has them, less 7th characters, in the others.

Writes OUT/metrics.json and table.md. The texts searched are those of the settings (CLH_INDEX_FILES
adds the Alphabetic Index).
"""

import json
from collections.abc import Callable, Mapping, Sequence, Set
from functools import partial
from typing import TYPE_CHECKING, Any

from pydantic import NonNegativeFloat, PositiveInt

from clh.evaluation import recipes
from clh.evaluation.run_folder import git_commit
from clh.files import atomic_write

if TYPE_CHECKING:
    import numpy as np

    from clh.corpora import Example
    from clh.evaluation.metrics import Scored
    from clh.icd.tabular import CodeSystem
    from clh.models.embedder import Embedder, Vectors
    from clh.retrieval.index import CodeIndex
    from clh.retrieval.lexical import Lexicon
    from clh.training.pairs import Pair


class RetrieverEvaluationRecipe(recipes.Recipe):
    """The values of recipes/eval_retriever.yaml."""

    prefixes: list[PositiveInt]
    words: list[NonNegativeFloat]
    kept: PositiveInt
    bootstrap: PositiveInt


def main() -> int:
    """Score, print, write."""
    parser = recipes.evaluation_parser(__doc__, "experiments/recipes/eval_retriever.yaml")
    parser.add_argument("--towers", nargs="+", required=True, help="as towers.query in clh.toml")
    arguments = recipes.parse_arguments(parser)

    from clh import corpora
    from clh.config import Settings
    from clh.document.reader import Reader
    from clh.icd.tabular import load_tabular
    from clh.models.embedder import load_embedder
    from clh.retrieval.index import open_index
    from clh.training.pairs import sentence_pairs

    recipe = recipes.read_recipe(arguments.recipe, RetrieverEvaluationRecipe, arguments.set)
    system = load_tabular()
    selection = arguments.data_dir, arguments.split, arguments.unit, arguments.limit, arguments.seed
    examples = corpora.sample(arguments.dataset, *selection)
    train = list(corpora.read(arguments.dataset, arguments.data_dir, "train"))
    seen = {system.stem_or_self(code) for example in train for code in example.codes}
    documents = sentence_pairs(examples, system, Reader())
    rows: list[dict[str, Any]] = []
    for name in arguments.towers:
        settings = Settings.load(arguments.profile or "cpu", towers={"query": name, "code": name})
        index = open_index(settings, system)
        tower = load_embedder(name, settings)
        rows += score_tower(tower, index, examples, documents, seen, system, recipe, arguments.seed)
    report = {
        "dataset": arguments.dataset,
        "split": arguments.split,
        "n_notes": len(examples),
        "code_space": len(system),
        "texts": len(index),
        "git": git_commit(),
        "scores": rows,
    }
    arguments.output.mkdir(parents=True, exist_ok=True)
    atomic_write(arguments.output / "metrics.json", json.dumps(report, indent=1) + "\n")
    atomic_write(arguments.output / "table.md", table(rows))
    print(table(rows), end="")
    return 0


def score_tower(
    tower: "Embedder",
    index: "CodeIndex",
    examples: "Sequence[Example]",
    documents: "Sequence[Sequence[Pair]]",
    seen: "Set[str]",
    system: "CodeSystem",
    recipe: RetrieverEvaluationRecipe,
    seed: int,
) -> list[dict[str, Any]]:
    """The recall of a tower in each view, at each prefix and each weight of shared words.

    `seen` are the codes of the training notes. Recall comes with a 95% interval.
    """
    from tqdm import tqdm

    from clh.evaluation import metrics, stages

    queries = tower.encode([pair.texts[0] for document in documents for pair in document])
    texts = index.vectors()
    codes = [code for code, _ in index.pairs]
    whole = texts.shape[1]
    searches = [(prefix, 0.0) for prefix in recipe.prefixes if prefix < whole]
    searches += [(whole, weight) for weight in recipe.words]
    names = recall_names()
    rows = []
    for dimensions, weight in tqdm(searches, unit="search", desc=tower.id):
        cut = normalised(queries, dimensions), normalised(texts, dimensions)
        word_gains = partial(gains, lexicon=index.lexicon, weight=weight)
        views = rank(examples, documents, *cut, word_gains, codes, system, recipe.kept)
        views["unseen"] = leave_out_seen(views["notes"], seen)
        for view, notes in views.items():
            scores = metrics.rank_scores(notes, stages.CUTOFFS)
            interval = metrics.bootstrap(notes, names, recipe.bootstrap, seed)
            row = {"tower": tower.id, "dimensions": dimensions, "words": weight, "view": view}
            rows.append(row | {name: [scores[name], *interval[name]] for name in names})
    return rows


def leave_out_seen(notes: "Sequence[Scored]", seen: "Set[str]") -> "list[Scored]":
    """The notes with only those of their codes that no training note has."""
    from clh.evaluation.metrics import Scored

    return [Scored(note.id, note.gold - seen, note.predicted) for note in notes]


def recall_names() -> list[str]:
    """What the columns of recall are called."""
    from clh.evaluation.stages import CUTOFFS

    return [f"recall@{k}" for k in CUTOFFS]


def normalised(vectors: "Vectors", dimensions: int) -> "Vectors":
    """The leading dimensions of each row, at length 1."""
    import numpy as np

    cut = vectors[:, :dimensions]
    lengths = np.linalg.norm(cut, axis=1, keepdims=True)
    return np.asarray(cut / lengths, dtype=np.float32)


def gains(sentences: Sequence[str], lexicon: "Lexicon", weight: float) -> "np.ndarray":
    """What each text gains by the words of each sentence, as in `clh.retrieval.hybrid`."""
    import numpy as np

    coverages = [lexicon.coverages(sentence) for sentence in sentences]
    return weight * np.stack(coverages, axis=1) ** 2


def rank(
    examples: "Sequence[Example]",
    documents: "Sequence[Sequence[Pair]]",
    queries: "Vectors",
    texts: "Vectors",
    word_gains: "Callable[[Sequence[str]], np.ndarray]",
    codes: Sequence[str],
    system: "CodeSystem",
    kept: int,
) -> "dict[str, list[Scored]]":
    """The best codes of every marked sentence and of every note, with their ranks.

    `queries` are the sentences of all documents in a row, `codes` those of the rows of `texts`;
    `word_gains` gives what texts gain by the words of sentences, of shape (texts, sentences).
    """
    import numpy as np

    from clh.evaluation.metrics import Scored

    order = np.argsort(codes, kind="stable")
    names, starts = np.unique(np.asarray(codes)[order], return_index=True)
    texts = texts[order]

    def best(similarity: "np.ndarray") -> dict[str, float]:
        top = np.argpartition(-similarity, min(kept, len(names) - 1))[:kept]
        return {str(names[row]): float(similarity[row]) for row in top}

    views: dict[str, list[Scored]] = {"sentences": [], "notes": []}
    start = 0
    for example, document in zip(examples, documents, strict=True):
        vectors = queries[start : start + len(document)]
        start += len(document)
        gained = word_gains([pair.texts[0] for pair in document])[order]
        similarity = np.maximum.reduceat(texts @ vectors.T + gained, starts)
        views["sentences"] += [
            Scored(f"{example.id} {place}", pair.codes, best(similarity[:, place]))
            for place, pair in enumerate(document)
            if pair.codes
        ]
        gold = frozenset(system.stem_or_self(code) for code in example.codes)
        views["notes"].append(Scored(example.id, gold, best(similarity.max(axis=1))))
    return views


def table(rows: Sequence[Mapping[str, Any]]) -> str:
    """The scores as Markdown."""
    names = recall_names()
    lines = [
        "| tower | dimensions | words | view | " + " | ".join(names) + " |",
        "|---" * (4 + len(names)) + "|",
    ]
    for row in rows:
        cells = (f"{row[name][0]:.3f} [{row[name][1]:.3f}, {row[name][2]:.3f}]" for name in names)
        first = f"{row['tower']} | {row['dimensions']} | {row['words']} | {row['view']}"
        lines.append(f"| {first} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    recipes.run_script(main)
