"""From a photo's bytes to a recorded verdict: the one way that HTTP, folders and MQTT go."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

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
from anomalysd_runtime.server.inference.engine import Engine
from anomalysd_runtime.server.inference.inflight import (
    Ask,
    Course,
    check_same_photo,
    class_of,
    kept_photo,
    refuse,
    same_answer,
    verdict_of,
)
from anomalysd_runtime.server.inference.jobs import Job
from anomalysd_runtime.server.inference.worker import Opener, open_bundle
from anomalysd_runtime.server.metrics import Metrics
from anomalysd_runtime.server.records.retention import Retention
from anomalysd_runtime.server.records.verdict_cache import Recent
from anomalysd_runtime.server.records.verdict_store import Entry, Record, RecordError
from anomalysd_runtime.server.settings import ServeSettings
from anomalysd_runtime.server.verdicts import Told, Verdict, pictures_of

log = logging.getLogger("sd-edge.service")
MAX_KEY = 128
Listener = Callable[[Verdict], None]


class Service:
    """Everything but the doors. start() opens the bundles and warms up; stop() finishes what was taken.

    A verdict's future may be cancelled by whoever waits for it: what has not begun then never will, and nothing is
    recorded.
    """

    def __init__(self, settings: ServeSettings, opener: Opener = open_bundle) -> None:
        self.settings = settings
        self.engine = Engine(settings.engine, opener)
        self.bundles = BundleStore(
            settings.bundles, self.engine, settings.engine.memory_bytes, settings.engine.signature_key
        )
        self.metrics = Metrics()
        self.recent = Recent(settings.recent)
        self.record = Record(settings.record.path) if settings.record.path else None
        self.retention = Retention(self.record, settings.record) if self.record else None
        self.listeners: list[Listener] = []
        self.publish: Callable[[Verdict], bool] = lambda _: False
        """Whether the webhook wants a verdict; asked when it is recorded, so that both are one transaction."""
        self.phase = "starting"
        self._pool = ThreadPoolExecutor(4, thread_name_prefix="sd-edge-photo")
        self._lock = threading.Lock()
        self._idle = threading.Condition(self._lock)
        self._taken = 0
        self._bytes = 0
        self._by_key: dict[str, Future[Told]] = {}

    def start(self) -> None:
        """Open every bundle that the memory limit allows and warm it up; then the box is ready. Raises SDEdgeError."""
        self.engine.start()
        try:
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
        """Take nothing new, and finish what was taken within `limit_s` seconds."""
        with self._idle:
            self.phase = "stopping"
            self._idle.wait_for(lambda: self._taken == 0, timeout=limit_s)

    def stop(self) -> None:
        """Close everything; what still waits is answered 503."""
        self.phase = "stopping"
        self.engine.stop()
        self._pool.shutdown(wait=True)
        if self.retention:
            self.retention.stop()
        if self.record:
            self.record.close()

    def reserve(self, count: int = 1) -> None:
        """Take places for photos, all or none; each Ask given to inspect() uses one. Raises QueueFull, Unavailable."""
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
        """Give back places that no inspect() came for."""
        with self._idle:
            self._taken -= count
            self._idle.notify_all()

    def inspect(self, ask: Ask) -> Future[Told]:
        """Judge a photo for which a place was reserved. The future has a Told, or a ServeError."""
        course = Course(ask, Future())
        if not ask.deadline:
            ask.deadline = time.monotonic() + self.settings.deadline_ms / 1e3
        course.told.add_done_callback(lambda _: self._after(course))
        self._pool.submit(self._guard, course, self._begin)
        return course.told

    def health(self) -> dict[str, Any]:
        """What a person or a supervisor wants to know first."""
        reasons = []
        state = self.engine.state
        for loaded in self.bundles.loaded():
            if loaded.opened.fell_back is not None:
                reasons.append(f"bundle {loaded.name} runs on {loaded.opened.backend}: {loaded.opened.fell_back}")
        reasons += [f"bundle {key.partition('@')[0]}: {why}" for key, why in state.unopened.items()]
        reasons += [f"bundle {key.partition('@')[0]} answers from {what}" for key, what in state.changed.items()]
        if state.lost is not None:
            reasons.append(state.lost)
        if self.record is not None and self.record.failing is not None:
            reasons.append(self.record.failing)
        status = self.phase if self.phase != "ready" else "degraded" if reasons else "ok"
        return {
            "status": status,
            "reasons": reasons,
            "ready": self.ready,
            "waiting": self.engine.waiting,
            "running": state.running,
            "worker_restarts": state.restarts,
        }

    @property
    def ready(self) -> bool:
        """Whether photos are taken."""
        return self.phase == "ready" and self.engine.state.lost is None

    def metrics_text(self) -> bytes:
        """The gauges brought up to date, then everything."""
        metrics, state = self.metrics, self.engine.state
        metrics.waiting.set(self.engine.waiting)
        metrics.running.set(state.running)
        metrics.restarts.set(state.restarts)
        metrics.ready.set(self.ready)
        metrics.degraded.set(self.health()["status"] == "degraded")
        for name in self.bundles.names():
            loaded = self.bundles.known(name)
            metrics.loaded.labels(name).set(loaded is not None)
            if loaded is not None:
                metrics.photo_ms.labels(name).set(state.photo_ms.get(loaded.key, 0.0))
        return metrics.text()

    def _guard(self, course: Course, step: Callable[[Course], None]) -> None:
        """Whatever goes wrong in a step becomes the answer."""
        try:
            step(course)
        except ServeError as error:
            refuse(course.told, error)
        except RecordError as error:
            refuse(course.told, Unavailable(str(error), retry_after_s=5))
        except SDEdgeError as error:
            refuse(course.told, Failed(str(error)))
        except Exception as error:
            log.exception("a fault while a photo was handled")
            refuse(course.told, Failed(f"a fault of the box itself ({type(error).__name__}); see its log"))

    def _begin(self, course: Course) -> None:
        ask = course.ask
        if course.told.cancelled():
            return
        if ask.request_key is not None and self._answered_before(course, ask.request_key):
            return
        name = self.bundles.resolve(ask.bundle, ask.class_name)
        if ask.photo is None:
            width, height = decoding.photo_size(ask.data, self.settings.security.max_pixels)
        else:
            height, width = ask.photo.shape[:2]
        self._claim_bytes(course, width * height * 3)
        loaded = course.loaded = self.bundles.acquire(name)
        course.hold(lambda: self.bundles.release(loaded))
        class_name = class_of(ask.class_name, loaded)
        photo = decoding.decode(ask.data) if ask.photo is None else ask.photo
        job = course.job = Job(loaded.key, class_name, photo, ask.client, ask.deadline)
        job.future.add_done_callback(lambda _: self._submit_end(course))
        self.engine.submit(job)
        if course.told.cancelled():
            self.engine.cancel(job)

    def _submit_end(self, course: Course) -> None:
        assert course.job is not None
        if course.job.future.cancelled():
            course.told.cancel()
            return
        self._pool.submit(self._guard, course, self._conclude)

    def _answered_before(self, course: Course, key: str) -> bool:
        """Whether this key was, or is being, answered; then this course gets the same answer."""
        if not 0 < len(key) <= MAX_KEY:
            raise BadRequest(f"the request key has {len(key)} characters; use 1 to {MAX_KEY}")
        with self._lock:
            other = self._by_key.get(key)
            if other is None:
                self._by_key[key] = course.told
        digest = sha256_bytes(course.ask.data)
        if other is not None:
            other.add_done_callback(lambda done: same_answer(done, course.told, digest))
            return True
        found = self.record.by_key(key) if self.record else None
        if found is None:
            return False
        check_same_photo(found, digest)
        if course.told.set_running_or_notify_cancel():
            course.told.set_result(Told(found, repeated=True))
        return True

    def _claim_bytes(self, course: Course, count: int) -> None:
        with self._lock:
            if self._bytes and self._bytes + count > self.settings.engine.queue_bytes:
                raise QueueFull(
                    f"the photos that wait fill the memory for them, {self._bytes >> 20} MiB: ask again later",
                    retry_after_s=max(1.0, self.engine.expected_s()),
                )
            self._bytes += count
        course.hold(lambda: self._free_bytes(count))

    def _free_bytes(self, count: int) -> None:
        with self._lock:
            self._bytes -= count

    def _conclude(self, course: Course) -> None:
        """The verdict of a judged photo: recorded, then told."""
        assert course.job is not None
        assert course.loaded is not None
        judged = course.job.future.result()
        if course.told.cancelled():
            return
        if time.monotonic() > course.ask.deadline:
            raise DeadlineMissed("the verdict came after the deadline and was not recorded; allow more time", 1.0)
        verdict = verdict_of(course.ask, course.job, course.loaded, judged, self.settings.engine.preset)
        pictures = pictures_of(judged.inspection, course.job.photo)
        # From here on it counts: a client that goes now finds its verdict in the record.
        if not course.told.set_running_or_notify_cancel():
            return
        if self.record is not None:
            keep = self.settings.record
            photo = kept_photo(course.ask) if keep.keep_photo else None
            kept_map = judged.inspection.anomaly_map if keep.keep_map else None
            try:
                self.record.add(Entry(verdict, photo, kept_map, self.publish(verdict))).result()
            except RecordError as error:
                course.told.set_exception(Unavailable(str(error), retry_after_s=5))
                return
        self.recent.add(verdict, pictures)
        self.metrics.told(verdict, time.monotonic() - course.ask.began)
        course.told.set_result(Told(verdict, judged.inspection, course.job.photo))
        for listener in self.listeners:
            listener(verdict)

    def _after(self, course: Course) -> None:
        """However it ended: places, bytes and the bundle are free again."""
        if course.told.cancelled() and course.job is not None:
            self.engine.cancel(course.job)
        error = None if course.told.cancelled() else course.told.exception()
        if isinstance(error, ServeError):
            self.metrics.refused(course.ask.source, error.status)
        course.let_go()
        with self._idle:
            self._taken -= 1
            key = course.ask.request_key
            if key is not None and self._by_key.get(key) is course.told:
                del self._by_key[key]
            self._idle.notify_all()
