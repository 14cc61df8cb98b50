"""Assign: what counts, what is said in most detail, what is complete, in which order."""

from collections import defaultdict
from dataclasses import replace
from typing import Any

import pytest

from agents.assign import Assigner
from agents.assign.code_book import apply_code_book
from agents.assign.select import SelectedCode, code_features, group_by_code
from clh.icd.rules import load_code_book
from clh.models.logistic import Logistic
from clh.schema import Candidate, Note, Status, Verdict
from tests.agents.steps import run_step, term
from tests.conftest import MakePipeline
from tests.fakes import QueuedModel

Said = tuple[str, Status, str, float]  # the quote, its status, the code, its probability
NOTE = Note(
    id="n",
    text="Cough, diabetes, heart failure, hypertension, breast cancer, bad heart, knee sprain.",
)


async def assigned(make_toy: MakePipeline, *said: Said, **settings: Any) -> dict[str, Any]:
    terms = [term(NOTE, quote, status) for quote, status, _, _ in said]
    verdicts = [
        Verdict(term=position, code=code, probability=p)
        for position, (_, _, code, p) in enumerate(said)
    ]
    return await run_step("assign", make_toy(**settings), NOTE, terms=terms, verdicts=verdicts)


def codes(added: dict[str, Any]) -> list[str]:
    assert [one.sequence for one in added["codes"]] == [*range(1, len(added["codes"]) + 1)]
    return [one.code for one in added["codes"]]


@pytest.mark.parametrize(
    ("status", "code", "policy", "counts"),
    [
        ("affirmed", "I50.9", "encounter", True),
        ("negated", "I50.9", "encounter", False),
        ("uncertain", "I50.9", "encounter", False),
        ("historical", "I50.9", "encounter", False),
        ("family", "I50.9", "encounter", False),
        ("historical", "Z85.3", "encounter", True),
        ("family", "Z80.3", "encounter", True),
        ("historical", "Z80.3", "encounter", False),  # somebody else's
        ("family", "Z85.3", "encounter", False),
        ("negated", "Z85.3", "encounter", False),
        *((status, "I50.9", "mention", True) for status in ("affirmed", "negated", "historical")),
        *((status, "I50.9", "mention", True) for status in ("family", "uncertain")),
    ],
)
async def test_what_a_policy_counts(
    make_toy: MakePipeline, status: Status, code: str, policy: str, counts: bool
) -> None:
    added = await assigned(make_toy, ("heart failure", status, code, 0.9), policy=policy)
    assert codes(added) == ([code] if counts else [])
    dropped = added["audit"]["dropped"]
    assert bool(dropped) != counts
    assert all((each["code"], each["reason"]) == (code, status) for each in dropped)


async def test_a_code_has_all_its_evidence_and_its_best_verdict(make_toy: MakePipeline) -> None:
    [one] = (
        await assigned(
            make_toy,
            ("heart failure", "affirmed", "I50.9", 0.6),
            ("bad heart", "affirmed", "I50.9", 0.8),
            ("Cough", "negated", "I50.9", 0.9),
        )
    )["codes"]
    assert [span.text for span in one.evidence] == ["heart failure", "bad heart"]
    assert (one.confidence, one.rationale) == (
        0.8,
        "probability 0.80; listed first: a disease, named 2 times",
    )
    assert one.description == "Heart failure, unspecified"


async def test_a_term_gives_its_best_code_if_that_reaches_the_threshold(
    make_toy: MakePipeline,
) -> None:
    terms = [term(NOTE, "heart failure"), term(NOTE, "Cough")]
    verdicts = [
        Verdict(term=position, code=code, probability=p)
        for position, code, p in [
            (0, "I50.22", 0.6),
            (0, "I50.21", 0.7),
            (0, "I50.9", 0.65),
            (1, "R05.9", 0.49),
        ]
    ]
    toy = make_toy(assign={"threshold": 0.5})
    assert codes(await run_step("assign", toy, NOTE, terms=terms, verdicts=verdicts)) == ["I50.21"]


async def test_a_history_gets_its_history_code_though_the_disease_lay_closer(
    make_toy: MakePipeline,
) -> None:
    terms = [term(NOTE, "breast cancer", "historical")]
    verdicts = [
        Verdict(term=0, code=code, probability=p) for code, p in [("I50.9", 0.9), ("Z85.3", 0.6)]
    ]
    added = await run_step("assign", make_toy(), NOTE, terms=terms, verdicts=verdicts)
    assert codes(added) == ["Z85.3"]


@pytest.mark.parametrize(
    ("given", "kept", "why"),
    [
        (["E11.9", "E11.65"], ["E11.65"], ("E11.9", "less_specific")),
        (["I50.9", "I50.22"], ["I50.22"], ("I50.9", "less_specific")),
        (
            ["M25.569", "M25.562"],
            ["M25.562"],
            ("M25.569", "less_specific"),
        ),
        (["M25.561", "M25.562"], ["M25.561", "M25.562"], None),  # both knees
        (["I50.21", "I50.22"], ["I50.21", "I50.22"], None),
        (["I50.9", "I10"], ["I50.9", "I10"], None),
    ],
)
@pytest.mark.parametrize("order", [1, -1])
async def test_the_most_specific_code_wins(
    make_toy: MakePipeline,
    given: list[str],
    kept: list[str],
    why: tuple[str, str] | None,
    order: int,
) -> None:
    said: list[Said] = [
        (quote, "affirmed", code, 0.9)
        for quote, code in zip(["heart failure", "hypertension"], given[::order], strict=True)
    ]
    added = await assigned(make_toy, *said, policy="encounter")
    assert sorted(codes(added)) == sorted(kept)
    dropped = [(each["code"], each["reason"]) for each in added["audit"]["dropped"]]
    assert dropped == ([why] if why else [])
    assert sorted(codes(await assigned(make_toy, *said, policy="mention"))) == sorted(given)


@pytest.mark.parametrize(("given", "complete"), [("S83.411", "S83.411A"), ("S83.419", "S83.419A")])
async def test_a_7th_character_is_assumed_and_says_so(
    make_toy: MakePipeline, given: str, complete: str
) -> None:
    added = await assigned(make_toy, ("knee sprain", "affirmed", given, 0.9))
    assert codes(added) == [complete]
    [one], [warning] = added["codes"], added["warnings"]
    assert one.flags == ("seventh_character_assumed",)
    assert one.description.endswith(", initial encounter")
    assert (warning.rule, warning.codes) == ("seventh_character", (complete,))
    assert "initial encounter" in warning.message


async def test_a_7th_character_that_the_code_has_is_left_alone(make_toy: MakePipeline) -> None:
    added = await assigned(make_toy, ("knee sprain", "affirmed", "S83.411D", 0.9))
    assert codes(added) == ["S83.411D"]
    assert (added["codes"][0].flags, added["warnings"]) == ((), [])


@pytest.mark.parametrize("category", ["Z80", "M25.5", "S83"])
async def test_what_cannot_be_billed_is_left_out_with_a_reason(
    make_toy: MakePipeline, category: str
) -> None:
    added = await assigned(
        make_toy, ("hypertension", "affirmed", "I10", 0.9), ("Cough", "affirmed", category, 0.9)
    )
    assert codes(added) == ["I10"]
    [dropped] = added["audit"]["dropped"]
    assert (dropped["code"], dropped["reason"]) == (category, "not_billable")


DISEASE_SYMPTOM_FACTOR: list[Said] = [
    ("breast cancer", "historical", "Z85.3", 0.99),
    ("Cough", "affirmed", "R05.9", 0.95),
    ("diabetes", "affirmed", "E11.9", 0.6),
    ("hypertension", "affirmed", "I10", 0.7),
]


async def test_diseases_come_before_symptoms_before_factors(make_toy: MakePipeline) -> None:
    added = await assigned(make_toy, *DISEASE_SYMPTOM_FACTOR)
    assert codes(added) == ["I10", "E11.9", "R05.9", "Z85.3"]


async def test_what_is_named_more_often_comes_first(make_toy: MakePipeline) -> None:
    more = ("heart failure", "affirmed", "E11.9", 0.6)
    added = await assigned(make_toy, *DISEASE_SYMPTOM_FACTOR, more)
    assert codes(added) == ["E11.9", "I10", "R05.9", "Z85.3"]


async def test_the_reason_of_the_encounter_comes_first_and_says_so(make_toy: MakePipeline) -> None:
    terms = [
        term(NOTE, "hypertension"),
        term(NOTE, "heart failure").model_copy(update={"reason": True}),
    ]
    verdicts = [
        Verdict(term=place, code=code, probability=0.9 - place / 10)
        for place, code in enumerate(["I10", "I50.9"])
    ]
    added = await run_step("assign", make_toy(), NOTE, terms=terms, verdicts=verdicts)
    assert codes(added) == ["I50.9", "I10"]
    first, second = [one.rationale for one in added["codes"]]
    assert first == "probability 0.80; listed first: a disease, given as reason of the encounter"
    assert second == "probability 0.90"


async def test_what_is_acute_comes_before_what_lasts(make_toy: MakePipeline) -> None:
    said = [("hypertension", "affirmed", "I10", 0.9), ("heart failure", "affirmed", "I50.21", 0.5)]
    added = await assigned(make_toy, *said)  # type: ignore[arg-type]
    assert codes(added) == ["I50.21", "I10"]
    assert added["codes"][0].rationale.endswith("listed first: a disease, acute")


async def test_what_is_probable_is_coded_in_hospital_only(make_toy: MakePipeline) -> None:
    said = ("hypertension", "uncertain", "I10", 0.9)
    assert codes(await assigned(make_toy, said, rules={"setting": "outpatient"})) == []
    assert codes(await assigned(make_toy, said, rules={"setting": "inpatient"})) == ["I10"]


async def test_a_change_by_a_rule_is_told_with_its_citation(make_toy: MakePipeline) -> None:
    said = [
        ("hypertension", "affirmed", "E11.9", 0.9),
        ("heart failure", "affirmed", "E11.65", 0.6),
    ]
    added = await assigned(make_toy, *said)  # type: ignore[arg-type]
    [warning] = added["warnings"]
    assert (warning.rule, warning.codes) == ("less_specific", ("E11.9", "E11.65"))
    assert (warning.change, warning.citation.place) == ("E11.9 dropped", "I.B.2")
    assert codes(added) == ["E11.65"]


async def test_the_language_model_picks_the_first_listed_code(make_toy: MakePipeline) -> None:
    model = QueuedModel(probabilities=[(0.1, 0.2, 0.6, 0.1)])
    llm = {"model": model, "assign": {"source": "llm"}}
    added = await assigned(make_toy, *DISEASE_SYMPTOM_FACTOR, **llm)
    assert codes(added) == ["R05.9", "I10", "E11.9", "Z85.3"]
    [[_, question]] = model.choices
    assert "1. Essential (primary) hypertension (named 1 times)" in question["content"]
    assert "3. Cough, unspecified" in question["content"]
    assert added["codes"][0].rationale.endswith("; listed first: the model's choice")


async def test_the_language_model_is_not_asked_to_choose_from_one(make_toy: MakePipeline) -> None:
    llm = {"model": QueuedModel(), "assign": {"source": "llm"}}
    added = await assigned(make_toy, ("Cough", "affirmed", "R05.9", 0.9), **llm)
    assert (codes(added), added["errors"]) == (["R05.9"], [])


async def test_nothing_supported_nothing_assigned(make_toy: MakePipeline) -> None:
    added = await assigned(make_toy)
    assert (added["codes"], added["warnings"], added["errors"]) == ([], [], [])


# --- all verdicts together --------------------------------------------------------------------

Held = tuple[str, Status, dict[str, tuple[float, float]]]  # code -> its precedent, its probability


async def decided(make_toy: MakePipeline, *given: Held, **settings: Any) -> dict[str, Any]:
    """What is assigned where precedents decide, and a little the number of terms."""
    toy = make_toy(**settings)
    weights: defaultdict[str, float] = defaultdict(float, precedent=10.0, log_terms=2.0)
    assigner = Assigner(
        toy.book,
        toy.settings.policy,
        "outpatient",
        0.5,
        code_calibrator=Logistic("by hand", -7.0, weights),
    )
    return await run_step(
        "assign",
        replace(toy, assigner=assigner),
        NOTE,
        terms=[
            term(NOTE, quote, status).model_copy(update={"is_sentence": quote == NOTE.text})
            for quote, status, _ in given
        ],
        candidates=[
            [
                Candidate(
                    code=code,
                    title="any",
                    matched="any",
                    similarity=0.5,
                    precedent=share,
                    prior_score=share,
                )
                for code, (share, _) in found.items()
            ]
            for _, _, found in given
        ],
        verdicts=[
            Verdict(term=position, code=code, probability=probability)
            for position, (_, _, found) in enumerate(given)
            for code, (_, probability) in found.items()
        ],
    )


async def test_one_term_may_support_several_codes(make_toy: MakePipeline) -> None:
    added = await decided(
        make_toy,
        ("heart failure", "affirmed", {"I50.9": (0.9, 0.1), "I10": (0.8, 0.1), "R05.9": (0, 0.9)}),
    )
    assert sorted(codes(added)) == ["I10", "I50.9"]
    by_code = {one.code: one for one in added["codes"]}
    assert by_code["I50.9"].confidence > by_code["I10"].confidence > 0.5
    assert (
        by_code["I10"].rationale
        == "80% of sentences with these words have it; similarity 0.50 to 'any'"
    )


async def test_terms_add_up_and_those_that_say_most_are_evidence(make_toy: MakePipeline) -> None:
    weak = {"I50.9": (0.5, 0.1)}
    alone = await decided(make_toy, ("heart failure", "affirmed", weak))
    assert codes(alone) == []
    both = await decided(
        make_toy,
        ("heart failure", "affirmed", weak),
        ("bad heart", "affirmed", weak),
        ("Cough", "affirmed", {"I50.9": (0.1, 0.2)}),
        ("knee sprain", "affirmed", {"I50.9": (0.0, 0.45)}),
    )
    [heart] = both["codes"]
    assert [span.text for span in heart.evidence] == ["heart failure", "bad heart", "knee sprain"]


@pytest.mark.parametrize(
    ("precedent", "evidence"),
    [(0.8, ["heart failure"]), (0.3, [NOTE.text])],
)
async def test_a_sentence_is_evidence_where_no_mention_says_nearly_as_much(
    make_toy: MakePipeline, precedent: float, evidence: list[str]
) -> None:
    added = await decided(
        make_toy,
        ("heart failure", "affirmed", {"I50.9": (precedent, 0.1)}),
        (NOTE.text, "affirmed", {"I50.9": (0.9, 0.1)}),
    )
    [heart] = added["codes"]
    assert [span.text for span in heart.evidence] == evidence


@pytest.mark.parametrize(("policy", "expected"), [("mention", ["I50.9"]), ("encounter", [])])
async def test_a_decision_reports_what_the_policy_does(
    make_toy: MakePipeline, policy: str, expected: list[str]
) -> None:
    said = ("heart failure", "negated", {"I50.9": (0.9, 0.9)})
    assert codes(await decided(make_toy, said, policy=policy)) == expected


def test_a_code_that_is_left_out_has_the_finding_by_which_it_went() -> None:
    selected = [
        SelectedCode(code, [NOTE.span(7, 15)], confidence)
        for code, confidence in (("E13.9", 0.3), ("E11.9", 0.5), ("E10.9", 0.9))
    ]
    kept, _, dropped = apply_code_book(selected, [], load_code_book(), "inpatient")
    assert [code.code for code in kept] == ["E10.9"]
    assert {code: finding.change for code, finding in dropped.items()} == {
        "E13.9": "E13.9 dropped",
        "E11.9": "E11.9 dropped",
    }


def test_the_shipped_decision_knows_every_feature() -> None:
    near = Candidate(code="I10", title="any", matched="any", similarity=0.5)
    verdict = Verdict(term=0, code="I10", probability=1.0)
    measured = code_features(group_by_code([[near]], [verdict])["I10"])
    shipped = Logistic.load("assign-codiesp")
    assert set(shipped.coefficients) == set(measured)
    assert 0 < shipped.probability(measured) < 1
