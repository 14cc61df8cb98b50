"""What annotators marked in a document, beside what analyze and locate find there."""

from collections.abc import Callable, Sequence

from agents.analyze import extract_by_retrieval
from agents.context import Context
from agents.locate import search
from agents.verify import same_laterality
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


def evidence_marks(example: Example, system: CodeSystem) -> list[Mark]:
    """The evidence, by codes as locate reports them; those that the release lacks are left out."""
    return [
        Mark(start=span.start, end=span.end, code=code)
        for gold in dict.fromkeys(evidence.code for evidence in example.evidence)
        if (code := reported_code(gold, system)) is not None
        for span in example.spans(gold)
    ]


def gold_codes(example: Example, system: CodeSystem) -> set[str | None]:
    """The document's codes, as locate reports them."""
    return {reported_code(code, system) for code in example.codes}


def reported_codes(candidates: Sequence[Candidate], system: CodeSystem) -> list[str]:
    """The codes of candidates by the same names as marks have: a prior's may be categories."""
    return [system.reported(candidate.code) for candidate in candidates]


def search_codes(context: Context) -> Callable[[Sequence[str]], list[list[str]]]:
    """A function that gives, for each of some lead terms, the codes that locate finds for it."""

    def find_codes(lead_terms: Sequence[str]) -> list[list[str]]:
        found = search(list(lead_terms), context)
        return [reported_codes(candidates, context.system) for candidates in found]

    return find_codes


def locate_document(example: Example, context: Context) -> tuple[list[Term], list[list[Candidate]]]:
    """A document's terms, and the candidates of each that verify is asked about.

    Raises InputError for an example that has codes but no evidence.
    """
    if example.codes and not example.evidence:
        raise InputError(f"{example.id} has codes without evidence: agents learn from evidence")
    terms = extract_by_retrieval(example.note, context)
    found = search([term.lead_term for term in terms], context)
    return terms, [same_laterality(*pair) for pair in zip(terms, found, strict=True)]
