"""The prior: codes that a corpus uses come up, and it changes nothing else."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from agents.locate import search
from clh.errors import ModelError
from clh.retrieval.prior import Prior
from tests.conftest import MakeContext

COUNTS = {"I10": 99, "R05": 20, "E11.65": 0, "Q99.9": 50}  # R05 is not billable, Q99.9 retired


def write(folder: Path, weight: float = 0.5) -> str:
    (folder / "prior.json").write_text(json.dumps({"weight": weight, "notes": COUNTS}))
    return str(folder)


def test_frequent_codes_are_found_however_far_they_lie(
    context: MakeContext, tmp_path: Path
) -> None:
    toy = context(locate={"candidates": 3})
    prior = Prior.load(write(tmp_path), toy.index, toy.system)
    [without] = search(["pain in knee"], toy)
    [found] = search(["pain in knee"], replace(toy, prior=prior))

    assert found[0].code == "I10"
    assert found[0].prior == pytest.approx(0.5 * 4.605, abs=0.001)
    assert found[0].score < 0.5
    ranks = [one.rank for one in found]
    assert ranks == sorted(ranks, reverse=True)
    assert len({one.code for one in found}) == len(found)
    # What lies near is still among the candidates, with the same similarity.
    assert {(one.code, one.score) for one in without} <= {(one.code, one.score) for one in found}


def test_codes_are_as_the_corpus_writes_them(context: MakeContext, tmp_path: Path) -> None:
    toy = context(locate={"candidates": 5})
    prior = Prior.load(write(tmp_path), toy.index, toy.system)
    [found] = search(["cough"], replace(toy, prior=prior))
    written = next(one for one in found if one.code == "R05")
    reported = next(one for one in found if one.code == "R05.9")
    assert written.matched == reported.matched
    assert written.score == pytest.approx(reported.score)
    assert written.prior > reported.prior == 0
    assert [prior.gain(code) for code in ("Q99.9", "E11.65", "J18.9")] == [0, 0, 0]


def test_a_prior_of_no_codes_changes_nothing(context: MakeContext, tmp_path: Path) -> None:
    toy = context()
    empty = Prior("empty", 1.0, {}, toy.index, toy.system)
    assert search(["cough", "gout"], replace(toy, prior=empty)) == search(["cough", "gout"], toy)


@pytest.mark.parametrize(
    "content", ["", "[]", '{"weight": 1}', '{"weight": "a", "notes": {"I10": 1}}']
)
def test_a_damaged_prior_is_one_clear_line(
    context: MakeContext, tmp_path: Path, content: str
) -> None:
    (tmp_path / "prior.json").write_text(content)
    toy = context()
    with pytest.raises(ModelError, match=r"prior .* cannot be read: set locate\.prior"):
        Prior.load(str(tmp_path), toy.index, toy.system)
