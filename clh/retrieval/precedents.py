"""Precedents: which codes a corpus's annotators gave to the same words."""

import hashlib
import json
from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Iterator
from pathlib import Path
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from clh.retrieval.lexical import phrases, stems

_DIGEST = 8  # bytes of a phrase that are kept: no text of the corpus is
_PARTS = ("phrases", "starts", "codes", "shares")


class Precedents:
    """For each phrase of a corpus the codes that go with it, and how often they do.

    A phrase is a stretch of words as `clh.retrieval.lexical.phrases` cuts them. The share of a code
    is count(sentences with the phrase and the code) / (count(sentences with the phrase) + doubt):
    what was seen once proves little.
    """

    def __init__(
        self,
        names: list[str],
        longest: int,
        phrases: NDArray[np.uint64],
        starts: NDArray[np.int64],
        codes: NDArray[np.int64],
        shares: NDArray[np.float32],
    ) -> None:
        """Take sorted phrases and where the codes of each start; `codes` are places in `names`.

        `starts` has one more than there are phrases. Phrases have up to `longest` words.
        """
        self._names, self._longest = names, longest
        self._phrases, self._starts, self._codes, self._shares = phrases, starts, codes, shares

    @classmethod
    def count(
        cls,
        sentences: Iterable[tuple[str, Collection[str]]],
        longest: int,
        doubt: float,
        least: float,
    ) -> Self:
        """Count sentences with their codes; shares below `least` are left out."""
        seen: Counter[int] = Counter()
        with_code: defaultdict[int, Counter[str]] = defaultdict(Counter)
        for text, codes in sentences:
            for phrase in set(map(_key, phrases(text, longest))):
                seen[phrase] += 1
                if codes:
                    with_code[phrase].update(codes)
        kept = [
            (phrase, code, count / (seen[phrase] + doubt))
            for phrase in sorted(with_code)
            for code, count in sorted(with_code[phrase].items())
            if count / (seen[phrase] + doubt) >= least
        ]
        names = sorted({code for _, code, _ in kept})
        place = {code: row for row, code in enumerate(names)}
        each = np.array([phrase for phrase, _, _ in kept], dtype=np.uint64)
        distinct, starts = np.unique(each, return_index=True)
        return cls(
            names,
            longest,
            distinct,
            np.append(starts, len(each)).astype(np.int64),
            np.array([place[code] for _, code, _ in kept], dtype=np.int64),
            np.array([share for _, _, share in kept], dtype=np.float32),
        )

    def shares(self, text: str) -> dict[str, float]:
        """For each code the highest share that any phrase of the text has."""
        best: dict[str, float] = {}
        for code, share in self._known(map(_key, phrases(text, self._longest))):
            best[code] = max(best.get(code, 0.0), share)
        return best

    def share(self, phrase: str) -> float:
        """The highest share of the text as one phrase; 0 if it is not a known phrase."""
        known = self._known([_key(" ".join(stems(phrase)))])
        return max((share for _, share in known), default=0.0)

    def save(self, file: Path) -> None:
        """Write what `load` reads."""
        from safetensors.numpy import save_file

        arrays: dict[str, NDArray[Any]] = {
            "phrases": self._phrases,
            "starts": self._starts.astype(np.int64),
            "codes": self._codes.astype(np.int32),
            "shares": self._shares.astype(np.float16),
        }
        save_file(arrays, file, {"names": json.dumps(self._names), "longest": str(self._longest)})

    @classmethod
    def load(cls, file: Path) -> Self:
        """Read what `save` wrote, in this version or before; OSError or ValueError otherwise."""
        from safetensors import SafetensorError, safe_open

        try:
            with safe_open(file, "numpy") as saved:
                metadata = saved.metadata() or {}
                names, longest = json.loads(metadata["names"]), int(metadata["longest"])
                arrays = [saved.get_tensor(part) for part in _PARTS]
        except (SafetensorError, KeyError) as error:
            raise ValueError(f"{file} holds no precedents") from error
        places = arrays[_PARTS.index("codes")]
        if len(places) and not 0 <= places.min() <= places.max() < len(names):
            raise ValueError(f"{file} names codes that it does not hold")
        return cls(names, longest, *arrays)

    def _known(self, keys: Iterable[int]) -> Iterator[tuple[str, float]]:
        asked = np.fromiter(keys, dtype=np.uint64)
        places = np.searchsorted(self._phrases, asked)
        inside = places < len(self._phrases)
        places = places[inside][self._phrases[places[inside]] == asked[inside]]
        for place in places.tolist():
            start, end = self._starts[place], self._starts[place + 1]
            rows = zip(
                self._codes[start:end].tolist(), self._shares[start:end].tolist(), strict=True
            )
            yield from ((self._names[code], share) for code, share in rows)


def _key(phrase: str) -> int:
    return int.from_bytes(hashlib.blake2b(phrase.encode(), digest_size=_DIGEST).digest(), "big")
