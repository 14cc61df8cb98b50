"""Training the towers from the outside: what is written, a kill, bad input, two processes."""

import json
import os
import re
import runpy
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from accelerate.state import AcceleratorState
from transformers import Trainer

from tests.fakes import tiny_encoder, toy_system

SCRIPT = Path(__file__).parents[2] / "experiments" / "train_retriever.py"
RECIPE = SCRIPT.parent / "recipes" / "train_retriever.yaml"
TEXTS = [
    ("Cough at night. He went home.", {"R05.9": "Cough"}),
    ("Pain in right knee. Walks well.", {"M25.561": "Pain in right knee"}),
    ("Heart failure. Alert.", {"I50.9": "Heart failure"}),
    ("Chest pain and cough. Alert.", {"R07.9": "Chest pain", "R05.9": "cough"}),
]
INDEX = """<ICD10CM.index><letter><title>C</title>
<mainTerm><title>Cough</title><code>R05.9</code></mainTerm>
<mainTerm><title>Pain</title>
<term level="1"><title>knee</title><code>M25.569</code></term></mainTerm>
</letter></ICD10CM.index>"""

Run = Callable[..., int]


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch) -> Run:
    """Runs the script in this process, on the toy code system, and gives its exit code."""
    monkeypatch.setattr("clh.icd.tabular.load_tabular", toy_system)
    AcceleratorState._reset_state(reset_partial_state=True)

    def script(flags: list[str], *more: str) -> int:
        monkeypatch.setattr(sys, "argv", [SCRIPT.name, *flags, *more])
        with pytest.raises(SystemExit) as ended:
            runpy.run_path(str(SCRIPT), run_name="__main__")
        assert isinstance(ended.value.code, int)
        return ended.value.code

    return script


@pytest.fixture
def flags(tmp_path: Path) -> list[str]:
    """A corpus, an index, a tiny base and a recipe that is through in seconds."""
    rows = []
    for number, (text, marks) in enumerate(TEXTS):
        evidence = [
            {"code": code, "note_id": str(number), "spans": [span(text, quote)]}
            for code, quote in marks.items()
        ]
        rows.append({"id": str(number), "text": text, "codes": [*marks], "evidence": evidence})
    (tmp_path / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "index.xml").write_text(INDEX)
    recipe = yaml.safe_load(RECIPE.read_text()) | {
        "base": str(tiny_encoder(tmp_path / "base")),
        "dimensions": 64,
        "prefixes": {16: 1, 64: 2},
        "held_out": 0.25,
        "epochs": 2,
        "steps": 4,
        "marked": 2,
        "unmarked": 1,
        "terms": 2,
        "warmup": 2,
        "learning_rate": 0.01,
        "dropout": 0.1,
    }
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    given = ("--dataset", "jsonl", "--data-dir", tmp_path, "--index", tmp_path / "index.xml")
    return [*map(str, given), "--recipe", str(tmp_path / "recipe.yaml")]


def span(text: str, quote: str) -> dict[str, Any]:
    start = text.index(quote)
    return {"start": start, "end": start + len(quote), "text": quote}


def log(folder: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]


def without_clock(rows: list[dict[str, float]]) -> list[dict[str, float]]:
    return [{name: one for name, one in row.items() if name != "seconds"} for row in rows]


def weights(folder: Path) -> dict[str, bytes]:
    best = folder / "best"
    return {str(file.relative_to(best)): file.read_bytes() for file in best.rglob("*.safetensors")}


def test_a_run_writes_towers_a_log_and_a_plot(run: Run, flags: list[str], tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert run(flags, "--output", str(out)) == 0
    rows = log(out)
    assert [row["epoch"] for row in rows] == [0, 1, 2]
    assert rows[2]["loss"] < rows[1]["loss"]
    assert all(0 <= row["recall@50"] <= 1 for row in rows)
    assert "<svg" in (out / "plot.svg").read_text()
    assert (out / "best" / "model.onnx").exists()
    assert set(weights(out)) == {"model.safetensors", "2_Dense/model.safetensors"}
    assert json.loads((out / "config.json").read_text())["held_out"] == 1
    assert not [file for file in (out / "best").rglob("*") if file.suffix in (".bin", ".pt")]


def test_nothing_of_a_note_is_written(run: Run, flags: list[str], tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert run(flags, "--output", str(out)) == 0
    for file in out.rglob("*"):
        if file.is_file():
            content = file.read_bytes().decode("latin-1").lower()
            for sentence in ("walks well", "he went home", "cough at night"):
                assert sentence not in content, file


def test_a_killed_run_ends_as_if_it_had_never_stopped(
    run: Run, flags: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    assert run(flags, "--output", str(whole)) == 0

    steps = iter(range(1000))

    def until_the_sixth(self: Any, *given: Any, **more: Any) -> Any:
        if next(steps) == 5:
            raise KeyboardInterrupt
        return training_step(self, *given, **more)

    training_step = Trainer.training_step
    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "training_step", until_the_sixth)
        with pytest.raises(KeyboardInterrupt):
            run(flags, "--output", str(killed))
    assert [row["epoch"] for row in log(killed)] == [0, 1]

    assert run(flags, "--output", str(killed)) == 0
    assert without_clock(log(killed)) == without_clock(log(whole))
    assert weights(killed) == weights(whole)


def test_cached_gradients_lead_to_the_same_towers(
    run: Run, flags: list[str], tmp_path: Path
) -> None:
    losses = []
    for cached in ("false", "true"):
        changed = ["--cache_gradients", cached, "--mini_batch", "2", "--dropout", "0"]
        assert run(flags, "--output", str(tmp_path / cached), *changed) == 0
        losses.append([row["loss"] for row in log(tmp_path / cached)[1:]])
    assert losses[0] == pytest.approx(losses[1], rel=0.02)  # bfloat16 rounds otherwise


def test_a_value_of_the_recipe_is_given_as_a_flag(
    run: Run, flags: list[str], tmp_path: Path
) -> None:
    out = tmp_path / "out"
    changed = ["--set", "epochs=1", "--learning_rate", "1e-3", "--set", "prefixes.16=3"]
    assert run(flags, "--output", str(out), *changed) == 0
    assert [row["epoch"] for row in log(out)] == [0, 1]
    recipe = json.loads((out / "config.json").read_text())["recipe"]
    assert (recipe["learning_rate"], recipe["prefixes"]) == (1e-3, {"16": 3, "64": 2})


@pytest.mark.parametrize(
    ("break_it", "message"),
    [
        (lambda folder: (folder / "train.jsonl").unlink(), "there is no .*train.jsonl"),
        (lambda folder: (folder / "index.xml").write_text("<a/>"), "is not the Alphabetic Index"),
        (lambda folder: (folder / "recipe.yaml").write_text("base: x"), "recipe.yaml, dimensions"),
        (
            lambda folder: (folder / "train.jsonl").write_text(
                json.dumps({"id": "a", "text": "Cough.", "codes": ["R05.9"]}) + "\n"
            ),
            "a has codes without evidence",
        ),
    ],
)
def test_bad_input_is_one_line_and_nothing_written(
    run: Run,
    flags: list[str],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    break_it: Callable[[Path], object],
    message: str,
) -> None:
    break_it(tmp_path)
    assert run(flags, "--output", str(tmp_path / "out")) == 2
    error = capsys.readouterr().err
    assert re.search(message, error)
    assert error.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_another_recipe_does_not_go_on_in_the_folder_of_the_first(
    run: Run, flags: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = str(tmp_path / "out")
    assert run(flags, "--output", out) == 0
    recipe = yaml.safe_load((tmp_path / "recipe.yaml").read_text())
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(recipe | {"seed": 1}))
    assert run(flags, "--output", out) == 2
    assert "holds another run (recipe differ)" in capsys.readouterr().err


def test_two_processes_train_together(flags: list[str], tmp_path: Path) -> None:
    out = tmp_path / "out"
    launch = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "2"]
    command = [*launch, str(SCRIPT), *flags, "--output", str(out)]
    alone = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=alone)
    assert done.returncode == 0, done.stderr[-2000:]
    assert json.loads((out / "config.json").read_text())["processes"] == 2
    rows = log(out)
    assert [row["epoch"] for row in rows] == [0, 1, 2]
