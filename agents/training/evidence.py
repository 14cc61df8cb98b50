"""What annotators marked in a document, beside what analyze and locate find there."""

from collections.abc import Sequence

from agents.analyze.retrieval import RetrievalAnalyzer
from agents.locate import Retriever
from agents.node import Trace
from agents.pipeline import Pipeline
from agents.verify import keep_same_side
from clh.corpora import Example
from clh.errors import InputError
from clh.icd.tabular import CodeSystem
from clh.schema import Candidate, Shape, Span, Term
from clh.training.pairs import reported_code


class Mark(Shape):
    """A stretch of a passage that is evidence for a code."""

    start: int
    end: int
    code: str


def overlaps(mark: Mark, span: Span) -> bool:
    """Whether the two share a character."""
    return mark.start < span.end and span.start < mark.end


def evidence_marks(document: Example, system: CodeSystem) -> list[Mark]:
    """The evidence, by codes as locate reports them; those that the release lacks are left out."""
    return [
        Mark(start=span.start, end=span.end, code=code)
        for gold in dict.fromkeys(evidence.code for evidence in document.evidence)
        if (code := reported_code(gold, system)) is not None
        for span in document.spans(gold)
    ]


def gold_codes(document: Example, system: CodeSystem) -> frozenset[str]:
    """The document's codes, as locate reports them; those that the release lacks are left out."""
    reported = (reported_code(code, system) for code in document.codes)
    return frozenset(code for code in reported if code is not None)


def reported_codes(candidates: Sequence[Candidate], system: CodeSystem) -> list[str]:
    """The codes of candidates by the same names as marks have: a prior's may be categories."""
    return [system.reported(candidate.code) for candidate in candidates]


def find_codes(
    lead_terms: Sequence[str], retriever: Retriever, system: CodeSystem
) -> list[list[str]]:
    """The codes that locate finds for each of some lead terms, best first."""
    found = retriever.search(lead_terms)
    return [reported_codes(candidates, system) for candidates in found]


def locate_document(
    document: Example, pipeline: Pipeline
) -> tuple[list[Term], list[list[Candidate]]]:
    """A document's terms, found by retrieval, and the candidates of each that verify judges.

    Raises InputError for a document that has codes but no evidence.
    """
    if document.codes and not document.evidence:
        raise InputError(f"{document.id} has codes without evidence: agents learn from evidence")
    analyzer = RetrievalAnalyzer(
        pipeline.settings.analyze.retrieval,
        pipeline.reader,
        pipeline.embedder,
        pipeline.index,
        pipeline.prior,
    )
    terms = analyzer.extract(document.note)
    found = pipeline.retriever.search([term.lead_term for term in terms])
    return terms, keep_same_side(terms, found, Trace())
