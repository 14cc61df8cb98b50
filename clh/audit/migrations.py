"""The schema of the audit database: numbered steps from any earlier one to the present."""

import json
import logging
import sqlite3
from collections.abc import Callable
from typing import Any

from clh.audit.content import hash_text, pack, shorten, without_text

Keyed = Callable[[str], str]
"""Makes of a SHA-256 a digest that only the holder of the installation's key can make."""

_DAMAGED = b""
_log = logging.getLogger(__name__)


def migrate(database: sqlite3.Connection, version: int, keyed: Keyed) -> None:
    """Bring the schema from `version` to the present one, within the caller's transaction."""
    for step in MIGRATIONS[version:]:
        step(database, keyed)
    database.execute(f"PRAGMA user_version = {len(MIGRATIONS)}")


def _without_hashes(database: sqlite3.Connection, keyed: Keyed) -> None:
    """The first schema with a number.

    The one before had none. It kept candidates in full, and hashed the words of notes without a
    key, so that a dictionary could read them back. Tables of the same names that another program
    made are renamed, and kept.
    """
    found = {
        table: [column["name"] for column in database.execute(f"PRAGMA table_info({table})")]
        for table in _UNVERSIONED
    }
    for table, columns in found.items():
        if columns:
            database.execute(f"ALTER TABLE {table} RENAME TO {table}_0")
    for statement in _SCHEMA:
        database.execute(statement)
    if found == _UNVERSIONED:
        damaged = sum(
            _copy_run(database, run, keyed)
            for run in database.execute("SELECT * FROM runs_0 ORDER BY rowid")
        )
        if damaged:
            _log.warning("%d records of the audit were damaged: their contents are lost", damaged)
        database.execute("DROP TABLE steps_0")
        database.execute("DROP TABLE runs_0")
    elif any(found.values()):
        _log.warning("the audit database had tables of another program: they are now NAME_0")


def _copy_run(database: sqlite3.Connection, run: sqlite3.Row, keyed: Keyed) -> int:
    """Copy a run and its steps to the new tables; returns how many records were damaged."""
    has_text = run["note_text"] is not None
    settings = _packed(run["settings"], has_text=True)
    coded = None if run["coded_note"] is None else _packed(run["coded_note"], has_text)
    damaged = [settings, coded].count(_DAMAGED)
    database.execute(
        "INSERT INTO runs (run_id, at, note_id_hmac, note_text_hmac, note_text, settings_hash, "
        "settings, coded_note) VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
        (
            *(run["run_id"], run["at"], _note_id(run["coded_note"], keyed)),
            *(
                keyed(str(run["note_sha256"])),
                run["note_text"],
                run["settings_hash"],
                settings,
                coded,
            ),
        ),
    )
    steps = "SELECT * FROM steps_0 WHERE run_id = ? ORDER BY rowid"
    for step in database.execute(steps, (run["run_id"],)):
        parts = [f'"{name}":{step[name]}' for name in ("exchanges", "output", "dropped", "errors")]
        details = _packed(f"{{{','.join(parts)}}}", has_text)
        damaged += details == _DAMAGED
        database.execute(
            "INSERT INTO steps (run_id, agent, model, seconds, details) VALUES (?, ?, ?, ?, ?)",
            (step["run_id"], step["agent"], step["model"], step["seconds"], details),
        )
    return damaged


def _packed(text: Any, has_text: bool) -> bytes:
    """A value as the new schema keeps it; nothing, which cannot be unpacked, if it is damaged."""
    try:
        value = json.loads(text)
        if "output" in value:
            value["output"] = shorten(value["output"])
            value["dropped"] = [{"reason": reason} for reason in value["dropped"]]
        return pack(value if has_text else without_text(value))
    except (AttributeError, KeyError, TypeError, ValueError):
        return _DAMAGED


def _note_id(coded_note: Any, keyed: Keyed) -> str | None:
    """The keyed id of the note, which was kept with the answer alone, in clear or as its hash."""
    try:
        kept = json.loads(coded_note)["note_id"]
        hashed = kept.startswith("sha256:")
        return keyed(kept.removeprefix("sha256:") if hashed else hash_text(kept))
    except (AttributeError, KeyError, TypeError, ValueError):
        return None


_UNVERSIONED = {
    "runs": [
        *("run_id", "at", "note_sha256", "note_text", "settings_hash", "settings", "coded_note"),
    ],
    "steps": ["run_id", "agent", "model", "exchanges", "output", "dropped", "errors", "seconds"],
}
_SCHEMA = (
    """
    CREATE TABLE runs (
        number INTEGER PRIMARY KEY,
        run_id TEXT NOT NULL UNIQUE,
        at TEXT NOT NULL,
        note_id_hmac TEXT,
        note_text_hmac TEXT NOT NULL,
        note_text TEXT,
        settings_hash TEXT NOT NULL,
        settings BLOB,
        coded_note BLOB
    )
    """,
    """
    CREATE TABLE steps (
        number INTEGER PRIMARY KEY,
        run_id TEXT NOT NULL REFERENCES runs (run_id),
        agent TEXT NOT NULL,
        model TEXT NOT NULL,
        seconds REAL NOT NULL,
        details BLOB
    )
    """,
    "CREATE INDEX steps_by_run ON steps (run_id)",
    "CREATE INDEX runs_by_note ON runs (note_id_hmac)",
)

MIGRATIONS: tuple[Callable[[sqlite3.Connection, Keyed], None], ...] = (_without_hashes,)
