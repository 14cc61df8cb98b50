"""Reading a note from a file or a stream, whatever it is encoded in."""

import codecs
import os
from pathlib import Path
from unicodedata import category

from charset_normalizer import is_binary

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

    Raises InputError when there is no such file, or as `decode_note`.
    """
    try:
        if path.is_dir():
            raise InputError(f"{path} is a folder: name one note in it")
        size = path.stat().st_size
        data = path.read_bytes() if size <= limit else b""
    except OSError as error:
        raise InputError(f"{path}: {(error.strerror or 'cannot be read').lower()}") from error
    if size > limit:
        raise InputError(_too_large(str(path), size, limit))
    name = os.fsencode(path.stem).decode("utf-8", "replace")
    return decode_note(data, name, limit, source=str(path))


def decode_note(data: bytes, id: str, limit: int, source: str) -> tuple[Note, str]:
    """The note in `data`, of at most `limit` bytes, and its encoding.

    UTF-8 and whatever carries a byte order mark is decoded as such, the rest as Windows-1252, which
    holds Latin-1's letters. Raises InputError when the data is too large, blank or not text.
    """
    if len(data) > limit:
        raise InputError(_too_large(source, len(data), limit))
    text, encoding = _decode(data, source)
    if not text.strip():
        raise InputError(f"{source} is blank: there is nothing to code")
    return Note(id=id, text=text), encoding


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
        if encoding is not None or is_binary(data):
            raise binary from error
        encoding = "cp1252"
        text = data.decode(encoding, errors="replace")
    # Control characters other than white space are the mark of a program's file; soft hyphens and
    # the bullets that a word processor leaves in the private use area are not.
    odd = sum(category(char) in ("Cc", "Cn") and not char.isspace() for char in text)
    if odd * 100 > len(text):
        raise binary
    return text, encoding or "utf-8"


def _too_large(source: str, size: int, limit: int) -> str:
    return (
        f"{source} has {size:,} bytes, more than the {limit:,} of note_bytes: "
        "give one encounter's note, or raise CLH_NOTE_BYTES"
    )
