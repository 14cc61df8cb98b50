"""Measure the rules of the code book: what is read of its notes, how often rules fire, how fast.

    python experiments/eval_rules.py --mimic MIMIC --output OUT

MIMIC is a folder of MIMIC-IV, or of its open demo, that holds hosp/. Each admission that was billed
in ICD-10-CM is checked as an inpatient claim: what is found there is a false alarm, a mistake of
its coders, or a change of the code book since.

Writes OUT/metrics.json, findings.jsonl (those of each admission) and table.md.
"""

import argparse
import json
import time
from collections import Counter, defaultdict
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from clh.evaluation import recipes
from clh.evaluation.run_folder import git_commit
from clh.files import atomic_write

if TYPE_CHECKING:
    from clh.icd.rules import Claim, CodeBook
    from clh.schema import Finding

CODES, CLAIMS = 25, 400  # of a claim that is timed, and of those claims; 25 fit an 837I


def main() -> int:
    """Read, check, print, write."""
    flags = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    flags.add_argument("--mimic", type=Path, required=True, help="the folder that holds hosp/")
    flags.add_argument("--output", type=Path, required=True, help="folder of the results")
    flags.add_argument("--seed", type=int, default=0, help="of the claims that are timed")
    arguments = flags.parse_args()

    from clh.icd.rules import check, load_code_book
    from clh.icd.tabular import load_tabular

    load_tabular()
    started = time.perf_counter()
    book = load_code_book()
    loading = time.perf_counter() - started
    claims = billed(arguments.mimic, book)
    found = {admission: check(claim) for admission, claim in claims.items()}
    codes = [code for claim in claims.values() for code in claim.codes]
    report = {
        "release": book.system.release,
        "notes": read(book),
        "unread": sorted({one.citation.text for one in book.all_notes() if one.unread}),
        "admissions": len(claims),
        "codes": len(codes),
        "rules": fired(found.values()),
        "seconds_to_load": loading,
        "milliseconds_a_claim": timed(codes, book, arguments.seed),
        "git": git_commit(),
    }
    arguments.output.mkdir(parents=True, exist_ok=True)
    lines = (
        json.dumps({"admission": admission, "findings": [one.model_dump() for one in findings]})
        for admission, findings in found.items()
    )
    atomic_write(arguments.output / "findings.jsonl", "".join(f"{line}\n" for line in lines))
    atomic_write(arguments.output / "metrics.json", json.dumps(report, indent=1) + "\n")
    text = f"{table('note', report['notes'])}\n{table('rule', report['rules'])}"
    atomic_write(arguments.output / "table.md", text)
    print(text, end="")
    return 0


def billed(mimic: Path, book: "CodeBook") -> dict[str, "Claim"]:
    """The claim of each admission that has codes of ICD-10-CM.

    Raises InputError where a table is missing or damaged.
    """
    from clh.corpora.mimic import find, in_sequence, rows
    from clh.icd.rules import Claim, Encounter

    columns = "subject_id", "hadm_id", "seq_num", "icd_code", "icd_version"
    diagnoses = rows(find(mimic, "hosp/diagnoses_icd.csv"), *columns)
    lines = [row[:4] for row in diagnoses if row[4] == "10"]
    subjects = {admission: subject for subject, admission, _, _ in lines}
    patients = rows(find(mimic, "hosp/patients.csv"), "subject_id", "anchor_age", "gender")
    encounters = {
        subject: Encounter(
            setting="inpatient", age=int(age), sex="female" if gender == "F" else "male"
        )
        for subject, age, gender in patients
    }
    return {
        admission: Claim(codes, book, encounters[subjects[admission]])
        for admission, codes in in_sequence(line[1:] for line in lines).items()
    }


def read(book: "CodeBook") -> dict[str, dict[str, int]]:
    """Of each kind of note, how many name codes, say so in words alone, and are not understood."""
    counts: defaultdict[str, Counter[str]] = defaultdict(Counter)
    for note in book.all_notes():
        state = "names codes" if note.intervals else "not understood" if note.unread else "words"
        counts[note.citation.kind].update([state, "all"])
        counts[note.citation.kind]["references"] += len(note.intervals)
    columns = "all", "names codes", "words", "not understood", "references"
    return {kind: {name: count[name] for name in columns} for kind, count in counts.items()}


def fired(found: Collection[Sequence["Finding"]]) -> dict[str, dict[str, float]]:
    """Of each rule how often it fired, in how many admissions, and in what share of them."""
    findings = Counter(one.rule for findings in found for one in findings)
    admissions = Counter(rule for findings in found for rule in {one.rule for one in findings})
    return {
        rule: {
            "findings": count,
            "admissions": admissions[rule],
            "share": round(admissions[rule] / len(found), 3),
        }
        for rule, count in findings.most_common()
    }


def timed(codes: Sequence[str], book: "CodeBook", seed: int) -> dict[str, float]:
    """Milliseconds to check a claim of 25 codes, drawn at random: half the claims take less."""
    import numpy as np

    from clh.icd.rules import Claim, Encounter, check

    draw = np.random.default_rng(seed)
    seconds = []
    for _ in range(CLAIMS):
        drawn = draw.choice(codes, CODES).tolist()
        started = time.perf_counter()
        check(Claim(drawn, book, Encounter(setting="inpatient", age=60, sex="female")))
        seconds.append(time.perf_counter() - started)
    seconds.sort()
    return {"p50": 1000 * seconds[CLAIMS // 2], "p95": 1000 * seconds[int(CLAIMS * 0.95)]}


def table(name: str, rows: Mapping[str, Mapping[str, float]]) -> str:
    """The rows as Markdown."""
    columns = list(next(iter(rows.values())))
    lines = [[name, *columns], ["---"] * (1 + len(columns))]
    lines += [[row, *map(str, values.values())] for row, values in rows.items()]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


if __name__ == "__main__":
    recipes.run_script(main)
