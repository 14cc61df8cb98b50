"""The command line: commands only. What they need is imported when they run, as --help is not slow.

Exit codes: 0 done, 1 an agent failed, 2 bad input, usage or surroundings, 130 interrupted, 141
whatever read the output has closed it.
"""

import sys
from collections.abc import Sequence
from datetime import UTC, date, datetime, timedelta
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from clh import __version__, console
from clh.errors import ClhError, InputError

if TYPE_CHECKING:
    from agents.pipeline import Pipeline
    from clh.audit import Audit
    from clh.config import Settings
    from clh.icd.tabular import CodeSystem
    from clh.schema import Candidate, CodedNote, Note

app = typer.Typer(
    help="Code Like Humans: ICD-10-CM codes with verbatim evidence, on your own machine.",
    epilog="Research software: a certified coder must check every code before it is used.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
)
index_app = typer.Typer(help="The vector index of the code system.", no_args_is_help=True)
audit_app = typer.Typer(help="What was coded, when, by which models.", no_args_is_help=True)
app.add_typer(index_app, name="index")
app.add_typer(audit_app, name="audit")

_DONE, _AGENT_FAILED, _BAD_INPUT, _OUTPUT_CLOSED = 0, 1, 2, 141
_MOST_CODES, _MOST_RUNS, _MOST_DAYS, _MOST_YEARS = 1_000, 10_000, 36_500, 150
_LONGEST = 40  # characters of what may have been meant for a code
_LISTS = (".txt", ".csv")  # files that `check` knows by their names


def _require_text(argument: Any) -> Any:
    """The argument, or each of several, which a shell lets hold bytes that are not text."""
    for text in [argument] if isinstance(argument, str) else argument or ():
        if not text.isascii() and any("\ud800" <= character <= "\udfff" for character in text):
            raise InputError(f"{text!r} is not UTF-8 text: check the encoding of your terminal")
    return argument


def _complete_profile(beginning: str) -> list[str]:
    profiles = Path(__file__).with_name("profiles").glob("*.toml")
    return sorted(file.stem for file in profiles if file.stem.startswith(beginning))


Profile = Annotated[
    str | None,
    typer.Option(
        envvar="CLH_PROFILE",
        autocompletion=_complete_profile,
        help="Settings to start from: cpu (any laptop, offline), codiesp (experiments on CodiEsp) "
        "or vllm (language models behind a server).",
    ),
]
Setting = Annotated[
    Literal["inpatient", "outpatient"] | None, typer.Option(help="Where the patient was seen.")
]


@app.command(epilog="Example: [bold]clh code note.txt --format json[/bold]")
def code(
    note: Annotated[
        str | None, typer.Argument(help="A text file, or - for standard input; none: type it in.")
    ] = None,
    format: Annotated[
        Literal["table", "json", "csv", "fhir"],
        typer.Option(
            help="A table to read, JSON (see clh schema), CSV with a row for each code, or a FHIR "
            "R4 bundle."
        ),
    ] = "table",
    policy: Annotated[
        Literal["encounter", "mention"] | None,
        typer.Option(help="What counts: what the encounter reports, or all that is named."),
    ] = None,
    setting: Setting = None,
    date: Annotated[
        datetime | None,
        typer.Option(formats=["%Y-%m-%d"], help="Date of service: the codes in force on it."),
    ] = None,
    profile: Profile = None,
) -> None:
    """Code one note: ICD-10-CM codes, each with the words of the note that support it."""
    settings = _settings(profile, policy=policy, rules={"setting": setting} if setting else None)
    if date is not None:
        _require_in_force(date.date())
    to_code = _read_note(note, settings)
    _announce_host(settings)
    coded = _code(to_code, settings)
    if format == "json":
        print(coded.model_dump_json())
    elif format == "csv":
        console.show_csv(coded)
    elif format == "fhir":
        from clh.fhir import bundle

        console.show_json(bundle(coded, datetime.now(UTC)))
    else:
        console.show_coded(to_code, coded)
    for error in coded.errors:
        console.say(f"{error.agent} failed: {error.message}")
    raise typer.Exit(_AGENT_FAILED if coded.errors else _DONE)


@app.command(epilog='Example: [bold]clh search "pain in the right knee"[/bold]')
def search(
    text: Annotated[
        str,
        typer.Argument(
            help="A diagnosis, symptom or finding, in any words.", callback=_require_text
        ),
    ],
    count: Annotated[
        int, typer.Option("--count", "-n", min=1, max=_MOST_CODES, help="Codes to show.")
    ] = 10,
    json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
    profile: Profile = None,
) -> None:
    """Find codes by meaning and by words."""
    if not text.strip():
        raise InputError("the text to search for is blank")
    settings = _settings(profile)
    # Several texts lead to one code: asked for more, the search has enough to show.
    wanted = max(2 * count, settings.locate.candidates)
    candidates = _search(text, count, _settings(profile, locate={"candidates": wanted}))
    if json:
        console.show_json(candidates)
    else:
        console.show_candidates(candidates)


@app.command(epilog="Example: [bold]clh check I10 N18.6 --setting inpatient --fix[/bold]")
def check(
    codes: Annotated[
        list[str] | None,
        typer.Argument(
            help="Codes in order of reporting. An argument is read as a file of codes if it has a "
            "folder in it or ends in .txt or .csv (./list, list.txt), - is standard input.",
            callback=_require_text,
        ),
    ] = None,
    file: Annotated[
        str | None, typer.Option("--file", help="A file of codes, whatever its name.")
    ] = None,
    setting: Setting = None,
    age: Annotated[
        int | None, typer.Option(min=0, max=_MOST_YEARS, help="The patient's age in years.")
    ] = None,
    sex: Annotated[
        Literal["female", "male"] | None, typer.Option(help="The patient's sex.")
    ] = None,
    fix: Annotated[bool, typer.Option("--fix", help="Propose a set that breaks fewer.")] = False,
    format: Annotated[
        Literal["table", "json"], typer.Option(help="Lines to read, or JSON.")
    ] = "table",
    profile: Profile = None,
) -> None:
    """Check any codes against the code book's rules; no note and no model is needed.

    The exit code is 0 whatever the rules find, and 2 if none of the codes exists.
    """
    from clh.icd import groupers
    from clh.icd.rules import Claim, Encounter, load_code_book, resolve
    from clh.icd.rules import check as findings_of

    settings = _settings(profile)
    given = _read_codes(codes or [], file, settings)
    rules = settings.rules
    encounter = Encounter(setting=setting or rules.setting, age=age, sex=sex)
    claim = Claim(given, load_code_book(rules.edits), encounter)
    findings = findings_of(claim)
    groups = {name: group(claim.codes) for name, group in groupers.load(rules.groupers).items()}
    proposal = resolve(claim) if fix else None
    spelled = zip(given, claim.codes, strict=True)
    normalized = {text: code for text, code in spelled if text != code and code in claim.known}
    if format == "json":
        console.show_json(
            {
                "codes": claim.codes,
                "normalized": normalized,
                "findings": findings,
                "groups": groups,
                "proposal": proposal and proposal._asdict(),
            }
        )
    else:
        console.show_findings(findings, groups, normalized)
        if proposal is not None:
            console.show_proposal(claim.codes, proposal)
    if not claim.known:
        release = claim.book.system.release
        raise InputError(f"none of these is a code of ICD-10-CM {release}: see clh search")


@app.command(epilog="Example: [bold]clh lookup e119[/bold]")
def lookup(
    code: Annotated[
        str, typer.Argument(help="A code or category, in any spelling.", callback=_require_text)
    ],
) -> None:
    """Show a code: title, place in the tree, notes that apply to it, codes below."""
    system = _code_system()
    console.show_entry(system, system.normalize(code))


@app.command(epilog="Example: [bold]clh schema > coded-note.schema.json[/bold]")
def schema() -> None:
    """Print the JSON schema of a coded note."""
    from clh.schema import CodedNote

    console.show_json(CodedNote.model_json_schema(mode="serialization"))


@app.command(epilog="Example: [bold]clh doctor --profile vllm[/bold]")
def doctor(profile: Profile = None) -> None:
    """Examine what is installed, loaded and reachable.

    The exit code is 1 if something that the profile needs is missing.
    """
    from clh.doctor import examine

    parts = []
    with console.progress("examining the packages") as show:
        for part in examine(_settings(profile)):
            parts.append(part)
            show(f"{part.name}: {part.state}")
    console.show_parts(parts)
    raise typer.Exit(any(part.state == "no" for part in parts))


@index_app.command("build", epilog="Example: [bold]clh index build[/bold]")
def index_build(
    force: Annotated[bool, typer.Option("--force", help="Build anew what is there.")] = False,
    profile: Profile = None,
) -> None:
    """Build the vector index, unless the cache has it."""
    settings = _settings(profile)
    from clh.retrieval.index import open_index

    with console.progress("opening the index") as show:
        advance = partial(show, "building the index")
        index = open_index(settings, _code_system(), advance, rebuild=force)
    console.show_line(f"{len(index):,} texts are indexed in {settings.cache_dir}")


@audit_app.command("list", epilog="Example: [bold]clh audit list -n 5[/bold]")
def audit_list(
    count: Annotated[
        int, typer.Option("--count", "-n", min=1, max=_MOST_RUNS, help="Runs to show.")
    ] = 20,
    profile: Profile = None,
) -> None:
    """List the latest runs."""
    console.show_runs(_audit(profile).latest(count))


@audit_app.command("show", epilog="Example: [bold]clh audit show 3f2a[/bold]")
def audit_show(
    run: Annotated[
        str, typer.Argument(help="A run's id, or its beginning.", callback=_require_text)
    ],
    profile: Profile = None,
) -> None:
    """Show what each agent of a run was given and what it answered."""
    console.show_json(_audit(profile).show(run))


@audit_app.command("prune", epilog="Example: [bold]clh audit prune --older-than 90[/bold]")
def audit_prune(
    older_than: Annotated[
        int | None,
        typer.Option(min=0, max=_MOST_DAYS, metavar="DAYS", help="Delete runs older than this."),
    ] = None,
    keep: Annotated[
        int | None, typer.Option(min=0, help="Delete all runs but the latest so many.")
    ] = None,
    profile: Profile = None,
) -> None:
    """Delete old runs for good."""
    if older_than is None and keep is None:
        raise InputError("say which runs to delete: --older-than DAYS, or --keep N")
    before = None if older_than is None else datetime.now(UTC) - timedelta(days=older_than)
    deleted = _audit(profile).prune(before=before, keep=keep)
    console.show_line(f"{deleted:,} runs were deleted")


def _show_version(asked: bool) -> None:
    if asked:
        print(f"clh {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool,
        typer.Option(
            "--version", callback=_show_version, is_eager=True, help="Print the version and leave."
        ),
    ] = False,
) -> None:
    pass


def main() -> None:
    """Run a command and end the process: whatever a user can mend is one line on stderr."""
    try:
        exit_code = _run()
        sys.stdout.flush()
    except BrokenPipeError:
        exit_code = _OUTPUT_CLOSED
        console.discard_output()
    except OSError as error:
        exit_code = _BAD_INPUT
        console.say(f"{error.filename or 'standard output'}: {error.strerror or error}")
        console.discard_output()
    sys.exit(exit_code)


def _run() -> int:
    """Run a command; its exit code. Raises OSError if its output cannot be written."""
    try:
        console.prepare_streams()
        return app(standalone_mode=False) or _DONE
    except SystemExit as ended:
        # typer and rich end so where a pipe is closed, with the exit code of a failed agent.
        if isinstance(ended.__context__, BrokenPipeError):
            raise ended.__context__ from None
        return int(ended.code or _DONE)
    except ClhError as error:
        console.say(str(error))
    except typer.TyperException as error:
        message = error.format_message()
        if not message:  # nothing was asked for, and the help has been shown
            return _DONE
        console.say(f"{message} (clh --help shows what there is)")
    except typer.Abort:
        console.say("stopped")
    return _BAD_INPUT


# --- what commands work with ---------------------------------------------------------------------


def _settings(profile: str | None, **flags: Any) -> "Settings":
    import logging

    from clh.config import Settings

    logging.basicConfig(level=logging.WARNING, format="clh: %(message)s", stream=sys.stderr)
    return Settings.load(profile, **flags)


def _code_system() -> "CodeSystem":
    from clh.icd.tabular import load_tabular

    return load_tabular()


def _require_in_force(day: date) -> None:
    """InputError unless the codes of the release are those in force on the day.

    Releases take effect on 1 April and on 1 October.
    """
    start = date.fromisoformat(_code_system().release)
    april = start.month == 4  # noqa: PLR2004
    after = date(start.year, 10, 1) if april else date(start.year + 1, 4, 1)
    if not start <= day < after:
        end = after - timedelta(days=1)
        raise InputError(
            f"no codes for {day}: ICD-10-CM {start} is in force until {end}; leave --date out to "
            "use it all the same"
        )


def _announce_host(settings: "Settings") -> None:
    """Say where the note goes if it leaves this machine."""
    from urllib.parse import urlsplit

    from clh.models.language.server import is_loopback

    if settings.llm.backend == "server" and settings.uses_language_model:
        host = urlsplit(str(settings.llm.base_url)).hostname or ""
        if not is_loopback(host):
            console.say(f"the note is sent to {host}")


def _read_note(name: str | None, settings: "Settings") -> "Note":
    """The note in a file, on standard input, or typed in."""
    from clh.notes import decode_note, read_bounded, read_note

    if name is not None and name != "-":
        note, encoding = read_note(Path(name), settings.note_bytes)
    elif sys.stdin is None:
        raise InputError("standard input is closed: name a file")
    else:
        if name is None and sys.stdin.isatty():
            console.say("type or paste a note, then press Ctrl-D on a line of its own")
        data = read_bounded(sys.stdin.buffer, settings.note_bytes)
        note, encoding = decode_note(data, "stdin", settings.note_bytes, "standard input")
    if not encoding.startswith("utf-8"):
        console.say(f"the note is not UTF-8; it was read as {encoding}: check its accented letters")
    return note


def _read_codes(arguments: Sequence[str], file: str | None, settings: "Settings") -> list[str]:
    """The codes among the arguments and in the files that they name."""
    texts = [
        _read_note(argument, settings).text if _names_file(argument) else argument
        for argument in arguments
    ]
    if file is not None:
        texts.append(_read_note(file, settings).text)
    codes = " ".join(texts).replace(",", " ").replace(";", " ").split()
    if not codes:
        raise InputError("there is no code to check")
    if long := [code for code in codes if len(code) > _LONGEST]:
        raise InputError(f"{long[0][:_LONGEST]}… is too long for a code")
    return codes


def _names_file(argument: str) -> bool:
    """Whether an argument of `check` is a file: a code is never taken for one."""
    return argument == "-" or Path(argument).name != argument or argument.lower().endswith(_LISTS)


def _code(note: "Note", settings: "Settings") -> "CodedNote":
    """The coded note; progress is shown meanwhile."""
    import asyncio

    with console.progress("loading") as show:
        pipeline = _load(settings, show)
        show("coding")
        coded = asyncio.run(
            pipeline.code(
                note,
                on_step=lambda step: show(f"coding: {step} done"),
                on_progress=partial(show, "reading the note"),
            )
        )
    return coded.note


def _load(settings: "Settings", show: console.Show) -> "Pipeline":
    from agents.pipeline import Pipeline

    return Pipeline.load(settings, progress=partial(show, "building the index"))


def _search(text: str, count: int, settings: "Settings") -> "list[Candidate]":
    """The best codes for a text."""
    from agents.locate import Retriever
    from clh.retrieval.lexical import expand

    with console.progress("loading") as show:
        retriever = Retriever.load(settings, partial(show, "building the index"))
        [candidates] = retriever.search([expand(text)])
    return candidates[:count]


def _audit(profile: str | None) -> "Audit":
    from clh.audit import Audit

    settings = _settings(profile)
    return Audit(settings.data_dir / "audit.sqlite", settings.audit.store_text)
