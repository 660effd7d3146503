"""The record: every verdict in one SQLite file that survives SIGKILL and loss of power.

WAL with synchronous=FULL: a verdict is answered only after its transaction is on the disk, so what was acknowledged is
there after a crash. One thread writes, and all that waits goes into one transaction.
"""

from __future__ import annotations

import logging
import queue
import sqlite3
import threading
import zlib
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from anomalysd_edge.core.types import F32
from anomalysd_edge.errors import InputError
from anomalysd_runtime.server.records.tables import SCHEMA, VERSION, VerdictEntry, add_columns, insert, verdict_of
from anomalysd_runtime.server.verdicts import Correction, Verdict

log = logging.getLogger("sd-edge.record")
T = TypeVar("T")
BUSY_S = 5.0
"""How long a writer waits for another process's lock before it says that the database is locked."""


class StoreError(InputError):
    """The record cannot be read or written; nothing was acknowledged."""


class VerdictStore:
    """The open file. add() and correct() may be called from any thread; close() writes what waits."""

    def __init__(self, path: Path) -> None:
        """Open or make the file. Raises StoreError where it is no record of ours or cannot be opened."""
        self.path = path
        self.failing: str | None = None
        self._queue: queue.SimpleQueue[tuple[Any, Future[Any]] | None] = queue.SimpleQueue()
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with self.connection() as db:
                self._prepare(db)
        except (OSError, sqlite3.Error) as error:
            raise StoreError(f"the record {path} cannot be opened ({error}); check the path and its rights") from error
        self._thread = threading.Thread(target=self._write_all, name="sd-edge-record", daemon=True)
        self._thread.start()

    @contextmanager
    def connection(self) -> Iterator[sqlite3.Connection]:
        """A connection of the caller's own, closed at the end."""
        with closing(self._open()) as db:
            yield db

    def add(self, entry: VerdictEntry) -> Future[int]:
        """Write a verdict; the future has its number once it is on the disk, or a StoreError."""
        return self._put(lambda db: insert(db, entry))

    def correct(self, uid: str, correction: Correction | None, at: float) -> Future[bool]:
        """Store an operator's correction (ok, ng, or None to remove it); False where there is no such verdict."""
        when = at if correction else None
        sql = "UPDATE verdicts SET correction = ?, corrected_at = ? WHERE uid = ?"
        return self._put(lambda db: db.execute(sql, (correction, when, uid)).rowcount > 0)

    def write(self, sql: str, *values: Any) -> Future[int]:
        """Any other change, in the writer's thread; the future has the number of rows."""
        return self._put(lambda db: db.execute(sql, values).rowcount)

    def change(self, what: Callable[[sqlite3.Connection], T]) -> Future[T]:
        """Several changes in one transaction, in the writer's thread; the future has what `what` returns."""
        return self._put(what)

    def rows(self, sql: str, *values: Any) -> list[dict[str, Any]]:
        """What a query of this package selects, by column."""
        with self._reading() as db:
            return [dict(row) for row in db.execute(sql, values)]

    def close(self) -> None:
        """Write what waits, then end."""
        self._queue.put(None)
        self._thread.join()

    def by_key(self, request_key: str) -> Verdict | None:
        """The verdict that answered this request before."""
        return self._one("SELECT * FROM verdicts WHERE request_key = ?", request_key)

    def by_uid(self, uid: str) -> Verdict | None:
        """The verdict of this uid."""
        return self._one("SELECT * FROM verdicts WHERE uid = ?", uid)

    def select(self, where: str = "1", values: tuple[Any, ...] = (), limit: int = -1) -> list[Verdict]:
        """Verdicts, the newest first; `where` is this package's own SQL, never a client's."""
        with self._reading() as db:
            rows = db.execute(f"SELECT * FROM verdicts WHERE {where} ORDER BY id DESC LIMIT ?", (*values, limit))
            return [verdict_of(row) for row in rows]

    def stored_photo(self, uid: str) -> bytes | None:
        """The photo's own bytes, where they were kept."""
        return self._stored(uid, "photo")

    def stored_map(self, uid: str) -> F32 | None:
        """(S,S) float32, where it was kept."""
        data = self._stored(uid, "map")
        if data is None:
            return None
        values = np.frombuffer(zlib.decompress(data), np.float32)
        side = round(len(values) ** 0.5)
        return values.reshape(side, side)

    def _open(self) -> sqlite3.Connection:
        db = sqlite3.connect(self.path, timeout=BUSY_S, isolation_level=None)
        db.row_factory = sqlite3.Row
        db.execute("PRAGMA foreign_keys = ON")
        db.execute("PRAGMA synchronous = FULL")
        return db

    def _prepare(self, db: sqlite3.Connection) -> None:
        """Tables and settings of the file, where they are not there. Raises StoreError for another version."""
        # auto_vacuum must be chosen before the first table: retention by size gives pages back with it.
        db.execute("PRAGMA auto_vacuum = INCREMENTAL")
        db.execute("PRAGMA journal_mode = WAL")
        version = db.execute("PRAGMA user_version").fetchone()[0]
        if version not in (0, VERSION):
            raise StoreError(f"{self.path} is a record of version {version}, this release reads {VERSION}: update it")
        db.executescript(SCHEMA)
        add_columns(db)
        db.execute(f"PRAGMA user_version = {VERSION}")

    def _stored(self, uid: str, kind: str) -> bytes | None:
        sql = "SELECT data FROM stored JOIN verdicts ON id = verdict_id WHERE uid = ? AND kind = ?"
        with self._reading() as db:
            row = db.execute(sql, (uid, kind)).fetchone()
        return None if row is None else bytes(row["data"])

    def _one(self, sql: str, value: str) -> Verdict | None:
        with self._reading() as db:
            row = db.execute(sql, (value,)).fetchone()
        return None if row is None else verdict_of(row)

    @contextmanager
    def _reading(self) -> Iterator[sqlite3.Connection]:
        try:
            with self.connection() as db:
                yield db
        except sqlite3.Error as error:
            raise StoreError(f"the record {self.path} cannot be read ({error})") from error

    def _put(self, what: Any) -> Future[Any]:
        done: Future[Any] = Future()
        self._queue.put((what, done))
        return done

    def _write_all(self) -> None:
        """The writer's thread: takes all that waits into one transaction, so that a slow disk costs one flush.

        Its connection stays open: closing the last one makes SQLite copy its log into the file and remove it.
        """
        writer = _Writer(self)
        ended = False
        while not ended:
            batch = [self._queue.get()]
            while not self._queue.empty():
                batch.append(self._queue.get())
            ended = None in batch
            work = [item for item in batch if item is not None]
            if work:
                self._commit(writer, work)
        writer.close()

    def _commit(self, writer: _Writer, work: list[tuple[Any, Future[Any]]]) -> None:
        try:
            with writer.transaction() as db:
                results = [what(db) for what, _ in work]
        except Exception as error:
            own = _entrys_own(error)
            if len(work) > 1 and own:
                for one in work:  # one of them is at fault, the others go through
                    self._commit(writer, [one])
                return
            sentence = f"the record {self.path} cannot be written ({error}), so the verdict is not acknowledged"
            if not own:
                self.failing = sentence
                log.error("%s", sentence)
            for _, done in work:
                done.set_exception(StoreError(sentence))
            return
        self.failing = None
        for (_, done), result in zip(work, results, strict=True):
            done.set_result(result)


class _Writer:
    """The writing thread's connection, opened anew where the file at the path is another one."""

    def __init__(self, store: VerdictStore) -> None:
        self._store = store
        self._db: sqlite3.Connection | None = None
        self._file: tuple[int, int] | None = None

    @contextmanager
    def transaction(self) -> Iterator[sqlite3.Connection]:
        """Committed at the end, taken back where something is raised."""
        if self._db is None or _identity(self._store.path) != self._file:
            self._reopen()
        db = self._db
        assert db is not None
        try:
            db.execute("BEGIN IMMEDIATE")
            yield db
            db.execute("COMMIT")
        except BaseException:
            try:
                if db.in_transaction:
                    db.execute("ROLLBACK")
            except sqlite3.Error:
                self.close()
            raise

    def close(self) -> None:
        """Until the next transaction."""
        if self._db is not None:
            self._db.close()
        self._db = None

    def _reopen(self) -> None:
        if self._db is not None:
            log.error("%s was taken away or replaced; what is there now is written on", self._store.path)
        self.close()
        db = self._store._open()
        try:
            self._store._prepare(db)
            self._file = _identity(self._store.path)
        except BaseException:
            db.close()
            raise
        self._db = db


def _identity(path: Path) -> tuple[int, int] | None:
    """What tells a file from another one of the same name; None where there is none."""
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_dev, found.st_ino


def _entrys_own(error: Exception) -> bool:
    """Whether what was to be written is at fault, and not the file: others can be written."""
    if isinstance(error, sqlite3.Error):
        return isinstance(error, sqlite3.IntegrityError | sqlite3.DataError | sqlite3.InterfaceError)
    return isinstance(error, ValueError | TypeError)
