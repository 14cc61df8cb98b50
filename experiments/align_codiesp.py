"""Show that the lines of CodiEsp's English translate the sentences of its Spanish one by one.

    python experiments/align_codiesp.py --data-dir DIR --split train

DIR is CodiEsp v4 in the publisher's layout. Printed are the documents with as many lines as
sentences; the lines that stand where the Spanish is blank; how many lines translate a mention; and,
of the numbers in the Spanish, how many are in the line that translates them and, to compare, in the
line after. Then a sample of mentions and their translations, for the eye.
"""

import argparse
from pathlib import Path


def main() -> None:
    """Read, count, print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data-dir", type=Path, required=True, help="folder of CodiEsp v4")
    parser.add_argument("--split", default="train")
    parser.add_argument("--sample", type=int, default=50, help="mentions to print")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()

    import re
    from collections import Counter
    from itertools import pairwise

    import numpy as np

    from clh.corpora import codiesp
    from clh.corpora.align import align, translation

    spanish = list(codiesp.read(arguments.data_dir, arguments.split, language="es"))
    english = list(codiesp.read(arguments.data_dir, arguments.split, language="en"))

    def numbers_in(text: str) -> set[str]:
        return set(re.findall(r"\d+", text))

    aligned = sentences = numbers = kept = kept_after = 0
    unpaired: Counter[str] = Counter()
    lines_per_mention: Counter[int] = Counter()
    mentions = []
    for original, translated in zip(spanish, english, strict=True):
        pairs = align(original.note, translated.note)
        aligned += bool(pairs)
        sentences += len(pairs)
        unpaired.update(translated.note.text.rstrip().split("\n"))
        unpaired.subtract(line.text for _, line in pairs)
        for (sentence, line), (_, after) in pairwise(pairs):
            numbers += len(numbers_in(sentence.text))
            kept += len(numbers_in(sentence.text) & numbers_in(line.text))
            kept_after += len(numbers_in(sentence.text) & numbers_in(after.text))
        for evidence in original.evidence:
            lines = translation(evidence.spans, pairs)
            lines_per_mention[len(lines)] += 1
            mentions.append((evidence.code, evidence.spans, lines))

    print(f"documents with as many lines as sentences: {aligned} of {len(spanish)}")
    print(f"sentences: {sentences}; lines where the Spanish is blank: {dict(+unpaired)}")
    print(f"mentions: {len(mentions)}, by lines that translate them: {dict(lines_per_mention)}")
    print(f"numbers kept: {kept / numbers:.3f}, in the line after: {kept_after / numbers:.3f}")
    order = np.random.default_rng(arguments.seed).permutation(len(mentions))
    for code, pieces, lines in (mentions[number] for number in order[: arguments.sample]):
        print(f"\n{code}\t{' … '.join(piece.text for piece in pieces)}")
        for line in lines:
            print(f"\t{line.text}")


if __name__ == "__main__":
    main()
