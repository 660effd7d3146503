"""The journal of a long run: what is finished is on the disk, so that the same command goes on where it stopped.

One SQLite file: the run's identity (bundle, settings, photos), and an answer or an error a photo. A journal of another
run is refused: its scores would belong to other photos or another bundle.
"""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

from anomalysd_edge.errors import InputError

_TABLES = """
CREATE TABLE IF NOT EXISTS run (identity TEXT NOT NULL);
CREATE TABLE IF NOT EXISTS answers (number INTEGER PRIMARY KEY, answer BLOB, error TEXT);
"""


@dataclass(frozen=True)
class JournalEntry:
    """The outcome of one photo."""

    number: int
    """Its place in the order of the photos."""
    answer: bytes | None
    """What the worker sent; None where there is an error."""
    error: str | None
    """Why there is no answer."""


class Journal:
    """Answers by number, kept as they come in and read in order. One process, one thread."""

    def __init__(self, path: Path | None, identity: Mapping[str, Any]) -> None:
        """Open or make the file; None keeps everything in a temporary one. Raises InputError."""
        self.path = path
        text = json.dumps(identity, sort_keys=True)
        try:
            if path is not None:
                path.parent.mkdir(parents=True, exist_ok=True)
            self._db = sqlite3.connect("" if path is None else path, isolation_level=None)
        except (sqlite3.Error, OSError) as error:
            raise InputError(f"the journal {path} cannot be opened ({error}); choose another place") from error
        try:
            with self._plainly():
                self._db.execute("PRAGMA journal_mode=WAL")
                self._db.executescript(_TABLES)
                found = self._db.execute("SELECT identity FROM run").fetchone()
                if found is None:
                    self._db.execute("INSERT INTO run VALUES (?)", (text,))
            if found is not None and found[0] != text:
                before = json.loads(found[0])
                other = sorted(key for key in {*before, *identity} if before.get(key) != identity.get(key))
                raise InputError(
                    f"the journal {path} belongs to another run ({', '.join(other)} differ): give this one another file"
                )
        except BaseException:
            self._db.close()
            raise

    def __enter__(self) -> Journal:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._db.close()

    def answered(self) -> set[int]:
        """Numbers of the photos that have an answer. An error is no answer: it is tried again."""
        with self._plainly():
            return {row[0] for row in self._db.execute("SELECT number FROM answers WHERE error IS NULL")}

    def add(self, found: Iterable[JournalEntry]) -> None:
        """Keep these; on the disk when the call returns."""
        rows = [(kept.number, kept.answer, kept.error) for kept in found]
        with self._plainly():
            self._db.execute("BEGIN")
            self._db.executemany("INSERT OR REPLACE INTO answers VALUES (?, ?, ?)", rows)
            self._db.execute("COMMIT")

    def __iter__(self) -> Iterator[JournalEntry]:
        """Everything, in the order of the photos; one answer in memory at a time."""
        with self._plainly():
            for row in self._db.execute("SELECT number, answer, error FROM answers ORDER BY number"):
                yield JournalEntry(*row)

    @contextmanager
    def _plainly(self) -> Iterator[None]:
        try:
            yield
        except sqlite3.Error as error:
            raise InputError(
                f"the journal {self.path} cannot be used ({error}): free the disk, or remove it"
            ) from error
