"""Candidates judged by a logistic regression on similarity and shared words."""

import asyncio
from collections.abc import Sequence

from agents.node import Trace
from clh.document.view import normalize
from clh.models.logistic import Logistic
from clh.retrieval.lexical import Lexicon, expand
from clh.schema import Candidate, Finding, Term, Verdict


class RetrievalVerifier:
    """Judges every candidate by features of its retrieval."""

    def __init__(self, calibrator: Logistic, lexicon: Lexicon, embedder_id: str) -> None:
        """Take the fitted weights, and the word weights of the code system's texts."""
        self.id = f"{embedder_id} + {calibrator.id}"
        self.threshold = calibrator.threshold
        self._calibrator, self._lexicon = calibrator, lexicon

    async def verify(
        self, terms: Sequence[Term], candidates: Sequence[Sequence[Candidate]], trace: Trace
    ) -> tuple[list[Verdict], list[Finding]]:
        """See `agents.verify.Verifier.verify`."""
        return await asyncio.to_thread(self.score_candidates, terms, candidates), []

    def score_candidates(
        self, terms: Sequence[Term], candidates: Sequence[Sequence[Candidate]]
    ) -> list[Verdict]:
        """The verdict for each candidate of each term."""
        return [
            Verdict(
                term=position,
                code=candidate.code,
                probability=self._calibrator.probability(features),
            )
            for position, (term, found) in enumerate(zip(terms, candidates, strict=True))
            for candidate, features in zip(
                found, retrieval_features(term, found, self._lexicon), strict=True
            )
        ]


def retrieval_features(
    term: Term, candidates: Sequence[Candidate], lexicon: Lexicon
) -> list[dict[str, float]]:
    """The features of each candidate of a term, each from 0 to 1.

    Coverage measures how far the words are the same, similarity how near the meaning is; their
    products let a logistic regression tell a paraphrase from a near miss.
    """
    sentence = expand(normalize(term.sentence.text).text)
    nearest = max((candidate.similarity for candidate in candidates), default=0.0)
    features = []
    for candidate in candidates:
        matched = lexicon.coverage(candidate.matched, by=term.lead_term)
        quote = lexicon.coverage(term.lead_term, by=candidate.matched)
        features.append(
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
    return features
