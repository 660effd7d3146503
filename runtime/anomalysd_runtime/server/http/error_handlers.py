"""How errors are answered: every one becomes {"error": SENTENCE} with its status, as the OpenAPI document says."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException

from anomalysd_edge.errors import SDEdgeError
from anomalysd_runtime.server.errors import ServeError
from anomalysd_runtime.server.http import schemas
from anomalysd_runtime.server.http.asgi_bridge import ClientGone
from anomalysd_runtime.server.http.middleware import RequestRejected
from anomalysd_runtime.server.records.verdict_store import StoreError

ERROR_RESPONSES: dict[int | str, dict[str, Any]] = {
    status: {"model": schemas.ErrorAnswer, "description": meaning}
    for status, meaning in {
        400: "The request's form cannot be read.",
        401: "A token is needed.",
        404: "No such bundle, class or verdict.",
        403: "The token may not do this, or another site's page asked.",
        408: "The body came too slowly.",
        409: "Another class is being taught, or a signature is required.",
        413: "The body or the photo is too large.",
        415: "The bytes are no photo that is taken here.",
        422: "Something in the request cannot be used.",
        429: "Too many inspections a second; see Retry-After.",
        500: "The inspection failed.",
        503: "The queue is full, or the box is starting or stopping; see Retry-After.",
        504: "The deadline cannot be kept.",
    }.items()
}


def add_error_handlers(app: FastAPI) -> None:
    """Answer every error as {"error": SENTENCE} with its status."""

    def answer(status: int, sentence: str, retry_after_s: float | None = None) -> JSONResponse:
        headers = {} if retry_after_s is None else {"Retry-After": str(max(1, round(retry_after_s)))}
        return JSONResponse({"error": sentence}, status, headers)

    async def refused(_: Request, error: Exception) -> Response:
        assert isinstance(error, ServeError)
        return answer(error.status, str(error), error.retry_after_s)

    async def cut_short(_: Request, error: Exception) -> Response:
        """The security middleware's, while the body was read."""
        assert isinstance(error, RequestRejected)
        said = answer(error.status, str(error), error.retry_after_s)
        if error.status in (408, 413):
            said.headers["connection"] = "close"
        return said

    async def unrecorded(_: Request, error: Exception) -> Response:
        return answer(503, str(error), 5)

    async def invalid(_: Request, error: Exception) -> Response:
        assert isinstance(error, RequestValidationError)
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        return answer(422, f"{where}: {first['msg']}")

    async def other(_: Request, error: Exception) -> Response:
        assert isinstance(error, HTTPException)
        said = JSONResponse({"error": str(error.detail)}, error.status_code)
        said.headers.update(error.headers or {})
        return said

    async def gone(_: Request, __: Exception) -> Response:
        return answer(499, "the client went away before its verdict")

    async def ours(_: Request, error: Exception) -> Response:
        return answer(500, str(error))

    handlers: dict[type[Exception], Callable[[Request, Exception], Awaitable[Response]]] = {
        ServeError: refused,
        RequestRejected: cut_short,
        StoreError: unrecorded,
        RequestValidationError: invalid,
        HTTPException: other,
        ClientGone: gone,
        SDEdgeError: ours,
    }
    for kind, handler in handlers.items():
        app.add_exception_handler(kind, handler)
