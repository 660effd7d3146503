"""The tables of the record, derived from the fields of Verdict: their SQL, and rows from and to verdicts."""

from __future__ import annotations

import json
import sqlite3
import zlib
from collections.abc import Mapping
from dataclasses import Field, dataclass, fields
from typing import Any, get_args, get_origin, get_type_hints

import numpy as np

from anomalysd_edge.core.types import F32
from anomalysd_runtime.server.verdicts import Verdict

VERSION = 1
"""PRAGMA user_version of the file."""
SQL_TYPES: dict[Any, str] = {str: "TEXT", int: "INTEGER", float: "REAL"}
FIELDS = sorted((f for f in fields(Verdict) if f.name != "schema"), key=lambda f: not f.metadata["unique"])
"""What is stored of a verdict, its keys first."""
HINTS = get_type_hints(Verdict)


def _kinds(entry: Field[Any]) -> set[Any]:
    """The types that a verdict's field may have; NoneType is one where it may be None."""
    return set(get_args(HINTS[entry.name])) if type(None) in get_args(HINTS[entry.name]) else {HINTS[entry.name]}


JSON_COLUMNS = tuple(f.name for f in FIELDS if {dict, list} & {get_origin(kind) for kind in _kinds(f)})


def _column(entry: Field[Any]) -> str:
    """The SQL definition of a verdict's field; what SQL has no type for is JSON text."""
    kinds = _kinds(entry)
    parts = [f'"{entry.name}"', next((sql for kind, sql in SQL_TYPES.items() if kind in kinds), "TEXT")]
    parts += ["NOT NULL"] * (type(None) not in kinds) + ["UNIQUE"] * entry.metadata["unique"]
    check = entry.metadata["check"]
    return " ".join(parts) + (f" CHECK ({entry.name} {check})" if check else "")


SCHEMA = f"""
CREATE TABLE IF NOT EXISTS verdicts (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    {", ".join(map(_column, FIELDS))},
    corrected_at REAL
);
CREATE INDEX IF NOT EXISTS verdicts_class ON verdicts (class_name, id);
CREATE INDEX IF NOT EXISTS verdicts_at ON verdicts (at);
CREATE TABLE IF NOT EXISTS stored (
    verdict_id INTEGER NOT NULL REFERENCES verdicts (id) ON DELETE CASCADE,
    kind TEXT NOT NULL CHECK (kind IN ('photo', 'map')),
    data BLOB NOT NULL,
    PRIMARY KEY (verdict_id, kind)
);
CREATE TABLE IF NOT EXISTS teachings (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    at REAL NOT NULL,
    who TEXT NOT NULL,
    action TEXT NOT NULL,
    bundle TEXT NOT NULL,
    class_name TEXT,
    photos TEXT NOT NULL,
    before_id TEXT NOT NULL,
    after_id TEXT NOT NULL,
    details TEXT NOT NULL
);
CREATE TABLE IF NOT EXISTS class_photos (
    sha256 TEXT PRIMARY KEY,
    data BLOB NOT NULL
);
CREATE TABLE IF NOT EXISTS line_scores (
    verdict_id INTEGER NOT NULL REFERENCES verdicts (id) ON DELETE CASCADE,
    bundle_id TEXT NOT NULL,
    pred_score REAL NOT NULL,
    PRIMARY KEY (verdict_id, bundle_id)
);
CREATE TABLE IF NOT EXISTS skipped (
    verdict_id INTEGER PRIMARY KEY REFERENCES verdicts (id) ON DELETE CASCADE
);
CREATE TABLE IF NOT EXISTS outbox (
    verdict_id INTEGER PRIMARY KEY REFERENCES verdicts (id) ON DELETE CASCADE,
    attempts INTEGER NOT NULL DEFAULT 0,
    next_at REAL NOT NULL DEFAULT 0
);
"""

INSERT = "INSERT INTO verdicts ({}) VALUES ({})".format(
    ", ".join(f'"{column.name}"' for column in FIELDS), ", ".join("?" * len(FIELDS))
)


@dataclass(frozen=True)
class VerdictEntry:
    """A verdict to write, with what is stored beside it."""

    verdict: Verdict
    """The row."""
    photo: bytes | None = None
    """The bytes that came, to be kept."""
    anomaly_map: F32 | None = None
    """(S,S) float32, to be kept."""
    publish: bool = False
    """Whether a webhook waits for it."""


def verdict_of(row: Mapping[str, Any] | sqlite3.Row) -> Verdict:
    """A row of the table as a Verdict."""
    values = {entry.name: row[entry.name] for entry in FIELDS}
    for name in JSON_COLUMNS:
        values[name] = None if values[name] is None else json.loads(values[name])
    return Verdict(**values)


def add_columns(db: sqlite3.Connection) -> None:
    """Give a table that an earlier release made the columns that came since; they are empty for its rows.

    A release that does not know them goes on writing the file, so VERSION stays.
    """
    if not _missing(db):
        return
    db.execute("BEGIN IMMEDIATE")  # another process may be doing the same
    for column in _missing(db):
        db.execute(f"ALTER TABLE verdicts ADD COLUMN {column}")
    db.execute("COMMIT")


def _missing(db: sqlite3.Connection) -> list[str]:
    """SQL definitions of the columns that the table lacks."""
    there = {row[1] for row in db.execute("PRAGMA table_info(verdicts)")}
    return [_column(entry) for entry in FIELDS if entry.name not in there]


def insert(db: sqlite3.Connection, entry: VerdictEntry) -> int:
    """Write `entry` in the caller's transaction; the number of its row."""
    values = {column.name: getattr(entry.verdict, column.name) for column in FIELDS}
    for name in JSON_COLUMNS:
        values[name] = None if values[name] is None else json.dumps(values[name], allow_nan=False)
    number = db.execute(INSERT, tuple(values.values())).lastrowid
    assert number is not None
    kept = {"photo": entry.photo}
    if entry.anomaly_map is not None:
        kept["map"] = zlib.compress(np.ascontiguousarray(entry.anomaly_map, np.float32).tobytes(), 6)
    for kind, data in kept.items():
        if data is not None:
            db.execute("INSERT INTO stored VALUES (?, ?, ?)", (number, kind, data))
    if entry.publish:
        db.execute("INSERT INTO outbox (verdict_id) VALUES (?)", (number,))
    return number
