"""The audit: every run appended to one SQLite database, so that every decision can be traced.

Note text is kept only if asked for. Otherwise a quote is kept as its offsets, model replies are not
kept, and the id and the text of a note only as digests keyed by a secret of the installation: a
plain hash of a short text can be reversed by hashing all that it could be. docs/privacy.md lists
what is kept.
"""

import hashlib
import hmac
import json
import re
import secrets
import sqlite3
import stat
import weakref
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, contextmanager, suppress
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Protocol

from clh.audit.content import hash_text, pack, shorten, to_plain, unpack, without_text
from clh.audit.migrations import MIGRATIONS, migrate
from clh.errors import AuditError, InputError
from clh.files import atomic_write
from clh.schema import Agent, AgentError, CodedNote, Note

_LOCKED = 30.0  # seconds to wait while other processes write
_KEY_BYTES = 32
_MOST_ROWS = 2**63 - 1  # what SQLite can count
_PRIVATE_FOLDER, _PRIVATE_FILE = 0o700, 0o600


@dataclass(frozen=True)
class Exchange:
    """A model's reply, and the fingerprint of the prompt file that asked for it."""

    prompt_sha256: str
    reply: str


@dataclass(frozen=True)
class Dropped:
    """A code or a stretch of the note that an agent left out, and why.

    `reason` is one word of the program's, such as `negated` or the name of a rule: it is kept where
    no word of the note may be. `start` and `end` are offsets in the note.
    """

    reason: str
    code: str | None = None
    start: int | None = None
    end: int | None = None

    def __post_init__(self) -> None:
        """Refuse prose, which could quote the note."""
        if not re.fullmatch(r"[a-z][a-z0-9_]*", self.reason):
            raise ValueError("the reason for dropping something is one word, written like_this")


class Record(Protocol):
    """What a run is written to: its beginning, the step of each agent, its answer."""

    def begin(self, run_id: str, note: Note, settings_hash: str, settings: str) -> None:
        """Open the record of a run; `settings` are JSON."""
        ...

    def step(
        self,
        run_id: str,
        *,
        agent: Agent,
        model: str,
        output: Mapping[str, Any],
        exchanges: Sequence[Exchange],
        dropped: Sequence[Dropped],
        errors: Sequence[AgentError],
        seconds: float,
    ) -> None:
        """Add what an agent exchanged with its model, put out, left out, and failed at."""
        ...

    def finish(self, coded: CodedNote) -> None:
        """Close the record with the answer."""
        ...


class Audit:
    """An append-only database of runs, which threads and processes may share.

    Every call has a connection of its own, and waits while others write. All methods raise
    AuditError if the database cannot be read or written.
    """

    def __init__(self, path: Path, store_text: bool) -> None:
        """Open the database, brought to the present schema, or create it, for the user alone."""
        self.path = path
        self._store_text = store_text
        self._key_file = path.with_name("audit.key")
        # `mode=rw`: SQLite creates no database, which would have the permissions of any file.
        self._uri = f"{path.absolute().as_uri()}?mode=rw"
        try:
            self._make_private()
        except OSError as error:
            raise AuditError(
                f"{path.parent} cannot be a private folder ({error.strerror}): set data_dir"
            ) from error
        with self._open() as database:
            if _pragma(database, "user_version") > len(MIGRATIONS):
                raise AuditError(f"{path} is from a newer CLH: install that one, or set data_dir")
            if _pragma(database, "journal_mode") != "wal":
                database.execute("PRAGMA journal_mode = WAL")
            self._key = self._read_key(database)
            self._migrate(database)
            # As long as one connection is open, closing another does not write the whole log back
            # to the database, which takes longer than all else.
            held = self._connect()
            weakref.finalize(self, held.close)
            _pragma(held, "user_version")

    def begin(self, run_id: str, note: Note, settings_hash: str, settings: str) -> None:
        """See `Record.begin`."""
        row = {
            "run_id": run_id,
            "at": _timestamp(datetime.now(UTC)),
            "note_id_hmac": self._keyed(hash_text(note.id)),
            "note_text_hmac": self._keyed(note.sha256),
            "note_text": note.text if self._store_text else None,
            "settings_hash": settings_hash,
            "settings": pack(json.loads(settings)),
        }
        self._insert("runs", row)

    def step(
        self,
        run_id: str,
        *,
        agent: Agent,
        model: str,
        output: Mapping[str, Any],
        exchanges: Sequence[Exchange],
        dropped: Sequence[Dropped],
        errors: Sequence[AgentError],
        seconds: float,
    ) -> None:
        """See `Record.step`; of candidates and verdicts only each term's best are kept."""
        details = {
            "exchanges": to_plain(exchanges),
            "output": shorten(to_plain(output)),
            "dropped": [asdict(thing) for thing in dropped],
            "errors": to_plain(errors),
        }
        row = {
            "run_id": run_id,
            "agent": agent,
            "model": model,
            "seconds": seconds,
            "details": pack(self._kept(details)),
        }
        self._insert("steps", row)

    def finish(self, coded: CodedNote) -> None:
        """See `Record.finish`; an answer that is there already stays."""
        answer = pack(self._kept(to_plain(coded)))
        with self._open() as database:
            update = "UPDATE runs SET coded_note = ? WHERE run_id = ? AND coded_note IS NULL"
            database.execute(update, (answer, coded.run_id))

    def show(self, run_id: str) -> dict[str, Any]:
        """A run and its steps; any beginning of the id that is unique will do.

        `damaged` is whether part of it cannot be read; that part is None. Raises InputError if no
        run or more than one begins so.
        """
        beginning = run_id if run_id.isascii() else "?"  # SQLite refuses undecodable characters
        with self._open() as database:
            query = "SELECT * FROM runs WHERE substr(run_id, 1, length(?1)) = ?1"
            runs = database.execute(query, (beginning,)).fetchall()
            if len(runs) != 1:
                known = f"{len(runs)} runs begin" if runs else "no run begins"
                raise InputError(f"{known} with {run_id!r}: `clh audit list` shows the latest")
            query = "SELECT * FROM steps WHERE run_id = ? ORDER BY number"
            steps = database.execute(query, (runs[0]["run_id"],)).fetchall()
        return {**_decode_run(runs[0]), "steps": [_decode_step(step) for step in steps]}

    def latest(self, count: int, note_id: str | None = None) -> list[dict[str, Any]]:
        """The latest runs without their steps, newest first; of one note, if its id is given."""
        keyed = None if note_id is None else self._keyed(hash_text(note_id))
        query = (
            "SELECT * FROM runs WHERE ?1 IS NULL OR note_id_hmac = ?1 ORDER BY number DESC LIMIT ?2"
        )
        with self._open() as database:
            rows = database.execute(query, (keyed, max(0, min(count, _MOST_ROWS)))).fetchall()
        return [_decode_run(row) for row in rows]

    def prune(self, before: datetime | None = None, keep: int | None = None) -> int:
        """Delete the runs from before a time, and all but the `keep` latest; returns how many.

        What is deleted is overwritten, and the database made smaller. Raises AuditError if another
        process is reading, as what it reads cannot be overwritten yet.
        """
        earliest = "" if before is None else _timestamp(before.astimezone(UTC))
        latest = _MOST_ROWS if keep is None else max(0, min(keep, _MOST_ROWS))
        with self._open() as database:
            database.execute("PRAGMA secure_delete = ON")
            with _transaction(database):
                deleted = database.execute(
                    "DELETE FROM runs WHERE at < ? OR number NOT IN "
                    "(SELECT number FROM runs ORDER BY number DESC LIMIT ?)",
                    (earliest, latest),
                )
                database.execute("DELETE FROM steps WHERE run_id NOT IN (SELECT run_id FROM runs)")
            database.execute("VACUUM")
            # The write-ahead log may still hold what was deleted.
            busy = _pragma(database, "wal_checkpoint(TRUNCATE)")
        if busy:
            raise AuditError(f"{self.path} is in use: prune again when no other process reads it")
        return deleted.rowcount

    def _kept(self, value: Any) -> Any:
        return value if self._store_text else without_text(value)

    def _keyed(self, sha256: str) -> str:
        """A digest that cannot be found by guessing, but for those who have the key."""
        return hmac.new(self._key, sha256.encode(), hashlib.sha256).hexdigest()

    def _insert(self, table: str, row: Mapping[str, Any]) -> None:
        names, places = ", ".join(row), ", ".join("?" * len(row))
        with self._open() as database:
            insert = f"INSERT INTO {table} ({names}) VALUES ({places})"  # noqa: S608
            database.execute(insert, tuple(row.values()))

    @contextmanager
    def _open(self) -> Iterator[sqlite3.Connection]:
        try:
            with closing(self._connect()) as database:
                yield database
        except sqlite3.Error as error:
            raise AuditError(
                f"the audit database {self.path} cannot be used ({error}): "
                "free disk space, or set data_dir"
            ) from error

    def _connect(self) -> sqlite3.Connection:
        database = sqlite3.connect(
            self._uri, uri=True, timeout=_LOCKED, isolation_level=None, check_same_thread=False
        )
        database.row_factory = sqlite3.Row
        database.execute("PRAGMA temp_store = MEMORY")  # no copy in the system's folder
        database.execute("PRAGMA synchronous = NORMAL")  # outlives a kill of the process
        return database

    def _make_private(self) -> None:
        """Create the folder and the database for the user alone, or take others' rights away."""
        folder = self.path.parent
        folder.mkdir(mode=_PRIVATE_FOLDER, parents=True, exist_ok=True)
        if not folder.stat().st_mode & stat.S_ISVTX:  # a folder for all, as /tmp is, stays one
            _restrict(folder, _PRIVATE_FOLDER)
        with suppress(FileExistsError):
            self.path.touch(_PRIVATE_FILE, exist_ok=False)
        # SQLite gives its other files the permissions of the first.
        others = (self.path.with_name(self.path.name + ending) for ending in ("-wal", "-shm"))
        for file in (self.path, *others, self._key_file):
            with suppress(FileNotFoundError):
                _restrict(file, _PRIVATE_FILE)

    def _read_key(self, database: sqlite3.Connection) -> bytes:
        """The secret of this installation, made the first time: by one process, others wait."""
        try:
            if not self._key_file.exists():
                with _transaction(database):
                    if not self._key_file.exists():
                        key = secrets.token_bytes(_KEY_BYTES)
                        atomic_write(self._key_file, key, _PRIVATE_FILE)
            key = self._key_file.read_bytes()
        except OSError as error:
            raise AuditError(
                f"{self._key_file} cannot be used ({error.strerror}): set data_dir"
            ) from error
        if len(key) != _KEY_BYTES:
            raise AuditError(
                f"{self._key_file} is damaged: delete it (earlier runs are then no longer found by "
                "the note's id)"
            )
        return key

    def _migrate(self, database: sqlite3.Connection) -> None:
        if _pragma(database, "user_version") < len(MIGRATIONS):
            database.execute("PRAGMA secure_delete = ON")
            with _transaction(database):
                version = _pragma(database, "user_version")  # another process may have been first
                if version < len(MIGRATIONS):
                    migrate(database, version, self._keyed)


def _restrict(path: Path, mode: int) -> None:
    """Take the permissions beyond `mode` away."""
    if stat.S_IMODE(path.stat().st_mode) & ~mode:
        path.chmod(mode)


@contextmanager
def _transaction(database: sqlite3.Connection) -> Iterator[None]:
    """Hold the one right to write, and undo what was done if it fails."""
    database.execute("BEGIN IMMEDIATE")
    try:
        yield
        database.execute("COMMIT")
    finally:
        if database.in_transaction:
            database.execute("ROLLBACK")


def _pragma(database: sqlite3.Connection, name: str) -> Any:
    return database.execute(f"PRAGMA {name}").fetchone()[0]


def _decode_run(row: sqlite3.Row) -> dict[str, Any]:
    return _decode(row, ("settings", "coded_note"))


def _decode_step(row: sqlite3.Row) -> dict[str, Any]:
    step = _decode(row, ("details",))
    details = step.pop("details") or dict.fromkeys(("exchanges", "output", "dropped", "errors"))
    return {**step, **details}


def _decode(row: sqlite3.Row, packed: Sequence[str]) -> dict[str, Any]:
    """A row with its packed columns read; `damaged` if one cannot be."""
    read = {**dict(row), "damaged": False}
    for name in packed:
        try:
            read[name] = None if row[name] is None else unpack(row[name])
        except ValueError:
            read |= {name: None, "damaged": True}
    return read


def _timestamp(time: datetime) -> str:
    return time.isoformat(timespec="seconds")
