"""Who taught what: the rows of teachings and restores in the record."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from anomalysd_runtime.server.records.verdict_store import VerdictStore

_COLUMNS = "at, who, action, bundle, class_name, photos, before_id, after_id"


@dataclass(frozen=True, kw_only=True)
class Teaching:
    """One change of a bundle by a person."""

    at: float
    """UTC, seconds since 1970."""
    who: str
    """The client: its token's name, or its address."""
    action: Literal["teach", "restore"]
    """What was done."""
    bundle: str
    """Name of the bundle."""
    class_name: str | None
    """The class that was taught; None for a restore."""
    photos: Sequence[str]
    """sha256 of every photo that was used."""
    before_id: str
    """Id of the bundle before."""
    after_id: str
    """And after."""


def add_teaching(store: VerdictStore, done: Teaching) -> None:
    """Write a row; on the disk when this returns. Raises StoreError."""
    photos = json.dumps(list(done.photos))
    values = (done.at, done.who, done.action, done.bundle, done.class_name, photos, done.before_id, done.after_id)
    store.write(f"INSERT INTO teachings ({_COLUMNS}) VALUES (?, ?, ?, ?, ?, ?, ?, ?)", *values).result()


def teachings(store: VerdictStore, bundle: str, limit: int = 100) -> list[Teaching]:
    """What was done to a bundle, the newest first. Raises StoreError."""
    sql = f"SELECT {_COLUMNS} FROM teachings WHERE bundle = ? ORDER BY id DESC LIMIT ?"
    return [Teaching(**{**row, "photos": json.loads(row["photos"])}) for row in store.rows(sql, bundle, limit)]
