"""A photo on its way through the box, and the ways in which it can fail."""

from __future__ import annotations

import time
from concurrent.futures import Future
from dataclasses import dataclass, field

from anomalysd_edge.core.types import U8
from anomalysd_edge.errors import SDEdgeError
from anomalysd_edge.method.result import Inspection


class ServeError(SDEdgeError):
    """A request that gets no verdict; `status` is the HTTP status that says why, `retry_after_s` when to come again."""

    status = 500

    def __init__(self, sentence: str, retry_after_s: float | None = None) -> None:
        super().__init__(sentence)
        self.retry_after_s = retry_after_s


class BadRequest(ServeError):
    """Something that the client can mend."""

    status = 422


class NotFound(ServeError):
    """A bundle, class or verdict that is not there."""

    status = 404


class TooLarge(ServeError):
    """A body or photo beyond a limit."""

    status = 413


class WrongType(ServeError):
    """Bytes that are no photo, or a content type that is not taken."""

    status = 415


class QueueFull(ServeError):
    """More photos wait than the queue holds."""

    status = 503


class Unavailable(ServeError):
    """The box is starting, stopping, or cannot record what it would say."""

    status = 503


class DeadlineMissed(ServeError):
    """The verdict cannot come in time."""

    status = 504


class Failed(ServeError):
    """The inspection itself failed: NaN, a worker's crash."""

    status = 500


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
