"""Write each split of each dataset as one parquet file of encounters, and print what is in it.

    python data/prepare_data.py [DATASET ...] [--raw data/raw] [--to data/processed] [--force]

Without names: all whose raw files are there, and a list of the others. A split that is written
already stays as it is, unless --force is given.
"""

import argparse
import sys
from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, TextIO

if TYPE_CHECKING:
    from rich.table import Table

    from clh.corpora import Example

_MADE_OF = {  # start of a dataset's name -> folders of raw data, and what is in each
    "codiesp": {"codiesp": "cases"},
    "mdace": {"mdace": "evidence", "mimic-iii": "notes"},
    "mimic-iii-clean": {"mimic-iii": "notes and codes", "reproducibility-splits": "splits"},
    "mimic-iii": {"mimic-iii": "notes and codes", "caml-splits": "splits"},
    "mimic-iv": {"mimic-iv": "codes", "mimic-iv-note": "notes", "reproducibility-splits": "splits"},
    "mimic-cxr": {"mimic-cxr": "reports", "mimic-iv": "codes"},
    "snomed-ct": {"snomed-ct": "notes"},
    "meddec": {"meddec": "decisions", "mimic-iii": "notes"},
    "phenotypes": {"phenotypes": "phenotypes", "mimic-iii": "notes"},
}


@dataclass
class Tally:
    """What a split holds."""

    encounters: int = 0
    notes: int = 0
    words: int = 0
    codes: int = 0
    with_evidence: int = 0  # of the codes
    distinct: set[str] = field(default_factory=set)

    def count(self, examples: Iterable["Example"]) -> Iterator["Example"]:
        """The examples, counted in passing. InputError if there are none."""
        from clh.errors import InputError

        for example in examples:
            self.encounters += 1
            self.notes += len(example.notes)
            self.words += sum(len(note.text.split()) for note in example.notes)
            self.codes += len(example.codes)
            self.with_evidence += len({evidence.code for evidence in example.evidence})
            self.distinct.update(example.codes)
            yield example
        if not self.encounters:
            raise InputError("there is no encounter in it: do all its files belong together?")

    def row(self, known: Iterable[str] | None) -> list[str]:
        """The split's cells of the table; `known` are the codes of the release, if it uses them."""
        return [
            f"{self.encounters:,}",
            f"{self.notes:,}",
            f"{self.words / self.encounters:,.0f}",
            f"{self.codes / self.encounters:.1f}",
            f"{len(self.distinct):,}",
            f"{100 * self.with_evidence / max(1, self.codes):.0f} %",
            "" if known is None else f"{len(self.distinct.difference(known)):,}",
        ]


def main() -> None:
    """Prepare what is asked for, and print the table."""
    parser = _make_parser()
    arguments = parser.parse_args()

    from rich.console import Console

    from clh.corpora import CORPORA
    from clh.errors import InputError
    from clh.icd.tabular import load_tabular

    names = [name for name, corpus in CORPORA.items() if corpus.splits]
    if unknown := [name for name in arguments.datasets if name not in names]:
        parser.error(f"there is no dataset {unknown[0]!r}: choose among {', '.join(names)}")

    system = load_tabular()
    table = _table(system.release)
    status = 0
    absent: dict[str, dict[str, str]] = {}
    for name in dict.fromkeys(arguments.datasets) or names:
        corpus = CORPORA[name]
        files = {split: arguments.to / name / f"{split}.parquet" for split in corpus.splits}
        missing = _missing(name, arguments.raw)
        if missing and (arguments.force or not all(file.exists() for file in files.values())):
            absent[name] = missing
            continue
        known = system if corpus.codes == "ICD-10-CM" else None
        for split, file in files.items():
            try:
                tally = _prepare(name, split, arguments.raw, file, force=arguments.force)
            except InputError as error:
                print(f"{name}, {split}: {error}", file=sys.stderr)
                status = 2
            else:
                table.add_row(name, split, *tally.row(known))
    console = Console()
    console.width = max(console.width, 100)
    if table.row_count:
        console.print(table)
    if absent:
        _print_absent(absent, arguments.raw, sys.stderr if arguments.datasets else sys.stdout)
    sys.exit(2 if absent and arguments.datasets else status)


def _make_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("datasets", nargs="*", metavar="DATASET")
    parser.add_argument("--raw", type=Path, default=Path("data/raw"), help="default: data/raw")
    parser.add_argument(
        "--to", type=Path, default=Path("data/processed"), help="default: data/processed"
    )
    parser.add_argument("--force", action="store_true", help="write all splits anew")
    return parser


def _print_absent(absent: Mapping[str, Mapping[str, str]], raw: Path, stream: TextIO) -> None:
    """What raw data each dataset lacks, and how to get it."""
    for name, missing in absent.items():
        what = ", ".join(f"no {what} ({raw / part})" for part, what in missing.items())
        print(f"{name} is not prepared: {what}", file=stream)
    wanted = dict.fromkeys(part for missing in absent.values() for part in missing)
    print(f"to get what is missing: python data/download_data.py {' '.join(wanted)}", file=stream)


def _missing(name: str, raw: Path) -> dict[str, str]:
    parts = next(parts for start, parts in _MADE_OF.items() if name.startswith(start))
    return {part: what for part, what in parts.items() if not (raw / part).is_dir()}


def _table(release: str) -> "Table":
    from rich.table import Table

    table = Table(box=None, caption=f"release: ICD-10-CM {release}")
    for column in ("dataset", "split"):
        table.add_column(column, no_wrap=True)
    for column in (
        *("encounters", "notes", "words each", "codes each", "distinct codes"),
        *("codes with evidence", "not in release"),
    ):
        table.add_column(column, justify="right")
    return table


def _prepare(name: str, split: str, raw: Path, file: Path, *, force: bool) -> Tally:
    """Write a split, or count what is written already."""
    from clh import corpora
    from clh.corpora.table import read_parquet, write_parquet

    tally = Tally()
    if file.exists() and not force:
        deque(tally.count(read_parquet(file.parent, split)), maxlen=0)
        return tally
    file.parent.mkdir(parents=True, exist_ok=True)
    folder = raw / "codiesp" if name.startswith("codiesp") else raw
    try:
        write_parquet(tally.count(corpora.read(name, folder, split)), file)
    finally:
        with suppress(OSError):
            file.parent.rmdir()  # it stays when there is something in it
    return tally


if __name__ == "__main__":
    main()
