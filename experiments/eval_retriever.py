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
from collections.abc import Callable, Mapping, Sequence
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
    from clh.models.embedder import Vectors
    from clh.retrieval.lexical import Lexicon
    from clh.training.pairs import Pair


class RetrieverEvaluationRecipe(recipes.Recipe):
    """What recipes/eval_retriever.yaml says."""

    prefixes: list[PositiveInt]
    words: list[NonNegativeFloat]
    kept: PositiveInt
    bootstrap: PositiveInt


def main() -> int:
    """Score, print, write."""
    parser = recipes.evaluation_parser(__doc__, "experiments/recipes/eval_retriever.yaml")
    parser.add_argument("--towers", nargs="+", required=True, help="as towers.query in clh.toml")
    arguments = recipes.parse_arguments(parser)

    from functools import partial

    from tqdm import tqdm

    from clh import corpora
    from clh.config import Settings
    from clh.document.reader import Reader
    from clh.evaluation import metrics, stages
    from clh.evaluation.metrics import Scored
    from clh.icd.tabular import load_tabular
    from clh.models.embedder import load_embedder
    from clh.retrieval.index import open_index
    from clh.training.pairs import sentence_pairs

    recipe = recipes.read_recipe(arguments.recipe, RetrieverEvaluationRecipe, arguments.set)
    system = load_tabular()
    given = arguments.data_dir, arguments.split, arguments.unit, arguments.limit, arguments.seed
    examples = corpora.sample(arguments.dataset, *given)
    train = list(corpora.read(arguments.dataset, arguments.data_dir, "train"))
    seen = {system.stem_or_self(code) for example in train for code in example.codes}
    documents = sentence_pairs(examples, system, Reader())
    queries = [pair.texts[0] for document in documents for pair in document]
    names = [f"recall@{k}" for k in stages.CUTOFFS]
    rows: list[dict[str, Any]] = []
    for name in arguments.towers:
        settings = Settings.load(arguments.profile or "cpu", towers={"query": name, "code": name})
        index = open_index(settings, system)
        tower = load_embedder(name, settings)
        asked, stored = tower.encode(queries), index.vectors()
        codes = [code for code, _ in index.pairs]
        whole = stored.shape[1]
        runs_of = [(one, 0.0) for one in recipe.prefixes if one < whole]
        runs_of += [(whole, words) for words in recipe.words]
        for dimensions, words in tqdm(runs_of, unit="search", desc=tower.id):
            cut = normalised(asked, dimensions), normalised(stored, dimensions)
            said = partial(gains, lexicon=index.lexicon, weight=words)
            views = ranked(examples, documents, *cut, said, codes, system, recipe.kept)
            unseen = [Scored(one.id, one.gold - seen, one.predicted) for one in views["notes"]]
            for view, notes in {**views, "unseen": unseen}.items():
                scores = metrics.rank_scores(notes, stages.CUTOFFS)
                interval = metrics.bootstrap(notes, names, recipe.bootstrap, arguments.seed)
                row = {"tower": tower.id, "dimensions": dimensions, "words": words, "view": view}
                rows.append(row | {one: [scores[one], *interval[one]] for one in names})
    report = {
        "dataset": arguments.dataset,
        "split": arguments.split,
        "n_notes": len(examples),
        "code_space": len(system),
        "texts": len(codes),
        "git": git_commit(),
        "scores": rows,
    }
    arguments.output.mkdir(parents=True, exist_ok=True)
    atomic_write(arguments.output / "metrics.json", json.dumps(report, indent=1) + "\n")
    atomic_write(arguments.output / "table.md", table(rows, names))
    print(table(rows, names), end="")
    return 0


def normalised(vectors: "Vectors", dimensions: int) -> "Vectors":
    """The leading dimensions of each row, at length 1."""
    import numpy as np

    cut = vectors[:, :dimensions]
    lengths = np.linalg.norm(cut, axis=1, keepdims=True)
    return np.asarray(cut / lengths, dtype=np.float32)


def gains(sentences: Sequence[str], lexicon: "Lexicon", weight: float) -> "np.ndarray":
    """What each text gains by the words of each sentence, as in `clh.retrieval.hybrid`."""
    import numpy as np

    return weight * np.stack([lexicon.coverages(one) for one in sentences], axis=1) ** 2


def ranked(
    examples: "Sequence[Example]",
    documents: "Sequence[Sequence[Pair]]",
    queries: "Vectors",
    texts: "Vectors",
    said: "Callable[[Sequence[str]], np.ndarray]",
    codes: Sequence[str],
    system: "CodeSystem",
    kept: int,
) -> "dict[str, list[Scored]]":
    """The best codes of every marked sentence and of every note, with their ranks.

    `queries` are the sentences of all documents in a row, `codes` those of the rows of `texts`;
    `said` is what texts gain by the words of sentences, of shape (texts, sentences).
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
        asked = queries[start : start + len(document)]
        start += len(document)
        gained = said([pair.texts[0] for pair in document])[order]
        similarity = np.maximum.reduceat(texts @ asked.T + gained, starts)
        views["sentences"] += [
            Scored(f"{example.id} {place}", pair.codes, best(similarity[:, place]))
            for place, pair in enumerate(document)
            if pair.codes
        ]
        gold = frozenset(system.stem_or_self(code) for code in example.codes)
        views["notes"].append(Scored(example.id, gold, best(similarity.max(axis=1))))
    return views


def table(rows: Sequence[Mapping[str, Any]], names: Sequence[str]) -> str:
    """The scores as Markdown."""
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
