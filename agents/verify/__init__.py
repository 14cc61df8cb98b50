"""Verify: how probably the note supports each candidate.

Three sources: a calibrated logistic regression on similarity and shared words; the same, and a
cross-encoder that reads the likeliest codes in their sentences; or the language model, asked yes or
no and read by its log-probabilities.
"""

import asyncio
import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

from agents.context import Context
from agents.state import State, Trace, agent, conversation
from clh.models.language import Message
from clh.models.logistic import Logistic, logit
from clh.models.reranker import Reranker
from clh.retrieval.lexical import Lexicon, expand
from clh.schema import Candidate, Term, Verdict

ANSWERS = ("yes", "no")


@agent("verify")
async def verify(state: State, context: Context, trace: Trace) -> dict[str, Any]:
    """Judge every candidate of every term."""
    terms = state["terms"]
    candidates = [same_laterality(*pair) for pair in zip(terms, state["candidates"], strict=True)]
    for term, before, after in zip(terms, state["candidates"], candidates, strict=True):
        for candidate in before:
            if candidate not in after:
                place = f"{term.quote.start}:{term.quote.end}"
                trace.drop(candidate.code, f"the other side than the note says at {place}")
    if context.settings.verify.source == "llm":
        return {"verdicts": await ask(terms, candidates, context, trace)}
    return {"verdicts": await asyncio.to_thread(judge, terms, candidates, context)}


def judge(
    terms: Sequence[Term], candidates: Sequence[Sequence[Candidate]], context: Context
) -> list[Verdict]:
    """The verdicts of the fitted verifier, and of the cross-encoder if there is one."""
    verdicts = score_candidates(terms, candidates, context)
    if context.encoder is None or context.reading is None:
        return verdicts
    said = read(terms, candidates, context.encoder, context.settings.verify.codes)
    return combine_scores(verdicts, candidates, said, context.reading)


def same_laterality(term: Term, candidates: Sequence[Candidate]) -> list[Candidate]:
    """The candidates less those of the other side: none says left where the note says right."""
    said = _sides(term.quote.text) or _sides(term.sentence.text)
    return [one for one in candidates if not said or _sides(one.title) <= said]


def score_candidates(
    terms: Sequence[Term], candidates: Sequence[Sequence[Candidate]], context: Context
) -> list[Verdict]:
    """The verdicts of the fitted verifier."""
    return [
        Verdict(
            term=position,
            code=candidate.code,
            probability=context.verifier.probability(measured),
            rationale=(
                f"similarity {candidate.similarity:.2f} to {candidate.matched!r}; the quote has "
                f"{measured['matched_in_quote']:.0%} of its words"
            ),
        )
        for position, (term, found) in enumerate(zip(terms, candidates, strict=True))
        for candidate, measured in zip(
            found, features(term, found, context.index.lexicon), strict=True
        )
    ]


def select_for_reranking(
    terms: Sequence[Term], candidates: Sequence[Sequence[Candidate]], most: int
) -> list[tuple[int, Candidate]]:
    """The codes that locate ranks highest, at most so many, each at the term worth reading."""
    ranks: dict[str, float] = {}
    best: dict[str, tuple[int, Candidate]] = {}
    for position, found in enumerate(candidates):
        for one in found:
            ranks[one.code] = max(one.fused_score, ranks.get(one.code, one.fused_score))
            known = best.get(one.code)
            if known is None or rerank_key(terms[position], one) > rerank_key(
                terms[known[0]], known[1]
            ):
                best[one.code] = (position, one)
    return [best[code] for code in sorted(ranks, key=lambda code: -ranks[code])[:most]]


def rerank_key(term: Term, candidate: Candidate) -> tuple[bool, float]:
    """What makes a code worth reading at a term: a mention says where to look in its sentence."""
    return not term.is_sentence, candidate.fused_score


def read(
    terms: Sequence[Term],
    candidates: Sequence[Sequence[Candidate]],
    encoder: Reranker,
    most: int,
) -> dict[str, float]:
    """What the cross-encoder says of the likeliest codes, at most so many, in log-odds."""
    chosen = select_for_reranking(terms, candidates, most)
    logits = encoder.score([texts(terms[position], one) for position, one in chosen])
    return {one.code: odds for (_, one), odds in zip(chosen, logits.tolist(), strict=True)}


def texts(term: Term, candidate: Candidate) -> tuple[str, str]:
    """What the cross-encoder reads: a term with its sentence, and what the code stands for."""
    said = f"{term.lead_term}: {' '.join(term.sentence.text.split())}"
    title, matched = candidate.title, candidate.matched
    return said, title if matched in title else f"{title}; {matched}"


def combine_scores(
    verdicts: Sequence[Verdict],
    candidates: Sequence[Sequence[Candidate]],
    said: Mapping[str, float],
    reading: Logistic,
) -> list[Verdict]:
    """The verdicts in the light of what the cross-encoder said of their codes, if it read them."""
    ranks = {
        (term, one.code): one.fused_score for term, found in enumerate(candidates) for one in found
    }

    def again(verdict: Verdict) -> Verdict:
        odds, rank = said.get(verdict.code), ranks[verdict.term, verdict.code]
        probability = reading.probability(weighed(logit(verdict.probability), rank, odds))
        why = "" if odds is None else f"read in its sentence: {odds:+.1f}; "
        return verdict.model_copy(
            update={"probability": probability, "rationale": why + verdict.rationale}
        )

    return list(map(again, verdicts))


def weighed(retrieval: float, rank: float, said: float | None) -> dict[str, float]:
    """What makes a candidate probable where a cross-encoder reads: log-odds, and locate's rank.

    That a code was not read says something, too: there were so many more likely ones.
    """
    return {
        "retrieval": retrieval,
        "rank": rank,
        "read": float(said is not None),
        "encoder": 0.0 if said is None else said,
    }


def features(
    term: Term, candidates: Sequence[Candidate], lexicon: Lexicon
) -> list[dict[str, float]]:
    """What the verifier knows of each candidate of a term, each from 0 to 1.

    Coverage says how far the words are the same, similarity how near the meaning; their products
    let a logistic regression tell a paraphrase from a near miss.
    """
    sentence = expand(term.sentence.text)
    nearest = max((candidate.similarity for candidate in candidates), default=0.0)
    measured = []
    for candidate in candidates:
        matched = lexicon.coverage(candidate.matched, by=term.lead_term)
        quote = lexicon.coverage(term.lead_term, by=candidate.matched)
        measured.append(
            {
                "similarity": candidate.similarity,
                "matched_in_quote": matched,
                "matched_in_quote_squared": matched**2,
                "similarity_times_matched": candidate.similarity * matched,
                "quote_in_matched": quote,
                "quote_times_matched": quote * matched,
                "matched_in_sentence": lexicon.coverage(candidate.matched, by=sentence),
                "residual_title": float("other" in candidate.title.lower().split()),
                "first": float(candidate.similarity == nearest),
            }
        )
    return measured


async def ask(
    terms: Sequence[Term],
    candidates: Sequence[Sequence[Candidate]],
    context: Context,
    trace: Trace,
) -> list[Verdict]:
    """The verdicts of the language model; each term's candidates share their sentence."""
    most = context.settings.verify.llm_candidates
    verdicts: list[Verdict] = []
    for position, (term, found) in enumerate(zip(terms, candidates, strict=True)):
        conversations = [question(term, candidate, context) for candidate in found[:most]]
        answers = await context.ask().choose(conversations, ANSWERS)
        trace.heard("verify", json.dumps(answers))
        verdicts += [
            Verdict(
                term=position,
                code=candidate.code,
                probability=yes,
                rationale=f"the model's probability of yes to {candidate.title!r}",
            )
            for candidate, (yes, _) in zip(found, answers, strict=False)
        ]
    return verdicts


def question(term: Term, candidate: Candidate, context: Context) -> list[Message]:
    """The conversation that asks whether the note supports one candidate of a term."""
    entry = context.system[candidate.code]
    return conversation(
        "verify",
        passage=term.sentence.text,
        quote=term.quote.text,
        status=term.status,
        code=candidate.code,
        title=entry.title,
        inclusion_terms=entry.inclusion_terms,
        excludes=entry.excludes1,
    )


def _sides(text: str) -> set[str]:
    words = set(re.findall(r"[a-z]+", text.lower()))
    if words & {"bilateral", "bilaterally", "both"}:
        return {"left", "right"}
    return words & {"left", "right"}
