"""The HTTP routes: inspections, bundles, verdicts, health, metrics, the page. They call the service."""

from __future__ import annotations

import asyncio
import time
from typing import Annotated, Any

from fastapi import APIRouter, FastAPI, Query, Request, Response
from starlette.datastructures import UploadFile

from anomalysd_edge import __version__
from anomalysd_runtime.server.errors import BadRequest, NotFound, ServeError, WrongType
from anomalysd_runtime.server.http import commissioning, page, request_bodies, schemas, state, teaching, v2
from anomalysd_runtime.server.http.asgi_bridge import deadline_of, full_of, verdicts_of
from anomalysd_runtime.server.http.error_handlers import ERROR_RESPONSES, add_error_handlers
from anomalysd_runtime.server.http.middleware import SecurityMiddleware, own_hosts
from anomalysd_runtime.server.inference.inflight import PhotoRequest
from anomalysd_runtime.server.inference.service import Service
from anomalysd_runtime.server.records.history import VerdictFilter, find_verdicts
from anomalysd_runtime.server.records.stored_pictures import large_photo, recorded_pictures
from anomalysd_runtime.server.verdicts import Verdict, VerdictResult, draw, encoded_outputs, wanted_outputs

RAW_TYPES = ("application/octet-stream", "image/")


def make_app(service: Service, host: str = "127.0.0.1") -> SecurityMiddleware:
    """The ASGI application, the security middleware outermost."""
    app = FastAPI(
        title="anomalysd-edge",
        version=__version__,
        description="Visual inspection from a few photos of good parts.",
        docs_url=None,  # its pages load scripts from another host; /openapi.json is enough for tools
        redoc_url=None,
    )
    app.include_router(_inspections(service))
    app.include_router(_bundles(service))
    app.include_router(teaching.routes(service))
    app.include_router(_verdicts(service))
    app.include_router(state.routes(service))
    app.include_router(commissioning.routes(service))
    app.include_router(v2.routes(service))
    app.include_router(page.routes())
    add_error_handlers(app)
    return SecurityMiddleware(app, service.settings.security, own_hosts(host))


def _inspections(service: Service) -> APIRouter:
    router = APIRouter(tags=["inspect"], responses=ERROR_RESPONSES)

    @router.post("/inspect", response_model=schemas.VerdictAnswer, openapi_extra=request_bodies.PHOTO_BODY)
    async def inspect(
        request: Request,
        class_name: Annotated[str | None, Query(alias="class", max_length=200)] = None,
        bundle: Annotated[str | None, Query(max_length=200)] = None,
        outputs: Annotated[str | None, Query(max_length=200)] = None,
        deadline_ms: Annotated[str | None, Query(max_length=40)] = None,
        request_key: Annotated[str | None, Query(max_length=128)] = None,
        full: Annotated[str | None, Query(max_length=40)] = None,
    ) -> Any:
        """Inspect one photo: multipart field `photo`, or the image file itself as the body."""
        query = {
            "class": class_name, "bundle": bundle, "outputs": outputs,
            "deadline_ms": deadline_ms, "request_key": request_key, "full": full,
        }  # fmt: skip
        began = time.monotonic()
        photos, fields = await _read(request, 1, service.settings.security.max_body_bytes)
        given = {**{k: v for k, v in query.items() if v is not None}, **{k: v[-1] for k, v in fields.items()}}
        wanted = wanted_outputs(given.get("outputs"))
        photo_request = _photo_request(service, request, photos[0], given, given.get("class"), began)
        service.reserve()
        (found,) = await verdicts_of(service, request, [photo_request])
        if isinstance(found, ServeError):
            raise found
        return await asyncio.to_thread(_answer, found, wanted)

    @router.post("/inspect/batch", response_model=schemas.BatchAnswer, openapi_extra=request_bodies.BATCH_BODY)
    async def batch(request: Request) -> Any:
        """Inspect several photos: repeated field `photo`, and `class` once for all or once each, in order."""
        began = time.monotonic()
        photos, fields = await _read(
            request, service.settings.security.max_photos, service.settings.security.max_body_bytes
        )
        classes = fields.pop("class", [])
        if len(classes) not in (0, 1, len(photos)):
            raise BadRequest(f"{len(photos)} photos came with {len(classes)} classes; give one for all, or one each")
        request.state.charge(len(photos) - 1)
        query = {key: values[-1] for key, values in fields.items()}
        if "request_key" in query:
            raise BadRequest("request_key names one photo; in a batch send none, or ask photo by photo")
        wanted = wanted_outputs(query.get("outputs"))
        named: list[str | None] = [*(classes * len(photos) if len(classes) == 1 else classes)] or [None] * len(photos)
        photo_requests = [
            _photo_request(service, request, photo, query, name, began)
            for photo, name in zip(photos, named, strict=True)
        ]
        service.reserve(len(photo_requests))
        found = await verdicts_of(service, request, photo_requests)
        return await asyncio.to_thread(
            lambda: {
                "results": [
                    _item(photo_request, each, wanted)
                    for photo_request, each in zip(photo_requests, found, strict=True)
                ]
            }
        )

    return router


def _bundles(service: Service) -> APIRouter:
    router = APIRouter(tags=["bundles"], responses=ERROR_RESPONSES)

    def listing() -> dict[str, Any]:
        return {"bundles": [_bundle(service, name) for name in service.bundles.names()]}

    @router.get("/bundles", response_model=schemas.BundlesAnswer)
    async def bundles() -> Any:
        """The bundles that this box was started with, and which of them are open."""
        return listing()

    @router.post("/bundles/{name}/load", response_model=schemas.BundlesAnswer)
    async def load(name: str) -> Any:
        """Check and open a bundle, if it is not open."""
        await asyncio.to_thread(service.bundles.load, name)
        return listing()

    @router.post("/bundles/{name}/reload", response_model=schemas.BundlesAnswer)
    async def reload(name: str) -> Any:
        """Open what lies in the bundle's folder now; photos that the old one has are finished with the old one."""
        await asyncio.to_thread(service.bundles.load, name, True)
        return listing()

    @router.post("/bundles/{name}/unload", response_model=schemas.BundlesAnswer)
    async def unload(name: str) -> Any:
        """Give a bundle's memory back after its last photo; the next photo for it opens it again."""
        await asyncio.to_thread(service.bundles.unload, name)
        return listing()

    return router


def _verdicts(service: Service) -> APIRouter:
    router = APIRouter(tags=["verdicts"], responses=ERROR_RESPONSES)

    def find(uid: str) -> Verdict:
        kept = service.cache.get(uid)
        found = kept[0] if kept else service.store.by_uid(uid) if service.store else None
        if found is None:
            raise NotFound("there is no such verdict; it may have been too old to keep")
        return found

    @router.get("/verdicts", response_model=schemas.VerdictsAnswer)
    async def verdicts(
        limit: Annotated[int, Query(ge=1, le=1000)] = 100,
        class_name: Annotated[str | None, Query(alias="class", max_length=200)] = None,
    ) -> Any:
        """The last verdicts, the newest first."""
        if service.store is None:
            found = [v for v in service.cache.list(1000) if class_name in (None, v.class_name)][:limit]
        else:
            wanted = VerdictFilter(class_name=class_name, limit=limit)
            found = await asyncio.to_thread(find_verdicts, service.store, wanted)
        return {"verdicts": [verdict.to_json() for verdict in found], "recorded": service.store is not None}

    @router.get("/verdicts/{uid}", response_model=schemas.VerdictAnswer)
    async def verdict(uid: str) -> Any:
        """One verdict."""
        return (await asyncio.to_thread(find, uid)).to_json()

    @router.get("/verdicts/{uid}/pictures/{kind}", response_class=Response)
    async def picture(uid: str, kind: str) -> Response:
        """photo, repaint, map, heat (a layer), overlay or evidence, as long as it is in memory; without the repaint and
        the evidence as long as the record keeps photo and map. large is the photo of the record."""
        if kind == "large":
            return Response(await asyncio.to_thread(large_photo, service.store, uid), media_type="image/jpeg")
        kept = service.cache.get(uid)
        drawn = kept[1] if kept else await asyncio.to_thread(recorded_pictures, service.store, uid)
        data, media_type = await asyncio.to_thread(draw, kind, drawn)
        return Response(data, media_type=media_type)

    @router.post("/verdicts/{uid}/correction", response_model=schemas.VerdictAnswer)
    async def correct(uid: str, said: schemas.CorrectionBody) -> Any:
        """An operator says ok or ng, or takes it back with null."""
        await asyncio.to_thread(find, uid)
        if service.store is not None:
            await asyncio.wrap_future(service.store.correct(uid, said.correction, time.time()))
        service.cache.correct(uid, said.correction)
        return (await asyncio.to_thread(find, uid)).to_json()

    return router


async def _read(request: Request, most: int, max_bytes: int) -> tuple[list[tuple[str, bytes]], dict[str, list[str]]]:
    """Photos (name, bytes) and text fields of a body, of either kind. Raises WrongType, BadRequest.

    A part `photo` without a filename is a photo as well: many a PLC's and C#'s client sends none.
    """
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if "content-encoding" in request.headers:
        raise WrongType("compressed bodies are not taken; send the image file as it is")
    if kind.startswith(RAW_TYPES):
        return [("", await request.body())], {}
    if kind != "multipart/form-data":
        raise WrongType(f"the content type is {kind[:80]!r}; send multipart/form-data with a field 'photo', or image/*")
    photos: list[tuple[str, bytes]] = []
    fields: dict[str, list[str]] = {}
    async with request.form(max_files=most, max_fields=most + 16, max_part_size=max_bytes) as form:
        for key, value in form.multi_items():
            if isinstance(value, UploadFile):
                if key != "photo":
                    raise BadRequest(f"the field {key[:80]!r} holds a file; photos go into the field 'photo'")
                photos.append((value.filename or "", await value.read()))
            elif key == "photo":
                photos.append(("", _bytes_of(value)))
            elif key in ("class", "bundle", "outputs", "deadline_ms", "request_key", "full"):
                fields.setdefault(key, []).append(value)
            else:
                raise BadRequest(f"the field {key[:80]!r} is not known; see /openapi.json")
    if not photos:
        raise BadRequest("no photo came; send it as a file in the field 'photo'")
    return photos, fields


def _bytes_of(text: str) -> bytes:
    """The bytes of a part that the form's parser took for text: it decodes UTF-8 and, where they are none, Latin-1."""
    try:
        return text.encode("latin-1")
    except UnicodeEncodeError:
        return text.encode("utf-8", "surrogateescape")


def _photo_request(
    service: Service, request: Request, photo: tuple[str, bytes], given: dict[str, str], name: str | None, began: float
) -> PhotoRequest:
    return PhotoRequest(
        data=photo[1],
        source="http",
        client=request.state.client,
        class_name=name or None,
        bundle=given.get("bundle") or None,
        name=photo[0][:200],
        request_key=given.get("request_key") or None,
        deadline=deadline_of(given.get("deadline_ms"), began, service.settings.deadline_ms),
        began=began,
        hurried=bool(given.get("deadline_ms")),
        full=full_of(given),
    )


def _answer(result: VerdictResult, wanted: tuple[str, ...]) -> dict[str, Any]:
    answer = {**result.verdict.to_json(), "repeated": result.repeated, "pictures": encoded_outputs(result, wanted)}
    if "map" in answer["pictures"] and result.inspection is not None:
        values = result.inspection.anomaly_map
        answer["map_range"] = [float(values.min()), float(values.max())]
    return answer


def _item(photo_request: PhotoRequest, found: VerdictResult | ServeError, wanted: tuple[str, ...]) -> dict[str, Any]:
    if isinstance(found, ServeError):
        return {"photo": photo_request.name, "error": str(found), "status": found.status}
    return {"photo": photo_request.name, "verdict": _answer(found, wanted)}


def _bundle(service: Service, name: str) -> dict[str, Any]:
    loaded = service.bundles.known(name)
    if loaded is None:
        return {"name": name, "loaded": False, "classes": service.bundles.classes(name)}
    return {
        "name": name,
        "loaded": True,
        "bundle_id": loaded.bundle_id,
        "backend": loaded.opened.backend,
        "mode": loaded.opened.mode,
        "bytes": loaded.bytes,
        "photo_ms": service.engine.state.photo_ms.get(loaded.key),
        "in_use": loaded.uses,
        "fell_back": loaded.opened.fell_back,
        "classes": loaded.classes,
    }
