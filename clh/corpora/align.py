"""Which line of CodiEsp's English translates which sentence of its Spanish.

The publisher cut the Spanish with Moses's sentence splitter (Koehn et al. 2007), kept blank lines
as sentences of their own, and wrote the translation of each on a line. So counting aligns them,
where statistics of length (Gale and Church 1993) would guess: `experiments/align_codiesp.py`.
"""

from collections.abc import Sequence
from functools import cache
from itertools import islice
from typing import TYPE_CHECKING

from clh.schema import Note, Span

if TYPE_CHECKING:
    from sentence_splitter import SentenceSplitter


def align(spanish: Note, english: Note) -> list[tuple[Span, Span]]:
    """Each sentence of the Spanish and the line that translates it, blank ones left out.

    Empty when there are not as many lines as sentences: the English is another translation.
    """
    sentences, lines = _sentences(spanish), _lines(english)
    if len(sentences) != len(lines):
        return []
    pairs = zip(sentences, lines, strict=True)
    return [(sentence, line) for sentence, line in pairs if sentence and line]


def translation(pieces: Sequence[Span], pairs: Sequence[tuple[Span, Span]]) -> tuple[Span, ...]:
    """The lines that translate the sentences in which pieces of the Spanish stand."""
    return tuple(
        line
        for sentence, line in pairs
        if any(piece.start < sentence.end and sentence.start < piece.end for piece in pieces)
    )


def _sentences(note: Note) -> list[Span | None]:
    """The sentences of the Spanish; None for a blank line."""
    # The splitter changes nothing but white space, so all other characters keep their order.
    offsets = (offset for offset, char in enumerate(note.text) if not char.isspace())
    found: list[Span | None] = []
    for line in note.text.rstrip().split("\n"):
        for sentence in _splitter().split(line) or [""]:
            own = list(islice(offsets, len("".join(sentence.split()))))
            found.append(note.span(own[0], own[-1] + 1) if own else None)
    return found


def _lines(note: Note) -> list[Span | None]:
    """The lines of the English; None for a blank one."""
    found: list[Span | None] = []
    start = 0
    for line in note.text.rstrip().split("\n"):
        found.append(note.span(start, start + len(line)) if line.strip() else None)
        start += len(line) + 1
    return found


@cache
def _splitter() -> "SentenceSplitter":
    from sentence_splitter import SentenceSplitter

    return SentenceSplitter("es")
