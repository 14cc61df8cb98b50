"""Scoring towers and fitting a prior, from the outside: a tiny encoder, the toy code system."""

import json
import runpy
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from clh.evaluation.stages import CUTOFFS
from clh.icd.rules import CodeBook
from clh.training.export import export_onnx
from tests.experiments.test_train_retriever import span
from tests.fakes import tiny_encoder, toy_guidelines, toy_system

SCRIPTS = Path(__file__).parents[2] / "experiments"
TRAIN = [
    ("Cough at night.", {"R05": "Cough"}),
    ("Cough. Chest pain.", {"R05": "Cough", "R07.9": "Chest pain"}),
    ("Heart failure.", {"I50.9": "Heart failure"}),
    ("A cough.", {"R05": "cough"}),
]
DEV = [
    ("Cough. Pain in throat.", {"R05": "Cough", "R07.0": "Pain in throat"}),
    ("Nothing new.", {}),
]

Run = Callable[..., int]


@pytest.fixture(scope="module")
def tower(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny encoder as CLH runs it."""
    folder = tiny_encoder(tmp_path_factory.mktemp("towers") / "tower")
    export_onnx(folder)
    return folder


@pytest.fixture
def run(tower: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    """Runs a script in this process, on the toy code system, and gives its exit code."""
    monkeypatch.setattr("clh.icd.tabular.load_tabular", toy_system)
    for module in ("agents.pipeline", "agents.evaluation.experiment"):
        monkeypatch.setattr(f"{module}.load_tabular", toy_system)
    book = CodeBook(toy_system(), toy_guidelines())
    monkeypatch.setattr("agents.pipeline.load_code_book", lambda edits: book)
    monkeypatch.setenv("CLH_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setenv("CLH_DATA_DIR", str(tmp_path / "data"))
    monkeypatch.setenv("CLH_TOWERS__QUERY", str(tower))
    monkeypatch.setenv("CLH_TOWERS__CODE", str(tower))
    for split, rows in (("train", TRAIN), ("dev", DEV)):
        write(tmp_path / f"{split}.jsonl", rows)

    def script(name: str, *flags: object) -> int:
        given = ["--dataset", "jsonl", "--data-dir", tmp_path, *flags]
        monkeypatch.setattr(sys, "argv", [name, *map(str, given)])
        with pytest.raises(SystemExit) as ended:
            runpy.run_path(str(SCRIPTS / f"{name}.py"), run_name="__main__")
        assert isinstance(ended.value.code, int)
        return ended.value.code

    return script


def write(file: Path, rows: list[tuple[str, dict[str, str]]]) -> None:
    with file.open("w") as stream:
        for number, (text, marks) in enumerate(rows):
            evidence = [
                {"code": code, "note_id": str(number), "spans": [span(text, quote)]}
                for code, quote in marks.items()
            ]
            row = {"id": str(number), "text": text, "codes": [*marks], "evidence": evidence}
            stream.write(json.dumps(row) + "\n")


def test_towers_are_scored_by_view_and_prefix(run: Run, tower: Path, tmp_path: Path) -> None:
    recipe = {"prefixes": [8, 64], "words": [0, 1], "kept": 200, "bootstrap": 20}
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    out = tmp_path / "out"
    flags = ("--split", "dev", "--recipe", tmp_path / "recipe.yaml", "--output", out)
    assert run("eval_retriever", *flags, "--towers", tower) == 0

    report = json.loads((out / "metrics.json").read_text())
    rows = {(row["dimensions"], row["words"], row["view"]): row for row in report["scores"]}
    views = ("sentences", "notes", "unseen")
    searches = ((8, 0), (32, 0), (32, 1))
    assert set(rows) == {(*search, view) for search in searches for view in views}
    for row in rows.values():
        for k in CUTOFFS:
            score, low, high = row[f"recall@{k}"]
            assert 0 <= low <= score <= high <= 1
    # All codes of the toy system are within 200. R05 is reported as R05.9, which is not what the
    # corpus writes; R07.0, which train lacks, is.
    assert rows[32, 0, "sentences"]["recall@200"][0] == 1
    assert rows[32, 0, "notes"]["recall@200"][0] == 0.5
    assert rows[32, 0, "unseen"]["recall@200"][0] == 1
    said = rows[32, 1, "sentences"]["recall@10"][0]
    assert said >= rows[32, 0, "sentences"]["recall@10"][0]
    assert (out / "table.md").read_text().count("\n") == 2 + len(rows)


def test_a_fitted_prior_finds_codes_as_the_corpus_writes_them(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = {"split": "train", "held_out": 0.25, "seed": 0, "candidates": 5}
    recipe |= {"words": [0, 0.3], "notes": [0, 0.5], "precedents": [0, 0.5]}
    recipe |= {"profile": "cpu", "length": [0, 0.1], "longest": 3, "doubt": 1, "least": 0.1}
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    prior = tmp_path / "prior"
    assert run("fit_locate", "--recipe", tmp_path / "recipe.yaml", "--output", prior) == 0
    fitted = json.loads((prior / "prior.json").read_text())
    assert fitted["notes"] == {"I50.9": 1, "R05": 3, "R07.9": 1}
    assert json.loads((prior / "metrics.json").read_text())["held_out"] == 1

    located = {}
    flags = ("--split", "dev", "--queries", "sentences")
    for name, given in (("with", str(prior)), ("without", "")):
        out = tmp_path / name
        monkeypatch.setenv("CLH_LOCATE__PRIOR", given)
        assert run("2_locate_agent", *flags, "--output", out) == 0
        located[name] = json.loads((out / "metrics.json").read_text())["stages"]["locate"]
    assert located["with"]["recall@200"] == 1
    assert located["without"]["recall@200"] == 0.5
    # What is found without a prior is the same, whether there is one or not.
    assert located["with"]["no_prior"] == located["without"]["no_prior"]
    assert located["without"]["no_prior"]["recall@200"] == 0.5


def test_a_fitted_decision_is_of_documents_that_the_prior_had_not_seen(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = {"split": "train", "held_out": 0.25, "seed": 0, "candidates": 5}
    recipe |= {"words": [0.2], "notes": [0.5], "precedents": [0.5]}
    recipe |= {"profile": "cpu", "length": [0, 0.1], "longest": 3, "doubt": 1, "least": 0.1}
    (tmp_path / "locate.yaml").write_text(yaml.safe_dump(recipe))
    prior, out = tmp_path / "prior", tmp_path / "assign"
    assert run("fit_locate", "--recipe", tmp_path / "locate.yaml", "--output", prior) == 0
    monkeypatch.setenv("CLH_LOCATE__PRIOR", str(prior))

    recipe = {"profile": "cpu", "held_out": 0.75, "folds": 3, "regularisation": 1, "seed": 0}
    (tmp_path / "assign.yaml").write_text(yaml.safe_dump(recipe))
    assert run("fit_assigner", "--recipe", tmp_path / "assign.yaml", "--output", out) == 0
    report = json.loads((out / "metrics.json").read_text())
    assert 0 <= report["threshold"] <= 1
    assert 0 < report["roc_auc"] <= 1
    assert report["notes"] == 3
    thresholds = [one["threshold"] for one in report["precision_recall"]]
    assert thresholds == sorted(thresholds)

    coded = {}
    for name, weights in (("without", ""), ("with", str(out))):
        monkeypatch.setenv("CLH_ASSIGN__WEIGHTS", weights)
        monkeypatch.setenv("CLH_ASSIGN__THRESHOLD", "0")
        run_out = tmp_path / name
        assert run("benchmark", "--split", "dev", "--output", run_out) == 0
        coded[name] = json.loads((run_out / "metrics.json").read_text())["stages"]["assign"]
    # At no threshold all that is located is assigned, not each term's best alone.
    assert coded["with"]["codes_per_note"] > coded["without"]["codes_per_note"]


@pytest.mark.parametrize(
    ("profile", "folds", "says"),
    [("cpu", 3, "names no prior"), ("codiesp", 2, "too few documents for 2 folds")],
)
def test_a_decision_that_cannot_be_fitted(
    run: Run,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    profile: str,
    folds: int,
    says: str,
) -> None:
    recipe = {"profile": profile, "held_out": 0.25, "folds": folds, "regularisation": 1, "seed": 0}
    (tmp_path / "assign.yaml").write_text(yaml.safe_dump(recipe))
    out = tmp_path / "out"
    assert run("fit_assigner", "--recipe", tmp_path / "assign.yaml", "--output", out) == 2
    assert says in capsys.readouterr().err
    assert not out.exists()


def test_a_trained_cross_encoder_changes_what_verify_says(
    run: Run, tower: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = yaml.safe_load((SCRIPTS / "recipes" / "train_verifier.yaml").read_text())
    recipe |= {"base": str(tower), "profile": "cpu", "held_out": 0.5, "folds": 2}
    recipe |= {"negatives": 2, "epochs": 2, "batch": 2, "learning_rate": 1.0e-2, "warmup": 0}
    (tmp_path / "verifier.yaml").write_text(yaml.safe_dump(recipe))
    flags = ("--recipe", tmp_path / "verifier.yaml", "--output", tmp_path / "out")
    assert run("train_verifier", *flags) == 0
    log = [json.loads(line) for line in (tmp_path / "out" / "log.jsonl").read_text().splitlines()]
    assert [one["epoch"] for one in log] == [0, 1, 2]
    assert log[2]["loss"] < log[1]["loss"]
    best = tmp_path / "out" / "best"
    report = json.loads((best / "metrics.json").read_text())
    assert report["reranked"]["encoder"]["score"] > log[0]["score"]

    again = tmp_path / "again"
    assert run("train_verifier", *flags[:-1], again, "--encoder", str(best)) == 0
    weighed = [json.loads((one / "model.json").read_text()) for one in (best, again / "best")]
    assert weighed[0] == weighed[1]
    assert not (again / "train.jsonl").exists()

    said = {}
    monkeypatch.setenv("CLH_VERIFY__RERANKING__MODEL", str(best))
    for source in ("retrieval", "reranking"):
        monkeypatch.setenv("CLH_VERIFY__SOURCE", source)
        assert run("benchmark", "--split", "dev", "--output", tmp_path / source) == 0
        steps = (tmp_path / source / "steps.jsonl").read_text().splitlines()
        said[source] = json.loads(steps[0])["verified"]
    assert said["reranking"].keys() == said["retrieval"].keys()
    assert said["reranking"] != said["retrieval"]
