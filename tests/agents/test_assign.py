"""Assign: what counts, what is said in most detail, what is complete, in which order."""

from collections import defaultdict
from dataclasses import replace
from typing import Any

import pytest

from agents.assign import assign, features, tally
from clh.models.logistic import Logistic
from clh.schema import Candidate, Note, Status, Verdict
from tests.agents.steps import step, term
from tests.conftest import MakeContext
from tests.fakes import QueuedModel

Said = tuple[str, Status, str, float]  # the quote, its status, the code, its probability
NOTE = Note(
    id="n",
    text="Cough, diabetes, heart failure, hypertension, breast cancer, bad heart, knee sprain.",
)


async def assigned(context: MakeContext, *said: Said, **settings: Any) -> dict[str, Any]:
    terms = [term(NOTE, quote, status) for quote, status, _, _ in said]
    verdicts = [
        Verdict(term=position, code=code, probability=p, rationale=f"about {code}")
        for position, (_, _, code, p) in enumerate(said)
    ]
    return await step(assign, context(**settings), NOTE, terms=terms, verdicts=verdicts)


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
    context: MakeContext, status: Status, code: str, policy: str, counts: bool
) -> None:
    added = await assigned(context, ("heart failure", status, code, 0.9), policy=policy)
    assert codes(added) == ([code] if counts else [])
    reasons = added["audit"]["dropped"]
    assert bool(reasons) != counts
    assert all(reason.startswith(f"{code}: {status}") for reason in reasons)


async def test_a_code_has_all_its_evidence_and_its_best_verdict(context: MakeContext) -> None:
    [one] = (
        await assigned(
            context,
            ("heart failure", "affirmed", "I50.9", 0.6),
            ("bad heart", "affirmed", "I50.9", 0.8),
            ("Cough", "negated", "I50.9", 0.9),
        )
    )["codes"]
    assert [span.text for span in one.evidence] == ["heart failure", "bad heart"]
    assert (one.confidence, one.rationale) == (
        0.8,
        "about I50.9; listed first: a disease, named 2 times",
    )
    assert one.description == "Heart failure, unspecified"


async def test_a_term_gives_its_best_code_if_that_reaches_the_threshold(
    context: MakeContext,
) -> None:
    terms = [term(NOTE, "heart failure"), term(NOTE, "Cough")]
    verdicts = [
        Verdict(term=position, code=code, probability=p, rationale="")
        for position, code, p in [
            (0, "I50.22", 0.6),
            (0, "I50.21", 0.7),
            (0, "I50.9", 0.65),
            (1, "R05.9", 0.49),
        ]
    ]
    toy = context(assign={"threshold": 0.5})
    assert codes(await step(assign, toy, NOTE, terms=terms, verdicts=verdicts)) == ["I50.21"]


async def test_a_history_gets_its_history_code_though_the_disease_lay_closer(
    context: MakeContext,
) -> None:
    terms = [term(NOTE, "breast cancer", "historical")]
    verdicts = [
        Verdict(term=0, code=code, probability=p, rationale="")
        for code, p in [("I50.9", 0.9), ("Z85.3", 0.6)]
    ]
    added = await step(assign, context(), NOTE, terms=terms, verdicts=verdicts)
    assert codes(added) == ["Z85.3"]


@pytest.mark.parametrize(
    ("given", "kept", "why"),
    [
        (["E11.9", "E11.65"], ["E11.65"], "E11.9: E11.65 says more than E11.9"),
        (["I50.9", "I50.22"], ["I50.22"], "I50.9: I50.22 says more than I50.9"),
        (["M25.569", "M25.562"], ["M25.562"], "M25.569: M25.562 says more than M25.569"),
        (["M25.561", "M25.562"], ["M25.561", "M25.562"], None),  # both knees
        (["I50.21", "I50.22"], ["I50.21", "I50.22"], None),
        (["I50.9", "I10"], ["I50.9", "I10"], None),
    ],
)
@pytest.mark.parametrize("order", [1, -1])
async def test_the_most_specific_code_wins(
    context: MakeContext, given: list[str], kept: list[str], why: str | None, order: int
) -> None:
    said: list[Said] = [
        (quote, "affirmed", code, 0.9)
        for quote, code in zip(["heart failure", "hypertension"], given[::order], strict=True)
    ]
    added = await assigned(context, *said, policy="encounter")
    assert sorted(codes(added)) == sorted(kept)
    assert added["audit"]["dropped"] == ([why] if why else [])
    assert sorted(codes(await assigned(context, *said, policy="mention"))) == sorted(given)


@pytest.mark.parametrize(("given", "complete"), [("S83.411", "S83.411A"), ("S83.419", "S83.419A")])
async def test_a_7th_character_is_assumed_and_says_so(
    context: MakeContext, given: str, complete: str
) -> None:
    added = await assigned(context, ("knee sprain", "affirmed", given, 0.9))
    assert codes(added) == [complete]
    [one], [warning] = added["codes"], added["warnings"]
    assert one.flags == ("seventh_character_assumed",)
    assert one.description.endswith(", initial encounter")
    assert (warning.rule, warning.codes) == ("seventh_character", (complete,))
    assert "initial encounter" in warning.message


async def test_a_7th_character_that_the_code_has_is_left_alone(context: MakeContext) -> None:
    added = await assigned(context, ("knee sprain", "affirmed", "S83.411D", 0.9))
    assert codes(added) == ["S83.411D"]
    assert (added["codes"][0].flags, added["warnings"]) == ((), [])


@pytest.mark.parametrize("category", ["Z80", "M25.5", "S83"])
async def test_what_cannot_be_billed_is_left_out_with_a_reason(
    context: MakeContext, category: str
) -> None:
    added = await assigned(
        context, ("hypertension", "affirmed", "I10", 0.9), ("Cough", "affirmed", category, 0.9)
    )
    assert codes(added) == ["I10"]
    [reason] = added["audit"]["dropped"]
    assert reason.startswith(f"{category}: not billable")


DISEASE_SYMPTOM_FACTOR: list[Said] = [
    ("breast cancer", "historical", "Z85.3", 0.99),
    ("Cough", "affirmed", "R05.9", 0.95),
    ("diabetes", "affirmed", "E11.9", 0.6),
    ("hypertension", "affirmed", "I10", 0.7),
]


async def test_diseases_come_before_symptoms_before_factors(context: MakeContext) -> None:
    added = await assigned(context, *DISEASE_SYMPTOM_FACTOR)
    assert codes(added) == ["I10", "E11.9", "R05.9", "Z85.3"]


async def test_what_is_named_more_often_comes_first(context: MakeContext) -> None:
    more = ("heart failure", "affirmed", "E11.9", 0.6)
    added = await assigned(context, *DISEASE_SYMPTOM_FACTOR, more)
    assert codes(added) == ["E11.9", "I10", "R05.9", "Z85.3"]


async def test_the_reason_of_the_encounter_comes_first_and_says_so(context: MakeContext) -> None:
    terms = [
        term(NOTE, "hypertension"),
        term(NOTE, "heart failure").model_copy(update={"reason": True}),
    ]
    verdicts = [
        Verdict(term=place, code=code, probability=0.9 - place / 10, rationale="by words")
        for place, code in enumerate(["I10", "I50.9"])
    ]
    added = await step(assign, context(), NOTE, terms=terms, verdicts=verdicts)
    assert codes(added) == ["I50.9", "I10"]
    first, second = [one.rationale for one in added["codes"]]
    assert first == "by words; listed first: a disease, given as reason of the encounter"
    assert second == "by words"


async def test_what_is_acute_comes_before_what_lasts(context: MakeContext) -> None:
    said = [("hypertension", "affirmed", "I10", 0.9), ("heart failure", "affirmed", "I50.21", 0.5)]
    added = await assigned(context, *said)  # type: ignore[arg-type]
    assert codes(added) == ["I50.21", "I10"]
    assert added["codes"][0].rationale.endswith("listed first: a disease, acute")


async def test_what_is_probable_is_coded_in_hospital_only(context: MakeContext) -> None:
    said = ("hypertension", "uncertain", "I10", 0.9)
    assert codes(await assigned(context, said, rules={"setting": "outpatient"})) == []
    assert codes(await assigned(context, said, rules={"setting": "inpatient"})) == ["I10"]


async def test_a_change_by_a_rule_is_told_with_its_citation(context: MakeContext) -> None:
    said = [
        ("hypertension", "affirmed", "E11.9", 0.9),
        ("heart failure", "affirmed", "E11.65", 0.6),
    ]
    added = await assigned(context, *said)  # type: ignore[arg-type]
    [warning] = added["warnings"]
    assert (warning.rule, warning.codes) == ("less_specific", ("E11.9", "E11.65"))
    assert (warning.change, warning.citation.place) == ("E11.9 dropped", "I.B.2")
    assert codes(added) == ["E11.65"]


async def test_the_language_model_picks_the_first_listed_code(context: MakeContext) -> None:
    model = QueuedModel(probabilities=[(0.1, 0.2, 0.6, 0.1)])
    llm = {"llm": model, "assign": {"source": "llm"}}
    added = await assigned(context, *DISEASE_SYMPTOM_FACTOR, **llm)
    assert codes(added) == ["R05.9", "I10", "E11.9", "Z85.3"]
    [[_, question]] = model.choices
    assert "1. Essential (primary) hypertension (named 1 times)" in question["content"]
    assert "3. Cough, unspecified" in question["content"]
    assert added["codes"][0].rationale.endswith("; listed first: the model's choice")


async def test_the_language_model_is_not_asked_to_choose_from_one(context: MakeContext) -> None:
    llm = {"llm": QueuedModel(), "assign": {"source": "llm"}}
    added = await assigned(context, ("Cough", "affirmed", "R05.9", 0.9), **llm)
    assert (codes(added), added["errors"]) == (["R05.9"], [])


async def test_nothing_supported_nothing_assigned(context: MakeContext) -> None:
    added = await assigned(context)
    assert (added["codes"], added["warnings"], added["errors"]) == ([], [], [])


# --- all verdicts together --------------------------------------------------------------------

Held = tuple[str, Status, dict[str, tuple[float, float]]]  # code -> its precedent, its probability


async def decided(context: MakeContext, *said: Held, **settings: Any) -> dict[str, Any]:
    """What a decision assigns that goes by precedents, and a little by the number of terms."""
    toy = context(assign={"threshold": 0.5}, **settings)
    weights: defaultdict[str, float] = defaultdict(float, precedent=10.0, log_terms=2.0)
    decision = Logistic("by hand", -7.0, weights)
    return await step(
        assign,
        replace(toy, decision=decision),
        NOTE,
        terms=[
            term(NOTE, quote, status).model_copy(update={"whole": quote == NOTE.text})
            for quote, status, _ in said
        ],
        candidates=[
            [
                Candidate(
                    code=code,
                    title="any",
                    matched="any",
                    similarity=0.5,
                    precedent=p,
                    prior_score=p,
                )
                for code, (p, _) in found.items()
            ]
            for _, _, found in said
        ],
        verdicts=[
            Verdict(term=position, code=code, probability=p, rationale=f"about {code}")
            for position, (_, _, found) in enumerate(said)
            for code, (_, p) in found.items()
        ],
    )


async def test_one_term_may_support_several_codes(context: MakeContext) -> None:
    added = await decided(
        context,
        ("heart failure", "affirmed", {"I50.9": (0.9, 0.1), "I10": (0.8, 0.1), "R05.9": (0, 0.9)}),
    )
    assert sorted(codes(added)) == ["I10", "I50.9"]
    by_code = {one.code: one for one in added["codes"]}
    assert by_code["I50.9"].confidence > by_code["I10"].confidence > 0.5
    assert by_code["I10"].rationale == "80% of sentences that say so have it; about I10"


async def test_terms_add_up_and_those_that_say_most_are_evidence(context: MakeContext) -> None:
    weak = {"I50.9": (0.5, 0.1)}
    alone = await decided(context, ("heart failure", "affirmed", weak))
    assert codes(alone) == []
    both = await decided(
        context,
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
    context: MakeContext, precedent: float, evidence: list[str]
) -> None:
    added = await decided(
        context,
        ("heart failure", "affirmed", {"I50.9": (precedent, 0.1)}),
        (NOTE.text, "affirmed", {"I50.9": (0.9, 0.1)}),
    )
    [heart] = added["codes"]
    assert [span.text for span in heart.evidence] == evidence


@pytest.mark.parametrize(("policy", "expected"), [("mention", ["I50.9"]), ("encounter", [])])
async def test_a_decision_reports_what_the_policy_does(
    context: MakeContext, policy: str, expected: list[str]
) -> None:
    said = ("heart failure", "negated", {"I50.9": (0.9, 0.9)})
    assert codes(await decided(context, said, policy=policy)) == expected


def test_the_shipped_decision_knows_every_feature() -> None:
    near = Candidate(code="I10", title="any", matched="any", similarity=0.5)
    verdict = Verdict(term=0, code="I10", probability=1.0, rationale="any")
    measured = features(tally([[near]], [verdict])["I10"])
    shipped = Logistic.load("assign-codiesp")
    assert set(shipped.coefficients) == set(measured)
    assert 0 < shipped.probability(measured) < 1
