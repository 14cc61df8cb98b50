"""The accuracy floor: the shipped models on twenty invented notes (data/README.md).

The floors lie .03 below what was measured, so that accuracy cannot be lost in silence. Raise them
when the figures rise; lower one only with a reason in the commit.
"""

from pathlib import Path

import pytest

from agents.pipeline import Pipeline
from clh import corpora
from clh.corpora import Example
from clh.evaluation.metrics import Scored, set_scores
from clh.icd.rules import Claim, check, load_code_book
from clh.icd.tabular import load_tabular
from clh.schema import Policy

SAMPLES = Path(__file__).parents[1] / "data" / "sample"
GOLD: dict[Policy, str] = {"encounter": "gold", "mention": "gold-mention"}
FLOORS: dict[Policy, dict[str, float]] = {
    "encounter": {"micro_f1": 0.337, "micro_precision": 0.319, "micro_recall": 0.357},
    "mention": {"micro_f1": 0.477, "micro_precision": 0.579, "micro_recall": 0.404},
}


def gold(policy: Policy) -> list[Example]:
    return list(corpora.read("jsonl", SAMPLES, GOLD[policy]))


@pytest.mark.integration
@pytest.mark.parametrize("policy", GOLD)
async def test_accuracy_stays_above_its_floor(real_pipeline: Pipeline, policy: Policy) -> None:
    settings = real_pipeline.settings.model_copy(update={"policy": policy})
    pipeline = real_pipeline.rebuild(settings, real_pipeline.prior)
    examples = gold(policy)
    coded = [answer.note async for answer in pipeline.code_many(one.note for one in examples)]
    assert [note.errors for note in coded if note.errors] == []
    scores = set_scores(
        [
            Scored(
                example.id,
                frozenset(example.codes),
                {code.code: code.confidence for code in note.codes},
            )
            for example, note in zip(examples, coded, strict=True)
        ]
    )
    for name, floor in FLOORS[policy].items():
        assert scores[name] >= floor, f"{policy}: {name} is {scores[name]:.3f}, below {floor:.3f}"


# --- the gold set itself -------------------------------------------------------------------------


def test_both_policies_have_the_same_twenty_notes() -> None:
    encounter, mention = gold("encounter"), gold("mention")
    assert len(encounter) == 20
    assert [one.notes for one in encounter] == [one.notes for one in mention]
    assert all(80 <= len(one.note.text.split()) <= 350 for one in encounter)


def test_what_an_encounter_reports_is_among_what_the_note_names() -> None:
    for encounter, mention in zip(gold("encounter"), gold("mention"), strict=True):
        assert set(encounter.codes) < set(mention.codes)


@pytest.mark.parametrize("policy", GOLD)
def test_gold_codes_are_billable_and_have_evidence(policy: Policy) -> None:
    system = load_tabular()
    for example in gold(policy):
        assert [one for one in example.codes if not system.billable(one)] == []
        assert [one for one in example.codes if not example.spans(one)] == []


def test_no_gold_claim_breaks_a_rule_of_the_code_book() -> None:
    book = load_code_book(None)
    for example in gold("encounter"):
        findings = check(Claim(example.codes, book))
        assert [one for one in findings if one.severity != "reminder"] == []
