"""What a policy reports: whether a code may be reported for a term of some assertion status."""

from typing import Literal

from agents.assign.code_book import complete_code
from clh.icd.rules import Setting
from clh.icd.tabular import CodeSystem
from clh.schema import Policy, Status

Reason = Literal["negated", "family", "historical", "uncertain", "not_billable"]

_HISTORY: dict[Status, str] = {"historical": "personal history", "family": "family history"}

EXPLANATIONS: dict[Reason, str] = {
    "negated": "the note denies it",
    "family": "a relative has it, not the patient",
    "historical": "it is past, and only a history code may say so (guideline I.C.21.c.4)",
    "uncertain": "it is only possible, which an outpatient claim does not report (guideline IV.H)",
    "not_billable": "it is not billable, and the note gives no more detail",
}


def why_not_reported(
    status: Status, code: str, policy: Policy, setting: Setting, system: CodeSystem
) -> Reason | None:
    """Why the policy does not report `code` for a term of this status; None if it does.

    `mention` reports all that is billable. An `encounter` reports neither what is absent nor, in an
    outpatient setting, what is only possible (guidelines IV.H, II.H), and a history by the history
    codes of chapter 21 alone (I.C.21.c.4).
    """
    reported = {"affirmed", "uncertain"} if setting == "inpatient" else {"affirmed"}
    as_history = status in _HISTORY and _HISTORY[status] in system[code].title.lower()
    if policy == "encounter" and status != "affirmed" and not (status in reported or as_history):
        return status
    return "not_billable" if complete_code(code, system) is None else None
