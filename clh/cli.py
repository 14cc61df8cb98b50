"""The command line. Commands import what they need when they run, so that --help is instant."""

import asyncio
import io
import logging
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from clh import __version__
from clh.errors import ClhError, InputError

if TYPE_CHECKING:
    from rich.console import Console

    from agents.pipeline import Pipeline
    from clh.config import Settings
    from clh.icd.rules import Claim, Proposal
    from clh.schema import CodedNote, Finding, Note

app = typer.Typer(
    help="Code Like Humans: ICD-10-CM codes with verbatim evidence, on your own machine.",
    epilog="Research software: a certified coder must check every code before it is used.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
)
index_app = typer.Typer(help="The vector index of the code system.", no_args_is_help=True)
audit_app = typer.Typer(help="What was coded, when, by which models.", no_args_is_help=True)
app.add_typer(index_app, name="index")
app.add_typer(audit_app, name="audit")

Profile = Annotated[
    str | None,
    typer.Option(envvar="CLH_PROFILE", help="Settings to start from: cpu, codiesp or vllm."),
]
_DONE, _AGENT_FAILED, _BAD_INPUT = 0, 1, 2
_LONGEST_CODE = len("S52.501A")


@app.command(epilog="Example: [bold]clh code note.txt --format json[/bold]")
def code(
    note: Annotated[
        str | None, typer.Argument(help="A text file, or - for standard input; none: type it in.")
    ] = None,
    format: Annotated[
        Literal["table", "json", "fhir"],
        typer.Option(help="A table to read, JSON (see clh schema), or a FHIR R4 bundle."),
    ] = "table",
    policy: Annotated[
        Literal["encounter", "mention"] | None,
        typer.Option(help="What counts: what the encounter reports, or all that is named."),
    ] = None,
    profile: Profile = None,
) -> None:
    """Code one note: ICD-10-CM codes, each with the words of the note that support it."""
    settings = _settings(profile, policy=policy)
    given = _given(note, settings)
    pipeline = _load(settings)
    with _status("coding") as show:
        coded = asyncio.run(pipeline.code(given, lambda step: show(f"{step} done"))).note
    if format == "json":
        print(coded.model_dump_json())
    elif format == "fhir":
        from clh.fhir import bundle

        print(_dump(bundle(coded, datetime.now(UTC))))
    else:
        _print_coded(given, coded)
    for error in coded.errors:
        _say(f"{error.agent} failed: {error.message}")
    raise typer.Exit(_AGENT_FAILED if coded.errors else _DONE)


@app.command(epilog='Example: [bold]clh search "pain in the right knee"[/bold]')
def search(
    text: Annotated[str, typer.Argument(help="A diagnosis, symptom or finding, in any words.")],
    count: Annotated[int, typer.Option("--count", "-n", min=1, help="Codes to show.")] = 10,
    json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
    profile: Profile = None,
) -> None:
    """Find codes by meaning: the locate agent alone."""
    settings = _settings(profile)
    # Several texts lead to one code: asked for more, the search has enough to show.
    settings = _settings(profile, locate={"candidates": max(2 * count, settings.locate.candidates)})
    if not text.strip():
        raise InputError("the text to search for is blank")
    from agents.locate import Retriever
    from clh.retrieval.lexical import expand

    _index(settings)
    [candidates] = Retriever.load(settings).search([expand(text)])
    shown = candidates[:count]
    if json:
        print(_dump(shown))
        return
    table = _table("Code", "Score", "Title", "Closest text")
    for found in shown:
        table.add_row(found.code, f"{found.similarity:.2f}", found.title, found.matched)
    _console().print(table)


@app.command(epilog="Example: [bold]clh check I10 N18.6 --setting inpatient --fix[/bold]")
def check(
    codes: Annotated[
        list[str],
        typer.Argument(help="Codes in order of reporting, or a file of them, or - for input."),
    ],
    setting: Annotated[
        Literal["inpatient", "outpatient"] | None, typer.Option(help="Where the patient was seen.")
    ] = None,
    age: Annotated[int | None, typer.Option(min=0, help="The patient's age in years.")] = None,
    sex: Annotated[
        Literal["female", "male"] | None, typer.Option(help="The patient's sex.")
    ] = None,
    fix: Annotated[bool, typer.Option("--fix", help="Propose a set that breaks fewer.")] = False,
    format: Annotated[
        Literal["table", "json"], typer.Option(help="Lines to read, or JSON.")
    ] = "table",
    profile: Profile = None,
) -> None:
    """Check any codes against the code book's rules; no note and no model is needed."""
    from clh.icd import groupers
    from clh.icd.rules import Claim, Encounter, load_code_book, resolve
    from clh.icd.rules import check as findings_of

    settings = _settings(profile)
    rules = settings.rules
    encounter = Encounter(setting=setting or rules.setting, age=age, sex=sex)
    claim = Claim(_codes(codes, settings), load_code_book(rules.edits), encounter)
    findings = findings_of(claim)
    groups = {name: group(claim.codes) for name, group in groupers.load(rules.groupers).items()}
    proposal = resolve(claim) if fix else None
    if format == "json":
        shown = {"codes": claim.codes, "findings": findings, "groups": groups}
        print(_dump({**shown, "proposal": proposal and proposal._asdict()}))
        return
    console = _console(markup=True)
    for finding in findings:
        _print_finding(finding, console)
    if not findings:
        console.print("No rule of the code book is broken.")
    for name, grouped in groups.items():
        for code, group in grouped.items():
            console.print(f"{code}: {name}, {group}", markup=False)
    if proposal is not None:
        _print_proposal(claim, proposal, console)


@app.command(epilog="Example: [bold]clh lookup e119[/bold]")
def lookup(
    code: Annotated[str, typer.Argument(help="A code or category, in any spelling.")],
) -> None:
    """Show a code: title, place in the tree, notes that apply to it, codes below."""
    from rich.markup import escape

    from clh.icd.tabular import load_tabular

    system = load_tabular()
    name = system.normalize(code)
    entry = system[name]
    console = _console(markup=True)
    state = "billable" if entry.billable else "not billable: a code below it is"
    console.print(f"[bold cyan]{name}[/] [bold]{escape(entry.title)}[/] [dim]({state})[/]")
    chapter, block = entry.chapter, entry.block
    console.print(f"  Chapter {chapter.name}: {chapter.title}", style="dim", markup=False)
    console.print(f"  {block.name}: {block.title}", style="dim", markup=False)
    for ancestor in reversed(system.ancestors(name)):
        console.print(f"  {ancestor} {system[ancestor].title}", style="dim", markup=False)
    for term in entry.inclusion_terms:
        console.print(f"  = {term}", markup=False)
    for kind, label in _NOTES.items():
        for note in system.inherited(name, kind):
            console.print(f"  [yellow]{label}[/] {escape(note.text)} [dim](at {note.place})[/]")
    for character, meaning in entry.seventh_characters.items():
        console.print(f"  [yellow]7th character {character}[/] {escape(meaning)}")
    for child in entry.children:
        console.print(f"  [cyan]{child}[/] {escape(system[child].title)}")


@app.command(epilog="Example: [bold]clh schema > coded-note.schema.json[/bold]")
def schema() -> None:
    """Print the JSON schema of a coded note."""
    from clh.schema import CodedNote

    print(_dump(CodedNote.model_json_schema(mode="serialization")))


@index_app.command("build", epilog="Example: [bold]clh index build[/bold]")
def index_build(
    force: Annotated[bool, typer.Option("--force", help="Build anew what is there.")] = False,
    profile: Profile = None,
) -> None:
    """Build the vector index, unless the cache has it."""
    settings = _settings(profile)
    index = _index(settings, rebuild=force)
    _console().print(f"{len(index):,} texts are indexed in {settings.cache_dir}")


@app.command(epilog="Example: [bold]clh doctor[/bold]")
def doctor(profile: Profile = None) -> None:
    """Say what is installed, loaded and reachable; exit code 1 if anything is missing."""
    from rich.text import Text

    from clh.doctor import examine

    settings = _settings(profile)
    table = _table("", "What", "Finding")
    healthy = True
    for finding in examine(settings):
        healthy &= finding.ok
        mark = Text("ok", "green") if finding.ok else Text("no", "red")
        table.add_row(mark, finding.what, finding.says)
    _console().print(table)
    raise typer.Exit(_DONE if healthy else _AGENT_FAILED)


@audit_app.command("show", epilog="Example: [bold]clh audit show 3f2a[/bold]")
def audit_show(
    run: Annotated[str, typer.Argument(help="A run's id, or its beginning.")],
    profile: Profile = None,
) -> None:
    """Show what each agent of a run saw and said."""
    print(_dump(_audit(profile).show(run)))


@audit_app.command("list", epilog="Example: [bold]clh audit list -n 5[/bold]")
def audit_list(
    count: Annotated[int, typer.Option("--count", "-n", min=1, help="Runs to show.")] = 20,
    profile: Profile = None,
) -> None:
    """List the latest runs."""
    table = _table("Run", "At", "Note (keyed)", "Codes")
    for run in _audit(profile).latest(count):
        coded = run["coded_note"]
        if coded is None:
            codes = "damaged" if run["damaged"] else "unfinished"
        else:
            codes = ", ".join(code["code"] for code in coded["codes"])
        table.add_row(run["run_id"][:8], run["at"], (run["note_id_hmac"] or "")[:12], codes)
    _console().print(table)


@app.callback(invoke_without_command=True)
def _version(
    version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False,
) -> None:
    if version:
        print(f"clh {__version__}")
        raise typer.Exit


def main() -> None:
    """Run the command line: whatever a user can mend is one line on stderr and exit code 2."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        # By default a pipe on Windows, or an old locale, cannot hold every character of a note.
        sys.stdout.reconfigure(encoding="utf-8")
    logging.basicConfig(level=logging.WARNING, format="clh: %(message)s", stream=sys.stderr)
    try:
        sys.exit(app(standalone_mode=False))
    except ClhError as error:
        _say(str(error))
    except typer.TyperException as error:
        message = error.format_message()
        if not message:  # nothing was asked for, and the help has been shown
            sys.exit(_DONE)
        _say(f"{message} (clh --help shows what there is)")
    except typer.Abort:
        _say("stopped")
    sys.exit(_BAD_INPUT)


_NOTES: dict[Any, str] = {
    "includes": "Includes",
    "excludes1": "Excludes1",
    "excludes2": "Excludes2",
    "code_first": "Code first",
    "use_additional_code": "Use additional code",
    "code_also": "Code also",
    "notes": "Note",
}


def _codes(given: list[str], settings: "Settings") -> list[str]:
    """The codes that the user names, or that a file or standard input lists."""
    listed = len(given) == 1 and (given[0] == "-" or Path(given[0]).is_file())
    text = _given(given[0], settings).text if listed else " ".join(given)
    codes = text.replace(",", " ").replace(";", " ").split()
    if not codes:
        raise InputError("there is no code to check")
    if len(codes) == 1 and len(codes[0]) > _LONGEST_CODE:
        raise InputError(f"{codes[0]} is neither a file nor a code")
    return codes


def _given(note: str | None, settings: "Settings") -> "Note":
    """The note that the user names, pipes in or types."""
    from clh.notes import decode_note, read_bounded, read_note

    if note is not None and note != "-":
        given, encoding = read_note(Path(note), settings.note_bytes)
    elif sys.stdin is None:
        raise InputError("standard input is closed: name a file")
    else:
        if note is None and sys.stdin.isatty():
            _say("type or paste a note, then press Ctrl-D on a line of its own")
        data = read_bounded(sys.stdin.buffer, settings.note_bytes)
        given, encoding = decode_note(data, "stdin", settings.note_bytes, "standard input")
    if not encoding.startswith("utf-8"):
        _say(f"the note is not UTF-8; it was read as {encoding}: check its accented letters")
    return given


def _settings(profile: str | None, **flags: Any) -> "Settings":
    from clh.config import Settings

    return Settings.load(profile, **flags)


def _load(settings: "Settings") -> "Pipeline":
    with _status("loading"):
        from agents.pipeline import Pipeline
    _index(settings)
    with _status("loading"):
        return Pipeline.load(settings)


def _index(settings: "Settings", rebuild: bool = False) -> Any:
    """The index; while it is built, a progress bar."""
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TimeRemainingColumn

    from clh.icd.tabular import load_tabular
    from clh.retrieval.index import open_index

    columns = ("building the index", BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    console = _console(stderr=True)
    # Disabled where nobody watches: there it would still print an empty line.
    quiet = not console.is_terminal
    with Progress(*columns, console=console, transient=True, disable=quiet) as bar:
        task = bar.add_task("", total=None, visible=False)

        def progress(done: int, total: int) -> None:
            bar.update(task, completed=done, total=total, visible=True)

        return open_index(settings, load_tabular(), progress, rebuild)


def _audit(profile: str | None) -> Any:
    from clh.audit import Audit

    settings = _settings(profile)
    return Audit(settings.data_dir / "audit.sqlite", settings.audit.store_text)


def _print_coded(note: "Note", coded: "CodedNote") -> None:
    from rich.text import Text

    console = _console()
    text = Text(_harmless(note.text))
    for assigned in coded.codes:
        for span in assigned.evidence:
            text.stylize("bold black on yellow", span.start, span.end)
    lines = [line for line in text.split("\n") if any(span.style for span in line.spans)]
    for line in lines:
        console.print(line)
    table = _table("#", "Code", "Description", "Confidence", "Evidence")
    for assigned in coded.codes:
        words = (_harmless(span.text).split() for span in assigned.evidence)
        quotes = dict.fromkeys(" ".join(quote).lower() for quote in words)
        table.add_row(
            str(assigned.sequence),
            assigned.code,
            assigned.description,
            f"{assigned.confidence:.2f}",
            ", ".join(quotes),
        )
    console.print()
    if coded.codes:
        console.print(table)
    else:
        console.print("No code is supported by this note.")
    for warning in coded.warnings:
        done = warning.change or ", ".join(warning.codes)
        console.print(f"{done}: {warning.message}", style="yellow")
    seconds = sum(coded.timings.values())
    console.print(
        f"ICD-10-CM {coded.icd_release}, policy {coded.policy}, {seconds:.1f} s, "
        f"run {coded.run_id[:8]} (clh audit show {coded.run_id[:8]})",
        style="dim",
    )


def _print_finding(finding: "Finding", console: "Console") -> None:
    from rich.markup import escape

    color = {"error": "red", "warning": "yellow", "reminder": "dim"}[finding.severity]
    cited = finding.citation
    console.print(f"[{color}]{finding.severity}[/] {finding.rule}: {escape(finding.message)}")
    console.print(f"  [dim]{escape(f'{cited.place}, {cited.kind}: {cited.text}')}[/]")
    if finding.suggestions:
        console.print(f"  [dim]instead:[/] {', '.join(finding.suggestions)}")


def _print_proposal(claim: "Claim", proposal: "Proposal", console: "Console") -> None:
    from difflib import ndiff

    console.print()
    if not proposal.changes:
        console.print("Nothing can be mended without the note.")
        return
    colors = {"-": "red", "+": "green", " ": "default"}
    for line in ndiff(claim.codes, proposal.codes):
        if line[0] in colors:
            console.print(line, style=colors[line[0]], markup=False)
    for change in proposal.changes:
        console.print(f"{change.change}: {change.message}", style="dim", markup=False)


@contextmanager
def _status(doing: str) -> Iterator[Callable[[str], None]]:
    """A spinner on stderr, when that is a terminal, and a function that changes what it says."""
    with _console(stderr=True).status(doing) as status:
        yield status.update


def _harmless(text: str) -> str:
    """The text with a space for every character that a terminal obeys, or that rich would drop."""
    return "".join(char if char.isprintable() or char in "\n\t" else " " for char in text)


def _table(*columns: str) -> Any:
    from rich import box
    from rich.table import Table

    table = Table(box=box.SIMPLE_HEAD)
    for column in columns:
        table.add_column(column, no_wrap=column in ("Code", "Run"), overflow="fold")
    return table


def _console(stderr: bool = False, markup: bool = False) -> "Console":
    """A console; square brackets in titles and notes are no markup unless asked for."""
    from rich.console import Console

    return Console(stderr=stderr, markup=markup, highlight=False, soft_wrap=False)


def _dump(value: object) -> str:
    from pydantic import TypeAdapter

    return TypeAdapter(Any).dump_json(value, indent=2).decode()


def _say(line: str) -> None:
    print(f"clh: {' '.join(line.split())}", file=sys.stderr)
