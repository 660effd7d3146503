"""Where the time of a job goes: milliseconds by stage."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager


class StageTimer:
    """Adds up the wall time of each named stage. Not for use by several threads at once."""

    def __init__(self) -> None:
        self.ms: dict[str, float] = {}
        """Milliseconds by stage so far."""

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Book the block under `name`."""
        began = time.perf_counter()
        yield
        self.ms[name] = self.ms.get(name, 0.0) + (time.perf_counter() - began) * 1e3
