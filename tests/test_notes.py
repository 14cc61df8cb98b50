"""Reading notes: every encoding comes back unaltered, and what is no note is refused."""

import codecs
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from clh.errors import InputError
from clh.notes import decode_note, read_note

LIMIT = 10_000
TEXT = "Dx: Ménière\u2019s disease, 38.5 °C.\r\nNo fever…\n\tNaïve \x0b patient."
PNG = b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR\0\0\0\x01\0\0\0\x01\x08\x06\0\0\0\x1f\x15\xc4\x89"
ELF = b"\x7fELF\x02\x01\x01" + bytes(9) + b"\x03\0\x3e\0\x01\0\0\0" + bytes(range(256))
PDF = b"%PDF-1.7\n%\xe2\xe3\xcf\xd3\n1 0 obj\n" + bytes(range(128, 256)) * 4 + bytes(range(32)) * 9


def text_of(data: bytes, limit: int = LIMIT) -> str:
    note, _ = decode_note(data, "1", limit, source="note.txt")
    return note.text


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "visit-7.txt"


# --- encodings ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "encoding",
    ["utf-8", "utf-8-sig", "utf-16", "utf-32", "utf-16-le", "utf-16-be", "cp1252"],
)
def test_every_encoding_comes_back_as_it_was(file: Path, encoding: str) -> None:
    file.write_bytes(TEXT.encode(encoding))
    note, found = read_note(file, LIMIT)

    assert note.text == TEXT
    assert note.id == "visit-7"
    assert found == encoding


def test_big_endian_utf_16_with_its_mark() -> None:
    assert text_of(codecs.BOM_UTF16_BE + TEXT.encode("utf-16-be")) == TEXT


def test_latin_1() -> None:
    text = "Señora García, 38.5 °C, sospecha de neumonía. ¿Alérgica? Sí. Ménière."
    assert text_of(text.encode("latin-1")) == text


@given(
    text=st.text(st.characters(exclude_categories=["Cs", "Cc", "Cn"]) | st.sampled_from("\r\n\t")),
    encoding=st.sampled_from(["utf-8", "utf-8-sig", "utf-16"]),
)
def test_any_text_comes_back_unaltered(text: str, encoding: str) -> None:
    note = f"Gout and asthma. {text} Fever for two days, with cough."
    assert text_of(note.encode(encoding)) == note


def test_bullets_of_a_word_processor_are_text() -> None:
    text = "\uf0b7 gout\n\uf0b7 asth\u00adma\n"
    assert text_of(text.encode()) == text


def test_line_breaks_stay_as_they_are(file: Path) -> None:
    file.write_bytes(b"one\r\ntwo\rthree\n\r\n")
    assert read_note(file, LIMIT)[0].text == "one\r\ntwo\rthree\n\r\n"


# --- what is no note ------------------------------------------------------------------------


def test_a_missing_file(file: Path) -> None:
    with pytest.raises(InputError, match=r"visit-7\.txt: no such file"):
        read_note(file, LIMIT)


def test_a_folder(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="is a folder: name one note in it"):
        read_note(tmp_path, LIMIT)


@pytest.mark.parametrize("data", [b"", b" \r\n\t", codecs.BOM_UTF8, " \n".encode("utf-16")])
def test_a_blank_file(file: Path, data: bytes) -> None:
    file.write_bytes(data)
    with pytest.raises(InputError, match=r"visit-7\.txt is blank"):
        read_note(file, LIMIT)


@pytest.mark.parametrize(
    "data",
    [
        pytest.param(PNG, id="png"),
        pytest.param(ELF, id="elf"),
        pytest.param(PDF, id="pdf"),
        pytest.param(bytes(500), id="zeros"),
        pytest.param(b"gout\0asthma\0\0fever\0", id="fields of a program"),
        pytest.param(b"gout \x01\x02\x03\x04 asthma", id="control characters"),
        pytest.param(codecs.BOM_UTF16_LE + b"g\0o\0u", id="utf-16 cut in a character"),
        pytest.param(codecs.BOM_UTF8 + b"gout \xff\xfe", id="utf-8 with other bytes"),
    ],
)
def test_what_is_not_text(file: Path, data: bytes) -> None:
    file.write_bytes(data)
    with pytest.raises(InputError, match=r"visit-7\.txt is not text: save the note as UTF-8"):
        read_note(file, LIMIT)


def test_a_note_beyond_the_limit(file: Path) -> None:
    file.write_bytes(b"x" * 1235)
    assert len(read_note(file, 1235)[0].text) == 1235
    with pytest.raises(InputError, match=r"has 1,235 bytes, more than the 1,234.*CLH_NOTE_BYTES"):
        read_note(file, 1234)
    with pytest.raises(InputError, match="<stdin> has 1,235 bytes"):
        decode_note(b"x" * 1235, "1", 1234, source="<stdin>")
