"""The engine: waiting photos, one thread per worker process that takes the next group, crashes that cost one photo."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from pathlib import Path
from typing import Any

from anomalysd_edge.errors import SDEdgeError
from anomalysd_runtime.server.errors import DeadlineMissed, Failed, Unavailable
from anomalysd_runtime.server.inference.engine_state import EngineState
from anomalysd_runtime.server.inference.fair_queue import FairQueue
from anomalysd_runtime.server.inference.jobs import EngineResult, Job
from anomalysd_runtime.server.inference.worker import GroupResult, OpenedBundle, Opener, Worker, WorkerLost, open_bundle
from anomalysd_runtime.server.settings import EngineSettings

log = logging.getLogger("sd-edge.engine")
CONCLUDE_S = 0.01
"""Kept of a deadline for what follows the inspection: pictures, the record, the answer."""
SMOOTHING = 0.2
"""Weight of the newest group in the running mean of a photo's time."""
FORGETTING = 1.01
"""Growth of the least time per group, so that a box that became slower for good is believed in the end."""
STOP_S = 10.0
"""How long a stop waits for the group that runs, after everything that was taken had its time."""


class Engine:
    """Takes jobs, forms groups, runs them in the worker. Methods may be called from any thread."""

    def __init__(self, settings: EngineSettings, opener: Opener = open_bundle) -> None:
        self.settings = settings
        self.state = EngineState()
        self._worker = Worker(settings, opener)
        self._queue: FairQueue[Job] = FairQueue()
        self._orders: list[tuple[Callable[[], Any], Future[Any]]] = []
        self._open: dict[str, Path] = {}
        self._backends: dict[str, str] = {}
        self._stopping = False
        self._group_ends = 0.0
        self._change = threading.Condition()
        self._thread = threading.Thread(target=self._run, name="sd-edge-engine", daemon=True)

    def start(self) -> None:
        """Start the worker process and the thread that feeds it."""
        self._worker.start()
        self._thread.start()

    def stop(self) -> None:
        """End the worker; what still waits gets Unavailable. Call it after the last verdict was waited for."""
        with self._change:
            self._stopping = True
            self._change.notify_all()
        if self._thread.is_alive():
            self._thread.join(STOP_S)
        if self._thread.is_alive():
            self._worker.kill()  # a group that takes so long is given up; the thread hears of it and ends
            self._thread.join()
        self._worker.end()

    @property
    def waiting(self) -> int:
        """Photos in the queue."""
        return len(self._queue)

    @property
    def worker_pid(self) -> int | None:
        """The worker's process number."""
        return self._worker.pid

    def open(self, key: str, path: Path) -> OpenedBundle:
        """Open and warm up a bundle between two groups. Raises SDEdgeError."""
        opened: OpenedBundle = self._order(lambda: self._open_now(key, path))
        return opened

    def close(self, key: str) -> None:
        """Give a bundle's memory back between two groups."""
        self._order(lambda: self._close_now(key))

    def submit(self, job: Job) -> None:
        """Queue a photo. Raises DeadlineMissed where the deadline cannot be kept, Unavailable when stopping."""
        with self._change:
            if self._stopping:
                raise Unavailable("the box is stopping; ask again after its restart", retry_after_s=5)
            expected = self.expected_s(job)
            if time.monotonic() + expected > job.deadline:
                raise DeadlineMissed(
                    f"a verdict would take about {expected * 1e3:.0f} ms, which is beyond the deadline: "
                    "allow more time, or come when fewer photos wait",
                    retry_after_s=max(1.0, expected),
                )
            self._queue.put(job.client, job)
            self._change.notify_all()

    def cancel(self, job: Job) -> None:
        """Drop a photo that has not begun."""
        with self._change:
            if self._queue.remove(job.client, job):
                job.future.cancel()

    def expected_s(self, job: Job | None = None) -> float:
        """Seconds from now to a verdict, by what waits ahead in turn and how long photos took lately."""
        times = self.state.photo_ms
        usual = max(times.values(), default=0.0)
        # The photo's own time by the best that was seen: a mean that one slow group has spoilt would refuse every short
        # deadline on an idle box, and nothing would ever be judged from which a better mean could be learned.
        own = self.state.fastest_ms.get(job.bundle_key, 0.0) if job else usual
        ahead = self._queue.ahead(job.client) if job else len(self._queue)
        running = max(0.0, self._group_ends - time.monotonic()) if self.state.running else 0.0
        return running + (ahead * usual + own) / 1e3

    def _order(self, what: Callable[[], Any]) -> Any:
        done: Future[Any] = Future()
        with self._change:
            if self._stopping:
                raise Unavailable("the box is stopping; ask again after its restart")
            self._orders.append((what, done))
            self._change.notify_all()
        return done.result()

    def _run(self) -> None:
        """The thread: orders first, then groups, until the stop."""
        while True:
            with self._change:
                self._change.wait_for(lambda: self._stopping or self._orders or len(self._queue))
                orders, self._orders = self._orders, []
                if self._stopping:
                    break
            for what, done in orders:
                try:
                    done.set_result(what())
                except BaseException as error:
                    done.set_exception(error)
            group = self._next_group()
            if group:
                self._judge(group)
        for _, done in orders:
            done.set_exception(Unavailable("the box is stopping; ask again after its restart"))
        for job in list(self._queue):
            _fail(job, Unavailable("the box stopped before this photo's turn; send it again", retry_after_s=5))

    def _next_group(self) -> list[Job]:
        """The next photos in turn, of one bundle. The first of an idle worker waits `gather_ms` for others."""
        with self._change:
            if not len(self._queue):
                return []
            until = time.monotonic() + self.settings.gather_ms / 1e3
            while len(self._queue) < self.settings.group and not self._stopping:
                left = until - time.monotonic()
                if left <= 0 or not self._change.wait(left):
                    break
            taken = self._queue.take(self.settings.group, lambda job: (job.bundle_key, job.hurried))
        now = time.monotonic()
        group = []
        for job in taken:
            if job.future.cancelled():
                continue
            if now > job.deadline:
                _fail(job, DeadlineMissed("the deadline passed while the photo waited; allow more time", 1.0))
            else:
                group.append(job)
        return group

    def _judge(self, group: list[Job]) -> None:
        """Inspect a group. Where the worker dies, a new one goes on photo by photo: only the photo at fault fails."""
        key = group[0].bundle_key
        if key not in self._open:
            why = self.state.unopened.get(key, "it was unloaded while the photo waited")
            for job in group:
                _fail(job, Unavailable(f"the bundle cannot judge this photo: {why}", 5.0))
            return
        began = time.monotonic()
        self._group_ends = began + len(group) * self.state.photo_ms.get(key, 0.0) / 1e3
        self.state.running = len(group)
        ends = [min(job.deadline for job in group) - CONCLUDE_S] if group[0].hurried else []
        if self.settings.photos_per_second is not None:
            ends.append(began + len(group) / self.settings.photos_per_second)
        until = min(ends, default=None)
        try:
            found = self._worker.inspect(
                key, [job.photo for job in group], [job.class_name for job in group], [job.full for job in group], until
            )
        except WorkerLost as error:
            log.error("%s while it judged %d photos", error, len(group))
            self.state.running = 0
            if self._stopping:
                for job in group:
                    _fail(job, Unavailable("the box stopped before this photo was judged; send it again", 5.0))
                return
            self._restart()
            if len(group) == 1 or self.state.lost is not None:
                for job in group:
                    _fail(job, Failed(f"{error} while it judged this photo; the box goes on, look at the photo"))
            else:
                for job in group:
                    self._judge([job])
            return
        except SDEdgeError as error:
            self.state.running = 0
            for job in group:
                _fail(job, Failed(str(error)))
            return
        self.state.running = 0
        self._learn(key, found, len(group))
        for job, answer in zip(group, found.answers, strict=True):
            if isinstance(answer, str):
                _fail(job, Failed(answer))
            elif job.future.set_running_or_notify_cancel():
                backend = answer.backend or self._backends.get(key, self.settings.backend)
                self._note_backend(key, backend)
                waited = (began - job.created) * 1e3
                job.future.set_result(EngineResult(answer, backend, waited, len(group), found.took_ms))

    def _note_backend(self, key: str, backend: str) -> None:
        """A network that went on in float32 after NaN says so in its answers; health shall, too."""
        if backend != self._backends.get(key) and self.state.changed.get(key) != backend:
            self.state.changed = {**self.state.changed, key: backend}

    def _learn(self, key: str, found: GroupResult, count: int) -> None:
        share = found.took_ms / count
        known = self.state.photo_ms.get(key, share)
        self.state.photo_ms = {**self.state.photo_ms, key: known + SMOOTHING * (share - known)}
        fastest = min(share, FORGETTING * self.state.fastest_ms.get(key, share))
        self.state.fastest_ms = {**self.state.fastest_ms, key: fastest}
        self.state.groups += 1
        self.state.grouped += count

    def _open_now(self, key: str, path: Path) -> OpenedBundle:
        try:
            opened = self._worker.open(key, path)
        except WorkerLost:
            self._restart()
            opened = self._worker.open(key, path)
        self._open[key] = path
        self._backends[key] = opened.backend
        self.state.photo_ms = {**self.state.photo_ms, key: opened.warm_ms}
        self.state.fastest_ms = {**self.state.fastest_ms, key: opened.warm_ms}
        return opened

    def _close_now(self, key: str) -> None:
        self.state.unopened = {k: why for k, why in self.state.unopened.items() if k != key}
        self.state.changed = {k: what for k, what in self.state.changed.items() if k != key}
        if self._open.pop(key, None) is not None:
            self.state.photo_ms = {k: v for k, v in self.state.photo_ms.items() if k != key}
            self.state.fastest_ms = {k: v for k, v in self.state.fastest_ms.items() if k != key}
            self._worker.close(key)

    def _restart(self) -> None:
        """A new worker with the same bundles; while none can be had, health says so and the thread tries again."""
        self.state.restarts += 1
        self._worker.end(grace_s=0)
        for attempt in range(3):
            try:
                self._worker.start()
                for key in list(self._open):
                    self._open_again(key)
            except WorkerLost as error:
                self.state.lost = f"no worker can be started: {error}"
                log.error("%s (attempt %d)", self.state.lost, attempt + 1)
                self._worker.end(grace_s=0)
                time.sleep(0.2 * 2**attempt)
            else:
                self.state.lost = None
                return

    def _open_again(self, key: str) -> None:
        try:
            self._worker.open(key, self._open[key])
        except WorkerLost:
            raise
        except SDEdgeError as error:  # for instance deleted from the disk meanwhile: the other bundles go on
            log.error("%s could not be opened again: %s", key, error)
            del self._open[key]
            self.state.unopened = {**self.state.unopened, key: str(error)}


def _fail(job: Job, error: SDEdgeError) -> None:
    if job.future.set_running_or_notify_cancel():
        job.future.set_exception(error)
