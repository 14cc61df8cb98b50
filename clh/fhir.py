"""A coded note as a FHIR R4 bundle: a Condition for each code, and a draft Claim that lists them.

Nothing is invented: what FHIR requires and CLH cannot know, such as the patient or the provider, is
a display text that says so. Every Condition is provisional until a coder has confirmed it.
"""

from datetime import datetime
from typing import Any
from uuid import UUID, uuid5

from clh.schema import AssignedCode, CodedNote

_ICD10CM = "http://hl7.org/fhir/sid/icd-10-cm"
_TERMINOLOGY = "http://terminology.hl7.org/CodeSystem"
_UNKNOWN = {"display": "not known to CLH"}


def bundle(coded: CodedNote, at: datetime) -> dict[str, Any]:
    """Build the bundle, ready for `json.dumps`; `at` is when the note was coded."""
    patient = {"display": f"patient of note {coded.note_id}"}
    conditions = {assigned.code: _condition(assigned, coded, patient) for assigned in coded.codes}
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
            {
                "sequence": assigned.sequence,
                "diagnosisReference": {"reference": _urn(coded, assigned.code)},
            }
            for assigned in coded.codes
        ]
    resources = {**conditions, "claim": claim}
    return {
        "resourceType": "Bundle",
        "type": "collection",
        "timestamp": at.isoformat(),
        "entry": [
            {"fullUrl": _urn(coded, name), "resource": resource}
            for name, resource in resources.items()
        ],
    }


def _condition(assigned: AssignedCode, coded: CodedNote, patient: dict[str, str]) -> dict[str, Any]:
    quotes = [
        f"{span.text!r} at characters {span.start} to {span.end} of note {coded.note_id}"
        for span in assigned.evidence
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
                    "code": assigned.code,
                    "display": assigned.description,
                }
            ]
        },
        "subject": patient,
        "evidence": [{"detail": [{"display": quote} for quote in quotes]}],
        "note": [{"text": f"confidence {assigned.confidence:.2f}: {assigned.rationale}"}],
    }


def _concept(system: str, code: str) -> dict[str, Any]:
    """A code of one of HL7's own code systems."""
    return {"coding": [{"system": f"{_TERMINOLOGY}/{system}", "code": code}]}


def _urn(coded: CodedNote, name: str) -> str:
    """The address of a resource within the bundle, the same each time for the same run."""
    return f"urn:uuid:{uuid5(UUID(coded.run_id), name)}"
