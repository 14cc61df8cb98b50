"""Show that the lines of CodiEsp's English translate the sentences of its Spanish one by one.

    python experiments/align_codiesp.py --data-dir DIR --split train

DIR is CodiEsp v4 in the publisher's layout. Printed are the documents with as many lines as
sentences; the lines that stand where the Spanish is blank; how many lines translate a mention; and,
of the numbers in the Spanish, how many are in the line that translates them and, to compare, in the
line after. Then a sample of mentions and their translations, for the eye.
"""

import argparse
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from clh.schema import Span

    Pairs = Sequence[tuple[Span, Span]]  # sentences and the lines that translate them
    Mention = tuple[str, Sequence[Span], Sequence[Span]]  # code, pieces, their translation


@dataclass
class Counts:
    """What the documents have in all."""

    aligned: int = 0  # documents with as many lines as sentences
    sentences: int = 0
    numbers: int = 0  # in the Spanish
    kept: int = 0  # of these, in the line that translates them
    kept_after: int = 0  # of these, in the line after
    unpaired: Counter[str] = field(default_factory=Counter)  # lines without a sentence


def main() -> None:
    """Read, count, print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data-dir", type=Path, required=True, help="folder of CodiEsp v4")
    parser.add_argument("--split", default="train")
    parser.add_argument("--sample", type=int, default=50, help="mentions to print")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()

    from clh.corpora import codiesp
    from clh.corpora.align import align, translation

    spanish = list(codiesp.read(arguments.data_dir, arguments.split, language="es"))
    english = list(codiesp.read(arguments.data_dir, arguments.split, language="en"))

    counts = Counts()
    mentions = []
    for original, translated in zip(spanish, english, strict=True):
        pairs = align(original.note, translated.note)
        count(counts, pairs, translated.note.text)
        mentions += [
            (evidence.code, evidence.spans, translation(evidence.spans, pairs))
            for evidence in original.evidence
        ]
    by_lines = Counter(len(lines) for _, _, lines in mentions)

    print(f"documents with as many lines as sentences: {counts.aligned} of {len(spanish)}")
    blank = dict(+counts.unpaired)
    print(f"sentences: {counts.sentences}; lines where the Spanish is blank: {blank}")
    print(f"mentions: {len(mentions)}, by lines that translate them: {dict(by_lines)}")
    kept, kept_after = counts.kept / counts.numbers, counts.kept_after / counts.numbers
    print(f"numbers kept: {kept:.3f}, in the line after: {kept_after:.3f}")
    print_sample(mentions, arguments.sample, arguments.seed)


def count(counts: Counts, pairs: "Pairs", translated: str) -> None:
    """Add a document, its sentences paired with the lines of `translated`, to the counts."""
    counts.aligned += bool(pairs)
    counts.sentences += len(pairs)
    counts.unpaired.update(translated.rstrip().split("\n"))
    counts.unpaired.subtract(line.text for _, line in pairs)
    for (sentence, line), (_, after) in pairwise(pairs):
        numbers = numbers_in(sentence.text)
        counts.numbers += len(numbers)
        counts.kept += len(numbers & numbers_in(line.text))
        counts.kept_after += len(numbers & numbers_in(after.text))


def numbers_in(text: str) -> set[str]:
    """The different runs of digits in the text."""
    return set(re.findall(r"\d+", text))


def print_sample(mentions: Sequence["Mention"], size: int, seed: int) -> None:
    """Print some mentions, each with the lines that translate it."""
    import numpy as np

    order = np.random.default_rng(seed).permutation(len(mentions))
    for code, pieces, lines in (mentions[number] for number in order[:size]):
        print(f"\n{code}\t{' … '.join(piece.text for piece in pieces)}")
        for line in lines:
            print(f"\t{line.text}")


if __name__ == "__main__":
    main()
