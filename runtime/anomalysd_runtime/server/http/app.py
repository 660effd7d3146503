"""The HTTP doors: inspections, bundles, verdicts, health, metrics, the page. What they do is the service's."""

from __future__ import annotations

import asyncio
import time
from typing import Annotated, Any

from fastapi import APIRouter, FastAPI, Query, Request, Response
from starlette.datastructures import UploadFile

from anomalysd_edge import __version__
from anomalysd_runtime.server.errors import BadRequest, NotFound, ServeError, WrongType
from anomalysd_runtime.server.http import page, schemas, v2
from anomalysd_runtime.server.http.asgi_bridge import deadline_of, verdicts_of
from anomalysd_runtime.server.http.error_handlers import REFUSALS, handle_refusals
from anomalysd_runtime.server.http.middleware import Guard, own_hosts
from anomalysd_runtime.server.inference.inflight import Ask
from anomalysd_runtime.server.inference.service import Service
from anomalysd_runtime.server.records.history import Wanted
from anomalysd_runtime.server.records.history import find as find_verdicts
from anomalysd_runtime.server.verdicts import Told, Verdict, draw, encoded_outputs, wanted_outputs

RAW_TYPES = ("application/octet-stream", "image/")


def make_app(service: Service, host: str = "127.0.0.1") -> Guard:
    """The ASGI application, guard outermost."""
    app = FastAPI(
        title="anomalysd-edge",
        version=__version__,
        description="Visual inspection from a few photos of good parts.",
        docs_url=None,  # its pages load scripts from another host; /openapi.json is enough for tools
        redoc_url=None,
    )
    app.include_router(_inspections(service))
    app.include_router(_bundles(service))
    app.include_router(_verdicts(service))
    app.include_router(_state(service))
    app.include_router(v2.routes(service))
    app.include_router(page.routes())
    handle_refusals(app)
    return Guard(app, service.settings.security, own_hosts(host))


def _inspections(service: Service) -> APIRouter:
    router = APIRouter(tags=["inspect"], responses=REFUSALS)

    @router.post("/inspect", response_model=schemas.VerdictAnswer, openapi_extra=schemas.PHOTO_BODY)
    async def inspect(
        request: Request,
        class_name: Annotated[str | None, Query(alias="class", max_length=200)] = None,
        bundle: Annotated[str | None, Query(max_length=200)] = None,
        outputs: Annotated[str | None, Query(max_length=200)] = None,
        deadline_ms: Annotated[str | None, Query(max_length=40)] = None,
        request_key: Annotated[str | None, Query(max_length=128)] = None,
    ) -> Any:
        """Judge one photo: multipart field `photo`, or the image file itself as the body."""
        given = {
            "class": class_name, "bundle": bundle, "outputs": outputs,
            "deadline_ms": deadline_ms, "request_key": request_key,
        }  # fmt: skip
        began = time.monotonic()
        photos, fields = await _read(request, 1)
        told = {**{k: v for k, v in given.items() if v is not None}, **{k: v[-1] for k, v in fields.items()}}
        wanted = wanted_outputs(told.get("outputs"))
        ask = _ask(service, request, photos[0], told, told.get("class"), began)
        service.reserve()
        (found,) = await verdicts_of(service, request, [ask])
        if isinstance(found, ServeError):
            raise found
        return await asyncio.to_thread(_answer, found, wanted)

    @router.post("/inspect/batch", response_model=schemas.BatchAnswer, openapi_extra=schemas.BATCH_BODY)
    async def batch(request: Request) -> Any:
        """Judge several photos: repeated field `photo`, and `class` once for all or once each, in order."""
        began = time.monotonic()
        photos, fields = await _read(request, service.settings.security.max_photos)
        classes = fields.pop("class", [])
        if len(classes) not in (0, 1, len(photos)):
            raise BadRequest(f"{len(photos)} photos came with {len(classes)} classes; give one for all, or one each")
        request.state.charge(len(photos) - 1)
        told = {key: values[-1] for key, values in fields.items()}
        if "request_key" in told:
            raise BadRequest("request_key names one photo; in a batch send none, or ask photo by photo")
        wanted = wanted_outputs(told.get("outputs"))
        named: list[str | None] = [*(classes * len(photos) if len(classes) == 1 else classes)] or [None] * len(photos)
        asks = [_ask(service, request, photo, told, name, began) for photo, name in zip(photos, named, strict=True)]
        service.reserve(len(asks))
        found = await verdicts_of(service, request, asks)
        return await asyncio.to_thread(
            lambda: {"results": [_item(ask, each, wanted) for ask, each in zip(asks, found, strict=True)]}
        )

    return router


def _bundles(service: Service) -> APIRouter:
    router = APIRouter(tags=["bundles"], responses=REFUSALS)

    def told() -> dict[str, Any]:
        return {"bundles": [_bundle(service, name) for name in service.bundles.names()]}

    @router.get("/bundles", response_model=schemas.BundlesAnswer)
    async def bundles() -> Any:
        """The bundles that this box was started with, and which of them are open."""
        return told()

    @router.post("/bundles/{name}/load", response_model=schemas.BundlesAnswer)
    async def load(name: str) -> Any:
        """Check and open a bundle, if it is not open."""
        await asyncio.to_thread(service.bundles.load, name)
        return told()

    @router.post("/bundles/{name}/reload", response_model=schemas.BundlesAnswer)
    async def reload(name: str) -> Any:
        """Open what lies in the bundle's folder now; photos that the old one has are finished with the old one."""
        await asyncio.to_thread(service.bundles.load, name, True)
        return told()

    @router.post("/bundles/{name}/unload", response_model=schemas.BundlesAnswer)
    async def unload(name: str) -> Any:
        """Give a bundle's memory back after its last photo; the next photo for it opens it again."""
        await asyncio.to_thread(service.bundles.unload, name)
        return told()

    return router


def _verdicts(service: Service) -> APIRouter:
    router = APIRouter(tags=["verdicts"], responses=REFUSALS)

    def find(uid: str) -> Verdict:
        kept = service.recent.get(uid)
        found = kept[0] if kept else service.record.by_uid(uid) if service.record else None
        if found is None:
            raise NotFound("there is no such verdict; it may have been too old to keep")
        return found

    @router.get("/verdicts", response_model=schemas.VerdictsAnswer)
    async def verdicts(
        limit: Annotated[int, Query(ge=1, le=1000)] = 100,
        class_name: Annotated[str | None, Query(alias="class", max_length=200)] = None,
    ) -> Any:
        """The last verdicts, the newest first."""
        if service.record is None:
            found = [v for v in service.recent.list(1000) if class_name in (None, v.class_name)][:limit]
        else:
            wanted = Wanted(class_name=class_name, limit=limit)
            found = await asyncio.to_thread(find_verdicts, service.record, wanted)
        return {"verdicts": [verdict.to_json() for verdict in found], "recorded": service.record is not None}

    @router.get("/verdicts/{uid}", response_model=schemas.VerdictAnswer)
    async def verdict(uid: str) -> Any:
        """One verdict."""
        return (await asyncio.to_thread(find, uid)).to_json()

    @router.get("/verdicts/{uid}/pictures/{kind}", response_class=Response)
    async def picture(uid: str, kind: str) -> Response:
        """photo, repaint, map, heat (a layer), overlay or evidence, as long as it is in memory."""
        kept = service.recent.get(uid)
        if kept is None:
            raise NotFound(
                "the pictures of this verdict are no longer in memory; 'sd-edge history' can make them again"
            )
        data, media_type = await asyncio.to_thread(draw, kind, kept[1])
        return Response(data, media_type=media_type)

    @router.post("/verdicts/{uid}/correction", response_model=schemas.VerdictAnswer)
    async def correct(uid: str, said: schemas.Correction) -> Any:
        """An operator says ok or ng, or takes it back with null."""
        await asyncio.to_thread(find, uid)
        if service.record is not None:
            await asyncio.wrap_future(service.record.correct(uid, said.correction, time.time()))
        service.recent.correct(uid, said.correction)
        return (await asyncio.to_thread(find, uid)).to_json()

    return router


def _state(service: Service) -> APIRouter:
    router = APIRouter(tags=["state"], responses=REFUSALS)

    @router.get("/health", response_model=schemas.HealthAnswer)
    async def health() -> Any:
        """starting, ok, degraded (with reasons) or stopping."""
        return service.health()

    @router.get("/metrics", response_class=Response)
    async def metrics() -> Response:
        """For Prometheus."""
        return Response(service.metrics_text(), media_type="text/plain; version=0.0.4; charset=utf-8")

    return router


async def _read(request: Request, most: int) -> tuple[list[tuple[str, bytes]], dict[str, list[str]]]:
    """Photos (name, bytes) and text fields of a body, of either kind. Raises WrongType, BadRequest."""
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if "content-encoding" in request.headers:
        raise WrongType("compressed bodies are not taken; send the image file as it is")
    if kind.startswith(RAW_TYPES):
        return [("", await request.body())], {}
    if kind != "multipart/form-data":
        raise WrongType(f"the content type is {kind[:80]!r}; send multipart/form-data with a field 'photo', or image/*")
    photos: list[tuple[str, bytes]] = []
    fields: dict[str, list[str]] = {}
    async with request.form(max_files=most, max_fields=most + 16, max_part_size=64 * 1024) as form:
        for key, value in form.multi_items():
            if isinstance(value, UploadFile):
                if key != "photo":
                    raise BadRequest(f"the field {key[:80]!r} holds a file; photos go into the field 'photo'")
                photos.append((value.filename or "", await value.read()))
            elif key in ("class", "bundle", "outputs", "deadline_ms", "request_key"):
                fields.setdefault(key, []).append(value)
            else:
                raise BadRequest(f"the field {key[:80]!r} is not known; see /openapi.json")
    if not photos:
        raise BadRequest("no photo came; send it as a file in the field 'photo'")
    return photos, fields


def _ask(
    service: Service, request: Request, photo: tuple[str, bytes], told: dict[str, str], name: str | None, began: float
) -> Ask:
    return Ask(
        data=photo[1],
        source="http",
        client=request.state.client,
        class_name=name or None,
        bundle=told.get("bundle") or None,
        name=photo[0][:200],
        request_key=told.get("request_key") or None,
        deadline=deadline_of(told.get("deadline_ms"), began, service.settings.deadline_ms),
        began=began,
    )


def _answer(told: Told, wanted: tuple[str, ...]) -> dict[str, Any]:
    answer = {**told.verdict.to_json(), "repeated": told.repeated, "pictures": encoded_outputs(told, wanted)}
    if "map" in answer["pictures"] and told.inspection is not None:
        values = told.inspection.anomaly_map
        answer["map_range"] = [float(values.min()), float(values.max())]
    return answer


def _item(ask: Ask, found: Told | ServeError, wanted: tuple[str, ...]) -> dict[str, Any]:
    if isinstance(found, ServeError):
        return {"photo": ask.name, "error": str(found), "status": found.status}
    return {"photo": ask.name, "verdict": _answer(found, wanted)}


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
