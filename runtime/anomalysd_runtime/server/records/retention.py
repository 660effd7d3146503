"""Removal from the record: by age and by size, the oldest first, and never because a clock jumped."""

from __future__ import annotations

import logging
import sqlite3
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future

from anomalysd_runtime.server.records.verdict_store import StoreError, VerdictStore
from anomalysd_runtime.server.settings import RecordSettings

log = logging.getLogger("sd-edge.retention")
DAY_S = 86_400.0
JUMP_S = 3600.0
"""Wall clock and monotonic clock may drift apart by this much (NTP, summer time is not in UTC) before it is a jump."""
CHUNK = 256
"""Verdicts removed in one transaction: a short one, so that new verdicts do not wait."""


class ClockWatch:
    """Notices when the wall clock moved differently from the time that passed."""

    def __init__(self, wall: Callable[[], float] = time.time, steady: Callable[[], float] = time.monotonic) -> None:
        self._wall, self._steady = wall, steady
        self._offset = wall() - steady()

    def jumped_s(self) -> float:
        """Seconds that the wall clock was moved by since the start."""
        return self._wall() - self._steady() - self._offset


class Retention:
    """Sweeps the record periodically, in a thread of its own."""

    def __init__(self, store: VerdictStore, settings: RecordSettings, clock: ClockWatch | None = None) -> None:
        self._store, self._settings = store, settings
        self._clock = clock or ClockWatch()
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._run, name="sd-edge-retention", daemon=True)

    def start(self) -> None:
        """Begin sweeping."""
        self._thread.start()

    def stop(self) -> None:
        """End after the sweep that runs."""
        self._end.set()
        if self._thread.is_alive():
            self._thread.join()

    def sweep(self, now: float) -> int:
        """Remove what is too old at `now` (UTC seconds) and then what is too much; the number of verdicts removed."""
        removed = 0
        if self._settings.max_age_days > 0:
            jump = self._clock.jumped_s()
            if abs(jump) > JUMP_S:
                log.warning("the clock was moved by %.0f s: nothing is removed by age until the box is restarted", jump)
            else:
                removed += self._remove_older(now - self._settings.max_age_days * DAY_S)
        if self._settings.max_bytes > 0:
            removed += self._remove_surplus()
        if removed:
            log.info("%d verdicts were removed from the record", removed)
        return removed

    def used_bytes(self) -> int:
        """Of the pages that hold something, but for what classes were taught with: no verdict makes room for that."""
        with self._store.connection() as db:
            size, pages, free = (
                int(db.execute(f"PRAGMA {name}").fetchone()[0])
                for name in ("page_size", "page_count", "freelist_count")
            )
            taught = int(db.execute("SELECT coalesce(sum(length(data)), 0) FROM class_photos").fetchone()[0])
        return max(0, size * (pages - free) - taught)

    def _remove_older(self, before: float) -> int:
        chosen = "SELECT id FROM verdicts WHERE at < ? ORDER BY id LIMIT ?"
        removed = 0
        while count := self._wait(self._store.write(f"DELETE FROM verdicts WHERE id IN ({chosen})", before, CHUNK)):
            removed += count
        self._shrink_file(removed)
        return removed

    def _remove_surplus(self) -> int:
        removed = 0
        while (surplus := self.used_bytes() - self._settings.max_bytes) > 0:
            with self._store.connection() as db:
                there = int(db.execute("SELECT count(*) FROM verdicts").fetchone()[0])
            share = surplus / (surplus + self._settings.max_bytes)
            most = min(CHUNK, max(1, int(there * share)))  # rounded down: the rest goes in the next round
            chosen = "SELECT id FROM verdicts ORDER BY id LIMIT ?"
            count = self._wait(self._store.write(f"DELETE FROM verdicts WHERE id IN ({chosen})", most))
            if not count:
                break
            removed += count
        self._shrink_file(removed)
        return removed

    def _shrink_file(self, removed: int) -> None:
        if removed:
            with self._store.connection() as db:
                # executescript: execute() would take one step of it, which frees one page.
                db.executescript("PRAGMA incremental_vacuum")
                db.execute("PRAGMA wal_checkpoint(TRUNCATE)")

    def _wait(self, done: Future[int]) -> int:
        return done.result()

    def _run(self) -> None:
        while not self._end.wait(self._settings.sweep_s):
            try:
                self.sweep(time.time())
            except (StoreError, sqlite3.Error) as error:
                log.warning("the record could not be swept: %s", error)
