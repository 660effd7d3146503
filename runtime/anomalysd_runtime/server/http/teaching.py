"""The HTTP routes of teaching: a class from good photos, a bundle's versions, and back to one of them."""

from __future__ import annotations

import asyncio
from typing import Any

from fastapi import APIRouter, Request
from starlette.datastructures import UploadFile

from anomalysd_edge.bundle.teaching import MOST_PHOTOS
from anomalysd_runtime.server.errors import BadRequest, WrongType
from anomalysd_runtime.server.http import request_bodies, teaching_schemas
from anomalysd_runtime.server.http.error_handlers import ERROR_RESPONSES
from anomalysd_runtime.server.inference.service import Service
from anomalysd_runtime.server.inference.teaching import TeachOrder
from anomalysd_runtime.server.records.teachings import teachings

FIELDS = ("bundle", "class", "noun")


def routes(service: Service) -> APIRouter:
    """POST /classes; GET /bundles/NAME/versions; POST /bundles/NAME/restore."""
    router = APIRouter(tags=["teaching"], responses=ERROR_RESPONSES)

    @router.post("/classes", response_model=teaching_schemas.TaughtAnswer, openapi_extra=request_bodies.CLASS_BODY)
    async def teach(request: Request) -> Any:
        """Teach a class from 1 to 20 good photos; inspections go on meanwhile. The answer comes when it is live."""
        photos, fields = await _read(request, service.settings.security.max_body_bytes)
        order = TeachOrder(
            bundle=fields.get("bundle"),
            class_name=fields["class"],
            noun=fields.get("noun"),
            photos=photos,
            client=request.state.client,
        )
        return (await asyncio.to_thread(service.teacher.teach, order)).to_json()

    @router.get("/bundles/{name}/versions", response_model=teaching_schemas.VersionsAnswer)
    async def versions(name: str) -> Any:
        """What a bundle is and was, and who taught it, each the newest first."""
        found = await asyncio.to_thread(service.teacher.versions, name)
        done = await asyncio.to_thread(teachings, service.store, name) if service.store else []
        return {"versions": [vars(each) for each in found], "teachings": [vars(each) for each in done]}

    @router.post("/bundles/{name}/restore", response_model=teaching_schemas.VersionAnswer)
    async def restore(request: Request, name: str, wanted: teaching_schemas.RestoreBody) -> Any:
        """Go back to a version; what it replaces becomes one."""
        return vars(await asyncio.to_thread(service.teacher.restore, name, wanted.bundle_id, request.state.client))

    return router


async def _read(request: Request, max_bytes: int) -> tuple[list[tuple[str, bytes]], dict[str, str]]:
    """Photos (name, bytes) and fields of a multipart body. Raises WrongType, BadRequest."""
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != "multipart/form-data":
        raise WrongType(f"the content type is {kind[:80]!r}; send multipart/form-data with 'class' and files 'photo'")
    photos: list[tuple[str, bytes]] = []
    fields: dict[str, str] = {}
    async with request.form(max_files=MOST_PHOTOS, max_fields=len(FIELDS), max_part_size=max_bytes) as form:
        for key, value in form.multi_items():
            if isinstance(value, UploadFile) and key in ("photo", "photos"):
                photos.append((value.filename or "", await value.read()))
            elif isinstance(value, str) and key in FIELDS:
                fields |= {key: value.strip()} if value.strip() else {}
            else:
                raise BadRequest(f"the field {key[:80]!r} is not known; send class, noun, bundle, and files as 'photo'")
    if "class" not in fields:
        raise BadRequest("no class was named; send the field 'class'")
    return photos, fields
