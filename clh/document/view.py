"""The text of a note as its author meant it, without what printing and copying did to it.

Text copied from a PDF has ligatures for letters, invisible characters, hyphens that break a word
over two lines. The view has plain letters, spaces and line breaks in their place, and knows where
in the note each of its characters comes from: tokens are read in the view, evidence is quoted from
the note.
"""

import re
import unicodedata
from collections.abc import Callable, Sequence
from typing import NamedTuple

_PLAIN = {
    **dict.fromkeys("\u00ad\u200b\u200c\u200d\u2060\ufeff", ""),  # soft hyphen, zero-width
    **dict.fromkeys("\u00a0\u2002\u2003\u2007\u2009\u200a\u202f\u205f\u3000", " "),
    **dict.fromkeys(["\r\n", "\r", "\v", "\f", "\x85", "\u2028", "\u2029"], "\n"),
    **dict.fromkeys("\u2010\u2011\u2212", "-"),
    **dict.fromkeys("\u2018\u2019\x91\x92", "'"),
    **dict(zip("\ufb00\ufb01\ufb02\ufb03\ufb04", ["ff", "fi", "fl", "ffi", "ffl"], strict=True)),
    **dict.fromkeys("\ufb05\ufb06", "st"),
}
_SOFT_BREAK = re.compile("\u00ad(?=[ \t]*[\r\n])")
_CHARACTER = re.compile("\r\n|[" + "".join(char for char in _PLAIN if len(char) == 1) + "]")
_ACCENTED = re.compile(r"[^\W\d_][\u0300-\u036f]+")
_BROKEN = re.compile(r"\b([^\W\d_]{1,40})-[ \t]*\n[ \t]*(?=[a-z\u00df-\u00ff])")
# Words that keep their hyphen before what follows: "follow-up", "well-controlled", "x-ray".
_HYPHENATED = re.compile(
    r"(?:follow|well|self|short|long|low|high|mid|half|ill|year|month|week|day|[a-z])\Z", re.I
)


class View(NamedTuple):
    """A normalised text; the character at `i` comes from the note's at `origins[i]`.

    `origins` has one more, the length of the note, so that the characters from `i` up to `j` are
    the note's from `origins[i]` up to `origins[j]`.
    """

    text: str
    origins: Sequence[int]


def normalize(text: str) -> View:
    """The view of a note; of plain text, and of a view's text, it is the text itself."""
    view = View(text, range(len(text) + 1))
    view = _replace(_SOFT_BREAK, lambda _: "-", view)
    view = _replace(_CHARACTER, lambda found: _PLAIN[found[0]], view)
    view = _replace(_ACCENTED, lambda found: unicodedata.normalize("NFC", found[0]), view)
    return _replace(_BROKEN, _join, view)


def _join(broken: re.Match[str]) -> str:
    return f"{broken[1]}-" if _HYPHENATED.match(broken[1]) else broken[1]


def _replace(pattern: re.Pattern[str], new: Callable[[re.Match[str]], str], view: View) -> View:
    """The view with each match replaced; a new character comes from the old one at its place."""
    texts: list[str] = []
    origins: list[int] = []
    end = 0
    for found in pattern.finditer(view.text):
        texts += [view.text[end : found.start()], new(found)]
        origins += view.origins[end : found.start()]
        last = found.end() - 1
        origins += [view.origins[min(found.start() + i, last)] for i in range(len(texts[-1]))]
        end = found.end()
    if not texts:
        return view
    return View("".join([*texts, view.text[end:]]), [*origins, *view.origins[end:]])
