"""One photo on its way through the service: what was asked, what it holds meanwhile, how it ends."""

from __future__ import annotations

import secrets
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass, field, replace

from anomalysd_edge.core.files import sha256_bytes
from anomalysd_edge.core.types import U8
from anomalysd_edge.reports import inspection
from anomalysd_edge.vision.images import encode_png
from anomalysd_runtime.server.errors import BadRequest, NotFound, ServeError, Unavailable
from anomalysd_runtime.server.inference.bundles import Loaded
from anomalysd_runtime.server.inference.jobs import Job, Judged
from anomalysd_runtime.server.verdicts import Told, Verdict, regions_of


@dataclass
class Ask:
    """One photo that somebody wants judged."""

    data: bytes
    """Bytes of an image file; or of the array's pixels, where `photo` is given."""
    source: str
    """http, v2, watch or mqtt."""
    client: str
    """Whose line it stands in, and what the record says."""
    class_name: str | None = None
    """Judge as; may be left out where the bundle has one class."""
    bundle: str | None = None
    """Name of the bundle; may be left out where there is one."""
    name: str = ""
    """What the client calls the photo."""
    request_key: str | None = None
    """Asked twice under one key, judged once."""
    deadline: float = 0.0
    """time.monotonic() by which the verdict is wanted; 0 = the box's own deadline from now."""
    photo: U8 | None = None
    """(H,W,3) uint8 where the client sent pixels."""
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
class Course:
    """An Ask on its way."""

    ask: Ask
    told: Future[Told]
    loaded: Loaded | None = None
    job: Job | None = None
    undo: list[Callable[[], None]] = field(default_factory=list)
    """What gives back what it holds; None of it is left when `told` is done, whoever ended it and when."""
    ended: bool = False
    lock: threading.Lock = field(default_factory=threading.Lock)

    def hold(self, undo: Callable[[], None]) -> None:
        """Something was taken for this photo. Where nobody waits any more it is given back at once."""
        with self.lock:
            if not self.ended:
                self.undo.append(undo)
                return
        undo()

    def let_go(self) -> None:
        """Give everything back, once."""
        with self.lock:
            self.ended = True
            held, self.undo = self.undo, []
        for undo in held:
            undo()


def class_of(name: str | None, loaded: Loaded) -> str:
    """The class that is meant. Raises BadRequest or NotFound, naming those that there are."""
    if name is None:
        if len(loaded.classes) != 1:
            raise BadRequest(
                f"say which class the photo is of; bundle {loaded.name} holds: {', '.join(loaded.classes)}"
            )
        return next(iter(loaded.classes))
    if name not in loaded.classes:
        raise NotFound(f"class {name!r} is not in bundle {loaded.name}; it holds: {', '.join(sorted(loaded.classes))}")
    return name


def refuse(told: Future[Told], error: ServeError) -> None:
    """The answer is a refusal, unless there is one already or nobody waits."""
    if not told.done():
        if not told.running() and not told.set_running_or_notify_cancel():
            return
        told.set_exception(error)


def check_same_photo(found: Verdict, digest: str) -> None:
    """Raise BadRequest where a request key comes with another photo than the one that it named before."""
    if found.photo_sha256 != digest:
        raise BadRequest("this request_key was used for another photo; every photo needs a key of its own")


def kept_photo(ask: Ask) -> bytes:
    """What the record keeps: the bytes that came; pixels as PNG, which loses nothing."""
    return ask.data if ask.photo is None else encode_png(ask.photo)


def same_answer(done: Future[Told], told: Future[Told], digest: str) -> None:
    """A request that was asked while the same one ran gets what that one gets."""
    if not told.set_running_or_notify_cancel():
        return
    if done.cancelled():
        told.set_exception(Unavailable("the request that asked first under this key was given up; ask again", 1.0))
    elif (error := done.exception()) is not None:
        told.set_exception(error)
    else:
        try:
            check_same_photo(done.result().verdict, digest)
        except BadRequest as refused:
            told.set_exception(refused)
        else:
            told.set_result(replace(done.result(), repeated=True))


def verdict_of(ask: Ask, job: Job, loaded: Loaded, judged: Judged, preset: str) -> Verdict:
    """What is recorded and told of a judged photo, under a name of its own."""
    answer = judged.inspection
    plain = inspection.inspection_json(answer, ask.name)
    height, width = job.photo.shape[:2]
    return Verdict(
        uid=secrets.token_hex(16),
        at=time.time(),
        source=ask.source,
        client=ask.client,
        photo=ask.name,
        photo_sha256=sha256_bytes(ask.data),
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
        request_key=ask.request_key,
    )
