"""The shapes that cross rooms: a note goes in, a coded note comes out.

Every shape is frozen: an agent adds its own, none rewrites another's.
"""

import hashlib
from typing import Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

Status = Literal["affirmed", "negated", "historical", "family", "uncertain"]
Policy = Literal["encounter", "mention"]
Severity = Literal["error", "warning", "reminder"]
Agent = Literal["analyze", "locate", "verify", "assign"]
AGENTS: tuple[Agent, ...] = ("analyze", "locate", "verify", "assign")


class Shape(BaseModel):
    """Base of all shapes: frozen, and strict about unknown fields."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class Span(Shape):
    """A stretch of the note; `text` is `note.text[start:end]`, to the character."""

    start: int = Field(ge=0, description="offset of the first character, in Unicode code points")
    end: int = Field(ge=0, description="offset after the last character")
    text: str = Field(min_length=1)

    @model_validator(mode="after")
    def _length_matches(self) -> Self:
        if self.end - self.start != len(self.text):
            raise ValueError(
                f"span {self.start}:{self.end} does not fit {len(self.text)} characters"
            )
        return self


class Note(Shape):
    """A clinical note as it was given."""

    id: str = Field(min_length=1)
    text: str = Field(min_length=1)

    @property
    def sha256(self) -> str:
        """The note's fingerprint: what the audit keeps when it may not keep the text."""
        return hashlib.sha256(self.text.encode()).hexdigest()

    def span(self, start: int, end: int) -> Span:
        """The span of this note from `start` up to `end`."""
        return Span(start=start, end=end, text=self.text[start:end])


class Term(Shape):
    """A codable mention that analyze found: the quote, its sentence, the lead term to look up."""

    quote: Span
    sentence: Span
    lead_term: str = Field(
        min_length=1, description="the mention in the Alphabetic Index's own words"
    )
    status: Status
    reason: bool = Field(
        default=False, description="whether the note gives it as complaint, assessment or diagnosis"
    )
    is_sentence: bool = Field(
        default=False, description="whether it is a sentence as a whole, beside the mentions in it"
    )


class Candidate(Shape):
    """A code that locate proposes for one term."""

    code: str
    title: str
    matched: str = Field(description="the title, inclusion term or index term that lay closest")
    similarity: float = Field(description="cosine similarity of lead term and matched text")
    lexical_score: float = Field(default=0.0, description="added for the words that both share")
    length_bonus: float = Field(default=0.0, description="added for the length of the lead term")
    prior_score: float = Field(
        default=0.0, description="added for how often the corpus has the code"
    )
    precedent: float = Field(
        default=0.0, description="how often the corpus has the code where it has the same words"
    )

    @property
    def fused_score(self) -> float:
        """The score that locate ranks candidates by."""
        return self.similarity + self.lexical_score + self.length_bonus + self.prior_score


class Verdict(Shape):
    """Whether the note supports a candidate, as a calibrated probability."""

    term: int = Field(ge=0, description="position of the term among analyze's terms")
    code: str
    probability: float = Field(ge=0, le=1)
    reranker_logit: float | None = Field(
        default=None, description="log-odds by the reranker, if it read the code"
    )


class Alternative(Shape):
    """Another code that the same words may mean."""

    code: str
    description: str
    confidence: float = Field(ge=0, le=1)


class AssignedCode(Shape):
    """One code of the final set."""

    code: str
    description: str
    confidence: float = Field(ge=0, le=1)
    sequence: int = Field(ge=1, description="1 is the first-listed diagnosis")
    evidence: tuple[Span, ...] = Field(min_length=1)
    rationale: str
    flags: tuple[str, ...] = ()
    alternatives: tuple[Alternative, ...] = ()


class Citation(Shape):
    """What a rule rests on: a line of the Tabular List, or a section of the Official Guidelines."""

    place: str = Field(description="code, block or chapter; or section, such as I.C.9.a.1")
    kind: str = Field(description="kind of note, title, guideline, or the list of another source")
    text: str = Field(description="the line in the book's words, or what the section says in ours")


class Finding(Shape):
    """What a rule of the code book says of codes: a human coder should look at it."""

    rule: str
    severity: Severity = Field(description="error: no payer takes it; warning: likely wrong")
    codes: tuple[str, ...]
    message: str
    citation: Citation
    suggestions: tuple[str, ...] = Field(default=(), description="codes to choose from instead")
    change: str = Field(default="", description="what was done about it; empty: nothing was")


class ConsideredCode(Shape):
    """A code that the note supports and the answer leaves out, and why."""

    code: str
    description: str
    reason: str = Field(description="assertion status, not_billable, or a rule of the code book")
    message: str
    citation: Citation | None = None
    evidence: tuple[Span, ...] = ()


class AgentError(Shape):
    """An agent that failed, and why; the run keeps what the agents before it produced."""

    agent: Agent | Literal["audit"]
    message: str


class CodedNote(Shape):
    """The answer: what `clh code --format json` prints."""

    note_id: str
    run_id: str
    icd_release: str
    policy: Policy
    codes: tuple[AssignedCode, ...] = ()
    considered: tuple[ConsideredCode, ...] = ()
    warnings: tuple[Finding, ...] = ()
    errors: tuple[AgentError, ...] = ()
    models: dict[Agent, str]
    timings: dict[Agent, float] = Field(description="seconds spent in each agent")
