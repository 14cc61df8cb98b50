"""The audit: every run appended to one SQLite database, so that every decision can be traced.

Note text is kept only if asked for. Otherwise a quote is kept as its offsets, and a note or a
model's reply as its SHA-256.
"""

import hashlib
import json
import sqlite3
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Protocol

from pydantic import TypeAdapter

from clh.errors import InputError
from clh.schema import Agent, AgentError, CodedNote, Note

_SCHEMA = """
CREATE TABLE IF NOT EXISTS runs (
    run_id TEXT PRIMARY KEY,
    at TEXT NOT NULL,
    note_sha256 TEXT NOT NULL,
    note_text TEXT,
    settings_hash TEXT NOT NULL,
    settings TEXT NOT NULL,
    coded_note TEXT
);
CREATE TABLE IF NOT EXISTS steps (
    run_id TEXT NOT NULL REFERENCES runs,
    agent TEXT NOT NULL,
    model TEXT NOT NULL,
    exchanges TEXT NOT NULL,
    output TEXT NOT NULL,
    dropped TEXT NOT NULL,
    errors TEXT NOT NULL,
    seconds REAL NOT NULL
);
CREATE INDEX IF NOT EXISTS steps_of_run ON steps (run_id);
"""
_LOCKED = 30.0  # seconds to wait while other processes write
_NOTE_FIELDS = frozenset({"text", "lead_term", "reply", "note_id"})  # they may hold note text
_JSON = TypeAdapter[Any](Any)


@dataclass(frozen=True)
class Exchange:
    """A model's reply, and the fingerprint of the prompt file that asked for it."""

    prompt_sha256: str
    reply: str


class Record(Protocol):
    """What agents write down: a run, each step of it, the answer."""

    def begin(self, run_id: str, note: Note, settings_hash: str, settings: str) -> None:
        """Open the record of a run."""
        ...

    def step(
        self,
        run_id: str,
        *,
        agent: Agent,
        model: str,
        output: Mapping[str, Any],
        exchanges: Sequence[Exchange],
        dropped: Sequence[str],
        errors: Sequence[AgentError],
        seconds: float,
    ) -> None:
        """What one agent heard from its model, made of it, left out, and failed at."""
        ...

    def finish(self, coded: CodedNote) -> None:
        """Close the record with the answer."""
        ...


class Audit:
    """An append-only database of runs; every call opens and closes it, so processes share it."""

    def __init__(self, path: Path, store_text: bool) -> None:
        """Create the database if there is none; InputError if it cannot be written."""
        self.path = path
        self._store_text = store_text
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise InputError(f"{path.parent} cannot be made ({error}): set data_dir") from error
        with self._open() as database:
            database.execute("PRAGMA journal_mode=WAL")
            database.executescript(_SCHEMA)

    def begin(self, run_id: str, note: Note, settings_hash: str, settings: str) -> None:
        """Append a run."""
        text = note.text if self._store_text else None
        row = (run_id, _now(), note.sha256, text, settings_hash, settings)
        with self._open() as database:
            database.execute("INSERT INTO runs VALUES (?, ?, ?, ?, ?, ?, NULL)", row)

    def step(
        self,
        run_id: str,
        *,
        agent: Agent,
        model: str,
        output: Mapping[str, Any],
        exchanges: Sequence[Exchange],
        dropped: Sequence[str],
        errors: Sequence[AgentError],
        seconds: float,
    ) -> None:
        """Append what one agent heard from its model, made of it, left out, and failed at."""
        texts = (
            self._json([asdict(exchange) for exchange in exchanges]),
            self._json(output),
            self._json(dropped),
            self._json(errors),
        )
        with self._open() as database:
            row = (run_id, agent, model, *texts, seconds)
            database.execute("INSERT INTO steps VALUES (?, ?, ?, ?, ?, ?, ?, ?)", row)

    def finish(self, coded: CodedNote) -> None:
        """Append the answer of a run."""
        with self._open() as database:
            update = "UPDATE runs SET coded_note = ? WHERE run_id = ? AND coded_note IS NULL"
            database.execute(update, (self._json(coded), coded.run_id))

    def show(self, run_id: str) -> dict[str, Any]:
        """A run and its steps; any beginning of the id that is unique will do."""
        with self._open() as database:
            database.row_factory = sqlite3.Row
            query = "SELECT * FROM runs WHERE substr(run_id, 1, length(?1)) = ?1"
            runs = database.execute(query, (run_id,)).fetchall()
            if len(runs) != 1:
                known = f"{len(runs)} runs begin" if runs else "no run begins"
                raise InputError(f"{known} with {run_id!r}: `clh audit list` shows the latest")
            (run,) = runs
            query = "SELECT * FROM steps WHERE run_id = ? ORDER BY rowid"
            steps = database.execute(query, (run["run_id"],)).fetchall()
        return {**_decode(run), "steps": [_decode(step) for step in steps]}

    def latest(self, count: int) -> list[dict[str, Any]]:
        """The latest runs, newest first."""
        with self._open() as database:
            database.row_factory = sqlite3.Row
            query = "SELECT * FROM runs ORDER BY rowid DESC LIMIT ?"
            return [_decode(run) for run in database.execute(query, (count,))]

    @contextmanager
    def _open(self) -> Iterator[sqlite3.Connection]:
        try:
            with closing(sqlite3.connect(self.path, timeout=_LOCKED)) as database, database:
                yield database
        except sqlite3.Error as error:
            raise InputError(
                f"the audit database {self.path} cannot be used ({error}): set data_dir"
            ) from error

    def _json(self, value: object) -> str:
        plain = _JSON.dump_python(value, mode="json")
        return json.dumps(plain if self._store_text else _redacted(plain))


def _redacted(value: Any) -> Any:
    """The value without the words of the note: their SHA-256 stands in their place."""
    if isinstance(value, dict):
        return {
            name: _hash(part) if name in _NOTE_FIELDS and isinstance(part, str) else _redacted(part)
            for name, part in value.items()
        }
    if isinstance(value, list):
        return [_redacted(part) for part in value]
    return value


def _hash(text: str) -> str:
    return f"sha256:{hashlib.sha256(text.encode()).hexdigest()}"


def _decode(row: sqlite3.Row) -> dict[str, Any]:
    columns = {"settings", "coded_note", "exchanges", "output", "dropped", "errors"}
    return {
        name: json.loads(row[name]) if name in columns and row[name] is not None else row[name]
        for name in row.keys()  # noqa: SIM118  (a Row iterates over values)
    }


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
