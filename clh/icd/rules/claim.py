"""A claim: the codes of one encounter in the order of reporting, and what is known of it."""

import re
from bisect import bisect_left
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Literal

from clh.errors import InputError
from clh.icd.rules.book import CodeBook, Interval

Setting = Literal["inpatient", "outpatient"]
Sex = Literal["female", "male"]

# A claim form holds 12 or 25 diagnoses. Codes may exclude each other in pairs, so that the findings
# grow with the square: 2,000 codes of fractures have 600,000, which take 7 s and 1 GB.
MAX_CODES = 2_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Encounter:
    """What rules need to know beside codes. Where it is None, what rests on it is not checked."""

    setting: Setting | None = None
    age: int | None = None  # years
    sex: Sex | None = None
    uncertain: frozenset[str] = frozenset()  # codes of what is only suspected, possible, probable


class Claim:
    """Codes of one encounter as they are to be reported, the principal or first-listed one first.

    `codes` are all of them as the book prints them, `known` those that it has, each once.
    """

    def __init__(
        self, codes: Iterable[str], book: CodeBook, encounter: Encounter = Encounter()
    ) -> None:
        """Codes in any spelling. Raises InputError for more than `MAX_CODES`."""
        self.book, self.encounter = book, encounter
        self.codes = [as_printed(code) for code in codes]
        if len(self.codes) > MAX_CODES:
            raise InputError(
                f"{len(self.codes):,} codes are too many for one claim: check claims of at most "
                f"{MAX_CODES:,} codes, one at a time"
            )
        self.known = [code for code in dict.fromkeys(self.codes) if code in book.system]
        self._by_position = sorted((book.system.position(code), code) for code in self.known)
        self._index = {code: index for index, code in reversed(list(enumerate(self.codes)))}

    def named_by(self, intervals: Iterable[Interval]) -> Iterator[str]:
        """The claim's codes in those intervals."""
        for interval in intervals:
            start = bisect_left(self._by_position, (interval.start, ""))
            end = bisect_left(self._by_position, (interval.end, ""))
            for _, code in self._by_position[start:end]:
                if interval.fits(code):
                    yield code

    def index(self, code: str) -> int:
        """Where the code comes first, from 0."""
        return self._index[code]


def as_printed(text: str) -> str:
    """A code as the book prints it: capitals, and a dot after the third. No code stays as it is."""
    letters = re.sub(r"[^0-9A-Z]", "", text.upper())
    return f"{letters[:3]}.{letters[3:]}".rstrip(".") if letters else text
