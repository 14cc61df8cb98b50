"""The order of the final set, and which code is listed first."""

import json
import re
from collections.abc import Sequence
from typing import NamedTuple

from agents.assign.select import SelectedCode
from agents.node import Trace, build_messages
from clh.errors import ReplyError
from clh.icd.tabular import EXTERNAL_CAUSES, FACTORS, SYMPTOMS, CodeSystem
from clh.models.language import LanguageModel
from clh.schema import Term

_KINDS = {SYMPTOMS: 1, FACTORS: 2, EXTERNAL_CAUSES: 3}  # of chapters
_KIND_NAMES = ("a disease", "a symptom", "a circumstance", "an external cause")
_MOST_CHOICES = 9  # one digit answers


class SequenceKey(NamedTuple):
    """Sort key for sequencing; smaller keys come first.

    Diseases before symptoms (guideline II.A), circumstances and external causes; what the note
    gives as complaint, assessment or diagnosis (II, IV.G); what is acute (I.B.8).
    """

    kind: int
    is_aside: bool
    is_lasting: bool
    fewer_mentions: int
    lower_confidence: float
    start: int


def sequence_key(code: SelectedCode, terms: Sequence[Term], system: CodeSystem) -> SequenceKey:
    """The key by which a code is put in order."""
    entry = system[code.code]
    reasons = {term.quote for term in terms if term.reason}
    return SequenceKey(
        kind=_KINDS.get(entry.chapter.name, 0),
        is_aside=reasons.isdisjoint(code.evidence),
        is_lasting=re.search(r"\bacute\b", entry.title, re.IGNORECASE) is None,
        fewer_mentions=-len(code.evidence),
        lower_confidence=-code.confidence,
        start=code.evidence[0].start,
    )


def explain_first(key: SequenceKey) -> str:
    """Why a code with this key is listed first."""
    mentions = -key.fewer_mentions
    return ", ".join(
        [
            _KIND_NAMES[key.kind],
            *([] if key.is_aside else ["given as reason of the encounter"]),
            *([] if key.is_lasting else ["acute"]),
            *([f"named {mentions} times"] if mentions > 1 else []),
        ]
    )


async def choose_first(
    codes: Sequence[SelectedCode], model: LanguageModel, system: CodeSystem, trace: Trace
) -> int | None:
    """The position of the code that the language model lists first; None if it gave no answer."""
    diagnoses = [
        {"title": system[code.code].title, "mentions": len(code.evidence)}
        for code in codes[:_MOST_CHOICES]
    ]
    question = build_messages("assign", diagnoses=diagnoses)
    options = [str(number) for number in range(1, len(diagnoses) + 1)]
    [answer] = await model.choose([question], options)
    if isinstance(answer, ReplyError):
        trace.record_reply("assign", answer.raw)
        return None
    trace.record_reply("assign", json.dumps(answer))
    return max(range(len(answer)), key=answer.__getitem__)
