"""The prior: codes that a corpus uses come up, and it changes nothing else."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from agents.analyze import extract_by_retrieval
from agents.locate import search
from clh.errors import ModelError
from clh.retrieval.precedents import Precedents
from clh.retrieval.prior import PRECEDENTS, PRIOR, Prior, Weights
from clh.schema import Note
from tests.conftest import MakeContext

COUNTS = {"I10": 99, "R05": 20, "E11.65": 0, "Q99.9": 50}  # R05 is not billable, Q99.9 retired


SEEN = [("a sore left kneecap", ["I10"]), ("kneecap", ["R05"]), ("sore left ribs", [])]


def count(sentences: list[tuple[str, list[str]]]) -> Precedents:
    return Precedents.count(sentences, longest=3, doubt=0, least=0.1)


def write(folder: Path, sentences: list[tuple[str, list[str]]] = SEEN) -> str:
    weights = {"weight": 0.5, "precedent_weight": 2}
    (folder / PRIOR).write_text(json.dumps({**weights, "notes": COUNTS}))
    count(sentences).save(folder / PRECEDENTS)
    return str(folder)


def test_frequent_codes_are_found_however_far_they_lie(
    context: MakeContext, tmp_path: Path
) -> None:
    toy = context(locate={"candidates": 3})
    prior = Prior.load(write(tmp_path), toy.index, toy.system)
    [without] = search(["pain in knee"], toy)
    [found] = search(["pain in knee"], replace(toy, prior=prior))

    assert found[0].code == "I10"
    assert found[0].prior_score == pytest.approx(0.5 * 4.605, abs=0.001)
    assert found[0].similarity < 0.5
    ranks = [one.fused_score for one in found]
    assert ranks == sorted(ranks, reverse=True)
    assert len({one.code for one in found}) == len(found)
    # What lies near is still among the candidates, with the same similarity.
    assert {(one.code, one.similarity) for one in without} <= {
        (one.code, one.similarity) for one in found
    }


def test_codes_are_as_the_corpus_writes_them(context: MakeContext, tmp_path: Path) -> None:
    toy = context(locate={"candidates": 5})
    prior = Prior.load(write(tmp_path), toy.index, toy.system)
    [found] = search(["cough"], replace(toy, prior=prior))
    written = next(one for one in found if one.code == "R05")
    reported = next(one for one in found if one.code == "R05.9")
    assert written.matched == reported.matched
    assert written.similarity == pytest.approx(reported.similarity)
    assert written.prior_score > reported.prior_score == 0
    assert [prior.gain(code, 0) for code in ("Q99.9", "E11.65", "J18.9")] == [0, 0, 0]


def test_codes_that_annotators_gave_to_the_same_words_rank_higher(
    context: MakeContext, tmp_path: Path
) -> None:
    toy = context(locate={"candidates": 5})
    with_prior = replace(toy, prior=Prior.load(write(tmp_path), toy.index, toy.system))
    [other] = search(["pain in knee"], with_prior)
    assert {one.precedent for one in other} == {0}
    [found] = search(["sore left kneecaps"], with_prior)
    precedents = {one.code: one.precedent for one in found}
    assert precedents["I10"] == pytest.approx(1, abs=1e-3)
    assert precedents["R05"] == pytest.approx(0.5, abs=1e-3)
    by_code = {one.code: one for one in found}
    assert by_code["I10"].prior_score == pytest.approx(0.5 * 4.605 + 2, abs=0.01)
    assert found[0].code == "I10"


def test_what_annotators_coded_becomes_a_term(context: MakeContext, tmp_path: Path) -> None:
    toy = context(analyze={"min_precedent": 0.6})
    prior = Prior.load(write(tmp_path), toy.index, toy.system)
    note = Note(id="a", text="He feels sore left ribs. He showed a sore left kneecap.")
    assert "sore left kneecap" not in {term.quote.text for term in extract_by_retrieval(note, toy)}
    found = {term.quote.text for term in extract_by_retrieval(note, replace(toy, prior=prior))}
    assert "sore left kneecap" in found
    assert not any("ribs" in quote for quote in found)


def test_a_prior_of_no_codes_changes_nothing(context: MakeContext, tmp_path: Path) -> None:
    toy = context()
    empty = Prior("empty", Weights(1, 1), {}, count([]), toy.index, toy.system)
    assert search(["cough", "gout"], replace(toy, prior=empty)) == search(["cough", "gout"], toy)


@pytest.mark.parametrize(
    ("file", "content"),
    [
        (PRIOR, ""),
        (PRIOR, "[]"),
        (PRIOR, '{"weight": 1, "precedent_weight": 1}'),
        (PRIOR, '{"weight": "a", "precedent_weight": 1, "notes": {"I10": 1}}'),
        (PRECEDENTS, ""),
    ],
)
def test_a_damaged_prior_is_one_clear_line(
    context: MakeContext, tmp_path: Path, file: str, content: str
) -> None:
    write(tmp_path)
    (tmp_path / file).write_text(content)
    toy = context()
    with pytest.raises(ModelError, match=r"prior .* cannot be read: set locate\.prior"):
        Prior.load(str(tmp_path), toy.index, toy.system)
