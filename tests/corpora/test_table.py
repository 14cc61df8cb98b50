"""Anybody's own data: read as it is meant, and refused with the row and the reason."""

import csv
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from clh.corpora import Evidence, Example
from clh.corpora.table import read_csv, read_jsonl, read_parquet, write_parquet
from clh.errors import InputError
from clh.schema import Note

TEXT = 'Known type 2 diabetes, and "gout".\r\n\nToday, dyspnea; asthma is suspected.'
ROW = {"id": "a", "text": TEXT, "codes": ["E11.9"]}


def write_jsonl(folder: Path, *rows: object) -> Path:
    (folder / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def write_csv(folder: Path, *rows: list[str], encoding: str = "utf-8") -> Path:
    with (folder / "train.csv").open("w", newline="", encoding=encoding) as stream:
        csv.writer(stream).writerows(rows)
    return folder


def write_table(folder: Path, *rows: dict[str, Any]) -> Path:
    """Parquet as a user writes it."""
    pq.write_table(pa.Table.from_pylist(list(rows)), folder / "train.parquet")
    return folder


def only(examples: Iterator[Example]) -> Example:
    (example,) = examples
    return example


READERS = pytest.mark.parametrize(
    ("write", "read"), [(write_jsonl, read_jsonl), (write_table, read_parquet)]
)


# --- what is read ---------------------------------------------------------------------------


@READERS
def test_a_note_and_its_codes(tmp_path: Path, write: Callable[..., Path], read: Any) -> None:
    row = {**ROW, "codes": ["j45909", " e11.9 ", "E11.9", "I10"], "age": 71}

    assert only(read(write(tmp_path, row), "train")) == Example(
        id="a",
        notes=(Note(id="a", text=TEXT),),
        codes=("J45.909", "E11.9", "I10"),  # as the book prints them, once, in the row's order
        split="train",
    )


@READERS
def test_several_notes_and_evidence(tmp_path: Path, write: Callable[..., Path], read: Any) -> None:
    notes = [{"id": "er", "text": "Gout."}, {"id": "ward", "text": "Asthma, no gout."}]
    asthma = {
        "code": "j45909",
        "note_id": "ward",
        "spans": [{"start": 0, "end": 6, "text": "Asthma"}],
    }
    row = {"id": "a", "notes": notes, "codes": ["j45909"], "evidence": [asthma]}

    example = only(read(write(tmp_path, row), "train"))

    assert [(note.id, note.text) for note in example.notes] == [
        ("er", "Gout."),
        ("ward", "Asthma, no gout."),
    ]
    assert example.evidence == (Evidence(**{**asthma, "code": "J45.909"}),)


@READERS
def test_a_note_without_codes(tmp_path: Path, write: Callable[..., Path], read: Any) -> None:
    rows = [ROW, {**ROW, "id": "b", "codes": []}]
    assert [len(example.codes) for example in read(write(tmp_path, *rows), "train")] == [1, 0]


def test_jsonl_with_a_byte_order_mark_numbers_and_blank_lines(tmp_path: Path) -> None:
    lines = [json.dumps({**ROW, "id": 7}), "", json.dumps({**ROW, "id": "8"}), ""]
    (tmp_path / "train.jsonl").write_text("\n".join(lines), encoding="utf-8-sig")

    assert [example.id for example in read_jsonl(tmp_path, "train")] == ["7", "8"]


@pytest.mark.parametrize("codes", ["E11.9;I10", "e119, i10", " E11.9 I10;", "E11.9;;I10"])
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig"])
def test_csv(tmp_path: Path, codes: str, encoding: str) -> None:
    rows = [["id", "age", "codes", "text"], ["7", "71", codes, TEXT], ["8", "71", "", "Ménière?"]]

    first, second = read_csv(write_csv(tmp_path, *rows, encoding=encoding), "train")

    assert (first.id, first.codes, first.note.text) == ("7", ("E11.9", "I10"), TEXT)
    assert (second.id, second.codes, second.note.text) == ("8", (), "Ménière?")


def test_a_csv_note_may_be_long(tmp_path: Path) -> None:
    long = "Cough. " * 50_000
    write_csv(tmp_path, ["id", "text", "codes"], ["a", long, "R05.9"])

    assert only(read_csv(tmp_path, "train")).note.text == long


# --- our own parquet ------------------------------------------------------------------------

texts = st.text(st.characters(exclude_categories=["Cs"]), min_size=1)


@st.composite
def examples(draw: st.DrawFn) -> Example:
    codes = draw(st.lists(st.text("0123456789.EVX", min_size=1), unique=True, max_size=4))
    bodies = draw(st.lists(texts, min_size=1, max_size=3))
    notes = tuple(Note(id=f"n{number}", text=text) for number, text in enumerate(bodies))
    evidence = []
    for code in draw(st.lists(st.sampled_from(codes), max_size=4)) if codes else ():
        note = draw(st.sampled_from(notes))
        starts = draw(st.lists(st.integers(0, len(note.text) - 1), min_size=1, max_size=3))
        ends = [draw(st.integers(start + 1, len(note.text))) for start in starts]
        spans = tuple(note.span(start, end) for start, end in zip(starts, ends, strict=True))
        evidence.append(Evidence(code=code, note_id=note.id, spans=spans))
    return Example(
        id=draw(texts), notes=notes, codes=tuple(codes), evidence=tuple(evidence), split="train"
    )


@given(written=st.lists(examples(), max_size=5, unique_by=lambda example: example.id))
def test_what_is_written_is_read(
    written: list[Example], tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = tmp_path_factory.mktemp("parquet")

    assert write_parquet(written, folder / "train.parquet") == len(written)
    assert list(read_parquet(folder, "train")) == written


def many(count: int) -> Iterator[Example]:
    for number in range(count):
        note = Note(id="n", text=f"Note {number}.")
        yield Example(id=str(number), notes=(note,), codes=("250.00",), split="train")


def test_more_examples_than_are_held_at_once(tmp_path: Path) -> None:
    assert write_parquet(many(1201), tmp_path / "train.parquet") == 1201
    assert list(read_parquet(tmp_path, "train")) == list(many(1201))


def test_a_failure_leaves_what_was_there(tmp_path: Path) -> None:
    def failing() -> Iterator[Example]:
        yield from many(600)
        raise InputError("row 601")

    file = tmp_path / "train.parquet"
    write_parquet(many(3), file)
    before = file.read_bytes()

    with pytest.raises(InputError, match="row 601"):
        write_parquet(failing(), file)

    assert file.read_bytes() == before
    assert list(tmp_path.iterdir()) == [file]


def test_parquet_of_others_is_checked_where_ours_is_not(tmp_path: Path) -> None:
    write_parquet(many(1), tmp_path / "train.parquet")
    assert only(read_parquet(tmp_path, "train")).codes == ("250.00",)

    write_table(tmp_path, {**ROW, "codes": ["250.00"]})
    with pytest.raises(InputError, match=r"train\.parquet, row 1: '250\.00' is not in ICD-10-CM"):
        list(read_parquet(tmp_path, "train"))


@pytest.mark.parametrize("size", [0, 3, 500, -1])
def test_damaged_parquet(tmp_path: Path, size: int) -> None:
    file = tmp_path / "train.parquet"
    write_parquet(many(1000), file)
    file.write_bytes(file.read_bytes()[:size])

    with pytest.raises(InputError, match=r"train\.parquet is no whole parquet file"):
        list(read_parquet(tmp_path, "train"))


def test_parquet_damaged_within(tmp_path: Path) -> None:
    file = tmp_path / "train.parquet"
    write_parquet(many(1000), file)
    data = bytearray(file.read_bytes())
    data[len(data) // 3 : len(data) // 2] = bytes(len(data) // 2 - len(data) // 3)
    file.write_bytes(data)

    with pytest.raises(InputError, match=r"train\.parquet is damaged after row \d+"):
        list(read_parquet(tmp_path, "train"))


# --- what is refused ------------------------------------------------------------------------


@READERS
@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({"codes": ["E11.99"]}, "'E11.99' is not in ICD-10-CM 2026-04-01; nearest: E11.9"),
        ({"codes": "E11.9"}, "codes: Input should be a valid list"),
        ({"codes": None}, "codes: Input should be a valid list"),
        ({"codes": [401]}, "codes.0: Input should be a valid string"),
        ({"text": " \n"}, "text: this is blank"),
        ({"text": None}, "give either text or notes"),
        ({"text": 7}, "text: Input should be a valid string"),
        ({"id": ""}, "id: this is blank"),
        ({"id": None}, "id: Input should be a valid string"),
        ({"notes": [{"id": "n", "text": "Gout."}]}, "give either text or notes"),
        ({"text": None, "notes": []}, "notes: Tuple should have at least 1 item"),
        ({"text": None, "notes": [{"id": "n", "text": ""}]}, "notes.0.text: this is blank"),
        ({"text": None, "notes": [{"id": "n", "text": "x"}] * 2}, "two notes of b have one id"),
        (
            {
                "evidence": [
                    {
                        "code": "E11.9",
                        "note_id": "b",
                        "spans": [{"start": 0, "end": 4, "text": "Gout"}],
                    }
                ]
            },
            "0:4 of b is another text",
        ),
    ],
)
def test_a_row_that_cannot_be_used(
    tmp_path: Path, write: Callable[..., Path], read: Any, change: dict[str, Any], problem: str
) -> None:
    row = {**ROW, "id": "b", **change}
    # A column of parquet has one type, so there the row is alone.
    if write is write_table:
        write(tmp_path, row)
        place = "train.parquet, row 1: "
    else:
        write(tmp_path, ROW, row)
        place = "train.jsonl, line 2: "

    with pytest.raises(InputError) as caught:
        list(read(tmp_path, "train"))

    assert place + problem in str(caught.value)
    assert "Known type 2" not in str(caught.value)  # nothing of a note


@READERS
@pytest.mark.parametrize(
    ("missing", "needed"), [("id", "id"), ("codes", "codes"), ("text", "text or notes")]
)
def test_a_missing_column(
    tmp_path: Path, write: Callable[..., Path], read: Any, missing: str, needed: str
) -> None:
    row = {name: value for name, value in ROW.items() if name != missing}
    there = ", ".join(row)
    with pytest.raises(InputError, match=rf"no {needed} among the columns \({there}\)"):
        list(read(write(tmp_path, row), "train"))


def test_an_id_that_occurs_twice(tmp_path: Path) -> None:
    write_jsonl(tmp_path, {**ROW, "id": 1}, ROW, {**ROW, "id": "1"})
    with pytest.raises(InputError, match="line 3: the id '1' occurs twice, first in line 1"):
        list(read_jsonl(tmp_path, "train"))


@pytest.mark.parametrize(
    ("data", "problem"),
    [
        (b'{"id": "a"', "line 1 is no JSON: Expecting ',' delimiter at character 11"),
        (b'\n["a"]', "line 2 is no JSON object"),
        ('\n\n{"id": "é"}'.encode("latin-1"), "line 3 is not UTF-8"),
    ],
)
def test_a_line_that_is_no_json(tmp_path: Path, data: bytes, problem: str) -> None:
    (tmp_path / "train.jsonl").write_bytes(data)
    with pytest.raises(InputError) as caught:
        list(read_jsonl(tmp_path, "train"))
    assert f"train.jsonl, {problem}" in str(caught.value)


@pytest.mark.parametrize(
    ("data", "problem"),
    [
        ("", "line 1: there is no id among the columns (none)"),
        ("id;text;codes\na;Gout;M10.9\n", "among the columns (id;text;codes)"),
        ("id,notes,codes\na,Gout,M10.9\n", "there is no text among the columns"),
        # A record's line is that on which it begins.
        ('id,text,codes\na,"Gout,\nold",M10.9\n\nb,"No\ngout",M10.99\n', "line 5: 'M10.99' is not"),
        ('id,text,codes\na,"Gout",M10.9\nb,Gout, old,M10.9\n', "line 3: 4 fields, and 3 in"),
        ('id,text,codes\na,"Gout,M10.9\nb,Gout,M10.9\n', "line 2: unexpected end of data"),
        (
            "id,text,codes\na,Gout,M10.9\na,Gout,M10.9\n",
            "line 3: the id 'a' occurs twice, first in line 2",
        ),
        ("id,text,codes\na,,M10.9\n", "line 2: text: this is blank"),
        ("id,text,codes\na,\udce9,M10.9\n", "line 2 is not UTF-8"),
    ],
)
def test_a_csv_that_cannot_be_used(tmp_path: Path, data: str, problem: str) -> None:
    (tmp_path / "train.csv").write_bytes(data.encode("utf-8", "surrogateescape"))
    with pytest.raises(InputError) as caught:
        list(read_csv(tmp_path, "train"))
    assert str(tmp_path / "train.csv") in str(caught.value)
    assert problem in str(caught.value)


@pytest.mark.parametrize("read", [read_jsonl, read_csv, read_parquet])
def test_a_missing_file_names_those_that_are_there(tmp_path: Path, read: Any) -> None:
    with pytest.raises(InputError, match="the folder has no such files"):
        list(read(tmp_path, "test"))

    write_jsonl(tmp_path, ROW)
    write_csv(tmp_path, ["id", "text", "codes"])
    write_table(tmp_path, ROW)
    with pytest.raises(InputError, match=r"no .*test\.\w+; the folder has train\.\w+$"):
        list(read(tmp_path, "test"))
