"""What to beat: simple baselines on a split of a corpus, by the same scorer as the agents.

    python experiments/baselines.py --dataset codiesp --data-dir DIR --split dev --output OUT

Learned from the train split:

    frequent  each code's share of the training notes
    random    codes drawn by their frequency, as many as some training note has
    svm       a linear SVM for each code, on tf-idf of words and pairs of words

From the titles and inclusion terms of the whole release, each sentence of a note by itself. A
category's text stands for its unspecified code, and 7th characters are left open:

    keyword   texts whose every word is in the sentence
    index     the same with the Alphabetic Index, whose XML files are given as --index
    bm25      texts that share words with the sentence, by Okapi BM25
    minilm    texts close to the sentence, by a sentence encoder as it was published

Each ranks codes by a score. The final set is what reaches a threshold: that of the highest micro-F1
on train, where learned baselines are cross-validated. `micro_f1_tuned_on_split` is what the best
threshold for the scored notes would give, which is optimistic. MAP, precision@k, recall@k and
ROC-AUC are of the whole rankings.

Writes OUT/metrics.json, table.md, config.json and, for score.py, predictions-NAME.jsonl: a note a
line with its final set, in which `confidence` is the score.
"""

import argparse
import json
import math
import sys
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field, NonNegativeFloat, PositiveFloat, PositiveInt

from clh.errors import InputError
from clh.evaluation import recipes
from clh.evaluation.run_folder import fingerprint, git_commit
from clh.files import atomic_write

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from clh.corpora import Example
    from clh.document.reader import Reader
    from clh.evaluation.metrics import Scored
    from clh.icd.index import IndexTerm
    from clh.icd.tabular import CodeSystem

    Baseline = Callable[[Sequence[Example], Sequence[Example]], list[dict[str, float]]]

Scores = dict[str, float]  # of a note's codes
Texts = Sequence[tuple[str, str]]  # codes with their titles or terms

_LEARNED = ("frequent", "random", "svm")
_COVERED = "ICD-10-CM"  # the codes that the book has texts of


class Svm(recipes.Recipe):
    """Settings of scikit-learn's TfidfVectorizer and LinearSVC."""

    ngram_range: tuple[PositiveInt, PositiveInt]
    min_df: PositiveInt
    sublinear_tf: bool
    C: PositiveFloat
    class_weight: Literal["balanced"] | None


class Bm25(recipes.Recipe):
    """Parameters of BM25, and how many texts are kept for a note."""

    k1: PositiveFloat
    b: NonNegativeFloat
    kept: PositiveInt


class Minilm(recipes.Recipe):
    """The encoder, the tokens it reads of a text, and how many texts are kept for a note."""

    model: str
    max_tokens: PositiveInt
    kept: PositiveInt


class Thresholds(recipes.Recipe):
    """The scores from which on codes are in the final set, for data without a train split."""

    keyword: float
    index: float
    bm25: float
    minilm: float


class BaselinesRecipe(recipes.Recipe):
    """The values of recipes/baselines.yaml."""

    folds: int = Field(ge=2)
    bootstrap: PositiveInt
    svm: Svm
    bm25: Bm25
    minilm: Minilm
    thresholds: Thresholds


def main() -> int:
    """Run, score, report."""
    arguments = parse_arguments()

    from tqdm import tqdm

    from clh import corpora
    from clh.config import Settings
    from clh.icd.index import read_index
    from clh.icd.tabular import load_tabular

    recipe = recipes.read_recipe(arguments.recipe, BaselinesRecipe, arguments.set)
    corpus = corpora.find(arguments.dataset)
    policy = arguments.policy or corpus.policy
    settings = Settings.load(arguments.profile or "cpu", policy=policy, index_files=arguments.index)
    system = load_tabular()
    terms = [term for file in settings.index_files for term in read_index(file)]
    baselines = build_baselines(recipe, terms, system, arguments.seed)
    wanted = select_wanted(baselines, arguments.only)

    notes = _examples(arguments, arguments.split, arguments.limit)
    train, left_out = read_train(arguments, recipe.folds)
    left_out |= find_without_texts(baselines, terms, arguments.dataset)
    chosen = drop_left_out(wanted, left_out)
    labels = system if corpus.codes == _COVERED else used_codes([*train, *notes])

    config = describe_run(arguments, policy, chosen, settings.index_files, recipe, system)
    stamp = {"git": git_commit(), "config_hash": fingerprint(config)}
    write_config(arguments.output, {**config, **stamp})

    results: dict[str, dict[str, Any]] = {}
    for name in (progress := tqdm(chosen, unit="baseline", disable=None)):
        progress.set_description(name)
        started = time.perf_counter()
        ranked = rankings(notes, baselines[name](train, notes))
        threshold = choose_threshold(name, baselines[name], train, recipe, arguments.seed)
        seconds = round(time.perf_counter() - started, 1)
        scores = measure(ranked, threshold, labels, system, recipe.bootstrap, arguments.seed)
        results[name] = {**scores, "seconds": seconds}
        file = arguments.output / f"predictions-{name}.jsonl"
        write_predictions(file, ranked, threshold, system)

    run = {name: getattr(arguments, name) for name in ("dataset", "split")}
    run |= {"n_notes": len(notes), "code_space": len(labels)}
    _write(arguments.output / "metrics.json", {**run, "baselines": results, **stamp})
    _show(results, arguments.output / "table.md")
    return 0


def parse_arguments() -> argparse.Namespace:
    """The flags of the command line. Raises InputError if there is a tracker among them."""
    parser = recipes.evaluation_parser(__doc__, "experiments/recipes/baselines.yaml")
    parser.add_argument("--index", type=Path, nargs="+", help="XML files of the Alphabetic Index")
    parser.add_argument("--only", nargs="+", metavar="NAME", help="baselines to run; all if none")
    arguments = recipes.parse_arguments(parser)
    if arguments.track is not None:
        raise InputError("baselines are not tracked: leave --track out")
    return arguments


# --- which baselines run ---------------------------------------------------------------------


def build_baselines(
    recipe: BaselinesRecipe, terms: Sequence["IndexTerm"], system: "CodeSystem", seed: int
) -> dict[str, "Baseline"]:
    """All baselines by name; each scores codes for notes, given the training notes."""
    from clh.retrieval.lexical import searchable

    titles = reportable(searchable(system), system)
    entries = reportable(index_entries(terms, system), system)
    return {
        "frequent": frequent,
        "random": lambda train, notes: draw_codes(train, notes, seed),
        "svm": lambda train, notes: svm(train, notes, recipe.svm),
        "keyword": lambda _, notes: keyword(notes, titles),
        "index": lambda _, notes: keyword(notes, entries),
        "bm25": lambda _, notes: bm25(notes, titles, recipe.bm25),
        "minilm": lambda _, notes: minilm(notes, titles, recipe.minilm),
    }


def select_wanted(names: Collection[str], only: Sequence[str] | None) -> list[str]:
    """The names that --only gives, in the order of `names`; all if it gives none.

    Raises InputError for an unknown name.
    """
    if unknown := set(only or ()).difference(names):
        raise InputError(f"there is no baseline {min(unknown)!r}: choose from {', '.join(names)}")
    return [name for name in names if name in (only or names)]


def find_without_texts(
    names: Collection[str], terms: Sequence["IndexTerm"], dataset: str
) -> dict[str, str]:
    """The baselines that have no texts of the dataset's codes to search, and why."""
    from clh import corpora

    codes = corpora.find(dataset).codes
    if codes != _COVERED:
        reason = f"the codes of {dataset} are {codes}"
        return {name: reason for name in names if name not in _LEARNED}
    return {} if terms else {"index": "give the files of the Alphabetic Index as --index"}


def drop_left_out(wanted: Sequence[str], left_out: Mapping[str, str]) -> list[str]:
    """The baselines to run; prints the reason why the others are left out.

    Raises InputError if none is left.
    """
    for reason in dict.fromkeys(left_out.values()):
        names = [name for name in wanted if left_out.get(name) == reason]
        if names:
            print(f"{', '.join(names)} left out: {reason}", file=sys.stderr)
    chosen = [name for name in wanted if name not in left_out]
    if not chosen:
        raise InputError("no baseline is left to run")
    return chosen


# --- the baselines ---------------------------------------------------------------------------


def frequent(train: Sequence["Example"], notes: Sequence["Example"]) -> list[Scores]:
    """Each code's share of the training notes."""
    counts = Counter(code for example in train for code in example.codes)
    shares = {code: count / len(train) for code, count in counts.items()}
    return [shares for _ in notes]


def draw_codes(train: Sequence["Example"], notes: Sequence["Example"], seed: int) -> list[Scores]:
    """Codes drawn by their frequency, as many as a training note drawn at random has.

    The first to be drawn scores highest.
    """
    import numpy as np

    generator = np.random.default_rng(seed)
    counts = Counter(code for example in train for code in example.codes)
    codes, prior = list(counts), np.array(list(counts.values())) / counts.total()
    sizes = [len(example.codes) for example in train]

    def draw() -> Scores:
        size = generator.choice(sizes)
        rows = generator.choice(len(codes), size, replace=False, p=prior)
        return {codes[row]: 1 / place for place, row in enumerate(rows, start=1)}

    return [draw() for _ in notes]


def svm(train: Sequence["Example"], notes: Sequence["Example"], recipe: Svm) -> list[Scores]:
    """Signed distances to the hyperplane of each code in train.

    Raises InputError if too few words recur in train to learn from.
    """
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.multiclass import OneVsRestClassifier
    from sklearn.preprocessing import MultiLabelBinarizer
    from sklearn.svm import LinearSVC

    words = TfidfVectorizer(
        ngram_range=recipe.ngram_range, min_df=recipe.min_df, sublinear_tf=recipe.sublinear_tf
    )
    try:
        x = words.fit_transform([example.note.text for example in train])
    except ValueError as error:
        raise InputError(f"svm cannot learn from {len(train)} notes: {error}") from error
    coded = MultiLabelBinarizer()
    y = coded.fit_transform([example.codes for example in train])
    model = OneVsRestClassifier(
        LinearSVC(C=recipe.C, class_weight=recipe.class_weight), n_jobs=-1
    ).fit(x, y)
    distances = model.decision_function(words.transform([note.note.text for note in notes]))
    rows = distances.reshape(len(notes), -1).tolist()  # flat if there is a single code
    return [dict(zip(coded.classes_, row, strict=True)) for row in rows]


def keyword(notes: Sequence["Example"], texts: Texts) -> list[Scores]:
    """Codes with a text whose every content word is in one sentence.

    The score is the sum of the words' inverse document frequencies over the texts: the longest
    match, and the most specific path through the Index, come first.
    """
    from clh.retrieval.lexical import content_words, expand

    codes: defaultdict[frozenset[str], set[str]] = defaultdict(set)
    for code, text in texts:
        if words := content_words(text):
            codes[words].add(code)
    counts = Counter(word for words in codes for word in words)
    idf = {word: math.log(len(codes) / count) for word, count in counts.items()}
    scores = {words: math.fsum(idf[word] for word in words) for words in codes}
    by_rarest: defaultdict[str, list[frozenset[str]]] = defaultdict(list)
    for words in codes:
        by_rarest[max(words, key=lambda word: (idf[word], word))].append(words)

    def match(sentence: str) -> Iterator[tuple[str, float]]:
        present = content_words(expand(sentence))
        for word in present & by_rarest.keys():
            for words in by_rarest[word]:
                if words <= present:
                    yield from ((code, scores[words]) for code in codes[words])

    return [
        _best(hit for sentence in _sentences(note) for hit in match(sentence)) for note in notes
    ]


def bm25(notes: Sequence["Example"], texts: Texts, recipe: Bm25) -> list[Scores]:
    """Okapi BM25 with sentences as queries; a code's best text in its best sentence counts."""
    import numpy as np
    from bm25s import BM25

    from clh.retrieval.lexical import content_words, expand

    retriever = BM25(k1=recipe.k1, b=recipe.b)
    retriever.index([sorted(content_words(text)) for _, text in texts], show_progress=False)

    def ranked(note: "Example") -> Scores:
        best = np.zeros(len(texts), dtype=np.float32)
        for sentence in _sentences(note):
            query = sorted(content_words(expand(sentence)) & retriever.vocab_dict.keys())
            if query:
                np.maximum(best, retriever.get_scores(query), out=best)
        return _top(best, texts, recipe.kept)

    return [ranked(note) for note in notes]


def minilm(notes: Sequence["Example"], texts: Texts, recipe: Minilm) -> list[Scores]:
    """Cosine similarity to sentences; a code's best text in its best sentence counts."""
    from sentence_transformers import SentenceTransformer

    from clh.config import Settings
    from clh.models import weights

    weights.silence_bars()
    model = SentenceTransformer(str(weights.resolve(recipe.model, Settings.load().cache_dir)))
    model.max_seq_length = recipe.max_tokens
    of_texts = model.encode([text for _, text in texts], normalize_embeddings=True)
    sentences = [_sentences(note) for note in notes]
    of_sentences = model.encode(
        [sentence for note in sentences for sentence in note], normalize_embeddings=True
    )
    scores: list[Scores] = []
    start = 0
    for note in sentences:
        queries = of_sentences[start : start + len(note)]
        start += len(note)
        closeness = (of_texts @ queries.T).max(axis=1, initial=-1)
        scores.append(_top(closeness, texts, recipe.kept))
    return scores


def reportable(texts: Texts, system: "CodeSystem") -> Texts:
    """The texts with the codes that their bare mention is given: E11.9 for the title of E11."""
    return [(system.unspecified(code) or code, text) for code, text in texts]


def index_entries(terms: Sequence["IndexTerm"], system: "CodeSystem") -> Texts:
    """The codes of the Index with all the words they stand under; "see" is followed.

    Of a heading's forms, as in "Ulcer, ulcerated, ulcerating", the first is taken.
    """
    from clh.retrieval.lexical import plain

    def text(path: Iterable[str]) -> str:
        return plain(", ".join(heading.partition(",")[0] for heading in path))

    places: defaultdict[str, list[IndexTerm]] = defaultdict(list)
    for term in terms:
        places[text(term.path).lower()].append(term)
    return [
        (system.normalize(code), text(term.path))
        for term in terms
        for place in (term, *(places[plain(term.see).lower()] if term.see else ()))
        for code in (place.code, place.manifestation)
        if code is not None
    ]


# --- from scores to codes, and how good they are --------------------------------------------


def rankings(notes: Sequence["Example"], scores: Sequence[Scores]) -> list["Scored"]:
    """The notes as the scorer takes them, best code first; ties are in the order of codes."""
    from clh.evaluation.metrics import Scored

    return [
        Scored(
            id=note.id,
            gold=frozenset(note.codes),
            predicted=dict(sorted(of_note.items(), key=lambda pair: (-pair[1], pair[0]))),
        )
        for note, of_note in zip(notes, scores, strict=True)
    ]


def choose_threshold(
    name: str, baseline: "Baseline", train: Sequence["Example"], recipe: BaselinesRecipe, seed: int
) -> float:
    """The best threshold on train, where it was not learned from; the recipe's without train."""
    from clh.evaluation import thresholds

    if not train:
        return float(getattr(recipe.thresholds, name))
    if name in _LEARNED:
        return thresholds.best_threshold(rank_held_out(baseline, train, recipe.folds, seed))
    return thresholds.best_threshold(rankings(train, baseline([], train)))


def rank_held_out(
    baseline: "Baseline", train: Sequence["Example"], folds: int, seed: int
) -> list["Scored"]:
    """The training notes, each ranked by what was learned from other folds."""
    from sklearn.model_selection import KFold

    ranked: list[Scored] = []
    for others, fold in KFold(folds, shuffle=True, random_state=seed).split(train):
        notes = [train[row] for row in fold]
        ranked += rankings(notes, baseline([train[row] for row in others], notes))
    return ranked


def measure(
    notes: Sequence["Scored"],
    threshold: float,
    labels: Collection[str],
    system: "CodeSystem",
    samples: int,
    seed: int,
) -> dict[str, Any]:
    """The scores of a baseline's rankings, and of its final sets at a threshold."""
    from clh.evaluation import metrics, thresholds
    from clh.evaluation.stages import CUTOFFS

    sets = thresholds.apply_threshold(notes, threshold)
    gold = frozenset(code for note in notes for code in note.gold)
    of_rankings = metrics.rank_scores(notes, CUTOFFS)
    tuned = thresholds.apply_threshold(notes, thresholds.best_threshold(notes))
    return {
        **metrics.summary(notes, labels),
        **metrics.set_scores(sets),
        "macro_f1_gold_labels": metrics.macro_f1_of(sets, gold),
        **{f"recall@{k}": of_rankings[f"recall@{k}"] for k in CUTOFFS},
        "codes_per_note": sum(len(note.predicted) for note in sets) / len(sets),
        "folded": metrics.set_scores(metrics.folded(sets, system)),
        "category": metrics.set_scores(metrics.categories(sets)),
        "threshold": threshold,
        "micro_f1_tuned_on_split": metrics.set_scores(tuned)["micro_f1"],
        "ci95": {
            **metrics.bootstrap(sets, ["micro_f1", "macro_f1"], samples, seed),
            **metrics.bootstrap(notes, ["map", "recall@50"], samples, seed),
        },
    }


def prediction(note: "Scored", system: "CodeSystem") -> dict[str, Any]:
    """A line of predictions-NAME.jsonl."""
    return {
        "note_id": note.id,
        "codes": [
            {
                "code": code,
                "description": system[code].title if code in system else "",
                "confidence": score,
                "sequence": place,
                "evidence": [],
            }
            for place, (code, score) in enumerate(note.predicted.items(), start=1)
        ],
        "gold": sorted(note.gold),
    }


# --- files and the table ---------------------------------------------------------------------


def _examples(arguments: argparse.Namespace, split: str, limit: int | None) -> list["Example"]:
    from clh import corpora

    return corpora.sample(
        arguments.dataset, arguments.data_dir, split, arguments.unit, limit, arguments.seed
    )


def read_train(arguments: argparse.Namespace, folds: int) -> tuple[list["Example"], dict[str, str]]:
    """The training notes, and the baselines left out for want of them, with the reason."""
    try:
        return _train(arguments, folds), {}
    except InputError as error:
        reason = f"{error}; thresholds of the others are the recipe's"
        return [], dict.fromkeys(_LEARNED, reason)


def _train(arguments: argparse.Namespace, folds: int) -> list["Example"]:
    """The training notes; InputError says why there are none to learn from."""
    if arguments.split == "train":
        raise InputError("the train split is what is scored")
    train = _examples(arguments, "train", limit=None)
    if len(train) < folds:
        raise InputError(f"the train split has {len(train)} notes, too few for {folds} folds")
    if not any(example.codes for example in train):
        raise InputError("the train split has no codes")
    return train


def used_codes(examples: Iterable["Example"]) -> set[str]:
    """All codes of the notes."""
    return {code for example in examples for code in example.codes}


@cache
def _reader() -> "Reader":
    from clh.document.reader import Reader

    return Reader()


@cache
def _split(text: str) -> tuple[str, ...]:
    return tuple(sentence.text for sentence in _reader().sentences(text))


def _sentences(example: "Example") -> tuple[str, ...]:
    """The sentences of a note, split once for all baselines."""
    return _split(example.note.text)


def _best(hits: Iterable[tuple[str, float]]) -> Scores:
    """The highest score of each code."""
    best: Scores = {}
    for code, score in hits:
        best[code] = max(score, best.get(code, score))
    return best


def _top(scores: "NDArray[np.float32]", texts: Texts, kept: int) -> Scores:
    """The highest score of each code among the texts that score highest."""
    import numpy as np

    rows = np.argpartition(-scores, min(kept, len(scores) - 1))[:kept]
    return _best((texts[row][0], float(scores[row])) for row in rows if scores[row] > 0)


def describe_run(
    arguments: argparse.Namespace,
    policy: str,
    baselines: Sequence[str],
    index_files: Iterable[Path],
    recipe: BaselinesRecipe,
    system: "CodeSystem",
) -> dict[str, Any]:
    """What the results depend on, for config.json."""
    from clh.cache import sha256

    flags = ("dataset", "split", "unit", "limit", "seed")
    return {
        **{name: getattr(arguments, name) for name in flags},
        "policy": policy,
        "baselines": baselines,
        "index": {file.name: sha256(file) for file in index_files},
        "recipe": recipe.model_dump(),
        "icd_release": system.release,
    }


def write_config(folder: Path, config: Mapping[str, Any]) -> None:
    """Make the folder of the results with its config.json. InputError if it cannot be written."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        _write(folder / "config.json", config)
    except OSError as error:
        raise InputError(f"{folder} cannot be written: {error.strerror}") from error


def write_predictions(
    file: Path, ranked: Sequence["Scored"], threshold: float, system: "CodeSystem"
) -> None:
    """The final set of each note, a note a line."""
    from clh.evaluation import thresholds

    final_sets = thresholds.apply_threshold(ranked, threshold)
    lines = [json.dumps(prediction(note, system)) + "\n" for note in final_sets]
    atomic_write(file, "".join(lines))


def _write(file: Path, values: object) -> None:
    atomic_write(file, json.dumps(values, indent=2) + "\n")


_COLUMNS = {
    "micro-F1": "micro_f1",
    "tuned": "micro_f1_tuned_on_split",
    "macro-F1": "macro_f1",
    "MAP": "map",
    "recall@50": "recall@50",
    "@100": "recall@100",
    "@200": "recall@200",
}
_CAPTION = (
    "In brackets: 95% intervals, notes resampled. Tuned: micro-F1 at the threshold that is best "
    "for these notes, which is optimistic."
)


def _show(results: dict[str, dict[str, Any]], file: Path) -> None:
    """Print the table, and write it as Markdown."""
    from rich.console import Console
    from rich.table import Table

    def cell(result: dict[str, Any], metric: str, between: str) -> str:
        value, *interval = (
            f"{number:.3f}".removeprefix("0")
            for number in (result[metric], *result["ci95"].get(metric, ()))
        )
        return f"{value}{between}[{', '.join(interval)}]" if interval else value

    def row(name: str, between: str) -> list[str]:
        return [name, *(cell(results[name], metric, between) for metric in _COLUMNS.values())]

    header = ["baseline", *_COLUMNS]
    table = Table(*header, box=None, padding=(0, 1, 0, 0))
    for name in results:
        table.add_row(*row(name, "\n"))
    console = Console()
    console.print(table)
    console.print(_CAPTION, highlight=False)
    aligned = ["---", *("---:" for _ in _COLUMNS)]
    lines = [header, aligned, *(row(name, " ") for name in results)]
    markdown = "".join(f"| {' | '.join(line)} |\n" for line in lines)
    atomic_write(file, f"{markdown}\n{_CAPTION}\n")


if __name__ == "__main__":
    recipes.run_script(main)
