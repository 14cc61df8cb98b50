"""Everything that the terminal shows: results on standard output, all else on standard error.

Commands import this module first, so rich and pydantic wait until something is shown.
"""

import csv
import io
import os
import re
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any, Protocol

from clh.errors import InputError

if TYPE_CHECKING:
    from rich.console import Console
    from rich.text import Text

    from clh.doctor import Part
    from clh.icd.rules import Proposal
    from clh.icd.tabular import CodeSystem, NoteKind
    from clh.schema import Candidate, CodedNote, Finding, Note, Span

_LONGEST_LINE = 600  # characters of a message
_NARROWEST = 20  # columns; below, rich prints nothing that can be read
_UNUSABLE = "unusable_reply"  # the rule of a warning that a model did not answer as asked
_REPLACEMENT = "\ufffd"  # of a byte of a file name that is not UTF-8
_SEVERITIES = {"error": "red", "warning": "yellow", "reminder": "dim"}
_STATES = {"ok": "green", "no": "red", "unused": "dim"}
_COLUMNS = (
    *("note_id", "sequence", "code", "description", "confidence"),
    *("evidence", "start", "end", "flags"),
)
_NOTES: "dict[NoteKind, str]" = {
    "includes": "Includes",
    "excludes1": "Excludes1",
    "excludes2": "Excludes2",
    "code_first": "Code first",
    "use_additional_code": "Use additional code",
    "code_also": "Code also",
    "notes": "Note",
}


# --- streams -------------------------------------------------------------------------------------


def prepare_streams() -> None:
    """Make the standard streams fit to print on; InputError if standard output is closed."""
    if sys.stderr is None:
        # print() to None goes to standard output, and the next file opened would be number 2.
        sys.stderr = open(os.devnull, "w", encoding="utf-8")  # noqa: PTH123, SIM115
    if sys.stdout is None:
        sys.stdout = open(os.devnull, "w", encoding="utf-8")  # noqa: PTH123, SIM115
        raise InputError("standard output is closed: send it to a file or a pipe")
    if isinstance(sys.stdout, io.TextIOWrapper):
        # By default a pipe on Windows, or an old locale, cannot hold every character of a note.
        sys.stdout.reconfigure(encoding="utf-8", errors="backslashreplace")
    columns = os.environ.get("COLUMNS", "")
    if not (re.fullmatch("[0-9]{1,4}", columns) and int(columns) >= _NARROWEST):
        os.environ.pop("COLUMNS", None)  # rich takes it as it is


def discard_output() -> None:
    """Let nothing more be written to standard output, which Python would try when it ends."""
    with suppress(OSError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def say(message: str) -> None:
    """Print one line on standard error, if anything takes it."""
    line = " ".join(harmless(message).split())
    if len(line) > _LONGEST_LINE:  # an argument may be as long as anything
        line = f"{line[: _LONGEST_LINE // 2]} … {line[-_LONGEST_LINE // 2 :]}"
    with suppress(OSError):
        print(f"clh: {line}", file=sys.stderr, flush=True)


def harmless(text: str) -> str:
    """The text, as long as before, without what a terminal obeys or cannot show."""
    return "".join(
        character
        if character.isprintable() or character in "\n\t"
        else _REPLACEMENT
        if "\ud800" <= character <= "\udfff"
        else " "
        for character in text
    )


# --- progress ------------------------------------------------------------------------------------


class Show(Protocol):
    """Shows what is being done, and how much of it is done once a total is known."""

    def __call__(self, doing: str, done: int = 0, total: int | None = None) -> None:
        """Replace what is shown."""
        ...


@contextmanager
def progress(doing: str) -> Iterator[Show]:
    """A spinner on standard error, and a bar once a total is known; only if it is a terminal."""
    if not sys.stderr.isatty():
        yield lambda *_, **__: None
        return
    from rich.progress import BarColumn, Progress, SpinnerColumn, TimeRemainingColumn

    columns = (SpinnerColumn(), "{task.description}")
    with Progress(*columns, console=_console(stderr=True), transient=True) as bar:
        task = bar.add_task(doing, total=None)

        def show(doing: str, done: int = 0, total: int | None = None) -> None:
            if total is not None and len(bar.columns) == len(columns):
                bar.columns = (*bar.columns, BarColumn(), TimeRemainingColumn())
            bar.update(task, description=doing, completed=done, total=total)

        yield show


# --- coded notes ---------------------------------------------------------------------------------


def show_coded(note: "Note", coded: "CodedNote") -> None:
    """Print the lines of the note with evidence, the codes, and what a coder should check."""
    from rich.table import Table

    from clh.schema import AGENTS

    console = _console()
    incomplete = any(error.agent in AGENTS for error in coded.errors) or any(
        warning.rule == _UNUSABLE for warning in coded.warnings
    )
    for line in _evidence_lines(note, coded):
        console.print(line)
    console.print()
    if coded.codes:
        table = _table("#", "Code", "Description", "Confidence", "Evidence")
        for assigned in sorted(coded.codes, key=lambda assigned: assigned.sequence):
            table.add_row(
                str(assigned.sequence),
                assigned.code,
                assigned.description,
                f"{assigned.confidence:.2f}",
                _text(_quote(assigned.evidence)),
            )
        console.print(table)
    elif not incomplete:
        console.print("No code is supported by this note.")
    remarks = Table.grid(padding=(0, 2))
    for error in coded.errors:
        remarks.add_row(_text(("failed", "red")), _text(f"{error.agent}: {error.message}"))
    if incomplete:
        remarks.add_row(_text(("incomplete", "red")), "not all of the note was coded")
    for warning in coded.warnings:
        kind = "changed" if warning.change else warning.severity
        change = f"{warning.change}: " if warning.change else ""
        label = _text((kind, _SEVERITIES[warning.severity]))
        remarks.add_row(label, _text(f"{change}{warning.message}"))
    changes = {warning.message for warning in coded.warnings}
    for other in coded.considered:
        if other.message not in changes:
            quote = f" ({_quote(other.evidence)})" if other.evidence else ""
            reason = f"{other.code} {other.description}: {other.message}{quote}"
            remarks.add_row(_text(("left out", "dim")), _text((reason, "dim")))
    if remarks.row_count:
        console.print(remarks)
    seconds = sum(coded.timings.values())
    console.print(
        f"ICD-10-CM {coded.icd_release}, policy {coded.policy}, {seconds:.1f} s, "
        f"run {coded.run_id[:8]} (clh audit show {coded.run_id[:8]})",
        style="dim",
    )


def show_csv(coded: "CodedNote") -> None:
    """Print a row for each code; where it has several spans of evidence, " | " is between them."""
    rows = csv.writer(sys.stdout, lineterminator="\n")
    rows.writerow(_COLUMNS)
    for assigned in sorted(coded.codes, key=lambda assigned: assigned.sequence):
        rows.writerow(
            (
                harmless(coded.note_id),
                assigned.sequence,
                assigned.code,
                assigned.description,
                assigned.confidence,
                " | ".join(harmless(span.text) for span in assigned.evidence),
                " | ".join(str(span.start) for span in assigned.evidence),
                " | ".join(str(span.end) for span in assigned.evidence),
                " | ".join(assigned.flags),
            )
        )


def _quote(evidence: "Iterable[Span]") -> str:
    """The words of some evidence, each once."""
    quotes = (" ".join(span.text.split()).lower() for span in evidence)
    return ", ".join(dict.fromkeys(quotes))


def _evidence_lines(note: "Note", coded: "CodedNote") -> Iterator["Text"]:
    """The lines of the note that hold evidence, which is marked."""
    from rich.text import Text

    from clh.highlight import highlight

    evidence = {assigned.code: assigned.evidence for assigned in coded.codes}
    text = Text()
    for piece in highlight(note.text, evidence):
        [codes] = piece.codes
        text.append(harmless(piece.text), "bold black on yellow" if codes else None)
    return (line for line in text.split("\n") if line.spans)


# --- codes and rules -----------------------------------------------------------------------------


def show_candidates(candidates: "Sequence[Candidate]") -> None:
    """Print codes that a search found, best first."""
    table = _table("Code", "Score", "Title", "Closest text")
    for candidate in candidates:
        score = f"{candidate.similarity:.2f}"
        table.add_row(candidate.code, score, candidate.title, candidate.matched)
    _console().print(table)


def show_findings(
    findings: "Sequence[Finding]",
    groups: Mapping[str, Mapping[str, str]],
    normalized: Mapping[str, str],
) -> None:
    """Print what the rules find about codes, and the groups that payers put the codes in.

    `groups` maps the name of a grouper to the group of each code, `normalized` a code as it was
    given to how the code book prints it.
    """
    console = _console()
    for given, code in normalized.items():
        console.print(_text((f"{given} is read as {code}", "dim")))
    for finding in findings:
        cited = finding.citation
        severity = finding.severity, _SEVERITIES[finding.severity]
        console.print(_text(severity, f" {finding.rule}: {finding.message}"))
        console.print(_text((f"  {cited.place}, {cited.kind}: {cited.text}", "dim")))
        if finding.suggestions:
            console.print(_text(("  instead:", "dim"), f" {', '.join(finding.suggestions)}"))
    if not findings:
        console.print("No rule of the code book is broken.")
    for grouper, grouped in groups.items():
        for code, group in grouped.items():
            console.print(_text(f"{code}: {grouper}, {group}"))


def show_proposal(codes: Sequence[str], proposal: "Proposal") -> None:
    """Print the proposed codes as a difference to those given, then why each change is made."""
    from difflib import ndiff

    console = _console()
    console.print()
    if not proposal.changes:
        console.print("Nothing can be mended without the note.")
        return
    colors = {"-": "red", "+": "green", " ": ""}
    for line in ndiff(codes, proposal.codes):
        if line[0] in colors:
            console.print(_text((line, colors[line[0]])))
    for change in proposal.changes:
        console.print(_text((f"{change.change}: {change.message}", "dim")))


def show_entry(system: "CodeSystem", code: str) -> None:
    """Print a code's title, its place in the tree, the notes that apply to it, the codes below."""
    console = _console()
    entry = system[code]
    state = "billable" if entry.billable else "not billable: a code below it is"
    title = f" {entry.title}", "bold"
    console.print(_text((code, "bold cyan"), title, (f" ({state})", "dim")))
    console.print(_text((f"  Chapter {entry.chapter.name}: {entry.chapter.title}", "dim")))
    console.print(_text((f"  {entry.block.name}: {entry.block.title}", "dim")))
    for ancestor in reversed(system.ancestors(code)):
        console.print(_text((f"  {ancestor} {system[ancestor].title}", "dim")))
    for term in entry.inclusion_terms:
        console.print(_text(f"  = {term}"))
    for kind, label in _NOTES.items():
        for note in system.inherited(code, kind):
            place = f" (at {note.place})", "dim"
            console.print(_text((f"  {label} ", "yellow"), note.text, place))
    for character, meaning in entry.seventh_characters.items():
        console.print(_text((f"  7th character {character} ", "yellow"), meaning))
    for child in entry.children:
        console.print(_text((f"  {child} ", "cyan"), system[child].title))


# --- the installation ----------------------------------------------------------------------------


def show_parts(parts: "Iterable[Part]") -> None:
    """Print the state of each part of the installation."""
    table = _table("", "What", "Finding")
    for part in parts:
        mark = _text(("-" if part.state == "unused" else part.state, _STATES[part.state]))
        table.add_row(mark, part.name, _text(part.message))
    _console().print(table)


def show_runs(runs: Iterable[Mapping[str, Any]]) -> None:
    """Print runs of the audit, a line each."""
    table = _table("Run", "At (UTC)", "Note (keyed)", "Codes")
    for run in runs:
        coded = run["coded_note"]
        try:
            codes = ", ".join(code["code"] for code in coded["codes"]) if coded else "unfinished"
        except (KeyError, TypeError):  # not what CLH wrote
            codes = "damaged"
        if run["damaged"] or coded == []:
            codes = "damaged"
        at = run["at"].removesuffix("+00:00").replace("T", " ")
        table.add_row(run["run_id"][:8], at, (run["note_id_hmac"] or "")[:12], codes)
    _console().print(table)


def show_json(value: object) -> None:
    """Print a value as indented JSON."""
    from pydantic import TypeAdapter

    print(TypeAdapter(Any).dump_json(value, indent=2).decode())


def show_line(text: str) -> None:
    """Print a line."""
    _console().print(_text(text))


def _text(*parts: str | tuple[str, str]) -> "Text":
    """Parts, some with a style, as they are: no square brackets are markup, no terminal obeys."""
    from rich.text import Text

    styled = (part if isinstance(part, tuple) else (part, "") for part in parts)
    return Text.assemble(*((harmless(part), style) for part, style in styled))


def _table(*columns: str) -> Any:
    from rich import box
    from rich.table import Table

    table = Table(box=box.SIMPLE_HEAD)
    for column in columns:
        table.add_column(column, no_wrap=column in ("Code", "Run", "At (UTC)"), overflow="fold")
    return table


def _console(stderr: bool = False) -> "Console":
    from rich.console import Console

    return Console(stderr=stderr, markup=False, highlight=False, emoji=False)
