"""Notes cut into marked pieces."""

from hypothesis import given
from hypothesis import strategies as st

from clh.highlight import highlight
from clh.schema import Note

TEXT = "Cough and fever, no cough."


def test_overlapping_evidence_is_cut_at_every_edge() -> None:
    note = Note(id="note", text=TEXT)
    predicted = {"R05.9": [note.span(0, 5), note.span(20, 25)], "R50.9": [note.span(0, 15)]}
    gold = {"R05.9": [note.span(0, 9)]}
    assert highlight(TEXT, gold, predicted) == [
        ("Cough", (["R05.9"], ["R05.9", "R50.9"])),
        (" and", (["R05.9"], ["R50.9"])),
        (" fever", ([], ["R50.9"])),
        (", no ", ([], [])),
        ("cough", ([], ["R05.9"])),
        (".", ([], [])),
    ]


def test_a_note_without_evidence_is_one_piece() -> None:
    assert highlight(TEXT, {}) == [(TEXT, ([],))]


@given(
    st.lists(
        st.tuples(st.integers(0, len(TEXT) - 1), st.integers(1, 9), st.sampled_from("ABC")),
        max_size=12,
    )
)
def test_the_pieces_are_the_text_and_each_carries_the_codes_of_its_spans(
    given: list[tuple[int, int, str]],
) -> None:
    note = Note(id="note", text=TEXT)
    spans = [(code, note.span(at, min(at + size, len(TEXT)))) for at, size, code in given]
    evidence = {code: [span for named, span in spans if named == code] for code, _ in spans}
    pieces = highlight(TEXT, evidence)
    assert "".join(piece.text for piece in pieces) == TEXT
    position = 0
    for piece in pieces:
        covering = {code for code, span in spans if span.start <= position < span.end}
        assert set(piece.codes[0]) == covering
        position += len(piece.text)
