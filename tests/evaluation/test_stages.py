"""What each stage kept of the gold codes, and why the others were lost."""

import json
from pathlib import Path
from typing import Any

import pytest

from clh.corpora.example import Evidence, Example
from clh.errors import InputError
from clh.evaluation.stages import (
    CodedExample,
    Outcome,
    Steps,
    TermPlace,
    analyze_scores,
    assign_scores,
    count_funnel,
    find_false_negatives,
    find_false_positives,
    locate_scores,
    read_predictions,
    verify_scores,
)
from clh.icd.tabular import CodeSystem
from clh.schema import AssignedCode, Note, Span
from tests.fakes import toy_system

THRESHOLD = 0.4
NOTE = Note(id="n", text="Cough and hypertension. Knee sprain, heart failure.")


@pytest.fixture(scope="module")
def system() -> CodeSystem:
    return toy_system()


def span(quote: str) -> Span:
    start = NOTE.text.index(quote)
    return NOTE.span(start, start + len(quote))


def outcome(
    gold: dict[str, str],
    quotes: tuple[str, ...] = (),
    located: tuple[str, ...] = (),
    verified: dict[str, float] | None = None,
    assigned: dict[str, float] | None = None,
    decided: dict[str, float] | None = None,
) -> Outcome:
    """`gold` gives each code its quote, "" where the corpus does not say where it is."""
    example = Example(
        id="n",
        notes=(NOTE,),
        codes=tuple(gold),
        evidence=tuple(
            Evidence(code=code, note_id="n", spans=(span(quote),))
            for code, quote in gold.items()
            if quote
        ),
        split="dev",
    )
    steps = Steps(
        note_id="n",
        run_id="r",
        note_sha256=NOTE.sha256,
        git="",
        terms=tuple(
            TermPlace(
                start=span(quote).start, end=span(quote).end, status="affirmed", is_sentence=False
            )
            for quote in quotes
        ),
        retrieved={code: 1 - rank / 10 for rank, code in enumerate(located)},
        retrieved_without_prior={code: 1 - rank / 10 for rank, code in enumerate(located)},
        verified=verified or {},
        code_probabilities=decided or {},
    )
    coded = CodedExample(
        note_id="n",
        run_id="r",
        icd_release="toy",
        policy="mention",
        models={},
        timings={},
        gold=tuple(gold),
        codes=tuple(
            AssignedCode(
                code=code,
                description=code,
                confidence=confidence,
                sequence=sequence,
                evidence=(NOTE.span(0, len(NOTE.text)),),
                rationale="",
            )
            for sequence, (code, confidence) in enumerate((assigned or {}).items(), start=1)
        ),
    )
    return Outcome(example, steps, coded)


@pytest.mark.parametrize(
    ("one", "why"),
    [
        (outcome({"I50": "heart failure"}), "not billable in this release"),
        (outcome({"S83.411": "Knee sprain"}), "not billable in this release"),
        (outcome({"Q99.999": ""}), "not billable in this release"),
        (outcome({"I10": "hypertension"}, quotes=("Cough",)), "not found by analyze"),
        (outcome({"I10": "hypertension"}, quotes=("and hyper",)), "not retrieved by locate"),
        (outcome({"I10": ""}), "not retrieved by locate"),
        (outcome({"I10": ""}, located=("I10",), verified={"I10": 0.3}), "rejected by verify"),
        (outcome({"I10": ""}, located=("I10",)), "rejected by verify"),
        (outcome({"I10": ""}, located=("I10",), verified={"I10": 0.4}), "dropped by assign"),
        # Locate and verify know the code without its 7th character.
        (outcome({"S83.411A": ""}, located=("S83.411",)), "rejected by verify"),
        (
            outcome({"S83.411A": ""}, located=("S83.411",), verified={"S83.411": 0.9}),
            "dropped by assign",
        ),
        # Assign alone, on gold verdicts, for which nothing was located.
        (outcome({"I10": "hypertension"}, verified={"I10": 1.0}), "dropped by assign"),
        (outcome({"S83.411A": ""}, verified={"S83.411A": 1.0}), "dropped by assign"),
    ],
)
def test_a_missed_code_is_lost_at_one_stage(system: CodeSystem, one: Outcome, why: str) -> None:
    [lost] = find_false_negatives([one], system, THRESHOLD)
    assert (lost.note_id, lost.why) == ("n", why)
    counts = list(count_funnel([one], system, THRESHOLD).values())
    assert counts[0] == 1
    assert counts[-1] == 0
    assert counts == sorted(counts, reverse=True)


@pytest.mark.parametrize(
    ("gold", "assigned", "what"),
    [
        ("I50.21", "I50.9", "parent instead of child"),
        ("I50.20", "I50.9", "parent instead of child"),
        ("I50.9", "I50.21", "child instead of parent"),
        ("I50", "I50.21", "child instead of parent"),
        ("M25.561", "M25.562", "wrong sibling"),
        ("I10", "J18.9", "extra"),
        ("Q99.999", "J18.9", "extra"),
    ],
)
def test_an_invented_code_is_told_by_its_kin(
    system: CodeSystem, gold: str, assigned: str, what: str
) -> None:
    [invented] = find_false_positives([outcome({gold: ""}, assigned={assigned: 0.5})], system)
    assert (invented.code, invented.what) == (assigned, what)


def test_nothing_is_lost_or_invented_when_all_is_right(system: CodeSystem) -> None:
    right = outcome({"I10": "hypertension"}, assigned={"I10": 0.5})
    assert (
        find_false_negatives([right], system, THRESHOLD)
        == find_false_positives([right], system)
        == []
    )
    assert set(count_funnel([right], system, THRESHOLD).values()) == {1}
    scores = assign_scores([right], system, THRESHOLD)
    assert scores["micro_f1"] == scores["folded"]["micro_f1"] == scores["category"]["micro_f1"] == 1


def test_analyze_is_judged_by_the_evidence_it_touches() -> None:
    one = outcome({"I10": "hypertension", "R05.9": "Cough", "J18.9": ""}, quotes=("hypertension.",))
    scores = analyze_scores([one])
    assert scores == {"terms_per_note": 1, "gold_with_evidence": 2, "evidence_recall": 0.5}
    assert analyze_scores([outcome({"I10": ""})])["evidence_recall"] is None


def test_a_sentence_as_a_whole_finds_no_evidence() -> None:
    example, steps, coded = outcome({"I10": "hypertension"}, quotes=("Cough", NOTE.text))
    mention, sentence = steps.terms
    sentence = sentence.model_copy(update={"is_sentence": True})
    steps = steps.model_copy(update={"terms": (mention, sentence)})
    assert analyze_scores([Outcome(example, steps, coded)])["evidence_recall"] == 0


def test_locate_is_judged_without_the_7th_character(system: CodeSystem) -> None:
    one = outcome({"S83.411A": "", "I10": ""}, located=("S83.411",))
    scores = locate_scores([one], system)
    assert scores["recall"] == scores["recall@10"] == scores["no_prior"]["recall@200"] == 0.5
    assert scores["candidates_per_note"] == 1


def test_verify_is_judged_by_how_it_ranks_and_what_passes(system: CodeSystem) -> None:
    one = outcome({"I10": "", "R05.9": ""}, verified={"I10": 0.8, "J18.9": 0.5, "R05.9": 0.3})
    scores = verify_scores([one], system, THRESHOLD)
    assert (scores["candidates"], scores["recall"], scores["roc_auc"]) == (3, 0.5, 0.5)
    assert scores["map"] == pytest.approx((1 + 2 / 3) / 2)


def test_verify_without_any_right_candidate_has_no_curve(system: CodeSystem) -> None:
    scores = verify_scores([outcome({"I10": ""}, verified={"J18.9": 0.5})], system, THRESHOLD)
    assert scores["roc_auc"] is None
    assert json.dumps(scores)


def test_the_ranking_of_assign_is_its_decisions_where_it_has_one(system: CodeSystem) -> None:
    verified = {"I10": 0.3, "J18.9": 0.5}
    by_verify = outcome({"I10": ""}, located=("I10",), verified=verified)
    decided = outcome(
        {"I10": ""}, located=("I10",), verified=verified, decided={"I10": 0.2, "J18.9": 0.1}
    )
    for one, score, why in (
        (by_verify, 0.5, "rejected by verify"),
        (decided, 1, "dropped by assign"),  # nothing that verify says is final
    ):
        assert assign_scores([one], system, THRESHOLD)["ranking"]["map"] == score
        assert [lost.why for lost in find_false_negatives([one], system, THRESHOLD)] == [why]


LINE: dict[str, Any] = {
    "note_id": "1",
    "codes": [{"code": "I10", "confidence": 0.5}],
    "gold": ["I10"],
}


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        (["{"], r"p\.jsonl, row 1.*Invalid JSON"),
        ([json.dumps({**LINE, "gold": "I10"})], r"row 1, gold: "),
        ([json.dumps({"note_id": "1", "gold": []})], r"row 1, codes: Field required"),
        ([json.dumps({**LINE, "codes": [{"code": "I10"}]})], r"row 1, codes\.0\.confidence"),
        (
            [json.dumps({**LINE, "codes": [{"code": "I1O", "confidence": 1}]})],
            r"row 1: 'I1O' is not in ICD-10-CM toy; nearest: I10",
        ),
        ([json.dumps(LINE), json.dumps(LINE)], "row 2: note 1 occurs twice"),
        ([], "holds no predictions"),
    ],
)
def test_a_file_that_holds_no_predictions_is_named_with_the_row(
    tmp_path: Path, system: CodeSystem, lines: list[str], message: str
) -> None:
    file = tmp_path / "p.jsonl"
    file.write_text("\n".join(lines))
    with pytest.raises(InputError, match=message):
        read_predictions(file, system)


def test_predictions_of_any_system_are_read(tmp_path: Path, system: CodeSystem) -> None:
    file = tmp_path / "p.jsonl"
    file.write_text(json.dumps({**LINE, "anything": "\u2028 else"}, ensure_ascii=False) + "\n\n")
    [note] = read_predictions(file, system)
    assert (note.id, note.gold, note.predicted) == ("1", {"I10"}, {"I10": 0.5})
    with pytest.raises(InputError, match="cannot be read"):
        read_predictions(tmp_path / "none.jsonl", system)
