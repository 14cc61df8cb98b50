"""A note cut into pieces by its evidence, for terminals and pages that mark it."""

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import NamedTuple

from clh.schema import Span


class Piece(NamedTuple):
    """Part of a note, and for each side (such as gold, predicted) the codes it is evidence for."""

    text: str
    codes: tuple[list[str], ...]


def highlight(text: str, *sides: Mapping[str, Sequence[Span]]) -> list[Piece]:
    """Cut the text wherever evidence starts or ends, so that no mark overlaps another.

    Each side maps codes to their evidence. The pieces joined are the text.
    """
    changes: defaultdict[int, list[tuple[int, str, int]]] = defaultdict(list)
    for side, evidence in enumerate(sides):
        for code, spans in evidence.items():
            for span in spans:
                changes[span.start].append((side, code, 1))
                changes[span.end].append((side, code, -1))
    covering: list[Counter[str]] = [Counter() for _ in sides]
    pieces = []
    for start, end in pairwise(sorted({0, len(text), *changes})):
        for side, code, change in changes[start]:
            covering[side][code] += change
        codes = (
            [code for code in evidence if covering[side][code]]
            for side, evidence in enumerate(sides)
        )
        pieces.append(Piece(text[start:end], tuple(codes)))
    return pieces
