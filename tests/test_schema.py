"""The shapes that cross rooms: spans fit their note, and nothing can be changed or slipped in."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from clh.schema import AssignedCode, CodedNote, Note, Shape, Span, Term, Verdict

SPAN = Span(start=4, end=8, text="gout")


@given(text=st.text(min_size=1), data=st.data())
def test_a_span_of_a_note_is_the_note_between_its_offsets(text: str, data: st.DataObject) -> None:
    start = data.draw(st.integers(0, len(text) - 1))
    end = data.draw(st.integers(start + 1, len(text)))
    span = Note(id="1", text=text).span(start, end)

    assert (span.start, span.end) == (start, end)
    assert span.text == text[start:end]


@pytest.mark.parametrize(
    ("start", "end", "text"),
    [(4, 7, "gout"), (4, 9, "gout"), (8, 4, "gout"), (-1, 3, "gout"), (4, 4, "")],
)
def test_offsets_that_do_not_fit_the_text_are_refused(start: int, end: int, text: str) -> None:
    with pytest.raises(ValidationError):
        Span(start=start, end=end, text=text)


def test_a_span_may_not_run_past_its_note() -> None:
    with pytest.raises(ValidationError):
        Note(id="1", text="gout").span(2, 9)


def coded(**changes: object) -> CodedNote:
    values = {
        "note_id": "1",
        "run_id": "r",
        "icd_release": "2026-04-01",
        "policy": "encounter",
        "codes": [
            AssignedCode(
                code="M10.9",
                description="Gout, unspecified",
                confidence=0.9,
                sequence=1,
                evidence=(SPAN,),
                rationale="named",
            )
        ],
        "models": {"analyze": "m"},
        "timings": {"analyze": 0.1},
    }
    return CodedNote.model_validate({**values, **changes})


@pytest.mark.parametrize(
    ("shape", "field"),
    [
        (SPAN, "text"),
        (Note(id="1", text="gout"), "text"),
        (Term(quote=SPAN, sentence=SPAN, lead_term="Gout", status="affirmed"), "status"),
        (coded(), "codes"),
        (coded().codes[0], "code"),
    ],
)
def test_shapes_are_frozen(shape: Shape, field: str) -> None:
    with pytest.raises(ValidationError, match="frozen"):
        setattr(shape, field, getattr(shape, field))


def test_a_coded_note_survives_its_json() -> None:
    assert CodedNote.model_validate_json(coded().model_dump_json()) == coded()


@pytest.mark.parametrize(
    "changes",
    [
        {"policy": "inpatient"},
        {"timings": {"guess": 1.0}},
        {"codes": [{"code": "M10.9"}]},
        {"x": 1},
    ],
)
def test_what_the_contract_does_not_name_is_refused(changes: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        coded(**changes)


@pytest.mark.parametrize("probability", [-0.01, 1.01, float("nan")])
def test_a_probability_lies_between_0_and_1(probability: float) -> None:
    with pytest.raises(ValidationError):
        Verdict(term=0, code="M10.9", probability=probability, rationale="")


def test_no_code_without_evidence() -> None:
    with pytest.raises(ValidationError):
        AssignedCode.model_validate({**coded().codes[0].model_dump(), "evidence": []})


def test_a_fingerprint_follows_the_text_and_not_the_name() -> None:
    assert Note(id="1", text="gout").sha256 == Note(id="2", text="gout").sha256
    assert Note(id="1", text="gout").sha256 != Note(id="1", text="gout ").sha256
