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

import argparse
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from pydantic import NonNegativeFloat, PositiveInt

from clh.evaluation import recipes
from clh.evaluation.run_folder import git_commit
from clh.files import atomic_write

if TYPE_CHECKING:
    import numpy as np

    from clh.config import Settings
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


@dataclass(frozen=True)
class Notes:
    """The notes that are searched for, their sentences, and the codes of training notes."""

    examples: "Sequence[Example]"
    documents: "Sequence[Sequence[Pair]]"
    seen: frozenset[str]

    @classmethod
    def read(cls, arguments: argparse.Namespace, system: "CodeSystem") -> "Notes":
        """The notes of the split, and the train split beside it."""
        from clh import corpora
        from clh.document.reader import Reader
        from clh.training.pairs import sentence_pairs

        given = arguments.data_dir, arguments.split, arguments.unit, arguments.limit, arguments.seed
        examples = corpora.sample(arguments.dataset, *given)
        train = corpora.read(arguments.dataset, arguments.data_dir, "train")
        seen = (system.stem_or_self(code) for example in train for code in example.codes)
        return cls(examples, sentence_pairs(examples, system, Reader()), frozenset(seen))


def main() -> int:
    """Score, print, write."""
    parser = recipes.evaluation_parser(__doc__, "experiments/recipes/eval_retriever.yaml")
    parser.add_argument("--towers", nargs="+", required=True, help="as towers.query in clh.toml")
    arguments = recipes.parse_arguments(parser)

    from clh.config import Settings
    from clh.icd.tabular import load_tabular
    from clh.retrieval.index import open_index

    recipe = recipes.read_recipe(arguments.recipe, RetrieverEvaluationRecipe, arguments.set)
    system = load_tabular()
    notes = Notes.read(arguments, system)
    rows: list[dict[str, Any]] = []
    for name in arguments.towers:
        settings = Settings.load(arguments.profile or "cpu", towers={"query": name, "code": name})
        index = open_index(settings, system)
        texts = TextVectors([code for code, _ in index.pairs], index.vectors(), index.lexicon)
        rows += score_tower(name, settings, texts, notes, system, recipe, arguments.seed)
    report = {
        "dataset": arguments.dataset,
        "split": arguments.split,
        "n_notes": len(notes.examples),
        "code_space": len(system),
        "texts": len(texts.codes),
        "git": git_commit(),
        "scores": rows,
    }
    table = format_table(rows)
    arguments.output.mkdir(parents=True, exist_ok=True)
    atomic_write(arguments.output / "metrics.json", json.dumps(report, indent=1) + "\n")
    atomic_write(arguments.output / "table.md", table)
    print(table, end="")
    return 0


@dataclass(frozen=True)
class TextVectors:
    """The texts of the code system under a tower: a row for each text, and its code."""

    codes: Sequence[str]
    vectors: "Vectors"
    lexicon: "Lexicon"

    def similarity(
        self, sentences: Sequence[str], queries: "Vectors", words: float
    ) -> "np.ndarray":
        """Of each text to each sentence, with what shared words add: (texts, sentences)."""
        import numpy as np

        coverage = np.stack([self.lexicon.coverages(text) for text in sentences], axis=1)
        similarity: np.ndarray = self.vectors @ queries.T + words * coverage**2
        return similarity


def score_tower(
    name: str,
    settings: "Settings",
    texts: TextVectors,
    notes: Notes,
    system: "CodeSystem",
    recipe: RetrieverEvaluationRecipe,
    seed: int,
) -> Iterator[dict[str, Any]]:
    """A row for each view at each prefix, and at all dimensions with each weight of words."""
    from tqdm import tqdm

    from clh.evaluation import metrics, stages
    from clh.models.embedder import load_embedder

    tower = load_embedder(name, settings)
    sentences = [pair.texts[0] for document in notes.documents for pair in document]
    queries, whole = tower.encode(sentences), texts.vectors.shape[1]
    searches = [(prefix, 0.0) for prefix in recipe.prefixes if prefix < whole]
    searches += [(whole, words) for words in recipe.words]
    names = [f"recall@{k}" for k in stages.CUTOFFS]
    for dimensions, words in tqdm(searches, unit="search", desc=tower.id):
        cut = replace(texts, vectors=cut_vectors(texts.vectors, dimensions))
        views = rank_codes(notes, cut_vectors(queries, dimensions), cut, words, system, recipe.kept)
        unseen = [replace(note, gold=note.gold - notes.seen) for note in views["notes"]]
        for view, ranked in {**views, "unseen": unseen}.items():
            scores = metrics.rank_scores(ranked, stages.CUTOFFS)
            interval = metrics.bootstrap(ranked, names, recipe.bootstrap, seed)
            yield {
                "tower": tower.id,
                "dimensions": dimensions,
                "words": words,
                "view": view,
                **{name: [scores[name], *interval[name]] for name in names},
            }


def cut_vectors(vectors: "Vectors", dimensions: int) -> "Vectors":
    """The leading dimensions of each row, at length 1."""
    import numpy as np

    cut = vectors[:, :dimensions]
    lengths = np.linalg.norm(cut, axis=1, keepdims=True)
    return np.asarray(cut / lengths, dtype=np.float32)


def rank_codes(
    notes: Notes,
    queries: "Vectors",
    texts: TextVectors,
    words: float,
    system: "CodeSystem",
    most: int,
) -> dict[str, list["Scored"]]:
    """The best codes of every marked sentence and of every note, by their best texts.

    `queries` are the sentences of all documents in a row.
    """
    import numpy as np

    from clh.evaluation.metrics import Scored

    order = np.argsort(texts.codes, kind="stable")
    codes, starts = np.unique(np.asarray(texts.codes)[order], return_index=True)

    def best(similarity: "np.ndarray") -> dict[str, float]:
        top = np.argpartition(-similarity, min(most, len(codes) - 1))[:most]
        return {str(codes[row]): float(similarity[row]) for row in top}

    views: dict[str, list[Scored]] = {"sentences": [], "notes": []}
    start = 0
    for example, document in zip(notes.examples, notes.documents, strict=True):
        own = queries[start : start + len(document)]
        start += len(document)
        by_text = texts.similarity([pair.texts[0] for pair in document], own, words)
        similarity = np.maximum.reduceat(by_text[order], starts)
        views["sentences"] += [
            Scored(f"{example.id} {place}", pair.codes, best(similarity[:, place]))
            for place, pair in enumerate(document)
            if pair.codes
        ]
        gold = frozenset(map(system.stem_or_self, example.codes))
        views["notes"].append(Scored(example.id, gold, best(similarity.max(axis=1))))
    return views


def format_table(rows: Sequence[Mapping[str, Any]]) -> str:
    """The scores as Markdown."""
    names = [name for name in rows[0] if name.startswith("recall@")]
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
