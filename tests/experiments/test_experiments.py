"""The experiment scripts from the outside: the files they write, a kill, bad input, scores."""

import json
import re
import runpy
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from agents.evaluation import experiment, oracle
from clh.corpora import CORPORA, read
from clh.errors import ServerError
from clh.schema import AGENTS
from tests.conftest import MakePipeline
from tests.corpora.fixtures import FIXTURES
from tests.fakes import QueuedModel, toy_system

SCRIPTS = Path(__file__).parents[2] / "experiments"
AGENT_SCRIPTS = ["1_analyse_agent", "2_locate_agent", "3_verify_agent", "4_assign_agent"]
ROWS = [
    {"id": "a", "text": "Cough and hypertension.", "codes": ["R05.9", "I10"]},
    {"id": "b", "text": "Heart failure. No cough.", "codes": ["i509"]},
    {"id": "c", "text": "Sprain of medial collateral ligament of right knee.", "codes": []},
    {"id": "d", "text": "Chest pain <b>&", "codes": ["R07.9", "R07.9"]},
]

Script = Callable[..., int]


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch, make_toy: MakePipeline) -> Script:
    """Runs a script in this process, its agents on fakes, and gives its exit code."""
    monkeypatch.setattr(experiment, "load_tabular", toy_system)
    monkeypatch.setattr(experiment, "_load", lambda settings: make_toy(policy=settings.policy))

    def run(name: str, *flags: object) -> int:
        monkeypatch.setattr(sys, "argv", [name, *map(str, flags)])
        with pytest.raises(SystemExit) as ended:
            runpy.run_path(str(SCRIPTS / f"{name}.py"), run_name="__main__")
        assert isinstance(ended.value.code, int)
        return ended.value.code

    return run


@pytest.fixture
def data(tmp_path: Path) -> Path:
    folder = tmp_path / "data"
    folder.mkdir()
    write(folder / "dev.jsonl", ROWS)
    return folder


def write(file: Path, rows: list[dict[str, Any]]) -> None:
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))


def flags(data: Path, output: Path, *more: object) -> list[object]:
    given = ["--dataset", "jsonl", "--data-dir", data, "--split", "dev", "--output", output]
    return [*given, *more]


def lines(file: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in file.read_text().splitlines()]


def without_clock(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The rows without what differs between two runs of the same: names and seconds."""
    return [
        {name: value for name, value in row.items() if name not in ("run_id", "timings")}
        for row in rows
    ]


def test_the_benchmark_writes_its_files(
    script: Script, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    assert script("benchmark", *flags(data, out)) == 0
    predictions = lines(out / "predictions.jsonl")
    assert [one["note_id"] for one in predictions] == ["a", "b", "c", "d"]
    assert [one["gold"] for one in predictions] == [["R05.9", "I10"], ["I50.9"], [], ["R07.9"]]
    texts = {row["id"]: row["text"] for row in ROWS}
    for one in predictions:
        for span in (span for code in one["codes"] for span in code["evidence"]):
            assert texts[one["note_id"]][span["start"] : span["end"]] == span["text"]

    result = json.loads((out / "metrics.json").read_text())
    assert (result["dataset"], result["split"], result["n_notes"]) == ("jsonl", "dev", 4)
    assert result["code_space"] == len(toy_system())
    assert list(result["stages"]) == list(AGENTS)
    right = predicted = gold = exact = 0
    for one in predictions:
        codes = {code["code"] for code in one["codes"]}
        right += len(codes & set(one["gold"]))
        predicted, gold = predicted + len(codes), gold + len(one["gold"])
        exact += codes == set(one["gold"])
    scores = result["stages"]["assign"]
    assert scores["micro_f1"] == pytest.approx(2 * right / (predicted + gold))
    assert scores["micro_precision"] == pytest.approx(right / predicted)
    assert scores["exact_match"] == exact / 4
    low, high = result["ci95"]["micro_f1"]
    assert low <= scores["micro_f1"] <= high
    assert {"recall@10", "recall@50", "recall@100", "recall@200", "no_prior"} <= set(
        result["stages"]["locate"]
    )
    assert set(result["speed"]) == {"notes_per_hour", "p50_seconds", "p95_seconds"}
    assert result["funnel"]["gold"] == gold
    assert sum(result["misses"].values()) == gold - right
    assert sum(result["extras"].values()) == predicted - right
    assert result["bands"] is None

    config = json.loads((out / "config.json").read_text())
    assert config["config_hash"] == result["config_hash"]
    assert config["settings"]["policy"] == "encounter"
    page = (out / "report.html").read_text()
    assert "&lt;b&gt;&amp;" in page
    assert not re.search(r"""(?:src|href)=["'](?!#)""", page), "the page needs other files"
    said = capsys.readouterr()
    assert "no table by frequency in train" in said.err
    assert f"{scores['micro_f1']:.3f}" in said.out


def test_a_killed_run_goes_on_and_gives_the_same_files(
    script: Script, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    coded: list[str] = []
    original = oracle.run_pipeline

    async def run_pipeline(example: Any, pipeline: Any, git: str) -> Any:
        if example.id == "c" and "c" not in coded:
            coded.append("c")
            raise KeyboardInterrupt
        coded.append(example.id)
        return await original(example, pipeline, git)

    monkeypatch.setattr(oracle, "run_pipeline", run_pipeline)
    with pytest.raises(KeyboardInterrupt):
        script("benchmark", *flags(data, tmp_path / "killed"))
    steps = tmp_path / "killed" / "steps.jsonl"
    steps.write_text(steps.read_text() + '{"note_id": "c", "half a line')
    assert script("benchmark", *flags(data, tmp_path / "killed")) == 0
    assert coded == ["a", "b", "c", "c", "d"]

    assert script("benchmark", *flags(data, tmp_path / "whole")) == 0
    for name in ("steps.jsonl", "predictions.jsonl"):
        killed, unbroken = (lines(tmp_path / run / name) for run in ("killed", "whole"))
        assert without_clock(killed) == without_clock(unbroken)
    killed, unbroken = (
        json.loads((tmp_path / run / "metrics.json").read_text()) for run in ("killed", "whole")
    )
    del killed["speed"], unbroken["speed"]
    assert killed == unbroken


def test_a_finished_run_is_not_run_again(
    script: Script, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    assert script("benchmark", *flags(data, out)) == 0
    before = (out / "predictions.jsonl").read_text()
    (out / "metrics.json").unlink()
    assert script("benchmark", *flags(data, out)) == 0
    assert (out / "predictions.jsonl").read_text() == before
    assert (out / "metrics.json").exists()
    write(data / "dev.jsonl", ROWS[:3])
    assert script("benchmark", *flags(data, out)) == 2
    assert "holds another run (config_hash, data_sha256 differ)" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["benchmark", "4_assign_agent"])
def test_assign_on_predicted_input_is_the_benchmark(
    script: Script, data: Path, tmp_path: Path, name: str
) -> None:
    assert script(name, *flags(data, tmp_path / name, "--policy", "mention")) == 0
    assert script("benchmark", *flags(data, tmp_path / "again", "--policy", "mention")) == 0
    first, second = (
        json.loads((tmp_path / run / "metrics.json").read_text())["stages"]
        for run in (name, "again")
    )
    assert first == second


@pytest.mark.parametrize(
    ("name", "more", "stages"),
    [
        ("1_analyse_agent", [], ["analyze"]),
        ("2_locate_agent", [], ["analyze", "locate"]),
        ("2_locate_agent", ["--queries", "sentences"], ["locate"]),
        ("2_locate_agent", ["--queries", "predicted"], ["analyze", "locate"]),
        ("3_verify_agent", [], ["analyze", "locate", "verify"]),
        ("4_assign_agent", ["--input", "gold"], ["assign"]),
    ],
)
def test_an_agents_script_reports_its_stage(
    script: Script, data: Path, tmp_path: Path, name: str, more: list[str], stages: list[str]
) -> None:
    out = tmp_path / "out"
    assert script(name, *flags(data, out, *more)) == 0
    result = json.loads((out / "metrics.json").read_text())
    assert list(result["stages"]) == stages
    assert len(lines(out / "predictions.jsonl")) == len(lines(out / "steps.jsonl")) == len(ROWS)
    assert (out / "report.html").read_text().startswith("<!doctype html>")


def test_gold_verdicts_give_gold_codes(script: Script, data: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert script("4_assign_agent", *flags(data, out, "--input", "gold")) == 0
    scores = json.loads((out / "metrics.json").read_text())["stages"]["assign"]
    assert (scores["micro_f1"], scores["macro_f1"], scores["exact_match"]) == (1, 1, 1)


@pytest.mark.parametrize("name", ["2_locate_agent", "3_verify_agent"])
def test_gold_mentions_are_asked_for_in_vain_where_there_are_none(
    script: Script, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    flag = "--queries" if name.startswith("2") else "--input"
    assert script(name, *flags(data, tmp_path / "out", flag, "gold")) == 2
    assert "jsonl does not say where in the notes its codes are" in capsys.readouterr().err


def test_a_limit_takes_a_seeded_sample(script: Script, data: Path, tmp_path: Path) -> None:
    def sample(seed: int, run: str) -> list[str]:
        out = tmp_path / f"{run}{seed}"
        assert script("1_analyse_agent", *flags(data, out, "--limit", 2, "--seed", seed)) == 0
        return [one["note_id"] for one in lines(out / "predictions.jsonl")]

    samples = [sample(seed, "out") for seed in range(5)]
    assert sample(0, "again") == samples[0]
    assert {len(one) for one in samples} == {2}
    assert all(one == sorted(one) for one in samples)
    assert len({*map(tuple, samples)}) > 1


@pytest.mark.parametrize("name", ["benchmark", "1_analyse_agent"])
def test_an_encounter_is_scored_whole_or_by_document(
    script: Script, tmp_path: Path, name: str
) -> None:
    dataset = "mdace-inpatient-icd10"
    FIXTURES[dataset](tmp_path)
    examples = list(read(dataset, tmp_path, "train"))
    given = ["--dataset", dataset, "--data-dir", tmp_path, "--split", "train"]

    def gold(unit: str) -> dict[str, list[str]]:
        assert script(name, *given, "--output", tmp_path / unit, "--unit", unit) == 0
        found = lines(tmp_path / unit / "predictions.jsonl")
        return {one["note_id"]: one["gold"] for one in found}

    assert gold("encounter") == {one.id: list(one.codes) for one in examples}
    documents = [document for one in examples for document in one.documents()]
    assert len(documents) > len(examples)
    assert gold("document") == {one.id: list(one.codes) for one in documents}


def test_a_train_split_gives_the_table_by_frequency(
    script: Script, data: Path, tmp_path: Path
) -> None:
    write(data / "train.jsonl", [{"id": str(n), "text": "x", "codes": ["I10"]} for n in range(12)])
    assert script("benchmark", *flags(data, tmp_path / "out")) == 0
    bands = json.loads((tmp_path / "out" / "metrics.json").read_text())["bands"]
    assert {band["name"].split()[0]: band["gold"] for band in bands}["head"] == 1


def test_an_agent_that_fails_is_said_and_exits_1(
    script: Script,
    data: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    make_toy: MakePipeline,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(
        experiment,
        "_load",
        lambda settings: make_toy(
            QueuedModel([ServerError("no server answers")] * 4), analyze={"source": "llm"}
        ),
    )
    assert script("benchmark", *flags(data, tmp_path / "out")) == 1
    assert "a: analyze failed: no server answers" in capsys.readouterr().err
    result = json.loads((tmp_path / "out" / "metrics.json").read_text())
    assert (result["failed_notes"], result["n_notes"]) == (4, 4)


def test_a_tracker_gets_the_scores(script: Script, data: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert script("1_analyse_agent", *flags(data, out, "--track", "tensorboard")) == 0
    assert any("tfevents" in file.name for file in out.rglob("*"))


def rows(*changed: dict[str, Any]) -> str:
    return "".join(json.dumps(row) + "\n" for row in (ROWS[0], *changed))


@pytest.mark.parametrize(
    ("given", "content", "said"),
    [
        (["--split", "test"], "", r"test\.jsonl"),
        ([], rows({"id": "b", "note": "x", "codes": []}), r"dev\.jsonl, line 2: .*text"),
        ([], rows({"id": "b", "text": "x"}), r"dev\.jsonl, line 2: .*codes"),
        ([], rows({**ROWS[1], "codes": ["I1O"]}), r"dev\.jsonl, line 2: 'I1O'.*nearest"),
        ([], rows(ROWS[0]), r"dev\.jsonl, line 2: the id 'a' occurs twice, first in line 1"),
        ([], "{\n", r"dev\.jsonl, line 1"),
        ([], "", "no notes"),
        (["--data-dir", "/dev/null/data"], "", "/dev/null/data is not a folder"),
        (["--dataset", "mimic"], "", "there is no dataset 'mimic': choose one of codiesp"),
        (["--dataset", "mimic-iii-50"], "", "are ICD-9-CM, and the agents assign ICD-10-CM"),
        (["--limit", "0"], rows(), "--limit"),
        (["--unit", "document"], rows(), "does not say which document"),
        (["--recipe", "none.yaml"], rows(), r"none\.yaml cannot be read"),
        (["--profile", "none"], rows(), "there is no profile 'none'"),
    ],
)
def test_bad_input_is_one_line_and_nothing_is_written(
    script: Script,
    data: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    given: list[str],
    content: str,
    said: str,
) -> None:
    (data / "dev.jsonl").write_text(content)
    assert script("benchmark", *flags(data, tmp_path / "out", *given)) == 2
    error = capsys.readouterr().err
    assert re.search(said, error), error
    assert error.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_a_truncated_parquet_is_named(
    script: Script, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    file = data / "dev.parquet"
    pq.write_table(pa.Table.from_pylist(ROWS), file)
    given = ["--dataset", "parquet", "--data-dir", data, "--split", "dev"]
    assert script("benchmark", *given, "--output", tmp_path / "whole") == 0
    file.write_bytes(file.read_bytes()[:-20])
    capsys.readouterr()
    assert script("benchmark", *given, "--output", tmp_path / "out") == 2
    error = capsys.readouterr().err
    assert "dev.parquet" in error
    assert error.count("\n") == 1


@pytest.mark.parametrize("track", ["no-such-tracker", "aim"])
def test_a_tracker_that_is_not_there_is_named_before_the_work(
    script: Script, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], track: str
) -> None:
    assert script("benchmark", *flags(data, tmp_path / "out", "--track", track)) == 2
    assert f"--track {track}" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("name", [*AGENT_SCRIPTS, "benchmark", "score", "baselines"])
def test_help_says_the_exact_command(
    script: Script, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    assert script(name, "--help") == 0
    assert f"python experiments/{name}.py" in capsys.readouterr().out


@pytest.fixture
def predictions(tmp_path: Path) -> Path:
    """Gold codes fed in as predictions."""
    file = tmp_path / "gold.jsonl"
    gold = {"a": ["R05.9", "I10"], "b": ["I50.9"], "c": ["S83.411A", "E11.65", "I10"]}
    write(
        file,
        [
            {
                "note_id": note,
                "codes": [{"code": c, "confidence": 0.5} for c in codes],
                "gold": codes,
            }
            for note, codes in gold.items()
        ],
    )
    return file


def test_gold_as_prediction_scores_1_everywhere(
    script: Script, predictions: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert script("score", predictions, "--json") == 0
    [scores] = json.loads(capsys.readouterr().out)["files"]
    del scores["predictions"], scores["n_notes"], scores["code_space"]
    intervals = scores.pop("ci95")
    flat = [*scores.pop("folded").values(), *scores.pop("category").values(), *scores.values()]
    assert set(flat) == {1.0}
    assert all(interval == [1.0, 1.0] for interval in intervals.values())


def test_two_files_are_compared(
    script: Script, predictions: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    worse = predictions.with_name("worse.jsonl")
    notes = lines(predictions)
    notes[0]["codes"] = []
    write(worse, notes)
    assert script("score", predictions, worse, "--json") == 0
    result = json.loads(capsys.readouterr().out)
    difference = next(one for one in result["differences"] if one["metric"] == "micro_f1")
    assert difference["difference"] == pytest.approx(1 - 2 * 4 / (4 + 6))
    assert (result["mcnemar"]["only_a"], result["mcnemar"]["only_b"]) == (2, 0)

    assert script("score", predictions, worse) == 0
    shown = capsys.readouterr().out
    assert "McNemar: only A is right on 2 codes" in shown

    write(worse, notes[1:])
    assert script("score", predictions, worse) == 2
    assert capsys.readouterr().err.count("\n") == 1


def test_every_dataset_is_in_the_readme() -> None:
    readme = (SCRIPTS.parent / "data" / "README.md").read_text()
    assert [name for name in CORPORA if f"`{name}`" not in readme] == []
