"""KServe's Open Inference Protocol v2 over HTTP, with binary tensors: a bundle is a model.

Inputs: `photo` (BYTES [N]: image files, or UINT8 [N,H,W,3]: pixels) and `class` (BYTES [N] or [1]).
"""

from __future__ import annotations

import asyncio
import time
from typing import Any

import numpy as np
from fastapi import APIRouter, Request, Response

from anomalysd_edge import __version__
from anomalysd_edge.core.types import F32
from anomalysd_runtime.server.errors import BadRequest, NotFound, ServeError, TooLarge, Unavailable, WrongType
from anomalysd_runtime.server.http import tensors
from anomalysd_runtime.server.http.asgi_bridge import deadline_of, verdicts_of
from anomalysd_runtime.server.http.error_handlers import ERROR_RESPONSES
from anomalysd_runtime.server.inference.inflight import PhotoRequest
from anomalysd_runtime.server.inference.service import Service
from anomalysd_runtime.server.verdicts import VerdictResult

OUTPUTS = {
    "pred_score": ("FP32", [-1]),
    "pred_label": ("INT32", [-1]),
    "threshold": ("FP32", [-1]),
    "verdict": ("BYTES", [-1]),
    "pred_probability": ("FP32", [-1]),
    "limits": ("FP32", [-1, 2]),
    "anomaly_map": ("FP32", [-1, -1, -1]),
    "pred_mask": ("BOOL", [-1, -1, -1]),
}
"""pred_label is -1 where there is no threshold. threshold, pred_probability and limits (good, anomalous) are NaN, null
in JSON, where the class has none."""


def routes(service: Service) -> APIRouter:
    """All of /v2."""
    router = APIRouter(prefix="/v2", tags=["v2"], responses=ERROR_RESPONSES)
    _state(router, service)
    _repository(router, service)

    async def infer(request: Request, name: str, version: str | None = None) -> Response:
        """Judge the photos of a request."""
        began = time.monotonic()
        _check(service, name, version)
        if "content-encoding" in request.headers:
            raise WrongType("compressed bodies are not taken; send them plain")
        body = await request.body()
        head, inputs = await asyncio.to_thread(tensors.read_request, body, request.headers.get(tensors.HEADER))
        photo_requests = _photo_requests(service, request, name, head, inputs, began)
        outputs = _wanted(head)
        request.state.charge(len(photo_requests) - 1)
        service.reserve(len(photo_requests))
        found = await verdicts_of(service, request, photo_requests)
        results = []
        for each in found:
            if isinstance(each, ServeError):
                raise each
            results.append(each)
        data, length = await asyncio.to_thread(_respond, head, name, results, outputs)
        headers = {} if length is None else {tensors.HEADER: str(length)}
        return Response(
            data, media_type="application/json" if length is None else "application/octet-stream", headers=headers
        )

    router.add_api_route("/models/{name}/infer", infer, methods=["POST"], response_class=Response)
    router.add_api_route("/models/{name}/versions/{version}/infer", infer, methods=["POST"], response_class=Response)
    return router


def _state(router: APIRouter, service: Service) -> None:
    @router.get("")
    async def server() -> dict[str, Any]:
        """What this server is and can."""
        return {
            "name": "anomalysd-edge",
            "version": __version__,
            "extensions": ["binary_tensor_data", "model_repository"],
        }

    @router.get("/health/live", response_class=Response)
    async def live() -> Response:
        """200 as long as the process answers."""
        return Response(status_code=200)

    @router.get("/health/ready", response_class=Response)
    async def ready() -> Response:
        """200 once the bundles are warm, 503 before and while stopping."""
        return Response(status_code=200 if service.ready else 503)

    async def model(name: str, version: str | None = None) -> dict[str, Any]:
        """Inputs and outputs of a bundle."""
        _check(service, name, version)
        loaded = service.bundles.known(name)
        return {
            "name": name,
            "versions": [loaded.bundle_id] if loaded else [],
            "platform": "anomalysd-edge",
            "inputs": [
                {"name": "photo", "datatype": "BYTES", "shape": [-1]},
                {"name": "class", "datatype": "BYTES", "shape": [-1]},
            ],
            "outputs": [{"name": key, "datatype": kind, "shape": shape} for key, (kind, shape) in OUTPUTS.items()],
        }

    async def model_ready(name: str, version: str | None = None) -> Response:
        """200 where the bundle is open."""
        _check(service, name, version)
        return Response(status_code=200 if service.ready and service.bundles.known(name) else 503)

    for path in ("/models/{name}", "/models/{name}/versions/{version}"):
        router.add_api_route(path, model, methods=["GET"])
        router.add_api_route(f"{path}/ready", model_ready, methods=["GET"], response_class=Response)


def _repository(router: APIRouter, service: Service) -> None:
    @router.post("/repository/index")
    async def index() -> list[dict[str, str]]:
        """Every bundle and whether it is open."""
        found = []
        for name in service.bundles.names():
            loaded = service.bundles.known(name)
            state = {"state": "READY", "version": loaded.bundle_id} if loaded else {"state": "UNAVAILABLE"}
            found.append({"name": name, **state})
        return found

    @router.post("/repository/models/{name}/load", response_class=Response)
    async def load(name: str) -> Response:
        """Open a bundle; an open one is read again."""
        await asyncio.to_thread(service.bundles.load, name, True)
        return Response(status_code=200)

    @router.post("/repository/models/{name}/unload", response_class=Response)
    async def unload(name: str) -> Response:
        """Give a bundle's memory back after its last photo."""
        await asyncio.to_thread(service.bundles.unload, name)
        return Response(status_code=200)


def _check(service: Service, name: str, version: str | None) -> None:
    service.bundles.resolve(name, None)
    loaded = service.bundles.known(name)
    if version is not None and (loaded is None or loaded.bundle_id != version):
        raise NotFound(f"bundle {name} is not open as version {version[:40]!r}; ask without a version for what is open")


def _photo_requests(
    service: Service, request: Request, name: str, head: dict[str, Any], inputs: dict[str, Any], began: float
) -> list[PhotoRequest]:
    unknown = sorted(set(inputs) - {"photo", "class"})
    if unknown or "photo" not in inputs:
        raise BadRequest(f"the inputs are {', '.join(sorted(inputs))[:120]}; expected 'photo' and 'class'")
    photo, classes = inputs["photo"], inputs.get("class", [])
    if not isinstance(classes, list):
        raise BadRequest("the input 'class' must have the datatype BYTES")
    in_json = next(entry for entry in head["inputs"] if entry["name"] == "photo").get("data") is not None
    limits = service.settings.security
    if isinstance(photo, list):
        files = [tensors.from_base64("photo", item) if in_json else item for item in photo]
        pixels: list[Any] = [None] * len(files)
    else:
        if photo.ndim != 4 or photo.shape[3] != 3 or photo.dtype != np.uint8:
            raise BadRequest(f"the input 'photo' has the shape {photo.shape}; expected UINT8 [N,H,W,3] or BYTES [N]")
        if photo.shape[1] * photo.shape[2] > limits.max_pixels:
            raise TooLarge(
                f"the photos have {photo.shape[2]}x{photo.shape[1]} px; at most {limits.max_pixels} are taken"
            )
        pixels = list(photo)
        files = [each.tobytes() for each in pixels]
    if len(files) > limits.max_photos:
        raise TooLarge(f"{len(files)} photos came; at most {limits.max_photos} are taken in one request")
    if len(classes) not in (0, 1, len(files)):
        raise BadRequest(f"{len(files)} photos came with {len(classes)} classes; give one for all, or one each")
    try:
        names = [each.decode() for each in classes]
    except UnicodeDecodeError as error:
        raise BadRequest("the input 'class' is no UTF-8 text") from error
    named: list[str | None] = [*(names * len(files) if len(names) == 1 else names or [None] * len(files))]
    parameters = head.get("parameters", {})
    deadline = str(parameters["deadline_ms"]) if isinstance(parameters, dict) and "deadline_ms" in parameters else None
    until = deadline_of(deadline, began, service.settings.deadline_ms)
    # All outputs come unless some are named; a client that names a map wants it whole.
    named_outputs = [entry.get("name") for entry in head.get("outputs") or [] if isinstance(entry, dict)]
    full = (isinstance(parameters, dict) and parameters.get("full") is True) or "anomaly_map" in named_outputs
    return [
        PhotoRequest(
            data=data, source="v2", client=request.state.client, class_name=label, bundle=name,
            name=str(head.get("id", ""))[:200], deadline=until, photo=array, began=began, full=full,
            hurried=deadline is not None,
        )
        for data, array, label in zip(files, pixels, named, strict=True)
    ]  # fmt: skip


def _wanted(head: dict[str, Any]) -> dict[str, bool]:
    """Output name -> whether it is wanted as binary data."""
    parameters = head.get("parameters", {})
    all_binary = isinstance(parameters, dict) and parameters.get("binary_data_output") is True
    asked = head.get("outputs")
    if asked is None:
        return dict.fromkeys(OUTPUTS, all_binary)
    wanted: dict[str, bool] = {}
    for entry in asked if isinstance(asked, list) else [None]:
        if not isinstance(entry, dict) or entry.get("name") not in OUTPUTS:
            raise BadRequest(f"'outputs' is wrong; there are: {', '.join(OUTPUTS)}")
        own = entry.get("parameters") or {}
        wanted[entry["name"]] = bool(own.get("binary_data", all_binary)) if isinstance(own, dict) else all_binary
    return wanted


def _respond(head: dict[str, Any], name: str, results: list[VerdictResult], wanted: dict[str, bool]) -> Any:
    answers = [each.inspection for each in results]
    values: dict[str, Any] = {}
    for key in wanted:
        if key == "pred_score":
            values[key] = np.array([each.verdict.pred_score for each in results], np.float32)
        elif key == "pred_label":
            labels = [each.verdict.pred_label for each in results]
            values[key] = np.array([-1 if label is None else label for label in labels], np.int32)
        elif key == "threshold":
            values[key] = _floats([each.verdict.threshold for each in results])
        elif key == "pred_probability":
            values[key] = _floats([each.verdict.pred_probability for each in results])
        elif key == "limits":
            limits = [each.verdict.limits or {} for each in results]
            values[key] = np.stack([_floats([limit.get(end) for end in ("good", "anomalous")]) for limit in limits])
        elif key == "verdict":
            values[key] = [each.verdict.verdict.encode() for each in results]
        elif key == "anomaly_map":
            values[key] = np.stack([_there(answer).anomaly_map for answer in answers])
        else:
            values[key] = np.stack([_mask(_there(answer)) for answer in answers])
    version = results[0].verdict.bundle_id
    response: dict[str, Any] = {"model_name": name, "model_version": version}
    if isinstance(head.get("id"), str):
        response["id"] = head["id"]
    return tensors.write_response(response, values, [key for key, binary in wanted.items() if binary])


def _floats(values: list[float | None]) -> F32:
    return np.array([np.nan if value is None else value for value in values], np.float32)


def _there(answer: Any) -> Any:
    if answer is None:
        raise Unavailable("the maps of this verdict are no longer there; ask for its score alone")
    return answer


def _mask(answer: Any) -> Any:
    return np.zeros(answer.anomaly_map.shape, np.bool_) if answer.pred_mask is None else answer.pred_mask
