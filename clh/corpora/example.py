"""What every corpus is read into: encounters with their notes, gold codes and evidence."""

from typing import Self

from pydantic import Field, model_validator

from clh.schema import Note, Shape, Span

_BETWEEN_NOTES = "\n\n"


class Evidence(Shape):
    """Where a note says what a code stands for; a split mention has several spans."""

    code: str
    note_id: str
    spans: tuple[Span, ...] = Field(min_length=1)


class Example(Shape):
    """An encounter: its notes, the codes that experts gave to all of them together, and where."""

    id: str = Field(min_length=1)
    notes: tuple[Note, ...] = Field(min_length=1)
    codes: tuple[str, ...] = Field(description="gold codes, each once, as the book prints them")
    evidence: tuple[Evidence, ...] = ()
    split: str

    @model_validator(mode="after")
    def _evidence_is_in_the_notes(self) -> Self:
        texts = {note.id: note.text for note in self.notes}
        if len(texts) < len(self.notes):
            raise ValueError(f"two notes of {self.id} have one id")
        for one in self.evidence:
            if one.code not in self.codes:
                raise ValueError(f"evidence for {one.code}, which is not among the codes")
            for span in one.spans:
                if texts.get(one.note_id, "")[span.start : span.end] != span.text:
                    raise ValueError(f"{span.start}:{span.end} of {one.note_id} is another text")
        return self

    @property
    def note(self) -> Note:
        """The encounter as one note, which is what the agents code: its notes in a row."""
        return Note(id=self.id, text=_BETWEEN_NOTES.join(note.text for note in self.notes))

    def spans(self, code: str) -> tuple[Span, ...]:
        """All evidence for a code, with its offsets in `note`."""
        starts: dict[str, int] = {}
        at = 0
        for note in self.notes:
            starts[note.id] = at
            at += len(note.text) + len(_BETWEEN_NOTES)
        return tuple(
            Span(
                start=span.start + starts[one.note_id],
                end=span.end + starts[one.note_id],
                text=span.text,
            )
            for one in self.evidence
            if one.code == code
            for span in one.spans
        )

    def documents(self) -> list[Self]:
        """Each note as an example of its own, with the codes that have evidence in it.

        This is how codes are scored per document; a corpus without evidence has none to give.
        """
        documents = []
        for note in self.notes:
            evidence = tuple(one for one in self.evidence if one.note_id == note.id)
            codes = tuple(code for code in self.codes if any(one.code == code for one in evidence))
            documents.append(
                self.model_copy(
                    update={"id": note.id, "notes": (note,), "codes": codes, "evidence": evidence}
                )
            )
        return documents
