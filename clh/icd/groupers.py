"""The groups that payers put codes in, read from the files that CMS publishes. Off unless named.

A grouper is an entry point of the group "clh.groupers": a function that reads a folder, and returns
one from the codes of a claim, in order, to what each counts as. Anybody may install another.
"""

import csv
import gzip
import re
import zlib
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from importlib.metadata import entry_points
from pathlib import Path

from clh.errors import InputError

Grouper = Callable[[Sequence[str]], dict[str, str]]

_POINTS = "clh.groupers"
_MODEL = "model_domain", "model_version"  # columns


def load(folders: Mapping[str, Path]) -> dict[str, Grouper]:
    """The groupers of these names, each with the files in its folder.

    Raises InputError for a name that no entry point has, and for files that are missing or damaged.
    """
    if not folders:  # looking for entry points takes a while
        return {}
    points = {point.name: point for point in entry_points(group=_POINTS)}
    unknown = sorted(folders.keys() - points.keys())
    if unknown:
        known = ", ".join(sorted(points))
        raise InputError(f"there is no grouper {unknown[0]!r}: choose from {known}")
    return {name: points[name].load()(folder) for name, folder in folders.items()}


def cc(folder: Path) -> Grouper:
    """CC or MCC, as MS-DRGs count what complicates or accompanies the first code.

    Reads Table 6K of the IPPS final rule, cc_exclusions.txt: its part 1 gives the level of each
    code, and the list of first codes beside which it does not count.
    """
    levels: dict[str, tuple[str, str]] = {}
    lists: defaultdict[str, set[str]] = defaultdict(set)
    current = ""
    for line in _lines(folder / "cc_exclusions.txt"):
        if line.startswith("K Part 2"):
            break
        if level := re.match(r" (\w+) +(M?CC) +(\d{4}|No)", line):
            levels[level[1]] = level[2], level[3]
        elif collection := re.match(r"PDX collection (\d{4})", line):
            current = collection[1]
        elif current and (listed := re.match(r" +([A-Z]\w+) ", line)):
            lists[current].add(listed[1])
    if not levels:
        raise InputError(f"{folder / 'cc_exclusions.txt'} is not Table 6K of the IPPS final rule")

    def group(codes: Sequence[str]) -> dict[str, str]:
        found = {code: levels[_plain(code)] for code in codes[1:] if _plain(code) in levels}
        return {
            code: level
            for code, (level, excluded_by) in found.items()
            if _plain(codes[0]) not in lists[excluded_by]
        }

    return group


def hcc(version: str, folder: Path) -> Grouper:
    """Hierarchical condition categories of Medicare Advantage, of a version such as V28.

    Reads the mapping, labels and hierarchies of the CMS-HCC software: ra_dx_to_cc, ra_labels and
    ra_hierarchies, each .csv. Of a hierarchy only the highest category present counts.
    """
    categories = {
        row["diagnosis_code"]: row["cc"]
        for row in _rows(folder, "ra_dx_to_cc", "diagnosis_code", "cc", "model_name")
        if row["model_name"] == f"CMS-HCC Model {version}"
    }
    labels = {
        row["cc"].removeprefix("HCC"): row["label"]
        for row in _rows(folder, "ra_labels", "cc", "label", *_MODEL)
        if (row["model_domain"], row["model_version"]) == ("CMS-HCC", version)
    }
    below: defaultdict[str, set[str]] = defaultdict(set)
    for row in _rows(folder, "ra_hierarchies", "cc_parent", "cc_child", *_MODEL):
        if (row["model_domain"], row["model_version"]) == ("CMS-HCC", version):
            below[row["cc_parent"]].add(row["cc_child"])

    def group(codes: Sequence[str]) -> dict[str, str]:
        found = {code: categories[_plain(code)] for code in codes if _plain(code) in categories}
        trumped = {child for category in found.values() for child in below[category]}
        return {
            code: f"HCC {category}, {labels.get(category, 'no label')}"
            for code, category in found.items()
            if category not in trumped
        }

    return group


hcc_v24 = partial(hcc, "V24")
hcc_v28 = partial(hcc, "V28")


def poa_exempt(folder: Path) -> Grouper:
    """Codes for which a hospital does not report whether they were present on admission.

    Reads CMS's list of the year, poa_exempt.txt: in each line its number, a code, its title.
    """
    listed = re.compile(r"^(?:\d+\s+)?([A-Z]\d\w(?:\.?\w{1,4})?)\s")
    lines = _lines(folder / "poa_exempt.txt")
    exempt = {_plain(found[1]) for line in lines if (found := listed.match(line))}

    def group(codes: Sequence[str]) -> dict[str, str]:
        return {code: "exempt from POA" for code in codes if _plain(code) in exempt}

    return group


def _plain(code: str) -> str:
    return code.replace(".", "")


def _lines(file: Path) -> list[str]:
    """The lines of a text file, gzipped or not."""
    try:
        if not file.exists():
            file = file.with_name(f"{file.name}.gz")
        data = file.read_bytes()
        text = gzip.decompress(data) if file.suffix == ".gz" else data
    except (OSError, EOFError, zlib.error) as error:
        raise InputError(f"cannot read {file}: {error}") from error
    return text.decode("latin-1").splitlines()


def _rows(folder: Path, name: str, *columns: str) -> Iterator[dict[str, str]]:
    """The rows of the latest file of that name, which ends in a year."""
    files = sorted(folder.glob(f"{name}*.csv"))
    if not files:
        raise InputError(f"{folder} has no {name}….csv: data/README.md says where CMS has it")
    rows = csv.DictReader(_lines(files[-1]))
    for column in columns:
        if column not in (rows.fieldnames or ()):
            raise InputError(f"{files[-1]} has no column {column}")
    yield from rows
