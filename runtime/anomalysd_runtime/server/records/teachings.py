"""Who changed which bundle: the rows of teachings, acceptances and restores in the record.

A row is begun before the bundle is touched and ended after the switch, so that a loss of power between the two leaves
a row that the next start ends or removes (`settle`). What a class was taught with is kept beside, if photos are.
"""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from anomalysd_edge.bundle.versions import KEPT
from anomalysd_runtime.server.records.verdict_store import VerdictStore

_COLUMNS = "at, who, action, bundle, class_name, photos, before_id, after_id, details"
_BEGUN = ""
"""`after_id` of a row whose change has not ended."""


@dataclass(frozen=True, kw_only=True)
class Teaching:
    """One change of a bundle by a person, or by `--auto`."""

    at: float
    """UTC, seconds since 1970."""
    who: str
    """The client: its token's name, or its address; 'auto'."""
    action: Literal["teach", "accept", "restore"]
    """What was done."""
    bundle: str
    """Name of the bundle."""
    class_name: str | None
    """The class that was taught or accepted; None for a restore."""
    photos: Sequence[str]
    """sha256 of every photo that the class's bank was made of; empty where it was left as it was."""
    before_id: str
    """Id of the bundle before."""
    after_id: str = _BEGUN
    """And after; empty until the change has ended."""
    details: Mapping[str, Any] = field(default_factory=dict)
    """Of an acceptance: thresholds and rates before and after, answers, whether the class is trusted now."""


def begin_teaching(store: VerdictStore, begun: Teaching, photos: Mapping[str, bytes] | None = None) -> int:
    """Write a row that is not ended, and the class's photos by sha256, where they are to be kept.

    Its number, on the disk when this returns. Raises StoreError.
    """
    sql = f"INSERT INTO teachings ({_COLUMNS}) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)"

    def write(db: sqlite3.Connection) -> int:
        db.executemany("INSERT OR IGNORE INTO class_photos VALUES (?, ?)", (photos or {}).items())
        return int(db.execute(sql, _values(begun)).lastrowid or 0)

    return store.change(write).result()


def end_teaching(store: VerdictStore, number: int, done: Teaching, scores: Mapping[str, float] | None = None) -> None:
    """Replace a begun row by what was done; on the disk when this returns. Raises StoreError.

    `scores` are image scores under the new bundle, by the uid of the verdict whose photo was judged again.
    """
    sets = ", ".join(f"{name.strip()} = ?" for name in _COLUMNS.split(","))

    def write(db: sqlite3.Connection) -> None:
        db.execute(f"UPDATE teachings SET {sets} WHERE id = ?", (*_values(done), number))
        select = "INSERT OR REPLACE INTO line_scores SELECT id, ?, ? FROM verdicts WHERE uid = ?"
        db.executemany(select, [(done.after_id, score, uid) for uid, score in (scores or {}).items()])
        _remove_old_photos(db)

    store.change(write).result()


def drop_teaching(store: VerdictStore, number: int) -> None:
    """Remove a row whose change came to nothing. Raises StoreError."""
    store.write("DELETE FROM teachings WHERE id = ?", number).result()


def settle(store: VerdictStore, bundle: str, current: Callable[[], str]) -> list[Teaching]:
    """End the rows that an earlier process began only; those that were ended, where the bundle was switched.

    `current()` is the bundle's id now: that of before where nothing was. Raises StoreError.
    """
    ended = []
    for number, row in _select(store, f"bundle = ? AND after_id = '{_BEGUN}' ORDER BY id", bundle):
        if (ident := current()) == row.before_id:
            drop_teaching(store, number)
        else:
            ended.append(Teaching(**{**vars(row), "after_id": ident, "details": {**row.details, "settled": True}}))
            end_teaching(store, number, ended[-1])
    return ended


def teachings(store: VerdictStore, bundle: str, limit: int = 1000) -> list[Teaching]:
    """What was done to a bundle, the newest first. Raises StoreError."""
    where = f"bundle = ? AND after_id != '{_BEGUN}' ORDER BY id DESC LIMIT ?"
    return [row for _, row in _select(store, where, bundle, limit)]


def class_photos(store: VerdictStore, digests: Sequence[str]) -> dict[str, bytes]:
    """Those photos that the record keeps, by sha256. Raises StoreError."""
    sql = "SELECT sha256, data FROM class_photos WHERE sha256 = ?"
    return {row["sha256"]: bytes(row["data"]) for digest in digests for row in store.rows(sql, digest)}


def count_photos(store: VerdictStore, digests: Sequence[str]) -> int:
    """How many of these the record keeps. Raises StoreError."""
    marks = ", ".join("?" * len(digests))
    (row,) = store.rows(f"SELECT count(*) AS n FROM class_photos WHERE sha256 IN ({marks})", *digests)
    return int(row["n"])


def _values(row: Teaching) -> tuple[Any, ...]:
    photos, details = json.dumps(list(row.photos)), json.dumps(row.details, allow_nan=False)
    return (row.at, row.who, row.action, row.bundle, row.class_name, photos, row.before_id, row.after_id, details)


def _select(store: VerdictStore, where: str, *values: Any) -> list[tuple[int, Teaching]]:
    found = []
    for row in store.rows(f"SELECT id, {_COLUMNS} FROM teachings WHERE {where}", *values):
        number = row.pop("id")
        parsed = {**row, "photos": json.loads(row["photos"]), "details": json.loads(row["details"])}
        found.append((number, Teaching(**parsed)))
    return found


def _remove_old_photos(db: sqlite3.Connection) -> None:
    """Keep the photos of the last changes of each class, as many as versions of a bundle are kept."""
    kept: set[str] = set()
    counts: dict[tuple[str, str], int] = {}
    rows = db.execute("SELECT bundle, class_name, photos FROM teachings WHERE photos != '[]' ORDER BY id DESC")
    for bundle, name, photos in rows:
        counts[bundle, name] = counts.get((bundle, name), 0) + 1
        if counts[bundle, name] <= KEPT + 1:
            kept |= set(json.loads(photos))
    there = [row[0] for row in db.execute("SELECT sha256 FROM class_photos")]
    db.executemany("DELETE FROM class_photos WHERE sha256 = ?", [(digest,) for digest in there if digest not in kept])
