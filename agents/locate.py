"""Locate: for every term the codes whose texts lie closest, by meaning and by words."""

import asyncio
from collections.abc import Callable, Sequence
from typing import Self

from clh.config import Locate, Settings
from clh.icd.tabular import CodeSystem, load_tabular
from clh.models.embedder import Embedder, load_embedder
from clh.retrieval import hybrid
from clh.retrieval.index import CodeIndex, open_index
from clh.retrieval.prior import Prior
from clh.schema import Candidate, Term


class Retriever:
    """Searches the code system by meaning, by words, and with a corpus's prior if there is one."""

    def __init__(
        self,
        embedder: Embedder,
        index: CodeIndex,
        prior: Prior | None,
        system: CodeSystem,
        settings: Locate,
    ) -> None:
        """Search `index`, whose texts the code tower embedded, with what `embedder` embeds."""
        self.id = " + ".join([embedder.id, *([prior.id] if prior is not None else [])])
        self._embedder, self._index, self._prior = embedder, index, prior
        self._system, self._settings = system, settings

    @classmethod
    def load(cls, settings: Settings, progress: Callable[[int, int], None] | None = None) -> Self:
        """The retriever alone, without the other agents, as the settings name it.

        `progress` as in `clh.retrieval.index.open_index`. Raises ModelError where weights are
        missing or damaged.
        """
        system = load_tabular()
        index = open_index(settings, system, progress)
        name = settings.locate.prior
        prior = Prior.load(name, index, system) if name else None
        embedder = load_embedder(settings.towers.query, settings)
        return cls(embedder, index, prior, system, settings.locate)

    async def locate(self, terms: Sequence[Term]) -> list[list[Candidate]]:
        """The candidates of each term; all terms are one search."""
        return await asyncio.to_thread(self.search, [term.lead_term for term in terms])

    def search(self, queries: Sequence[str]) -> list[list[Candidate]]:
        """For each query its candidates, best first: each code once, with its best text."""
        vectors = self._embedder.encode(queries)
        results = hybrid.search(queries, vectors, self._index, self._prior, self._settings)
        return [
            [
                Candidate(
                    code=found.code,
                    title=self._system[found.code].title,
                    matched=found.text,
                    similarity=min(found.similarity, 1.0),
                    lexical_score=found.lexical_score,
                    length_bonus=found.length_bonus,
                    prior_score=found.prior_score,
                    precedent=found.precedent,
                )
                for found in best
            ]
            for best in results
        ]
