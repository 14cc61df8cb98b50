"""The audit: every run can be traced, and no word of a note is kept unless asked for."""

import json
import multiprocessing
import re
import sqlite3
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from clh.audit import Audit, Exchange
from clh.errors import InputError
from clh.schema import AgentError, AssignedCode, Citation, CodedNote, Finding, Note, Term

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
        output={"terms": [TERM], "count": 1},
        exchanges=[Exchange("0" * 64, '{"quote": "throbbing podagra"}')],
        dropped=["a quote that the note does not hold"],
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
    assert b"m10.9" in kept
    assert [word for word in WORDS if word.lower().encode() in kept] == []

    run = audit.show("run-1")
    assert run["note_sha256"] == NOTE.sha256
    assert run["note_text"] is None
    (evidence,) = run["coded_note"]["codes"][0]["evidence"]
    assert NOTE.text[evidence["start"] : evidence["end"]] == QUOTE.text
    assert evidence["text"] != QUOTE.text


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
    assert step["dropped"] == ["a quote that the note does not hold"]
    assert step["errors"] == [{"agent": "analyze", "message": "the model stopped early"}]
    json.dumps(run)


def test_a_run_that_was_killed_shows_how_far_it_came(tmp_path: Path) -> None:
    audit = Audit(tmp_path / "audit.sqlite", store_text=False)
    audit.begin("run-1", NOTE, "cafe0000", "{}")
    run = audit.show("run-1")
    assert (run["coded_note"], run["steps"]) == (None, [])


def test_what_is_written_stays(tmp_path: Path) -> None:
    audit = Audit(tmp_path / "audit.sqlite", store_text=True)
    record(audit, "run-1")
    before = audit.show("run-1")

    with pytest.raises(InputError):
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
    ],
)
def test_other_beginnings_are_refused(three: Audit, prefix: str, says: str) -> None:
    with pytest.raises(InputError, match=says) as caught:
        three.show(prefix)
    assert "\n" not in str(caught.value)


def test_the_latest_come_first(three: Audit) -> None:
    assert [run["run_id"] for run in three.latest(2)] == ["xyz3", "abd2"]
    assert len(three.latest(10)) == 3


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


# --- a place that will not do ---------------------------------------------------------------


def test_a_place_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(InputError, match=r"cannot be (made|used).*set data_dir") as caught:
        Audit(tmp_path / "file" / "audit.sqlite", store_text=False)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("content", [b"not a database" * 100, b"SQLite format 3\0" + b"\xff" * 99])
def test_a_file_that_is_no_database(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "audit.sqlite").write_bytes(content)
    with pytest.raises(InputError, match="set data_dir"):
        Audit(tmp_path / "audit.sqlite", store_text=False)
    assert (tmp_path / "audit.sqlite").read_bytes() == content
