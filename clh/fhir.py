"""A coded note as a FHIR R4 bundle: a Condition for each code, and a draft Claim of them in order.

Nothing is made up: what CLH cannot know, such as the patient or the provider, is said to be unknown
by a display text. Every Condition is provisional, as a coder has not seen it.
"""

from datetime import datetime
from typing import Any
from uuid import UUID, uuid5

from clh.schema import AssignedCode, CodedNote

_ICD10CM = "http://hl7.org/fhir/sid/icd-10-cm"
_TERMINOLOGY = "http://terminology.hl7.org/CodeSystem"
_UNKNOWN = {"display": "not known to CLH"}


def bundle(coded: CodedNote, at: datetime) -> dict[str, Any]:
    """The bundle, as JSON would hold it; `at` is when the note was coded."""
    patient = {"display": f"patient of note {coded.note_id}"}
    conditions = {one.code: _condition(one, coded, patient) for one in coded.codes}
    claim: dict[str, Any] = {
        "resourceType": "Claim",
        "status": "draft",
        "type": _concept("claim-type", "institutional"),
        "use": "claim",
        "patient": patient,
        "created": at.isoformat(),
        "provider": _UNKNOWN,
        "priority": _concept("processpriority", "normal"),
        "insurance": [{"sequence": 1, "focal": True, "coverage": _UNKNOWN}],
    }
    if coded.codes:  # FHIR has no empty lists
        claim["diagnosis"] = [
            {"sequence": one.sequence, "diagnosisReference": {"reference": _urn(coded, one.code)}}
            for one in coded.codes
        ]
    entries = [*conditions.items(), ("claim", claim)]
    return {
        "resourceType": "Bundle",
        "type": "collection",
        "timestamp": at.isoformat(),
        "entry": [
            {"fullUrl": _urn(coded, name), "resource": resource} for name, resource in entries
        ],
    }


def _condition(one: AssignedCode, coded: CodedNote, patient: dict[str, str]) -> dict[str, Any]:
    quotes = [
        f"{span.text!r} at characters {span.start} to {span.end} of note {coded.note_id}"
        for span in one.evidence
    ]
    return {
        "resourceType": "Condition",
        "verificationStatus": _concept("condition-ver-status", "provisional"),
        "category": [_concept("condition-category", "encounter-diagnosis")],
        "code": {
            "coding": [
                {
                    "system": _ICD10CM,
                    "version": coded.icd_release,
                    "code": one.code,
                    "display": one.description,
                }
            ]
        },
        "subject": patient,
        "evidence": [{"detail": [{"display": quote} for quote in quotes]}],
        "note": [{"text": f"confidence {one.confidence:.2f}: {one.rationale}"}],
    }


def _concept(system: str, code: str) -> dict[str, Any]:
    return {"coding": [{"system": f"{_TERMINOLOGY}/{system}", "code": code}]}


def _urn(coded: CodedNote, name: str) -> str:
    return f"urn:uuid:{uuid5(UUID(coded.run_id), name)}"
