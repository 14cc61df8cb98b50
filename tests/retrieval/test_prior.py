"""The prior: codes that a corpus uses come up, and it changes nothing else."""

import json
from pathlib import Path

import pytest

from agents.analyze.retrieval import RetrievalAnalyzer
from agents.pipeline import Pipeline
from clh.errors import ModelError
from clh.retrieval.precedents import Precedents
from clh.retrieval.prior import PRECEDENTS, PRIOR, Prior, Weights
from clh.schema import Note, Term
from tests.conftest import MakePipeline

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
    make_toy: MakePipeline, tmp_path: Path
) -> None:
    toy = make_toy(locate={"candidates": 3})
    prior = Prior.load(write(tmp_path), toy.index, toy.system)
    [without] = toy.retriever.search(["pain in knee"])
    [found] = toy.rebuild(toy.settings, prior).retriever.search(["pain in knee"])

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


def test_codes_are_as_the_corpus_writes_them(make_toy: MakePipeline, tmp_path: Path) -> None:
    toy = make_toy(locate={"candidates": 5})
    prior = Prior.load(write(tmp_path), toy.index, toy.system)
    [found] = toy.rebuild(toy.settings, prior).retriever.search(["cough"])
    written = next(one for one in found if one.code == "R05")
    reported = next(one for one in found if one.code == "R05.9")
    assert written.matched == reported.matched
    assert written.similarity == pytest.approx(reported.similarity)
    assert written.prior_score > reported.prior_score == 0
    assert [prior.gain(code, 0) for code in ("Q99.9", "E11.65", "J18.9")] == [0, 0, 0]


def test_codes_that_annotators_gave_to_the_same_words_rank_higher(
    make_toy: MakePipeline, tmp_path: Path
) -> None:
    toy = make_toy(locate={"candidates": 5})
    with_prior = toy.rebuild(toy.settings, Prior.load(write(tmp_path), toy.index, toy.system))
    [other] = with_prior.retriever.search(["pain in knee"])
    assert {one.precedent for one in other} == {0}
    [found] = with_prior.retriever.search(["sore left kneecaps"])
    precedents = {one.code: one.precedent for one in found}
    assert precedents["I10"] == pytest.approx(1, abs=1e-3)
    assert precedents["R05"] == pytest.approx(0.5, abs=1e-3)
    by_code = {one.code: one for one in found}
    assert by_code["I10"].prior_score == pytest.approx(0.5 * 4.605 + 2, abs=0.01)
    assert found[0].code == "I10"


def extract(pipeline: Pipeline, note: Note) -> list[Term]:
    assert isinstance(pipeline.analyzer, RetrievalAnalyzer)
    return pipeline.analyzer.extract(note)


def test_what_annotators_coded_becomes_a_term(make_toy: MakePipeline, tmp_path: Path) -> None:
    toy = make_toy(analyze={"retrieval": {"min_precedent": 0.6}})
    prior = Prior.load(write(tmp_path), toy.index, toy.system)
    note = Note(id="a", text="He feels sore left ribs. He showed a sore left kneecap.")
    assert "sore left kneecap" not in {term.quote.text for term in extract(toy, note)}
    found = {term.quote.text for term in extract(toy.rebuild(toy.settings, prior), note)}
    assert "sore left kneecap" in found
    assert not any("ribs" in quote for quote in found)


def test_a_prior_of_no_codes_changes_nothing(make_toy: MakePipeline, tmp_path: Path) -> None:
    toy = make_toy()
    empty = Prior("empty", Weights(1, 1), {}, count([]), toy.index, toy.system)
    assert toy.rebuild(toy.settings, empty).retriever.search(
        ["cough", "gout"]
    ) == toy.retriever.search(["cough", "gout"])


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
    make_toy: MakePipeline, tmp_path: Path, file: str, content: str
) -> None:
    write(tmp_path)
    (tmp_path / file).write_text(content)
    toy = make_toy()
    with pytest.raises(ModelError, match=r"prior .* cannot be read: set locate\.prior"):
        Prior.load(str(tmp_path), toy.index, toy.system)
