"""From a photo's bytes to a recorded verdict: what HTTP, watched folders and MQTT share."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor

from anomalysd_edge.core.files import sha256_bytes
from anomalysd_edge.errors import SDEdgeError
from anomalysd_runtime.server import decoding
from anomalysd_runtime.server.errors import (
    BadRequest,
    DeadlineMissed,
    Failed,
    QueueFull,
    ServeError,
    TooLarge,
    Unavailable,
)
from anomalysd_runtime.server.inference.bundles import BundleStore
from anomalysd_runtime.server.inference.commissioning import Commissioner
from anomalysd_runtime.server.inference.drift_watch import DriftWatch
from anomalysd_runtime.server.inference.engine import Engine
from anomalysd_runtime.server.inference.inflight import (
    InflightPhoto,
    PhotoRequest,
    check_same_photo,
    class_of,
    photo_bytes,
    reject,
    share_result,
    verdict_of,
)
from anomalysd_runtime.server.inference.jobs import Job
from anomalysd_runtime.server.inference.teaching import Teacher
from anomalysd_runtime.server.inference.worker import Opener, open_bundle
from anomalysd_runtime.server.metrics import Metrics
from anomalysd_runtime.server.records.retention import Retention
from anomalysd_runtime.server.records.tables import VerdictEntry
from anomalysd_runtime.server.records.verdict_cache import VerdictCache
from anomalysd_runtime.server.records.verdict_store import StoreError, VerdictStore
from anomalysd_runtime.server.settings import ServeSettings
from anomalysd_runtime.server.verdicts import Verdict, VerdictResult, pictures_of

log = logging.getLogger("sd-edge.service")
MAX_KEY = 128


class Service:
    """The box without its interfaces. start() opens the bundles and warms up; finish() ends the accepted photos.

    A caller may cancel the future of a verdict: a photo that was not begun is then dropped, and nothing is recorded.
    """

    def __init__(self, settings: ServeSettings, opener: Opener = open_bundle) -> None:
        self.settings = settings
        self.engine = Engine(settings.engine, opener)
        self.bundles = BundleStore(
            settings.bundles, self.engine, settings.engine.memory_bytes, settings.engine.public_key
        )
        self.metrics = Metrics()
        self.cache = VerdictCache(settings.recent)
        self.store = VerdictStore(settings.record.path) if settings.record.path else None
        self.teacher = Teacher(settings, self.bundles, self.store)
        self.commissioner = Commissioner(settings, self.bundles, self.store, self.cache, self.teacher)
        self.retention = Retention(self.store, settings.record) if self.store else None
        self.drift = DriftWatch(self.store)
        self.listeners: list[Callable[[Verdict], None]] = [self.commissioner.on_verdict, self.drift.on_verdict]
        self.publish: Callable[[Verdict], bool] = lambda _: False
        """Whether a verdict goes to the webhook's outbox, in the same transaction as its row."""
        self.phase = "starting"
        self._pool = ThreadPoolExecutor(4, thread_name_prefix="sd-edge-photo")
        self._lock = threading.Lock()
        self._idle = threading.Condition(self._lock)
        self._taken = 0
        self._bytes = 0
        self._by_key: dict[str, Future[VerdictResult]] = {}

    def start(self) -> None:
        """Open every bundle that the memory limit allows and warm it up; then the box is ready. Raises SDEdgeError."""
        self.engine.start()
        try:
            self.teacher.settle()
            for name in self.bundles.names():
                self.bundles.load(name)
        except SDEdgeError:
            self.engine.stop()
            raise
        if self.retention:
            self.retention.start()
        with self._lock:
            if self.phase == "starting":  # a SIGTERM may have come meanwhile
                self.phase = "ready"

    def finish(self, limit_s: float) -> None:
        """Accept no more photos, and finish those that were within `limit_s` seconds."""
        with self._idle:
            self.phase = "stopping"
            self._idle.wait_for(lambda: self._taken == 0, timeout=limit_s)

    def stop(self) -> None:
        """Close everything; photos that still wait fail with status 503."""
        self.phase = "stopping"
        self.teacher.stop()
        self.commissioner.stop()
        self.engine.stop()
        self._pool.shutdown(wait=True)
        if self.retention:
            self.retention.stop()
        if self.store:
            self.store.close()

    def reserve(self, count: int = 1) -> None:
        """Reserve places for photos, all or none; each call of inspect() uses one. Raises QueueFull, Unavailable."""
        engine = self.settings.engine
        with self._lock:
            if self.phase != "ready":
                raise Unavailable(f"the box is {self.phase}; ask again soon", retry_after_s=5)
            if count > engine.queue + engine.group:
                raise TooLarge(f"{count} photos came in one request and the queue holds {engine.queue}: send fewer")
            if self._taken + count > engine.queue + engine.group:
                raise QueueFull(
                    f"{self._taken} photos are waiting and {engine.queue} may: ask again later, or slower",
                    retry_after_s=max(1.0, self.engine.expected_s()),
                )
            self._taken += count

    def unreserve(self, count: int = 1) -> None:
        """Release places that inspect() was not called for."""
        with self._idle:
            self._taken -= count
            self._idle.notify_all()

    def inspect(self, request: PhotoRequest) -> Future[VerdictResult]:
        """Inspect a photo for which a place was reserved. The future has a VerdictResult, or a ServeError."""
        inflight = InflightPhoto(request, Future())
        if not request.deadline:
            request.deadline = time.monotonic() + self.settings.deadline_ms / 1e3
        inflight.result.add_done_callback(lambda _: self._after(inflight))
        self._pool.submit(self._run_step, inflight, self._begin)
        return inflight.result

    @property
    def ready(self) -> bool:
        """Whether photos are taken."""
        return self.phase == "ready" and self.engine.state.lost is None

    def _run_step(self, inflight: InflightPhoto, step: Callable[[InflightPhoto], None]) -> None:
        """Run one step; its error becomes the result."""
        try:
            step(inflight)
        except ServeError as error:
            reject(inflight.result, error)
        except StoreError as error:
            reject(inflight.result, Unavailable(str(error), retry_after_s=5))
        except SDEdgeError as error:
            reject(inflight.result, Failed(str(error)))
        except Exception as error:
            log.exception("a fault while a photo was handled")
            reject(inflight.result, Failed(f"a fault of the box itself ({type(error).__name__}); see its log"))

    def _begin(self, inflight: InflightPhoto) -> None:
        request = inflight.request
        if inflight.result.cancelled():
            return
        if request.request_key is not None and self._answered_before(inflight, request.request_key):
            return
        name = self.bundles.resolve(request.bundle, request.class_name)
        if request.photo is None:
            width, height = decoding.photo_size(request.data, self.settings.security.max_pixels)
        else:
            height, width = request.photo.shape[:2]
        self._claim_bytes(inflight, width * height * 3)
        loaded = inflight.loaded = self.bundles.acquire(name)
        inflight.hold(lambda: self.bundles.release(loaded))
        class_name = class_of(request.class_name, loaded)
        photo = decoding.decode(request.data) if request.photo is None else request.photo
        full = self.settings.engine.full or request.full or self.commissioner.learning(loaded, class_name)
        job = inflight.job = Job(loaded.key, class_name, photo, request.client, request.deadline, full, request.hurried)
        job.future.add_done_callback(lambda _: self._submit_end(inflight))
        self.engine.submit(job)
        if inflight.result.cancelled():
            self.engine.cancel(job)

    def _submit_end(self, inflight: InflightPhoto) -> None:
        assert inflight.job is not None
        if inflight.job.future.cancelled():
            inflight.result.cancel()
            return
        self._pool.submit(self._run_step, inflight, self._conclude)

    def _answered_before(self, inflight: InflightPhoto, key: str) -> bool:
        """Whether a request with this key has, or is getting, a verdict; then `inflight` gets the same."""
        if not 0 < len(key) <= MAX_KEY:
            raise BadRequest(f"the request key has {len(key)} characters; use 1 to {MAX_KEY}")
        with self._lock:
            other = self._by_key.get(key)
            if other is None:
                self._by_key[key] = inflight.result
        digest = sha256_bytes(inflight.request.data)
        if other is not None:
            other.add_done_callback(lambda done: share_result(done, inflight.result, digest))
            return True
        found = self.store.by_key(key) if self.store else None
        if found is None:
            return False
        check_same_photo(found, digest)
        if inflight.result.set_running_or_notify_cancel():
            inflight.result.set_result(VerdictResult(found, repeated=True))
        return True

    def _claim_bytes(self, inflight: InflightPhoto, count: int) -> None:
        with self._lock:
            if self._bytes and self._bytes + count > self.settings.engine.queue_bytes:
                raise QueueFull(
                    f"the photos that wait fill the memory for them, {self._bytes >> 20} MiB: ask again later",
                    retry_after_s=max(1.0, self.engine.expected_s()),
                )
            self._bytes += count
        inflight.hold(lambda: self._free_bytes(count))

    def _free_bytes(self, count: int) -> None:
        with self._lock:
            self._bytes -= count

    def _conclude(self, inflight: InflightPhoto) -> None:
        """The verdict of an inspected photo: recorded, then returned."""
        assert inflight.job is not None
        assert inflight.loaded is not None
        judged = inflight.job.future.result()
        if inflight.result.cancelled():
            return
        if time.monotonic() > inflight.request.deadline:
            raise DeadlineMissed("the verdict came after the deadline and was not recorded; allow more time", 1.0)
        verdict = verdict_of(inflight.request, inflight.job, inflight.loaded, judged, self.settings.engine.preset)
        pictures = pictures_of(judged.inspection, inflight.job.photo)
        # From here on it counts: a client that goes now finds its verdict in the record.
        if not inflight.result.set_running_or_notify_cancel():
            return
        if self.store is not None:
            keep = self.settings.record
            photo = photo_bytes(inflight.request) if keep.keep_photo else None
            kept_map = judged.inspection.anomaly_map if keep.keep_map else None
            try:
                self.store.add(VerdictEntry(verdict, photo, kept_map, self.publish(verdict))).result()
            except StoreError as error:
                inflight.result.set_exception(Unavailable(str(error), retry_after_s=5))
                return
        self.cache.add(verdict, pictures)
        self.metrics.count_verdict(verdict, time.monotonic() - inflight.request.began)
        inflight.result.set_result(VerdictResult(verdict, judged.inspection, inflight.job.photo))
        for listener in self.listeners:
            listener(verdict)

    def _after(self, inflight: InflightPhoto) -> None:
        """Release places, bytes and the bundle, however the photo ended."""
        if inflight.result.cancelled() and inflight.job is not None:
            self.engine.cancel(inflight.job)
        error = None if inflight.result.cancelled() else inflight.result.exception()
        if isinstance(error, ServeError):
            self.metrics.count_rejected(inflight.request.source, error.status)
        inflight.let_go()
        with self._idle:
            self._taken -= 1
            key = inflight.request.request_key
            if key is not None and self._by_key.get(key) is inflight.result:
                del self._by_key[key]
            self._idle.notify_all()
