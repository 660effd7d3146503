"""One photo on its way through the service: its request, the resources that it holds, its result."""

from __future__ import annotations

import secrets
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass, field, replace

from anomalysd_edge.calibration.photo_checks import brightness_and_sharpness
from anomalysd_edge.core.files import sha256_bytes
from anomalysd_edge.core.types import U8
from anomalysd_edge.data.classes import find_class
from anomalysd_edge.reports import inspection
from anomalysd_edge.vision.images import encode_png
from anomalysd_runtime.server.errors import BadRequest, NotFound, ServeError, Unavailable
from anomalysd_runtime.server.inference.bundles import LoadedBundle
from anomalysd_runtime.server.inference.jobs import EngineResult, Job
from anomalysd_runtime.server.verdicts import Verdict, VerdictResult, regions_of


@dataclass
class PhotoRequest:
    """One photo to inspect."""

    data: bytes
    """Bytes of an image file; or of the array's pixels, where `photo` is given."""
    source: str
    """http, v2, watch or mqtt."""
    client: str
    """Client id, for fair queueing and the record."""
    class_name: str | None = None
    """Class to inspect it as; may be left out where the bundle has one class."""
    bundle: str | None = None
    """Name of the bundle; may be left out where there is one."""
    name: str = ""
    """The client's name for the photo."""
    request_key: str | None = None
    """Idempotency key: requests with one key are inspected once."""
    deadline: float = 0.0
    """time.monotonic() of the deadline; 0 = the default deadline of the box, from now."""
    photo: U8 | None = None
    """(H,W,3) uint8 where the client sent pixels."""
    hurried: bool = False
    """Whether the client named the deadline: then repaints are left out that would not be ready by it."""
    full: bool = False
    """Whether its pictures are asked for, so that its whole plan is repainted."""
    began: float = field(default_factory=time.monotonic)
    """time.monotonic() of its arrival."""

    def __post_init__(self) -> None:
        """JSON may carry halves of surrogate pairs, which no file and no database takes: a name shows '?' for them."""
        self.name = self.name.encode("utf-8", "replace").decode()
        if self.request_key is not None and not _is_text(self.request_key):
            raise BadRequest("the request key is no text: it holds half of a surrogate pair")


def _is_text(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


@dataclass
class InflightPhoto:
    """A PhotoRequest on its way through the service."""

    request: PhotoRequest
    result: Future[VerdictResult]
    loaded: LoadedBundle | None = None
    job: Job | None = None
    undo: list[Callable[[], None]] = field(default_factory=list)
    """Releases of what it holds; all were called when `result` is done, however it ended."""
    ended: bool = False
    lock: threading.Lock = field(default_factory=threading.Lock)

    def hold(self, undo: Callable[[], None]) -> None:
        """Register the release of a resource; it is called at once where the photo has ended already."""
        with self.lock:
            if not self.ended:
                self.undo.append(undo)
                return
        undo()

    def let_go(self) -> None:
        """Release everything, once."""
        with self.lock:
            self.ended = True
            held, self.undo = self.undo, []
        for undo in held:
            undo()


def class_of(name: str | None, loaded: LoadedBundle) -> str:
    """The class `name`; where it is None, the only one. Raises BadRequest or NotFound, naming those that there are."""
    if name is None:
        if len(loaded.classes) != 1:
            raise BadRequest(
                f"say which class the photo is of; bundle {loaded.name} holds: {', '.join(loaded.classes)}"
            )
        return next(iter(loaded.classes))
    found = find_class(name, loaded.classes)
    if found is None:
        raise NotFound(f"class {name!r} is not in bundle {loaded.name}; it holds: {', '.join(sorted(loaded.classes))}")
    return found


def reject(result: Future[VerdictResult], error: ServeError) -> None:
    """Fail `result` with `error`, unless it is done or cancelled."""
    if not result.done():
        if not result.running() and not result.set_running_or_notify_cancel():
            return
        result.set_exception(error)


def check_same_photo(found: Verdict, digest: str) -> None:
    """Raise BadRequest where a request key comes with another photo than the one that it named before."""
    if found.photo_sha256 != digest:
        raise BadRequest("this request_key was used for another photo; every photo needs a key of its own")


def photo_bytes(request: PhotoRequest) -> bytes:
    """The photo as the record keeps it: the bytes that came; pixels as PNG, which is lossless."""
    return request.data if request.photo is None else encode_png(request.photo)


def share_result(done: Future[VerdictResult], result: Future[VerdictResult], digest: str) -> None:
    """Copy the outcome of `done` to `result`, the request that came with the same key while it ran."""
    if not result.set_running_or_notify_cancel():
        return
    if done.cancelled():
        result.set_exception(Unavailable("the request that asked first under this key was given up; ask again", 1.0))
    elif (error := done.exception()) is not None:
        result.set_exception(error)
    else:
        try:
            check_same_photo(done.result().verdict, digest)
        except BadRequest as refused:
            result.set_exception(refused)
        else:
            result.set_result(replace(done.result(), repeated=True))


def verdict_of(request: PhotoRequest, job: Job, loaded: LoadedBundle, judged: EngineResult, preset: str) -> Verdict:
    """The verdict of an inspected photo, with a new uid."""
    answer = judged.inspection
    plain = inspection.inspection_json(answer, request.name)
    height, width = job.photo.shape[:2]
    light, sharp = brightness_and_sharpness(job.photo)
    return Verdict(
        uid=secrets.token_hex(16),
        at=time.time(),
        source=request.source,
        client=request.client,
        photo=request.name,
        photo_sha256=sha256_bytes(request.data),
        width_px=width,
        height_px=height,
        bundle=loaded.name,
        bundle_id=loaded.bundle_id,
        preset=preset,
        settings=loaded.opened.settings,
        class_name=answer.class_name,
        pred_score=answer.pred_score,
        threshold=answer.threshold,
        pred_label=answer.pred_label,
        verdict=plain["verdict"],
        pred_probability=plain["pred_probability"],
        limits=plain["limits"],
        scores={name: float(value) for name, value in answer.scores.items()},
        regions=regions_of(answer, width, height),
        evidence=plain["evidence"],
        mode=answer.mode,
        backend=judged.backend,
        timings_ms={
            **plain["timings_ms"],
            "waited_ms": round(judged.waited_ms, 3),
            "group_ms": round(judged.worker_ms, 3),
        },
        group=judged.group,
        brightness=light,
        sharpness=sharp,
        request_key=request.request_key,
    )
