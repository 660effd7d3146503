"""The last verdicts with their pictures, in memory: what the page shows without a record."""

from __future__ import annotations

import threading
from collections import OrderedDict
from dataclasses import replace

from anomalysd_runtime.server.verdicts import Pictures, Verdict

MEMORY_BYTES = 64 << 20


class Recent:
    """A ring of verdicts, bounded in number and in bytes; the oldest go first."""

    def __init__(self, most: int, memory_bytes: int = MEMORY_BYTES) -> None:
        self._most, self._memory = most, memory_bytes
        self._kept: OrderedDict[str, tuple[Verdict, Pictures]] = OrderedDict()
        self._bytes = 0
        self._lock = threading.Lock()

    def add(self, verdict: Verdict, pictures: Pictures) -> None:
        """Keep a verdict."""
        with self._lock:
            self._kept[verdict.uid] = (verdict, pictures)
            self._bytes += pictures.bytes
            while len(self._kept) > self._most or (self._bytes > self._memory and len(self._kept) > 1):
                _, (_, gone) = self._kept.popitem(last=False)
                self._bytes -= gone.bytes

    def list(self, most: int) -> list[Verdict]:
        """The newest first."""
        with self._lock:
            return [verdict for verdict, _ in list(self._kept.values())[::-1][:most]]

    def get(self, uid: str) -> tuple[Verdict, Pictures] | None:
        """A verdict that is still kept."""
        with self._lock:
            return self._kept.get(uid)

    def correct(self, uid: str, correction: str | None) -> bool:
        """An operator's word; False where the verdict is not kept."""
        with self._lock:
            if uid not in self._kept:
                return False
            verdict, pictures = self._kept[uid]
            self._kept[uid] = (replace(verdict, correction=correction), pictures)
            return True
