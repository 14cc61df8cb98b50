"""The audit: every run can be traced, and no word of a note is kept unless asked for."""

import hashlib
import json
import multiprocessing
import random
import re
import sqlite3
import stat
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from clh.audit import Audit, Dropped, Exchange
from clh.config import Settings
from clh.errors import AuditError, InputError
from clh.schema import (
    Agent,
    AgentError,
    AssignedCode,
    Candidate,
    Citation,
    CodedNote,
    Finding,
    Note,
    Term,
    Verdict,
)

NOTE = Note(
    id="Kowalczyk-visit",
    text="Mrs. Kowalczyk reports throbbing podagra since Tuesday; zebrafish bite excluded.",
)
FINDING = Finding(
    rule="code_first",
    severity="error",
    codes=("M10.9",),
    message="see the book",
    citation=Citation(place="M10", kind="code_first", text="the book"),
)
QUOTE = NOTE.span(26, 43)
TERM = Term(
    quote=QUOTE, sentence=NOTE.span(0, 55), lead_term="Podagra throbbing", status="affirmed"
)


CANDIDATES = [
    Candidate(code=f"M10.{n}", title="Gout", matched="podagra", similarity=0.9 - n / 100)
    for n in range(9)
]
VERDICTS = [Verdict(term=0, code=f"M10.{n}", probability=n / 10) for n in range(9)]


def coded(run_id: str, note: Note = NOTE) -> CodedNote:
    return CodedNote(
        note_id=note.id,
        run_id=run_id,
        icd_release="2026-04-01",
        policy="encounter",
        codes=(
            AssignedCode(
                code="M10.9",
                description="Gout, unspecified",
                confidence=0.9,
                sequence=1,
                evidence=(QUOTE,),
                rationale="by similarity",
            ),
        ),
        warnings=(FINDING,),
        models={"analyze": "toy@1"},
        timings={"analyze": 0.1},
    )


def record(audit: Audit, run_id: str) -> None:
    """A whole run, as the agents write it."""
    audit.begin(run_id, NOTE, "cafe0000", '{"policy": "encounter"}')
    audit.step(
        run_id,
        agent="analyze",
        model="toy@1",
        output={
            "terms": [TERM],
            "count": 1,
            "candidates": [CANDIDATES],
            "verdicts": VERDICTS,
            "probabilities": {f"M{n}": n / 100 for n in range(60)},
            "unheard-of": ["podagra", {"words": "zebrafish"}],
        },
        exchanges=[Exchange("0" * 64, '{"quote": "throbbing podagra"}')],
        dropped=[Dropped("other_side", "M10.1", 26, 43)],
        errors=[AgentError(agent="analyze", message="the model stopped early")],
        seconds=0.5,
    )
    audit.finish(coded(run_id))


def bytes_on_disk(folder: Path) -> bytes:
    """Everything in the folder, as it lies there while the database is open."""
    return b"".join(file.read_bytes() for file in sorted(folder.rglob("*")) if file.is_file())


WORDS = [word for word in re.findall(r"\w{5,}", NOTE.text) if word != "since"]


# --- what is kept ---------------------------------------------------------------------------


def test_no_word_of_the_note_reaches_the_disk(tmp_path: Path) -> None:
    audit = Audit(tmp_path / "audit.sqlite", store_text=False)
    reader = sqlite3.connect(tmp_path / "audit.sqlite")  # keeps the write-ahead log from folding
    reader.execute("SELECT * FROM runs").fetchall()

    record(audit, "run-1")

    kept = bytes_on_disk(tmp_path).lower()
    assert any(file.name.endswith("-wal") for file in tmp_path.iterdir())
    reader.close()
    assert b"run-1" in kept
    assert [word for word in WORDS if word.lower().encode() in kept] == []

    run = audit.show("run-1")
    shown = json.dumps(run).lower()
    assert [word for word in WORDS if word.lower() in shown] == []
    assert "gout" not in shown  # which tells as much
    for text in (NOTE.text, NOTE.id, QUOTE.text, TERM.lead_term):
        assert hashlib.sha256(text.encode()).hexdigest() not in shown
    (evidence,) = run["coded_note"]["codes"][0]["evidence"]
    assert NOTE.text[evidence["start"] : evidence["end"]] == QUOTE.text


def test_text_is_kept_when_asked_for(tmp_path: Path) -> None:
    audit = Audit(tmp_path / "audit.sqlite", store_text=True)
    record(audit, "run-1")

    run = audit.show("run-1")
    assert run["note_text"] == NOTE.text
    assert CodedNote.model_validate(run["coded_note"]) == coded("run-1")
    (step,) = run["steps"]
    assert Term.model_validate(step["output"]["terms"][0]) == TERM
    assert step["exchanges"][0]["reply"] == '{"quote": "throbbing podagra"}'


@pytest.mark.parametrize("store_text", [False, True])
def test_a_run_can_be_traced(tmp_path: Path, store_text: bool) -> None:
    audit = Audit(tmp_path / "audit.sqlite", store_text)
    record(audit, "run-1")

    run = audit.show("run-1")
    assert run["settings_hash"] == "cafe0000"
    assert run["settings"] == {"policy": "encounter"}
    assert [code["code"] for code in run["coded_note"]["codes"]] == ["M10.9"]
    (step,) = run["steps"]
    assert (step["agent"], step["model"], step["seconds"]) == ("analyze", "toy@1", 0.5)
    assert step["output"]["count"] == 1
    assert step["output"]["terms"][0]["quote"]["start"] == QUOTE.start
    assert step["exchanges"][0]["prompt_sha256"] == "0" * 64
    assert step["dropped"] == [{"reason": "other_side", "code": "M10.1", "start": 26, "end": 43}]
    assert step["errors"] == [{"agent": "analyze", "message": "the model stopped early"}]
    json.dumps(run)


def test_of_what_was_found_the_best_is_kept_and_how_much_there_was(tmp_path: Path) -> None:
    audit = Audit(tmp_path / "audit.sqlite", store_text=False)
    record(audit, "run-1")
    output = audit.show("run-1")["steps"][0]["output"]
    ([candidates], [verdicts]) = output["candidates"], output["verdicts"]
    assert (candidates["of"], verdicts["of"], output["probabilities"]["of"]) == (9, 9, 60)
    assert [found["code"] for found in candidates["best"]] == [f"M10.{n}" for n in range(5)]
    assert [(found["code"], found["probability"]) for found in verdicts["best"]] == [
        (f"M10.{n}", n / 10) for n in (8, 7, 6, 5, 4)
    ]
    assert candidates["best"][0]["similarity"] == 0.9
    assert [*output["probabilities"]["best"]][:2] == ["M59", "M58"]


def test_a_note_takes_little_room(tmp_path: Path) -> None:
    """As much as a note of 221 words, with 50 terms of 20 candidates each."""
    numbers = random.Random(0)
    audit = Audit(tmp_path / "audit.sqlite", store_text=False)
    for run in map(str, range(20)):
        candidates = [
            [
                Candidate(
                    code=f"M{term}.{n}",
                    title="Gout",
                    matched="podagra",
                    similarity=numbers.random(),
                    lexical_score=numbers.random(),
                )
                for n in range(20)
            ]
            for term in range(50)
        ]
        verdicts = [
            Verdict(term=term, code=f"M{term}.{n}", probability=numbers.random())
            for term in range(50)
            for n in range(20)
        ]
        audit.begin(run, NOTE, "cafe0000", Settings.load().model_dump_json())
        outputs: dict[Agent, dict[str, Any]] = {
            "analyze": {"terms": [TERM] * 50},
            "locate": {"candidates": candidates},
            "verify": {"verdicts": verdicts},
        }
        for agent, output in outputs.items():
            audit.step(
                run,
                agent=agent,
                model="toy@1",
                output=output,
                exchanges=[],
                dropped=[],
                errors=[],
                seconds=0.5,
            )
        audit.finish(coded(run))
    assert audit.prune() == 0  # which folds the write-ahead log into the database
    assert audit.path.stat().st_size / 20 <= 10_000


def test_a_reason_is_one_word() -> None:
    with pytest.raises(ValueError, match="is one word"):
        Dropped("the note says podagra")


def test_a_run_that_was_killed_shows_how_far_it_came(tmp_path: Path) -> None:
    audit = Audit(tmp_path / "audit.sqlite", store_text=False)
    audit.begin("run-1", NOTE, "cafe0000", "{}")
    run = audit.show("run-1")
    assert (run["coded_note"], run["steps"]) == (None, [])


def test_what_is_written_stays(tmp_path: Path) -> None:
    audit = Audit(tmp_path / "audit.sqlite", store_text=True)
    record(audit, "run-1")
    before = audit.show("run-1")

    with pytest.raises(AuditError):
        audit.begin("run-1", Note(id="2", text="other"), "beef0000", "{}")
    audit.finish(coded("run-1", Note(id="2", text="other")))

    assert Audit(tmp_path / "audit.sqlite", store_text=True).show("run-1") == before


# --- finding a run --------------------------------------------------------------------------


@pytest.fixture
def three(tmp_path: Path) -> Audit:
    audit = Audit(tmp_path / "audit.sqlite", store_text=False)
    for run_id in ("abc1", "abd2", "xyz3"):
        record(audit, run_id)
    return audit


@pytest.mark.parametrize(("prefix", "found"), [("x", "xyz3"), ("abc", "abc1"), ("abd2", "abd2")])
def test_a_unique_beginning_will_do(three: Audit, prefix: str, found: str) -> None:
    run = three.show(prefix)
    assert run["run_id"] == found
    assert len(run["steps"]) == 1


@pytest.mark.parametrize(
    ("prefix", "says"),
    [
        ("q", "no run begins with 'q'"),
        ("yz3", "no run"),
        ("ab", "2 runs begin"),
        ("", "3 runs"),
        ("%yz", "no run"),
        ("x_z", "no run"),
        ("x_yz", "no run"),
        ("abc1 OR 1=1", "no run"),
        ("\udcff", "no run"),
        ("a" * 100_000, "no run"),
    ],
)
def test_other_beginnings_are_refused(three: Audit, prefix: str, says: str) -> None:
    with pytest.raises(InputError, match=says) as caught:
        three.show(prefix)
    assert "\n" not in str(caught.value)


def test_the_latest_come_first(three: Audit) -> None:
    assert [run["run_id"] for run in three.latest(2)] == ["xyz3", "abd2"]
    assert len(three.latest(10)) == 3
    assert len(three.latest(99_999_999_999_999_999_999)) == 3
    assert three.latest(-1) == []


def test_the_runs_of_a_note_are_found_by_its_id(three: Audit) -> None:
    three.begin("other", Note(id="visit-8", text="Cough."), "cafe0000", "{}")
    assert [run["run_id"] for run in three.latest(9, note_id="visit-8")] == ["other"]
    assert len(three.latest(9, note_id=NOTE.id)) == 3
    assert three.latest(9, note_id="\udcff") == []


def test_the_digest_of_a_note_needs_the_key_of_the_installation(tmp_path: Path) -> None:
    digests = set()
    for name in ("one", "two"):
        audit = Audit(tmp_path / name / "audit.sqlite", store_text=False)
        audit.begin("run-1", NOTE, "cafe0000", "{}")
        [run] = audit.latest(1)
        digests |= {run["note_id_hmac"], run["note_text_hmac"]}
    assert len(digests) == 4
    key = tmp_path / "two" / "audit.key"
    key.unlink()  # as somebody may who wants no id to be found again
    forgetful = Audit(tmp_path / "two" / "audit.sqlite", store_text=False)
    assert forgetful.latest(9, note_id=NOTE.id) == []
    assert forgetful.show("run-1")["settings_hash"] == "cafe0000"
    key.write_bytes(b"short")
    with pytest.raises(AuditError, match=r"audit\.key is damaged: delete it"):
        Audit(tmp_path / "two" / "audit.sqlite", store_text=False)


# --- writing at once ------------------------------------------------------------------------


def write_ten(path: Path, writer: str) -> None:
    audit = Audit(path, store_text=False)
    for i in range(10):
        record(audit, f"{writer}-{i}")


def test_processes_write_at_once(tmp_path: Path) -> None:
    path = tmp_path / "audit.sqlite"
    context: Any = multiprocessing.get_context("spawn")
    writers = [context.Process(target=write_ten, args=(path, name)) for name in "ab"]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()

    assert [writer.exitcode for writer in writers] == [0, 0]
    assert len(Audit(path, store_text=False).latest(100)) == 20


def test_threads_write_at_once(tmp_path: Path) -> None:
    audit = Audit(tmp_path / "audit.sqlite", store_text=False)
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda i: record(audit, f"run-{i}"), range(40)))
    assert len(audit.latest(100)) == 40
    assert all(len(audit.show(f"run-{i}")["steps"]) == 1 for i in range(10, 40))


def open_and_write(path: Path, writer: str) -> None:
    audit = Audit(path, store_text=False)
    audit.begin(writer, NOTE, "cafe0000", "{}")


def test_processes_that_start_at_once_share_one_key(tmp_path: Path) -> None:
    path = tmp_path / "data" / "audit.sqlite"
    context: Any = multiprocessing.get_context("fork")
    writers = [context.Process(target=open_and_write, args=(path, str(n))) for n in range(12)]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
    assert [writer.exitcode for writer in writers] == [0] * 12
    assert len(Audit(path, store_text=False).latest(99, note_id=NOTE.id)) == 12


# --- deleting -------------------------------------------------------------------------------


def test_the_latest_are_kept(three: Audit) -> None:
    assert three.prune() == 0
    assert three.prune(keep=2) == 1
    assert [run["run_id"] for run in three.latest(9)] == ["xyz3", "abd2"]
    assert len(three.show("abd2")["steps"]) == 1
    assert three.prune(keep=99_999_999_999_999_999_999) == 0
    record(three, "new")
    assert [run["run_id"] for run in three.latest(9)] == ["new", "xyz3", "abd2"]
    assert three.prune(keep=0) == 3
    assert three.latest(9) == []


def test_what_is_older_is_deleted(three: Audit) -> None:
    now = datetime.now(UTC)
    with sqlite3.connect(three.path) as database:
        week_ago = (now - timedelta(days=7)).isoformat(timespec="seconds")
        database.execute("UPDATE runs SET at = ? WHERE run_id = 'abd2'", (week_ago,))
    database.close()
    assert three.prune(before=now - timedelta(days=8)) == 0
    assert three.prune(before=now - timedelta(days=6)) == 1
    assert [run["run_id"] for run in three.latest(9)] == ["xyz3", "abc1"]
    assert three.prune(before=datetime.now() + timedelta(days=1)) == 2


def test_what_is_deleted_is_nowhere_on_the_disk(tmp_path: Path) -> None:
    audit = Audit(tmp_path / "audit.sqlite", store_text=True)
    other = sqlite3.connect(audit.path)  # keeps the write-ahead log from being removed
    other.execute("SELECT * FROM runs").fetchall()
    for n in range(20):
        audit.begin(f"run-{n}", NOTE, "cafe0000", "{}")
    assert b"Kowalczyk" in bytes_on_disk(tmp_path)
    size = audit.path.stat().st_size + audit.path.with_name("audit.sqlite-wal").stat().st_size

    assert audit.prune(keep=0) == 20

    assert b"Kowalczyk" not in bytes_on_disk(tmp_path)
    assert audit.path.stat().st_size < size
    other.close()


def test_a_reader_that_could_still_see_what_is_deleted_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("clh.audit._LOCKED", 0.1)
    audit = Audit(tmp_path / "audit.sqlite", store_text=True)
    audit.begin("run-1", NOTE, "cafe0000", "{}")
    reader = sqlite3.connect(audit.path, isolation_level=None)
    reader.execute("BEGIN")
    reader.execute("SELECT * FROM runs").fetchall()
    with pytest.raises(AuditError, match=r"in use|locked"):
        audit.prune(keep=0)
    reader.close()
    assert audit.prune(keep=0) == 0
    assert b"Kowalczyk" not in bytes_on_disk(tmp_path)


# --- databases of before, of later, and damaged ones ----------------------------------------


@pytest.fixture
def unversioned(tmp_path: Path) -> Path:
    """A database as it was before it had a version."""
    path = tmp_path / "audit.sqlite"
    with sqlite3.connect(path) as database:
        script = Path(__file__).with_name("unversioned_audit.sql")
        database.executescript(script.read_text(encoding="utf-8"))
    database.close()
    return path


def test_a_database_of_before_is_brought_up_to_date(
    unversioned: Path, caplog: pytest.LogCaptureFixture
) -> None:
    audit = Audit(unversioned, store_text=False)
    assert [message.split(":")[0] for message in caplog.messages] == [
        "2 records of the audit were damaged"
    ]
    assert [run["run_id"] for run in audit.latest(9)] == ["damaged", "killed", "stored", "hashed"]
    assert [run["damaged"] for run in audit.latest(9)] == [True, False, False, False]
    found = audit.latest(9, note_id=NOTE.id)
    assert [run["run_id"] for run in found] == ["stored", "hashed"]  # those with an answer

    run = audit.show("hashed")
    assert (run["at"], run["settings"]) == ("2026-11-26T16:28:27+00:00", {"policy": "encounter"})
    assert run["coded_note"]["codes"][0]["evidence"] == [{"start": 26, "end": 43}]
    analyze, locate, verify = run["steps"]
    assert analyze["output"]["terms"][0]["quote"] == {"start": 26, "end": 43}
    assert analyze["exchanges"] == [{"prompt_sha256": "0" * 64}]
    assert locate["output"]["candidates"][0]["of"] == 8
    assert verify["output"]["verdicts"][0]["best"][0]["code"] == "M10.7"
    assert verify["dropped"][0]["reason"].startswith("M10.1: ")

    assert audit.show("stored")["note_text"] == NOTE.text
    assert CodedNote.model_validate(audit.show("stored")["coded_note"]).note_id == NOTE.id
    assert [step["damaged"] for step in audit.show("damaged")["steps"]] == [False, True, False]
    assert (audit.show("killed")["coded_note"], audit.show("killed")["damaged"]) == (None, False)

    record(audit, "new")
    caplog.clear()
    assert len(Audit(unversioned, store_text=False).latest(9)) == 5
    assert caplog.messages == []


def test_the_hashes_of_before_are_gone(unversioned: Path) -> None:
    hashes = [hashlib.sha256(text.encode()).hexdigest() for text in (NOTE.id, QUOTE.text)]
    before = bytes_on_disk(unversioned.parent).decode(errors="replace")
    assert all(digest in before for digest in hashes)
    Audit(unversioned, store_text=False)
    after = bytes_on_disk(unversioned.parent).decode(errors="replace")
    assert not any(digest in after for digest in hashes)


def migrate(path: Path, writer: str) -> None:
    record(Audit(path, store_text=False), writer)


def test_processes_that_meet_a_database_of_before_at_once(unversioned: Path) -> None:
    context: Any = multiprocessing.get_context("fork")
    writers = [context.Process(target=migrate, args=(unversioned, f"new-{n}")) for n in range(6)]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
    assert [writer.exitcode for writer in writers] == [0] * 6
    assert len(Audit(unversioned, store_text=False).latest(99)) == 10


def test_a_database_of_a_newer_version_is_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "audit.sqlite"
    with sqlite3.connect(path) as database:
        database.execute("PRAGMA user_version = 99")
        database.execute("CREATE TABLE runs (later TEXT)")
    database.close()
    before = path.read_bytes()
    with pytest.raises(AuditError, match="is from a newer CLH") as caught:
        Audit(path, store_text=False)
    assert "\n" not in str(caught.value)
    assert path.read_bytes() == before


def test_tables_of_another_program_are_kept_and_do_not_stop_a_run(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "audit.sqlite"
    with sqlite3.connect(path) as database:
        database.execute("CREATE TABLE runs (id INTEGER, miles REAL)")
        database.execute("INSERT INTO runs VALUES (1, 26.2)")
    database.close()
    record(Audit(path, store_text=False), "run-1")
    [message] = caplog.messages
    assert "tables of another program" in message
    assert len(Audit(path, store_text=False).show("run-1")["steps"]) == 1
    with sqlite3.connect(path) as database:
        assert database.execute("SELECT miles FROM runs_0").fetchall() == [(26.2,)]
    database.close()


@pytest.mark.parametrize("content", [b"", b"x\x9cnonsense", b"\xff" * 40, 7, "text"])
def test_a_damaged_row_is_told_and_stops_nothing(three: Audit, content: object) -> None:
    with sqlite3.connect(three.path) as database:
        database.execute("UPDATE runs SET coded_note = ? WHERE run_id = 'abc1'", (content,))
        database.execute("UPDATE steps SET details = ? WHERE run_id = 'abd2'", (content,))
    database.close()
    record(three, "new")
    assert [run["damaged"] for run in three.latest(9)] == [False, False, False, True]
    run = three.show("abc1")
    assert (run["damaged"], run["coded_note"]) == (True, None)
    [step] = three.show("abd2")["steps"]
    assert (step["damaged"], step["output"], step["model"]) == (True, None, "toy@1")
    assert three.prune(keep=1) == 3


# --- permissions ----------------------------------------------------------------------------


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def test_others_may_not_read_the_audit(tmp_path: Path) -> None:
    audit = Audit(tmp_path / "new" / "data" / "audit.sqlite", store_text=False)
    reader = sqlite3.connect(audit.path)
    reader.execute("SELECT * FROM runs").fetchall()
    record(audit, "run-1")
    files = {file.name: mode(file) for file in audit.path.parent.iterdir()}
    assert files == dict.fromkeys(
        ("audit.sqlite", "audit.sqlite-wal", "audit.sqlite-shm", "audit.key"), 0o600
    )
    assert mode(audit.path.parent) == 0o700
    reader.close()


def test_an_audit_that_others_could_read_is_closed_to_them(tmp_path: Path) -> None:
    audit = Audit(tmp_path / "data" / "audit.sqlite", store_text=False)
    reader = sqlite3.connect(audit.path)
    reader.execute("SELECT * FROM runs").fetchall()
    record(audit, "run-1")
    for path in (audit.path.parent, *audit.path.parent.iterdir()):
        path.chmod(0o755)
    Audit(audit.path, store_text=False)
    assert {mode(file) for file in audit.path.parent.iterdir()} == {0o600}
    assert mode(audit.path.parent) == 0o700
    reader.close()


def test_a_folder_that_is_for_all_stays_so(tmp_path: Path) -> None:
    tmp_path.chmod(0o1777)
    Audit(tmp_path / "audit.sqlite", store_text=False)
    assert mode(tmp_path) == 0o1777
    assert mode(tmp_path / "audit.sqlite") == 0o600


# --- a place that will not do ---------------------------------------------------------------


def test_a_place_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(
        AuditError, match=r"file cannot be a private folder.*set data_dir"
    ) as caught:
        Audit(tmp_path / "file" / "audit.sqlite", store_text=False)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("content", [b"not a database" * 100, b"SQLite format 3\0" + b"\xff" * 99])
def test_a_file_that_is_no_database(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "audit.sqlite").write_bytes(content)
    with pytest.raises(AuditError, match="set data_dir"):
        Audit(tmp_path / "audit.sqlite", store_text=False)
    assert (tmp_path / "audit.sqlite").read_bytes() == content


def test_a_database_that_goes_away_is_told_and_not_made_anew(tmp_path: Path) -> None:
    audit = Audit(tmp_path / "audit.sqlite", store_text=False)
    audit.begin("run-1", NOTE, "cafe0000", "{}")
    audit.path.unlink()
    with pytest.raises(AuditError, match="unable to open"):
        audit.finish(coded("run-1"))
    assert not audit.path.exists()


def test_a_database_that_another_process_holds(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("clh.audit._LOCKED", 0.1)
    audit = Audit(tmp_path / "audit.sqlite", store_text=False)
    other = sqlite3.connect(audit.path, isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    with pytest.raises(AuditError, match="database is locked"):
        audit.begin("run-1", NOTE, "cafe0000", "{}")
    other.close()
    audit.begin("run-1", NOTE, "cafe0000", "{}")
