"""The errors of a request, each with its HTTP status."""

from __future__ import annotations

from anomalysd_edge.errors import SDEdgeError


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


class Conflict(ServeError):
    """Something that the state of the box forbids just now: another one is teaching, a signature is required."""

    status = 409


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
