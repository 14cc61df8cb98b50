"""Reading notes: every encoding comes back unaltered, and what is no note is refused."""

import codecs
import io
import os
import subprocess
import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from clh.errors import InputError
from clh.notes import decode_note, read_bounded, read_note

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
        pytest.param(b"caf\xe9 " + bytes([0x81, 0x8D, 0x8F, 0x90, 0x9D]), id="no letters at all"),
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
    with pytest.raises(InputError, match=r"has more than the 1,234 bytes.*CLH_NOTE_BYTES"):
        read_note(file, 1234)
    with pytest.raises(InputError, match="<stdin> has more than the 1,234 bytes"):
        decode_note(b"x" * 1235, "1", 1234, source="<stdin>")


# --- what is not a file, or has no end ------------------------------------------------------


@pytest.mark.parametrize("device", ["/dev/zero", "/dev/urandom"])
def test_a_device_without_an_end(device: str) -> None:
    with pytest.raises(InputError, match=f"{device} has more than the 1,000,000 bytes"):
        read_note(Path(device), 1_000_000)


def test_no_more_than_is_needed_is_read_of_a_stream() -> None:
    stream = io.BytesIO(b"x" * 5000)
    with pytest.raises(InputError, match="standard input has more than the 1,000 bytes"):
        read_bounded(stream, 1000)
    assert stream.tell() == 1001
    assert read_bounded(io.BytesIO(b"x" * 1000), 1000) == b"x" * 1000


def test_a_file_that_grows_while_it_is_looked_at(
    file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file.write_bytes(b"x" * 5000)
    monkeypatch.setattr(Path, "stat", lambda *_, **__: os.stat_result([0o100644] + [0] * 9))
    with pytest.raises(InputError, match="has more than the 1,000 bytes"):
        read_note(file, 1000)


def test_a_named_pipe_is_read_to_its_end(file: Path) -> None:
    os.mkfifo(file)
    with subprocess.Popen(["sh", "-c", f"(echo gout; sleep .3; echo asthma) > {file}"]):
        time.sleep(0.1)  # until the writer waits for a reader
        assert read_note(file, LIMIT)[0].text == "gout\nasthma\n"


def test_a_pipe_whose_writer_takes_its_time() -> None:
    with subprocess.Popen(["sh", "-c", "sleep .3; echo gout"], stdout=subprocess.PIPE) as writer:
        assert writer.stdout is not None
        note, _ = read_note(Path(f"/dev/fd/{writer.stdout.fileno()}"), LIMIT)
    assert note.text == "gout\n"


def test_a_pipe_that_nobody_writes_to_is_blank(file: Path) -> None:
    os.mkfifo(file)
    with pytest.raises(InputError, match=r"visit-7\.txt is blank"):
        read_note(file, LIMIT)


def test_a_folder_that_may_not_be_entered(
    tmp_path: Path, file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def denied(*_: object) -> int:
        raise PermissionError(13, "Permission denied", str(file))

    monkeypatch.setattr(os, "open", denied)
    with pytest.raises(InputError, match=r"visit-7\.txt: permission denied"):
        read_note(file, LIMIT)
    with pytest.raises(InputError, match="standard input is a folder"):
        read_bounded(Folder(), LIMIT)


class Folder(io.BytesIO):
    """A standard input that is a folder."""

    def read(self, *_: object) -> bytes:
        raise IsADirectoryError(21, "Is a directory")
