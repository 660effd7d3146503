"""A photo in the engine's queue, and its result."""

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
    """Key of the opened bundle that inspects it."""
    class_name: str
    """Class to inspect it as."""
    photo: U8
    """(H,W,3) uint8."""
    client: str
    """Client id, for fair queueing."""
    deadline: float
    """time.monotonic() of the deadline."""
    full: bool = True
    """Whether its whole plan is repainted, whatever its verdict needs."""
    hurried: bool = False
    """Whether repaints are left out that would not be ready by its deadline."""
    future: Future[EngineResult] = field(default_factory=Future)
    """Gets an EngineResult, or a ServeError."""
    created: float = field(default_factory=time.monotonic)
    """time.monotonic() of its arrival."""

    def __eq__(self, other: object) -> bool:
        return self is other

    def __hash__(self) -> int:
        return id(self)


@dataclass(frozen=True)
class EngineResult:
    """The engine's result for one photo."""

    inspection: Inspection
    """The detector's result."""
    backend: str
    """Backend that ran the networks."""
    waited_ms: float
    """From arrival to the start of its group."""
    group: int
    """Photos in its group."""
    worker_ms: float
    """Duration of its group."""
