"""The script that trains the patient tower, from the outside."""

import json
import os
import random
import runpy
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from clh.training.patients.tower import PatientTower
from tests.fakes import ToyTower

ROOT = Path(__file__).parents[2]
FILES = ("icd", "patients", "labels", "splits")
TITLES = {"E11.9": "Type 2 diabetes", "I10": "Hypertension", "J18.9": "Pneumonia", "R05.9": "Cough"}

Run = Callable[..., int]


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    """Runs a script of the repository, its towers fakes, and gives its exit code."""
    monkeypatch.setattr("clh.models.embedder.load_embedder", lambda name, settings: ToyTower())

    def script(name: str, *flags: object) -> int:
        monkeypatch.setattr(sys, "argv", [name, *map(str, flags)])
        with pytest.raises(SystemExit) as ended:
            runpy.run_path(str(ROOT / name), run_name="__main__")
        assert isinstance(ended.value.code, int)
        return ended.value.code

    return script


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """Diabetes shows in glucose; what else there is, the notes say, of which some are missing."""
    draw = random.Random(0)
    rows: dict[str, list[str]] = {
        "icd": ["code,title", *(f"{code},{title}" for code, title in TITLES.items())],
        "patients": ["encounter_id,age,sex,lab_glucose,note_text"],
        "labels": ["encounter_id,code"],
        "splits": ["encounter_id,split"],
    }
    for number in range(60):
        other = draw.choice(["I10", "J18.9", "R05.9"])
        diabetes = draw.random() < 0.5
        glucose = f"{draw.gauss(15 if diabetes else 5, 1):.1f}" if draw.random() < 0.8 else ""
        note = f"{TITLES[other]}. No fever." if draw.random() < 0.8 or not glucose else ""
        rows["patients"].append(f"{number},{'' if number % 7 else 50},,{glucose},{note}")
        rows["labels"] += [f"{number},{code}" for code in [other, *["E11.9"] * diabetes]]
        rows["splits"].append(f"{number},{('train', 'train', 'val', 'test')[number % 4]}")
    for name, lines in rows.items():
        (tmp_path / f"{name}.csv").write_text("\n".join(lines) + "\n")
    return tmp_path


def flags(data: Path, output: Path) -> list[object]:
    given = [flag for name in FILES for flag in (f"--{name}_csv", data / f"{name}.csv")]
    return [*given, "--output", output]


def test_it_writes_the_tower_and_its_scores(
    run: Run, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    assert run("experiments/train_patients.py", *flags(data, out)) == 0
    assert sorted(file.name for file in out.iterdir()) == [
        "config.json",
        "log.jsonl",
        "metrics.json",
        "tower",
    ]
    scores = json.loads((out / "metrics.json").read_text())
    assert scores["codes"] == 4
    for split in ("val", "test"):
        assert scores[split]["encounters"] == 15
        for name in ("frequency", "tower", "both"):
            low, high = scores[split][name]["ci95"]["micro_f1"]
            assert low <= scores[split][name]["micro_f1"] <= high
    assert scores["test"]["tower"]["map"] > scores["test"]["frequency"]["map"]
    assert scores["test"]["frequency"]["roc_auc_macro"] == 0.5
    log = [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]
    assert [one["epoch"] for one in log] == list(range(31))
    config = json.loads((out / "config.json").read_text())
    assert config["features"] == ["age", "lab_glucose"]
    tower = PatientTower.load(out / "tower")
    text = torch.eye(1, ToyTower.dimensions)
    assert torch.equal(tower(text, torch.full((1, 2), torch.nan).double()), text)
    assert f"{scores['test']['tower']['micro_f1']:.3f}" in capsys.readouterr().out


def test_the_same_command_gives_the_same_files(run: Run, data: Path, tmp_path: Path) -> None:
    for name in ("one", "other"):
        assert run("experiments/train_patients.py", *flags(data, tmp_path / name)) == 0
    for file in ("tower/patient.safetensors", "tower/scaler.json", "metrics.json", "log.jsonl"):
        assert (tmp_path / "one" / file).read_bytes() == (tmp_path / "other" / file).read_bytes()


@pytest.mark.parametrize("problem", ["a bad line", "a result in its place"])
def test_bad_input_is_one_line_and_writes_nothing(
    run: Run, data: Path, tmp_path: Path, problem: str, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    if problem == "a bad line":
        with (data / "labels.csv").open("a") as stream:
            stream.write("3,Z99\n")
    else:
        out.mkdir()
    before = sorted(tmp_path.rglob("*"))
    assert run("experiments/train_patients.py", *flags(data, out)) == 2
    assert sorted(tmp_path.rglob("*")) == before
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert "labels.csv, line" in error or "choose another --output" in error


@pytest.mark.skipif("CLH_TEST_DATA" not in os.environ, reason="CLH_TEST_DATA names no folder")
def test_the_demo_of_mimic_iv(run: Run, tmp_path: Path) -> None:
    demo = Path(os.environ["CLH_TEST_DATA"]) / "mimic-iv-demo"
    if not demo.is_dir():
        pytest.skip("CLH_TEST_DATA holds no demo of MIMIC-IV")
    events = sorted((demo / "hosp").glob("labevents*"))[0]
    made = ["--tables", demo, "--labevents", events, "--to", tmp_path]
    assert run("data/prepare_patients.py", *made) == 0
    assert run("experiments/train_patients.py", *flags(tmp_path, tmp_path / "out")) == 0
    scores = json.loads((tmp_path / "out" / "metrics.json").read_text())
    assert scores["codes"] == 734
    assert scores["val"]["encounters"] + scores["test"]["encounters"] == 46
    assert scores["val"]["tower"]["roc_auc_macro"] > scores["val"]["frequency"]["roc_auc_macro"]
