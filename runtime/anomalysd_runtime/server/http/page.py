"""The page at `/`: three files of this package and nothing from anywhere else."""

from __future__ import annotations

import hashlib
from importlib import resources

from fastapi import APIRouter, Request, Response

FILES = {
    "index.html": "text/html",
    "app.js": "text/javascript",
    "teach.js": "text/javascript",
    "learn.js": "text/javascript",
    "style.css": "text/css",
}


def _read() -> dict[str, tuple[bytes, str, str]]:
    """Name -> bytes, media type, ETag."""
    folder = resources.files(__package__) / "static"
    found = {}
    for name, media_type in FILES.items():
        data = (folder / name).read_bytes()
        found[name] = (data, f"{media_type}; charset=utf-8", f'"{hashlib.sha256(data).hexdigest()[:16]}"')
    return found


def routes() -> APIRouter:
    """`/` and `/static/NAME`; a name that is not in FILES is not looked for anywhere."""
    router = APIRouter(include_in_schema=False)
    files = _read()

    def answer(request: Request, name: str) -> Response:
        if name not in files:
            return Response(status_code=404)
        data, media_type, tag = files[name]
        headers = {"etag": tag, "cache-control": "no-cache"}
        if request.headers.get("if-none-match") == tag:
            return Response(status_code=304, headers=headers)
        return Response(data, media_type=media_type, headers=headers)

    @router.get("/")
    async def index(request: Request) -> Response:
        return answer(request, "index.html")

    @router.get("/favicon.ico")
    async def icon() -> Response:
        return Response(status_code=204)

    @router.get("/static/{name}")
    async def static(request: Request, name: str) -> Response:
        return answer(request, name)

    return router
