"""Reading a note from a file or a stream, whatever it is encoded in."""

import codecs
import os
from pathlib import Path
from typing import BinaryIO
from unicodedata import category

from clh.errors import InputError
from clh.schema import Note

_BOMS = {
    codecs.BOM_UTF8: "utf-8-sig",
    codecs.BOM_UTF32_LE: "utf-32",  # before UTF-16, whose mark it begins with
    codecs.BOM_UTF32_BE: "utf-32",
    codecs.BOM_UTF16_LE: "utf-16",
    codecs.BOM_UTF16_BE: "utf-16",
}


def read_note(path: Path, limit: int) -> tuple[Note, str]:
    """The note in a file, and its encoding; the file's name without its ending is the note's id.

    Raises InputError as `read_bounded` and `decode_note` do.
    """
    data = read_bounded(path, limit)
    name = os.fsencode(path.stem).decode("utf-8", "replace")
    return decode_note(data, name, limit, source=str(path))


def read_bounded(source: Path | BinaryIO, limit: int) -> bytes:
    """The bytes of a file, device, pipe or stream of at most `limit` bytes.

    No more than `limit` + 1 bytes are read, whatever there is. Raises InputError when there is no
    such file, it cannot be read, or it has more bytes.
    """
    try:
        if isinstance(source, Path):
            with open(source, "rb", opener=_open) as stream:
                data = stream.read(limit + 1)
        else:
            data = source.read(limit + 1) or b""  # None where a stream has nothing yet
    except IsADirectoryError:
        raise InputError(f"{_name(source)} is a folder: name one note in it") from None
    except OSError as error:
        reason = (error.strerror or "cannot be read").lower()
        raise InputError(f"{_name(source)}: {reason}") from error
    _check_size(data, limit, _name(source))
    return data


def decode_note(data: bytes, id: str, limit: int, source: str) -> tuple[Note, str]:
    """The note in `data`, of at most `limit` bytes, and its encoding; `source` is for messages.

    UTF-8 and whatever carries a byte order mark is decoded as such, the rest as Windows-1252, which
    holds Latin-1's letters. Raises InputError when the data is too large, blank or not text.
    """
    _check_size(data, limit, source)
    text, encoding = _decode(data, source)
    if not text.strip():
        raise InputError(f"{source} is blank: there is nothing to code")
    return Note(id=id, text=text), encoding


def _open(path: str, flags: int) -> int:
    """Open a file without waiting for one who writes to it, as a named pipe may have none."""
    descriptor = os.open(path, flags | getattr(os, "O_NONBLOCK", 0))
    if hasattr(os, "O_NONBLOCK"):
        os.set_blocking(descriptor, True)  # what is being written is waited for
    return descriptor


def _decode(data: bytes, source: str) -> tuple[str, str]:
    binary = InputError(f"{source} is not text: save the note as UTF-8")
    encoding = next((name for mark, name in _BOMS.items() if data.startswith(mark)), None)
    if encoding is None and b"\0" in data:
        # Every other byte of UTF-16 English is zero: the even ones when the high byte comes first.
        even, odd = data[::2].count(0), data[1::2].count(0)
        encoding = "utf-16-be" if even > odd else "utf-16-le"
        if min(even, odd) * 10 > max(even, odd) or max(even, odd) * 3 < len(data):
            raise binary
    try:
        text = data.decode(encoding or "utf-8")
    except UnicodeDecodeError as error:
        if encoding is not None:
            raise binary from error
        encoding = "cp1252"
        text = data.decode(encoding, errors="replace")
    # Soft hyphens and the bullets that a word processor leaves in the private use area are text;
    # control characters, and bytes that Windows-1252 has no letter for, mark a program's file.
    odd = sum(
        char == "\ufffd" or (category(char) in ("Cc", "Cn") and not char.isspace()) for char in text
    )
    if odd * 100 > len(text):
        raise binary
    return text, encoding or "utf-8"


def _check_size(data: bytes, limit: int, source: str) -> None:
    if len(data) > limit:
        raise InputError(
            f"{source} has more than the {limit:,} bytes of note_bytes: "
            "give one encounter's note, or raise CLH_NOTE_BYTES"
        )


def _name(source: Path | BinaryIO) -> str:
    return str(source) if isinstance(source, Path) else "standard input"
