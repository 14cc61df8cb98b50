"""The search benchmark from the outside: its figures, and bad input."""

import json
import re
import runpy
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from clh.retrieval.lexical import searchable
from tests.fakes import ToyTower, toy_system

SCRIPT = Path(__file__).parents[2] / "experiments" / "bench_search.py"
SIZES = [20, 200]
TEXTS = len(searchable(toy_system()))

Script = Callable[..., int]


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Script:
    """Runs the script in this process, on fakes and at small sizes, and gives its exit code."""
    recipe = yaml.safe_load((SCRIPT.parent / "recipes" / "bench_search.yaml").read_text())
    small = tmp_path / "small.yaml"
    small.write_text(yaml.safe_dump({**recipe, "k": 3, "sizes": SIZES}))
    monkeypatch.setenv("CLH_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setattr("clh.icd.tabular.load_tabular", toy_system)
    for module in ("clh.retrieval.index", "clh.models.embedder"):
        monkeypatch.setattr(f"{module}.load_embedder", lambda name, settings: ToyTower())

    def run(*flags: object) -> int:
        given = ["--output", tmp_path / "out", "--recipe", small, *flags]
        monkeypatch.setattr(sys, "argv", ["bench_search", *map(str, given)])
        with pytest.raises(SystemExit) as ended:
            runpy.run_path(str(SCRIPT), run_name="__main__")
        assert isinstance(ended.value.code, int)
        return ended.value.code

    return run


def report(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / "out" / "metrics.json").read_text())
    return found


def test_it_times_the_release_and_each_size(
    script: Script, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert script() == 0

    result = report(tmp_path)
    assert result["queries"] == result["recipe"]["queries"]
    rows = result["searches_ms"]
    assert [row["vectors"] for row in rows] == [TEXTS, *SIZES]
    assert [row["made_up"] for row in rows] == [0, 0, 200 - TEXTS]
    for row in rows:
        exact, coarse = row["exact"], row["coarse_to_fine"]
        assert 0 < coarse["median"] <= coarse["p95"]
        assert row["speed_up"] == pytest.approx(exact["median"] / coarse["median"])
        assert row["found"] == 1  # as all is on the shortlist
        assert row["found_ci95"] == [1, 1]
    assert f"{TEXTS} " in capsys.readouterr().out
    assert "coarse to fine" in (tmp_path / "out" / "plot.svg").read_text()


def test_what_a_short_shortlist_misses_is_counted(
    script: Script, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CLH_LOCATE__COARSE_DIM", "8")
    monkeypatch.setenv("CLH_LOCATE__SHORTLIST", "3")
    assert script() == 0

    for row in report(tmp_path)["searches_ms"]:
        low, high = row["found_ci95"]
        assert 0 < low < row["found"] < high < 1


def test_a_file_gives_the_queries(script: Script, tmp_path: Path) -> None:
    queries = tmp_path / "queries.txt"
    queries.write_text("knee pain\n\ncough\nknee pain\n")
    assert script("--queries", queries) == 0
    assert report(tmp_path)["queries"] == 2


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (None, r"queries\.txt cannot be read"),
        (b"caf\xe9", r"queries\.txt cannot be read"),
        (b"\n \n", r"queries\.txt holds no query: give one a line"),
    ],
)
def test_bad_queries_are_one_line_and_nothing_is_written(
    script: Script,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    content: bytes | None,
    said: str,
) -> None:
    queries = tmp_path / "queries.txt"
    if content is not None:
        queries.write_bytes(content)
    assert script("--queries", queries) == 2
    error = capsys.readouterr().err
    assert re.search(said, error), error
    assert error.count("\n") == 1
    assert not (tmp_path / "out").exists()
