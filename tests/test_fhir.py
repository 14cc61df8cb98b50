"""The FHIR bundle of a coded note, read by the models of SMART on FHIR's client, which are R4's."""

import json
from datetime import UTC, datetime

import pytest
from fhirclient.models.bundle import Bundle
from fhirclient.models.condition import Condition
from fhirclient.models.fhirabstractbase import FHIRValidationError

from clh.fhir import bundle
from clh.schema import AssignedCode, CodedNote, Note

NOTE = Note(id="visit", text="Cough. Hypertension, HTN.")
CODED = CodedNote(
    note_id=NOTE.id,
    run_id="0c52a41dbb9f4752af2a66cfb4bd4d6f",
    icd_release="2026-04-01",
    policy="encounter",
    codes=(
        AssignedCode(
            code="I10",
            description="Essential (primary) hypertension",
            confidence=0.65,
            sequence=1,
            evidence=(NOTE.span(7, 19), NOTE.span(21, 24)),
            rationale="by words",
        ),
        AssignedCode(
            code="R05.9",
            description="Cough, unspecified",
            confidence=0.5,
            sequence=2,
            evidence=(NOTE.span(0, 5),),
            rationale="by meaning",
        ),
    ),
    models={},
    timings={},
)
AT = datetime(2026, 4, 1, 12, tzinfo=UTC)


def test_the_bundle_is_valid_r4_and_says_what_was_coded() -> None:
    read = Bundle(json.loads(json.dumps(bundle(CODED, AT))), strict=True)
    *conditions, claim = [entry.resource for entry in read.entry]
    codings = [condition.code.coding[0] for condition in conditions]
    assert [(one.code, one.system) for one in codings] == [
        ("I10", "http://hl7.org/fhir/sid/icd-10-cm"),
        ("R05.9", "http://hl7.org/fhir/sid/icd-10-cm"),
    ]
    first = conditions[0]
    assert first.verificationStatus.coding[0].code == "provisional"
    quotes = [detail.display for detail in first.evidence[0].detail]
    assert "'Hypertension' at characters 7 to 19" in quotes[0]
    assert len(quotes) == 2

    by_url = {entry.fullUrl: entry.resource for entry in read.entry}
    diagnoses = sorted(claim.diagnosis, key=lambda one: one.sequence)
    named = [by_url[one.diagnosisReference.reference].code.coding[0].code for one in diagnoses]
    assert named == ["I10", "R05.9"]
    assert (claim.status, claim.created.isostring) == ("draft", "2026-04-01T12:00:00+00:00")


def test_a_note_without_codes_is_valid_too() -> None:
    empty = CODED.model_copy(update={"codes": ()})
    [entry] = Bundle(bundle(empty, AT), strict=True).entry
    assert entry.resource.diagnosis is None


def test_the_validator_sees_what_is_missing() -> None:
    [entry, *_] = bundle(CODED, AT)["entry"]
    del entry["resource"]["subject"]
    with pytest.raises(FHIRValidationError, match="subject"):
        Condition(entry["resource"], strict=True)
