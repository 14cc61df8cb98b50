"""A language model asked, candidate by candidate, whether the note supports the code."""

import json
from collections.abc import Sequence

from agents.node import Trace, build_messages, unusable_replies
from clh.errors import ReplyError
from clh.icd.tabular import CodeSystem
from clh.models.language import LanguageModel, Message
from clh.schema import Candidate, Finding, Term, Verdict

ANSWERS = ("yes", "no")


class LlmVerifier:
    """Takes the model's probability of "yes" for a code's probability."""

    def __init__(
        self, model: LanguageModel, system: CodeSystem, candidates: int, threshold: float
    ) -> None:
        """Ask about the first `candidates` of each term."""
        self.id, self.threshold = model.id, threshold
        self._model, self._system, self._candidates = model, system, candidates

    async def verify(
        self, terms: Sequence[Term], candidates: Sequence[Sequence[Candidate]], trace: Trace
    ) -> tuple[list[Verdict], list[Finding]]:
        """See `agents.verify.Verifier.verify`.

        All questions about a note are one call. Raises ReplyError if no answer can be used.
        """
        asked = [
            (position, candidate)
            for position, found in enumerate(candidates)
            for candidate in found[: self._candidates]
        ]
        questions = [
            build_question(terms[position], candidate, self._system)
            for position, candidate in asked
        ]
        answers = await self._model.choose(questions, ANSWERS)
        verdicts = []
        unusable = 0
        for (position, candidate), answer in zip(asked, answers, strict=True):
            if isinstance(answer, ReplyError):
                unusable += 1
                trace.record_reply("verify", answer.raw)
                trace.drop("unusable_reply", terms[position].quote, candidate.code)
                continue
            trace.record_reply("verify", json.dumps(answer))
            verdicts.append(Verdict(term=position, code=candidate.code, probability=answer[0]))
        if unusable and not verdicts:
            raise ReplyError(f"{self.id} answered none of {unusable} questions with yes or no")
        if unusable:
            return verdicts, [unusable_replies("verify", self.id, unusable, len(asked))]
        return verdicts, []


def build_question(term: Term, candidate: Candidate, system: CodeSystem) -> list[Message]:
    """The conversation that asks whether the note supports one candidate of a term."""
    entry = system[candidate.code]
    return build_messages(
        "verify",
        passage=term.sentence.text,
        quote=term.quote.text,
        status=term.status,
        code=candidate.code,
        title=entry.title,
        inclusion_terms=entry.inclusion_terms,
        excludes=entry.excludes1,
    )
