"""The likeliest candidates read in their sentences by a reranker, beside the retrieval verifier."""

import asyncio
from collections.abc import Mapping, Sequence

from agents.node import Trace
from agents.verify.retrieval import RetrievalVerifier
from clh.document.view import normalize
from clh.models.logistic import Logistic, logit
from clh.models.reranker import Reranker
from clh.schema import Candidate, Finding, Term, Verdict


class RerankingVerifier:
    """Combines the retrieval verifier's probability with the logit of a reranker."""

    def __init__(
        self, retrieval: RetrievalVerifier, reranker: Reranker, calibrator: Logistic, top_k: int
    ) -> None:
        """The reranker reads the `top_k` best codes of a note; `calibrator` combines the scores."""
        self.id = f"{reranker.id} + {calibrator.id} + {retrieval.id}"
        self.threshold = calibrator.threshold
        self._retrieval, self._reranker = retrieval, reranker
        self._calibrator, self._top_k = calibrator, top_k

    async def verify(
        self, terms: Sequence[Term], candidates: Sequence[Sequence[Candidate]], trace: Trace
    ) -> tuple[list[Verdict], list[Finding]]:
        """See `agents.verify.Verifier.verify`."""
        return await asyncio.to_thread(self.score_candidates, terms, candidates), []

    def score_candidates(
        self, terms: Sequence[Term], candidates: Sequence[Sequence[Candidate]]
    ) -> list[Verdict]:
        """The verdict for each candidate of each term."""
        verdicts = self._retrieval.score_candidates(terms, candidates)
        logits = self.rerank(terms, candidates)
        return combine_scores(verdicts, candidates, logits, self._calibrator)

    def rerank(
        self, terms: Sequence[Term], candidates: Sequence[Sequence[Candidate]]
    ) -> dict[str, float]:
        """The reranker's logit of each of the `top_k` best codes of the note."""
        selected = select_for_reranking(terms, candidates, self._top_k)
        pairs = [rerank_input(terms[position], candidate) for position, candidate in selected]
        logits = self._reranker.score(pairs)
        return {
            candidate.code: value
            for (_, candidate), value in zip(selected, logits.tolist(), strict=True)
        }


def select_for_reranking(
    terms: Sequence[Term], candidates: Sequence[Sequence[Candidate]], top_k: int
) -> list[tuple[int, Candidate]]:
    """The `top_k` codes with the highest fused scores, each at the term where it is best read.

    Returns pairs of a term's position and the candidate there, the best code first.
    """
    scores: dict[str, float] = {}
    best: dict[str, tuple[int, Candidate]] = {}
    for position, found in enumerate(candidates):
        for candidate in found:
            code, score = candidate.code, candidate.fused_score
            scores[code] = max(score, scores.get(code, score))
            known = best.get(code)
            if known is None or rerank_key(terms[position], candidate) > rerank_key(
                terms[known[0]], known[1]
            ):
                best[code] = (position, candidate)
    return [best[code] for code in sorted(scores, key=lambda code: -scores[code])[:top_k]]


def rerank_key(term: Term, candidate: Candidate) -> tuple[bool, float]:
    """Sort key: a code is read at a mention rather than at a whole sentence, then by its score."""
    return not term.is_sentence, candidate.fused_score


def rerank_input(term: Term, candidate: Candidate) -> tuple[str, str]:
    """The pair of texts that the reranker reads: a term with its sentence, and the code's texts."""
    query = f"{term.lead_term}: {' '.join(normalize(term.sentence.text).text.split())}"
    title, matched = candidate.title, candidate.matched
    return query, title if matched in title else f"{title}; {matched}"


def combine_scores(
    verdicts: Sequence[Verdict],
    candidates: Sequence[Sequence[Candidate]],
    logits: Mapping[str, float],
    calibrator: Logistic,
) -> list[Verdict]:
    """Each verdict combined with its code's reranker logit, if the code was reranked."""
    scores = {
        (position, candidate.code): candidate.fused_score
        for position, found in enumerate(candidates)
        for candidate in found
    }

    def combine(verdict: Verdict) -> Verdict:
        value, score = logits.get(verdict.code), scores[verdict.term, verdict.code]
        features = combination_features(logit(verdict.probability), score, value)
        return Verdict(
            term=verdict.term,
            code=verdict.code,
            probability=calibrator.probability(features),
            reranker_logit=value,
        )

    return list(map(combine, verdicts))


def combination_features(
    retrieval: float, fused_score: float, reranker_logit: float | None
) -> dict[str, float]:
    """The features of a candidate where a reranker reads the best ones.

    That a code was not reranked is a feature: so many others had higher scores.
    """
    return {
        "retrieval": retrieval,
        "rank": fused_score,
        "read": float(reranker_logit is not None),
        "encoder": 0.0 if reranker_logit is None else reranker_logit,
    }
