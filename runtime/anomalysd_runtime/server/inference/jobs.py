"""A photo on its way through the box, and the ways in which it can fail."""

from __future__ import annotations

import time
from concurrent.futures import Future
from dataclasses import dataclass, field

from anomalysd_edge.core.types import U8
from anomalysd_edge.method.result import Inspection


@dataclass
class Job:
    """One photo that waits for a worker, or is with one."""

    bundle_key: str
    """Which opened bundle judges it."""
    class_name: str
    """The class to judge it as."""
    photo: U8
    """(H,W,3) uint8."""
    client: str
    """Whose line it stands in."""
    deadline: float
    """time.monotonic() by which the verdict is wanted."""
    future: Future[Judged] = field(default_factory=Future)
    """Gets a Judged, or a ServeError."""
    created: float = field(default_factory=time.monotonic)
    """time.monotonic() of its arrival."""

    def __eq__(self, other: object) -> bool:
        return self is other

    def __hash__(self) -> int:
        return id(self)


@dataclass(frozen=True)
class Judged:
    """What the engine found, and how."""

    inspection: Inspection
    """The detector's answer."""
    backend: str
    """What ran it."""
    waited_ms: float
    """From arrival to the start of its group."""
    group: int
    """Photos in its group."""
    worker_ms: float
    """Duration of its group."""
