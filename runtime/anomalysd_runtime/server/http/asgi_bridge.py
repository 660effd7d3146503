"""Between asyncio and the service: waiting for a verdict while watching the deadline and the client."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import Future
from typing import Any

from starlette.requests import Request

from anomalysd_runtime.server.errors import BadRequest, DeadlineMissed, ServeError
from anomalysd_runtime.server.inference.inflight import PhotoRequest
from anomalysd_runtime.server.inference.service import Service
from anomalysd_runtime.server.verdicts import VerdictResult

GRACE_S = 0.25
"""Seconds after the deadline in which a verdict that is being recorded is still returned."""


class ClientGone(Exception):
    """The connection was closed before the answer."""


async def verdicts_of(
    service: Service, request: Request, photo_requests: Sequence[PhotoRequest]
) -> list[VerdictResult | ServeError]:
    """Judge photos for which places are reserved, in order. Raises ClientGone, after giving up what has not begun."""
    futures = [service.inspect(photo_request) for photo_request in photo_requests]
    gone = asyncio.ensure_future(_client_gone(request))
    try:
        return await _gather(futures, photo_requests, gone)
    finally:
        gone.cancel()


async def _gather(
    futures: list[Future[VerdictResult]], photo_requests: Sequence[PhotoRequest], gone: asyncio.Future[None]
) -> list[VerdictResult | ServeError]:
    waiting = [asyncio.wrap_future(future) for future in futures]
    deadline = max(photo_request.deadline for photo_request in photo_requests) + GRACE_S
    pending: set[asyncio.Future[Any]] = set(waiting)
    while pending:
        left = deadline - time.monotonic()
        done, _ = await asyncio.wait({*pending, gone}, timeout=max(0, left), return_when=asyncio.FIRST_COMPLETED)
        pending -= done
        if gone in done:
            for future in futures:
                future.cancel()
            for each in waiting:
                each.add_done_callback(_seen)
            raise ClientGone
        if not done:
            for future in futures:
                future.cancel()  # one that is being recorded cannot be cancelled: its verdict comes in a moment
            await asyncio.wait(pending)
            break
    return [_outcome(each) for each in waiting]


def _outcome(each: asyncio.Future[VerdictResult]) -> VerdictResult | ServeError:
    if each.cancelled():
        return DeadlineMissed("the verdict did not come before the deadline; allow more time, or come slower", 1.0)
    error = each.exception()
    if error is None:
        return each.result()
    if not isinstance(error, ServeError):
        raise error
    return error


def _seen(each: asyncio.Future[VerdictResult]) -> None:
    """Take note of an outcome that nobody waits for, or asyncio would complain of it."""
    if not each.cancelled():
        each.exception()


async def _client_gone(request: Request) -> None:
    """Ends when the connection does. The body was read before, so nothing else can come."""
    while (await request.receive())["type"] != "http.disconnect":
        continue


def full_of(given: Mapping[str, str]) -> bool:
    """Whether a request asks for a photo's whole plan: by its field `full`, or for its pictures. Raises BadRequest."""
    text = given.get("full", "").lower()
    if text not in ("", "true", "false", "1", "0"):
        raise BadRequest(f"full is {text[:40]!r}; expected true or false")
    return text in ("true", "1") or bool(given.get("outputs"))


def deadline_of(text: str | None, began: float, own_ms: float) -> float:
    """time.monotonic() of a deadline given in milliseconds. Raises BadRequest."""
    if text is None or text == "":
        return began + own_ms / 1e3
    try:
        ms = float(text)
    except ValueError:
        ms = -1.0
    if not 0 < ms <= 3_600_000:
        raise BadRequest(f"deadline_ms is {text[:40]!r}; expected milliseconds between 0 and 3600000")
    return began + ms / 1e3
