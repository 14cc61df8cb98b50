"""What the terminal shows, and the streams that it is shown on: pipes, devices, closed ones."""

import csv
import io
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TextIO

import pytest

from clh import cli, console
from clh.config import Settings
from clh.schema import (
    AgentError,
    AssignedCode,
    Citation,
    CodedNote,
    ConsideredCode,
    Finding,
    Note,
)

ROOT = Path(__file__).parents[1]
ESCAPE = "\x1b[31mred\x1b]0;title\a"
FULL = Path("/dev/full")

NOTE = Note(id=f"visit{ESCAPE}", text=f"Type 2\ndiabetes, cough{ESCAPE}.\nAll else is well.")
TYPE_2, COUGH = NOTE.span(0, 15), NOTE.span(17, 22)


def coded(**fields: Any) -> CodedNote:
    given = {
        "note_id": NOTE.id,
        "run_id": "0123456789abcdef",
        "icd_release": "2026-04-01",
        "policy": "encounter",
        "models": {},
        "timings": {"analyze": 0.5},
        **fields,
    }
    return CodedNote.model_validate(given)


def assigned(code: str, sequence: int, *evidence: Any, **fields: Any) -> AssignedCode:
    return AssignedCode(
        code=code,
        description=f"Title of {code}",
        confidence=0.75,
        sequence=sequence,
        evidence=evidence,
        rationale="",
        **fields,
    )


def finding(rule: str, message: str, **fields: Any) -> Finding:
    citation = Citation(place="I.A", kind="guideline", text="as the guideline says")
    return Finding(
        rule=rule,
        codes=(),
        message=message,
        citation=citation,
        **{"severity": "warning", **fields},
    )


@pytest.fixture
def shown(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Any:
    """Shows a coded note and returns what is printed."""
    monkeypatch.setenv("COLUMNS", "160")

    def shown(**fields: Any) -> str:
        console.show_coded(NOTE, coded(**fields))
        return capsys.readouterr().out

    return shown


# --- coded notes ---------------------------------------------------------------------------------


def test_codes_are_shown_in_their_sequence_with_the_lines_of_their_evidence(shown: Any) -> None:
    out = shown(codes=[assigned("R05.9", 2, COUGH), assigned("E11.9", 1, TYPE_2, COUGH)])
    lines = out.splitlines()
    assert lines[:2] == ["Type 2", "diabetes, cough [31mred ]0;title ."]
    rows = [line for line in lines if "Title of" in line]
    assert [row.split()[:2] for row in rows] == [["1", "E11.9"], ["2", "R05.9"]]
    assert "0.75" in rows[0]
    assert "type 2 diabetes, cough" in rows[0]
    assert "All else" not in out


def test_what_was_changed_doubted_and_left_out_is_shown_once(shown: Any) -> None:
    changed = finding("excludes1", "R06.02 excludes J96.01", change="R06.02 dropped")
    out = shown(
        codes=[assigned("R05.9", 1, COUGH)],
        warnings=[changed, finding("integral", "R05.9 is part of J18.9")],
        considered=[
            ConsideredCode(
                code="R06.02",
                description="Shortness of breath",
                reason="excludes1",
                message=changed.message,
            ),
            ConsideredCode(
                code="E11.9",
                description="Type 2 diabetes",
                reason="negated",
                message="the note denies it",
                evidence=(TYPE_2,),
            ),
        ],
    )
    lines = [line.strip().split(maxsplit=1) for line in out.splitlines()]
    assert ["changed", "R06.02 dropped: R06.02 excludes J96.01"] in lines
    assert ["warning", "R05.9 is part of J18.9"] in lines
    assert "E11.9 Type 2 diabetes: the note denies it (type 2 diabetes)" in out
    assert out.count("excludes J96.01") == 1


@pytest.mark.parametrize(
    "fields",
    [
        {"errors": [AgentError(agent="verify", message="no server answers")]},
        {"warnings": [finding("unusable_reply", "analyze could not use 3 of 3 replies")]},
    ],
)
def test_a_model_that_gave_no_answer_never_looks_like_a_note_without_codes(
    shown: Any, fields: dict[str, Any]
) -> None:
    out = shown(**fields)
    assert "No code is supported" not in out
    assert "incomplete  not all of the note was coded" in out
    assert "no server answers" in out or "3 of 3 replies" in out


def test_a_note_without_codes_is_complete_even_if_the_audit_failed(shown: Any) -> None:
    out = shown(errors=[AgentError(agent="audit", message="the disk is full")])
    assert "No code is supported by this note." in out
    assert "audit: the disk is full" in out
    assert "incomplete" not in out


def test_csv_has_a_row_for_each_code(capsys: pytest.CaptureFixture[str]) -> None:
    flags = ("seventh_character_assumed", "checked")
    codes = [assigned("R05.9", 2, COUGH), assigned("E11.9", 1, TYPE_2, COUGH, flags=flags)]
    codes[1] = codes[1].model_copy(update={"description": 'Title, "quoted"'})
    console.show_csv(coded(codes=codes))
    out = capsys.readouterr().out
    assert "\x1b" not in out
    rows = list(csv.DictReader(io.StringIO(out)))
    assert [row["code"] for row in rows] == ["E11.9", "R05.9"]
    assert rows[0] == {
        "note_id": "visit [31mred ]0;title ",
        "sequence": "1",
        "code": "E11.9",
        "description": 'Title, "quoted"',
        "confidence": "0.75",
        "evidence": "Type 2\ndiabetes | cough",
        "start": "0 | 17",
        "end": "15 | 22",
        "flags": "seventh_character_assumed | checked",
    }
    assert NOTE.text[int(rows[1]["start"]) : int(rows[1]["end"])] == rows[1]["evidence"]


def test_csv_without_codes_is_the_header(capsys: pytest.CaptureFixture[str]) -> None:
    console.show_csv(coded())
    assert capsys.readouterr().out.startswith("note_id,sequence,code,")


def test_a_message_is_one_line_that_no_terminal_obeys(capsys: pytest.CaptureFixture[str]) -> None:
    console.say(f"{ESCAPE}: no\nsuch file \udcff")
    assert capsys.readouterr().err == "clh: [31mred ]0;title : no such file \ufffd\n"


# --- progress ------------------------------------------------------------------------------------


class Terminal(io.StringIO):
    """A terminal that keeps what is written to it."""

    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize(("terminal", "shows"), [(Terminal(), True), (io.StringIO(), False)])
def test_progress_is_shown_on_terminals_only(
    monkeypatch: pytest.MonkeyPatch, terminal: io.StringIO, shows: bool
) -> None:
    monkeypatch.setattr(sys, "stderr", terminal)
    monkeypatch.setenv("TERM", "xterm")
    with console.progress("loading") as show:
        show("building the index", 50, 100)
        show("building the index", 100, 100)
    written = terminal.getvalue()
    assert ("building the index" in written) is shows
    assert written == "" or shows


# --- streams -------------------------------------------------------------------------------------

COMMANDS = (
    ["--help"],
    ["--version"],
    ["schema"],
    ["lookup", "I10"],
    ["check", "E11.9", "E11.65"],
    ["check", "E11.9", "--format", "json"],
    ["audit", "list"],
    ["audit", "--help"],
)


@pytest.fixture
def own_data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("CLH_DATA_DIR", str(tmp_path / "data"))
    return tmp_path


def exit_code(
    arguments: Sequence[str], monkeypatch: pytest.MonkeyPatch, stdout: TextIO | None = None
) -> int:
    monkeypatch.setattr(sys, "argv", ["clh", *arguments])
    if stdout is not None:
        monkeypatch.setattr(sys, "stdout", stdout)
    with pytest.raises(SystemExit) as ended:
        cli.main()
    return int(ended.value.code or 0)


@pytest.mark.skipif(not FULL.exists(), reason=f"needs {FULL}")
@pytest.mark.usefixtures("own_data")
@pytest.mark.parametrize("arguments", COMMANDS, ids=" ".join)
def test_a_full_disk_is_one_line_and_2(
    arguments: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with FULL.open("w") as stdout:
        assert exit_code(arguments, monkeypatch, stdout) == 2
    assert capsys.readouterr().err == "clh: standard output: No space left on device\n"


@pytest.mark.usefixtures("own_data")
@pytest.mark.parametrize("arguments", COMMANDS, ids=" ".join)
def test_a_reader_that_has_ended_is_quiet_and_141(
    arguments: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    with os.fdopen(writer, "w") as stdout:
        assert exit_code(arguments, monkeypatch, stdout) == 141
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("columns", ["0", "1", "0" * 30, "\u00b2", "9" * 30])
@pytest.mark.parametrize("arguments", [["--help"], ["lookup", "I10"]], ids=" ".join)
def test_a_terminal_that_says_it_has_no_columns_is_printed_on(
    arguments: list[str],
    columns: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("COLUMNS", columns)
    assert exit_code(arguments, monkeypatch) == 0
    assert max(map(len, capsys.readouterr().out.splitlines())) > 40


# --- processes of their own ----------------------------------------------------------------------


@pytest.fixture
def environment(tmp_path: Path) -> dict[str, str]:
    """A home of its own, but for the cache."""
    places = {
        "HOME": str(tmp_path),
        "CLH_CACHE_DIR": str(Settings.load().cache_dir),
        "CLH_DATA_DIR": str(tmp_path / "data"),
        "PYTHONPATH": str(ROOT),
    }
    return {**os.environ, **places}


@pytest.mark.skipif(os.name == "nt", reason="needs a shell")
@pytest.mark.parametrize(
    ("arguments", "shell", "expected"),
    [
        (["check", "E11.9", "--format", "json"], 'exec "$@" 2>&-', 0),
        (["code", "no.txt"], 'exec "$@" 2>&-', 2),
        (["lookup", "I10"], 'exec "$@" >&-', 2),
        (["lookup", "I10"], 'exec "$@" <&- >&- 2>&-', 2),
        (["code"], 'exec "$@" <&-', 2),
        (["audit", "list"], 'exec "$@" >&-', 2),
    ],
)
def test_streams_that_are_closed(
    arguments: list[str],
    shell: str,
    expected: int,
    environment: dict[str, str],
) -> None:
    command = ["sh", "-c", shell, "sh", sys.executable, "-m", "clh", *arguments]
    done = subprocess.run(
        command, check=False, capture_output=True, text=True, env=environment, timeout=100, cwd=ROOT
    )
    assert done.returncode == expected
    assert "Traceback" not in done.stderr
    assert len(done.stderr.splitlines()) <= 1
    if expected == 0:
        json.loads(done.stdout)


# --- signals -------------------------------------------------------------------------------------

# A thread at work cannot be cancelled, be it in a model or asleep.
AT_WORK = """
import asyncio, sys, time
from clh import cli, console

def work(note, settings):
    with console.progress("coding"):
        print("at work", file=sys.stderr, flush=True)
        asyncio.run(asyncio.to_thread(time.sleep, 60))

cli._code = work
from clh.__main__ import main
main()
"""


def start(command: Sequence[str], environment: dict[str, str], **streams: Any) -> Any:
    pipes = dict.fromkeys(("stdin", "stdout", "stderr"), subprocess.PIPE)
    return subprocess.Popen(
        [sys.executable, *command], env=environment, cwd=ROOT, text=True, **{**pipes, **streams}
    )


def start_work(environment: dict[str, str]) -> Any:
    process = start(["-c", AT_WORK, "code", "-"], environment)
    process.stdin.write("Cough.")
    process.stdin.close()
    process.stdin = None
    assert process.stderr.readline() == "at work\n"
    return process


@pytest.mark.skipif(os.name == "nt", reason="needs signals")
@pytest.mark.parametrize(("number", "expected"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_ends_work_at_once(
    number: signal.Signals, expected: int, environment: dict[str, str]
) -> None:
    process = start_work(environment)
    started = time.monotonic()
    process.send_signal(number)
    assert process.communicate(timeout=60) == ("", "")
    assert process.returncode == expected
    assert time.monotonic() - started < 1


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs /proc")
@pytest.mark.parametrize("delay", [0.0, 0.01, 0.03, 0.1, 0.3])
def test_an_interrupt_while_modules_are_imported_is_quiet(
    delay: float, environment: dict[str, str]
) -> None:
    process = start(["-m", "clh", "check", "E11.9"], environment)
    while not _catches(process.pid, signal.SIGTERM):  # Python itself does not
        assert process.poll() is None
    time.sleep(delay)
    process.send_signal(signal.SIGINT)
    assert process.communicate(timeout=60) == ("", "")
    assert process.returncode == 130


def _catches(pid: int, number: signal.Signals) -> bool:
    status = Path(f"/proc/{pid}/status").read_text()
    caught = next(line for line in status.splitlines() if line.startswith("SigCgt:"))
    return bool(int(caught.split()[1], 16) >> (number - 1) & 1)


@pytest.mark.skipif(os.name == "nt", reason="needs a shell")
def test_interrupts_that_a_script_ignores_stay_ignored(environment: dict[str, str]) -> None:
    run = "import os, signal; from clh import cli; from clh.__main__ import main; "
    interrupted = (
        "cli.console.prepare_streams = lambda: os.kill(os.getpid(), signal.SIGINT); main()"
    )
    command = [sys.executable, "-c", run + interrupted, "--version"]
    done = subprocess.run(
        ["sh", "-c", 'trap "" INT; exec "$@"', "sh", *command],
        check=False,
        capture_output=True,
        text=True,
        env=environment,
        cwd=ROOT,
        timeout=60,
    )
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.skipif(os.name == "nt", reason="needs a terminal")
def test_an_interrupt_gives_the_terminal_its_cursor_back(environment: dict[str, str]) -> None:
    import pty

    terminal, other_end = pty.openpty()
    process = start(
        ["-c", AT_WORK, "code", "-"], {**environment, "TERM": "xterm"}, stderr=other_end
    )
    os.close(other_end)
    process.stdin.write("Cough.")
    process.stdin.close()
    process.stdin = None
    written = b""
    while b"at work" not in written:
        written += os.read(terminal, 1000)
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=60)
    try:
        while more := os.read(terminal, 1000):
            written += more
    except OSError:  # how Linux says that nobody writes any more
        pass
    os.close(terminal)
    hidden, shown = written.rindex(b"\x1b[?25l"), written.rindex(b"\x1b[?25h")
    assert hidden < shown


@pytest.mark.integration
@pytest.mark.usefixtures("real_pipeline")  # so that the index is there
def test_a_long_note_is_interrupted_within_a_second_and_leaves_a_sound_audit(
    environment: dict[str, str], tmp_path: Path
) -> None:
    process = start(["-m", "clh", "code", "-"], environment)
    days = (f"Day {day}: chest pain and type 2 diabetes on ward {day}.\n" for day in range(3000))
    process.stdin.write("".join(days))
    process.stdin.close()
    process.stdin = None
    while not list((tmp_path / "data").glob("audit.sqlite*")):
        assert process.poll() is None
        time.sleep(0.1)
    time.sleep(0.5)
    started = time.monotonic()
    process.send_signal(signal.SIGINT)
    assert process.communicate(timeout=60) == ("", "")
    assert process.returncode == 130
    assert time.monotonic() - started < 1
    listed = start(["-m", "clh", "audit", "list"], environment)
    out, err = listed.communicate(timeout=60)
    assert (listed.returncode, err) == (0, "")
    assert "Run" in out
