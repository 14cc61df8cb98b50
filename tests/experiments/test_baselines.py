"""Baselines: the files and figures of the whole script, and what each of them finds."""

import json
import os
import subprocess
import sys
from collections import Counter
from collections.abc import Sequence
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from clh.corpora import Example
from clh.errors import InputError
from clh.evaluation import recipes
from clh.icd.index import IndexTerm
from clh.icd.tabular import load_tabular
from clh.retrieval.lexical import searchable
from clh.schema import Note
from tests.fakes import toy_system

ROOT = Path(__file__).parents[2]
SCRIPT = ROOT / "experiments" / "baselines.py"
RECIPE = ROOT / "experiments" / "recipes" / "baselines.yaml"

TRAIN = [
    ("I10", "High blood pressure, treated with tablets."),
    ("J18.9", "Pneumonia, and a chest film shows it."),
    ("R05.9", "Cough since monday, dry and loud."),
]
DEV = [
    {"id": "a", "text": "High blood pressure again. Cough, dry.", "codes": ["I10", "R05.9"]},
    {"id": "b", "text": "The chest film shows pneumonia.", "codes": ["J18.9"]},
    {"id": "c", "text": "Idiopathic gout of the left ankle and foot.", "codes": ["M10.072"]},
]
INDEX = """\
<ICD10CM.index><letter><title>H</title>
  <mainTerm><title>Hypertension, hypertensive<nemod>(benign)</nemod></title><code>I10</code>
  </mainTerm>
  <mainTerm><title>Pressure</title>
    <term level="1"><title>blood</title>
      <term level="2"><title>high</title><see>Hypertension</see></term>
    </term>
  </mainTerm>
</letter></ICD10CM.index>
"""


def load() -> ModuleType:
    spec = spec_from_file_location("baselines", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


baselines = load()
VALUES = recipes.read_recipe(RECIPE, baselines.BaselinesRecipe)


def run(*flags: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, SCRIPT, *flags]
    return subprocess.run(list(map(str, command)), capture_output=True, text=True, check=False)


def rows(file: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in file.read_text().splitlines()]


def write(folder: Path, split: str, examples: Sequence[dict[str, Any]]) -> None:
    (folder / f"{split}.jsonl").write_text("".join(json.dumps(one) + "\n" for one in examples))


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twelve training notes on three topics, three notes to code, and an index."""
    folder = tmp_path_factory.mktemp("data")
    train = [
        {"id": f"{topic}{number}", "text": text, "codes": [topic]}
        for number in range(4)
        for topic, text in TRAIN
    ]
    write(folder, "train", train)
    write(folder, "dev", DEV)
    (folder / "index.xml").write_text(INDEX)
    return folder


def flags(data: Path, output: Path, *more: object) -> list[object]:
    given = ["--dataset", "jsonl", "--data-dir", data, "--split", "dev", "--output", output]
    return [*given, *more]


QUICK = ["frequent", "random", "svm", "keyword", "index", "bm25"]


@pytest.fixture(scope="module")
def output(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the script writes with all baselines but the one that needs the vector index."""
    out = tmp_path_factory.mktemp("runs") / "out"
    ended = run(*flags(data, out, "--only", *QUICK, "--index", data / "index.xml"))
    assert ended.returncode == 0, ended.stderr
    assert all(name in ended.stdout for name in QUICK)
    return out


def test_the_files_agree(output: Path) -> None:
    result = json.loads((output / "metrics.json").read_text())
    config = json.loads((output / "config.json").read_text())
    assert (result["dataset"], result["split"], result["n_notes"]) == ("jsonl", "dev", 3)
    assert result["code_space"] == len(load_tabular())
    assert list(result["baselines"]) == config["baselines"] == QUICK
    assert (config["config_hash"], config["git"]) == (result["config_hash"], result["git"])
    assert (config["policy"], list(config["index"])) == ("encounter", ["index.xml"])
    table = (output / "table.md").read_text()
    for name, scores in result["baselines"].items():
        assert f"| {name} | {scores['micro_f1']:.3f}".replace("| 0.", "| .") in table


@pytest.mark.parametrize("name", QUICK)
def test_the_figures_are_those_of_the_predictions(output: Path, name: str) -> None:
    scores = json.loads((output / "metrics.json").read_text())["baselines"][name]
    right = predicted = gold = exact = 0
    for one, row in zip(rows(output / f"predictions-{name}.jsonl"), DEV, strict=True):
        assert (one["note_id"], one["gold"]) == (row["id"], sorted(row["codes"]))
        codes = [code["code"] for code in one["codes"]]
        confidences = [code["confidence"] for code in one["codes"]]
        assert confidences == sorted(confidences, reverse=True)
        assert all(confidence >= scores["threshold"] for confidence in confidences)
        assert [code["sequence"] for code in one["codes"]] == [*range(1, len(codes) + 1)]
        assert all(load_tabular()[c["code"]].title == c["description"] for c in one["codes"])
        right += len({*codes} & {*one["gold"]})
        predicted, gold = predicted + len(codes), gold + len(one["gold"])
        exact += {*codes} == {*one["gold"]}
    assert scores["micro_f1"] == pytest.approx(2 * right / (predicted + gold))
    assert scores["micro_recall"] == pytest.approx(right / gold)
    assert scores["exact_match"] == pytest.approx(exact / len(DEV))
    assert scores["codes_per_note"] == pytest.approx(predicted / len(DEV))
    assert scores["micro_f1_tuned_on_split"] >= scores["micro_f1"]
    assert scores["recall@10"] <= scores["recall@50"] <= scores["recall@100"]
    assert set(scores["ci95"]) == {"micro_f1", "macro_f1", "map", "recall@50"}


def test_each_finds_what_it_can(output: Path) -> None:
    found = {
        name: [
            {code["code"] for code in one["codes"]}
            for one in rows(output / f"predictions-{name}.jsonl")
        ]
        for name in QUICK
    }
    assert found["svm"] == [{"I10"}, {"J18.9"}, set()]
    assert found["frequent"][0] == found["frequent"][2]
    assert found["index"] == [{"I10"}, set(), set()]
    assert {"I10", "R05.9"} <= found["keyword"][0]
    assert "J18.9" in found["bm25"][1]
    assert "M10.072" in found["keyword"][2]  # which train does not have


def test_score_compares_two_of_them(output: Path) -> None:
    files = [output / f"predictions-{name}.jsonl" for name in ("keyword", "frequent")]
    command = [sys.executable, ROOT / "experiments" / "score.py", *files, "--json"]
    ended = subprocess.run(list(map(str, command)), capture_output=True, text=True, check=True)
    metrics = json.loads((output / "metrics.json").read_text())["baselines"]
    for one, name in zip(json.loads(ended.stdout)["files"], ("keyword", "frequent"), strict=True):
        assert one["micro_f1"] == pytest.approx(metrics[name]["micro_f1"])


def test_without_train_what_learns_is_left_out(data: Path, tmp_path: Path) -> None:
    write(tmp_path, "dev", DEV)
    out = tmp_path / "out"
    ended = run(*flags(tmp_path, out, "--only", "svm", "random", "keyword", "index"))
    assert ended.returncode == 0, ended.stderr
    learned, index = ended.stderr.splitlines()
    assert learned.startswith("random, svm left out: there is no ")
    assert "train.jsonl" in learned
    assert "the recipe's" in learned
    assert index.startswith("index left out: give")
    assert "--index" in index
    scores = json.loads((out / "metrics.json").read_text())["baselines"]
    assert list(scores) == ["keyword"]
    assert scores["keyword"]["threshold"] == VALUES.thresholds.keyword
    assert not (out / "predictions-svm.jsonl").exists()


@pytest.mark.parametrize(
    ("given", "recipe", "said"),
    [
        (["--only", "naive"], "", "no baseline 'naive': choose from frequent, random, svm"),
        (["--track", "wandb"], "", "--track"),
        (["--index", "nowhere.xml"], "", "nowhere.xml"),
        (["--dataset", "mimic"], "", "there is no dataset 'mimic'"),
        (["--split", "test"], "", "test.jsonl"),
        (["--limit", "0"], "", "--limit"),
        ([], "folds: 5", ": Field required"),
        ([], RECIPE.read_text().replace("C: 1.0", "C: -1"), "svm.C: "),
        ([], RECIPE.read_text().replace("folds: 5", "folds: 1"), "folds: "),
        ([], RECIPE.read_text() + "\nforest: 1\n", "forest: "),
        ([], "- svm", "recipe: "),
    ],
)
def test_bad_input_is_one_line(
    data: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    given: list[str],
    recipe: str,
    said: str,
) -> None:
    if recipe:
        (tmp_path / "recipe.yaml").write_text(recipe)
        given = ["--recipe", str(tmp_path / "recipe.yaml")]
    command = [str(SCRIPT), *map(str, flags(data, tmp_path / "out")), *given]
    monkeypatch.setattr(sys, "argv", command)
    with pytest.raises(SystemExit) as ended:
        recipes.run_script(baselines.main)
    assert ended.value.code == 2
    error = capsys.readouterr().err
    assert said in error
    assert error.count("\n") == 1
    assert not (tmp_path / "out").exists()


# --- the parts -----------------------------------------------------------------------------------


def example(text: str, *codes: str, id: str = "n") -> Example:
    return Example(id=id, notes=(Note(id=id, text=text),), codes=codes, split="dev")


def topics(copies: int) -> list[Example]:
    return [example(text, code) for _ in range(copies) for code, text in TRAIN]


def titles() -> list[tuple[str, str]]:
    texts: list[tuple[str, str]] = baselines.reportable(searchable(toy_system()), toy_system())
    return texts


def test_the_svm_learns_what_can_be_learned() -> None:
    [scores] = baselines.svm(topics(4), [example("A loud cough, dry.")], VALUES.svm)
    assert max(scores, key=scores.__getitem__) == "R05.9"
    assert [code for code, score in scores.items() if score > 0] == ["R05.9"]


def test_the_svm_says_when_notes_share_no_words() -> None:
    train = [example("Cough.", "R05.9"), example("Pneumonia.", "J18.9")]
    with pytest.raises(InputError, match="svm cannot learn from 2 notes"):
        baselines.svm(train, train, VALUES.svm)


def test_frequent_scores_shares() -> None:
    train = [example("x", "I10", "R05.9"), example("y", "I10")]
    assert baselines.frequent(train, [example("z")]) == [{"I10": 1.0, "R05.9": 0.5}]


def test_random_codes_follow_train_and_the_seed() -> None:
    train = [*[example("x", "I10")] * 9, example("y", "R05.9", "J18.9")]
    notes = [example("z")] * 300
    drawn = baselines.draw_codes(train, notes, seed=1)
    assert drawn == baselines.draw_codes(train, notes, seed=1)
    assert drawn != baselines.draw_codes(train, notes, seed=2)
    assert {len(codes) for codes in drawn} == {1, 2}
    counts = Counter(next(iter(codes)) for codes in drawn)
    assert counts["I10"] > 200
    assert min(counts["R05.9"], counts["J18.9"]) > 5


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("Coughing, acute.", ["R05.1", "R05.9"]),  # stems; the longer match is first
        ("The knee is stable. Pain in the throat.", ["R07.0"]),  # never across sentences
        ("HTN", ["I10"]),  # in the book's words
        ("Pneumonia", ["J18.9"]),  # a category is reported by its unspecified code
        ("Nothing of note", []),
    ],
)
def test_keyword_finds_texts_of_which_a_sentence_holds_all_words(
    text: str, found: list[str]
) -> None:
    [scored] = baselines.rankings([example(text)], baselines.keyword([example(text)], titles()))
    assert scored.ranking == found


def test_bm25_ranks_texts_by_the_words_they_share() -> None:
    note = example("Nothing here. He has pain in the left knee. Some words unknown to the book.")
    [scores] = baselines.bm25([note], titles(), VALUES.bm25)
    assert max(scores, key=scores.__getitem__) == "M25.562"
    assert scores["M25.562"] > scores["M25.561"] > 0
    assert "I10" not in scores


def test_index_entries_follow_see_and_take_the_first_form() -> None:
    terms = [
        IndexTerm(("Failure, failed", "heart"), ("acute",), "I50.9"),
        IndexTerm(("Cardiac weakness",), see="Failure, heart"),
        IndexTerm(("Diabetes", "with", "arthropathy"), code="E11.65", manifestation="M25.5-"),
        IndexTerm(("Elsewhere",), see="category X99"),
    ]
    assert baselines.index_entries(terms, toy_system()) == [
        ("I50.9", "Failure, heart"),
        ("I50.9", "Cardiac weakness"),
        ("E11.65", "Diabetes, with, arthropathy"),
        ("M25.5", "Diabetes, with, arthropathy"),
    ]


def test_a_threshold_is_chosen_on_notes_that_were_not_learned_from() -> None:
    train = [example("x", "I10", id=str(number)) for number in range(11)]
    seen: list[str] = []

    def baseline(learned: Sequence[Example], notes: Sequence[Example]) -> list[dict[str, float]]:
        ids = {one.id for one in notes}
        assert not ids & {one.id for one in learned}
        assert len(learned) + len(notes) == len(train)
        seen.extend(ids)
        return [{"I10": 0.25} for _ in notes]

    assert baselines.choose_threshold("svm", baseline, train, VALUES, 0) == 0.25
    assert sorted(seen) == sorted(one.id for one in train)


# --- the real thing ------------------------------------------------------------------------------


@pytest.mark.integration
def test_minilm_finds_what_is_said_in_other_words() -> None:
    system = load_tabular()
    texts = baselines.reportable(searchable(system), system)
    near = (
        "N17",
        "N18",
        "N19",
        "H53",
        "H54",
    )  # and some of all others: embedding all takes minutes
    texts = [text for row, text in enumerate(texts) if row % 40 == 0 or text[0].startswith(near)]
    said = ["Well so far. Both kidneys have stopped working.", "She cannot see with her left eye."]
    notes = [example(text) for text in (*said, "-")]
    kidneys, eyes, blank = baselines.minilm(notes, texts, VALUES.minilm)
    assert max(kidneys, key=kidneys.__getitem__) == "N19"  # unspecified kidney failure
    assert max(eyes, key=eyes.__getitem__).startswith("H54")  # blindness
    assert blank == {}


@pytest.mark.skipif("CLH_TEST_DATA" not in os.environ, reason="CLH_TEST_DATA names no folder")
def test_the_book_beats_chance_on_real_notes(tmp_path: Path) -> None:
    root = Path(os.environ["CLH_TEST_DATA"])
    index = root / "icd10cm" / "icd10cm-index-2025-rebuilt.xml"
    corpus = root / "codiesp"
    if not (corpus.is_dir() and index.is_file()):
        pytest.skip("CLH_TEST_DATA holds no CodiEsp, or no index")
    given = ["--dataset", "codiesp", "--data-dir", corpus, "--split", "dev", "--output", tmp_path]
    ended = run(*given, "--only", "random", "keyword", "index", "--index", index, "--limit", 40)
    assert ended.returncode == 0, ended.stderr
    scores = json.loads((tmp_path / "metrics.json").read_text())["baselines"]
    assert min(scores["keyword"]["micro_f1"], scores["index"]["micro_f1"]) > 0.25
    assert scores["random"]["micro_f1"] < 0.1
