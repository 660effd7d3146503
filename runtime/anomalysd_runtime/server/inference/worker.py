"""A process that owns detectors: a crash, a lost GPU context or a leak in native code ends with it, not with the box.

The parent talks to it over a pipe, one group at a time. What crosses the pipe is made by this package on both ends;
nothing that a client sent is ever unpickled, photos travel as arrays.
"""

from __future__ import annotations

import logging
import multiprocessing
import os
import signal
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np

from anomalysd_edge.core.types import U8
from anomalysd_edge.errors import BackendError, DeviceLost, MissingExtra, SDEdgeError
from anomalysd_edge.method.detector import Detector
from anomalysd_edge.method.result import Inspection
from anomalysd_edge.method.score_model import Limits
from anomalysd_runtime.server.settings import EngineSettings

log = logging.getLogger("sd-edge.worker")
LOST_EXIT = 70
"""Exit code of a worker whose device is lost (EX_SOFTWARE of sysexits.h): the box starts another one."""
Opener = Callable[[Path, EngineSettings, str], Detector]
"""(bundle folder, settings, backend) -> detector; a module's function, so that a new process can find it by name."""


def open_bundle(path: Path, settings: EngineSettings, backend: str) -> Detector:
    """The detector of a bundle folder whose files were checked already."""
    from anomalysd_runtime.loading import open_with

    return open_with(path, replace(settings, backend=backend, public_key=None), verify=False)


@dataclass(frozen=True)
class OpenedBundle:
    """A worker's description of a bundle that it opened."""

    backend: str
    """Networks.backend."""
    mode: str
    """The detector's mode in words."""
    fell_back: str | None
    """Why the fallback backend is in use; None where the requested one is."""
    warm_ms: float
    """Duration of one photo after the warm-up: a first guess at the time of a photo."""
    thresholds: dict[str, float | None]
    """Class -> threshold."""
    limits: dict[str, Limits | None]
    """Class -> image scores between which its verdict is uncertain."""
    settings: dict[str, Any]
    """The preset's inspection settings."""
    size_px: int
    """Side of maps and repaints."""


@dataclass(frozen=True)
class GroupResult:
    """A group's answers: each an Inspection, or the sentence that says why there is none."""

    answers: tuple[Inspection | str, ...]
    took_ms: float


class WorkerLost(SDEdgeError):
    """The worker process ended, or was ended, in the middle of something."""


@dataclass
class Worker:
    """The parent's side of the process. Used by one thread at a time."""

    settings: EngineSettings
    opener: Opener = open_bundle
    _process: Any = field(default=None, repr=False)
    _pipe: Connection | None = field(default=None, repr=False)

    def start(self) -> None:
        """Start the process; it imports its backend while the parent goes on."""
        context = multiprocessing.get_context("spawn")  # fork would copy the parent's threads' locks and CUDA state
        self._pipe, theirs = context.Pipe()
        self._process = context.Process(
            target=_main, args=(theirs, self.settings, self.opener), name="sd-edge-worker", daemon=True
        )
        self._process.start()
        theirs.close()

    @property
    def pid(self) -> int | None:
        """Process number, for health and tests."""
        return None if self._process is None else self._process.pid

    def open(self, key: str, path: Path) -> OpenedBundle:
        """Open and warm up a bundle. Raises SDEdgeError with the worker's sentence, or WorkerLost."""
        return self._call(("open", key, path), 600.0)  # type: ignore[no-any-return]

    def close(self, key: str) -> None:
        """Give a bundle's memory back."""
        self._call(("close", key), 60.0)

    def inspect(
        self,
        key: str,
        photos: Sequence[U8],
        classes: Sequence[str],
        full: Sequence[bool],
        deadline: float | None = None,
    ) -> GroupResult:
        """Judge a group; `full` and `deadline` as Detector.inspect takes them (one clock serves all processes).

        Raises WorkerLost if the process dies or takes longer than `stuck_s`.
        """
        message = ("inspect", key, list(photos), list(classes), list(full), deadline)
        return self._call(message, self.settings.stuck_s)  # type: ignore[no-any-return]

    def kill(self) -> None:
        """End the process at once; whoever waits for its answer gets WorkerLost. May be called from any thread."""
        process = self._process
        if process is not None:
            process.kill()

    def end(self, grace_s: float = 5.0) -> None:
        """Request the end of the process, and kill it if it does not end."""
        if self._process is None:
            return
        if self._pipe is not None:
            try:
                self._pipe.send(("end",))
            except OSError:
                grace_s = 0.0  # it is gone already; join() below collects it
            self._process.join(grace_s)
            self._pipe.close()
        if self._process.is_alive():
            self._process.kill()
        self._process.join()
        self._process, self._pipe = None, None

    def _call(self, message: tuple[Any, ...], limit_s: float) -> Any:
        if self._pipe is None:
            raise WorkerLost("the worker process is not running")
        try:
            self._pipe.send(message)
            if not self._pipe.poll(limit_s):
                self._process.kill()
                raise WorkerLost(f"the worker process did not answer within {limit_s:g} s and was ended")
            kind, value = self._pipe.recv()
        except (EOFError, OSError) as error:
            self._process.join(5)
            raise WorkerLost(f"the worker process died (exit code {self._process.exitcode})") from error
        if kind == "error":
            raise SDEdgeError(value)
        return value


def _main(pipe: Connection, settings: EngineSettings, opener: Opener) -> None:
    """The process: Ctrl-C and SIGTERM reach the parent, which decides when this one may go."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    detectors: dict[str, Detector] = {}
    parent = os.getppid()
    while True:
        try:
            # A parent that was killed cannot say "end": its pipe's end closes, or init becomes our parent.
            if not pipe.poll(2.0):
                if os.getppid() != parent:
                    return
                continue
            message = pipe.recv()
        except (EOFError, OSError):
            return
        if message[0] == "end":
            return
        try:
            answer = ("ok", _do(message, detectors, settings, opener))
        except DeviceLost as error:
            # No answer: the parent sees this process end, starts another and sends the photos again, one by one. Not
            # sys.exit: a broken CUDA context can hang in the destructors that an orderly end runs.
            log.error("%s; this worker ends and another one is started", error)
            logging.shutdown()
            os._exit(LOST_EXIT)
        except SDEdgeError as error:
            answer = ("error", str(error))
        except Exception as error:  # an internal fault fails this request only, and its kind is reported
            answer = ("error", f"{type(error).__name__}: {error}")
        try:
            pipe.send(answer)
        except OSError:
            return


def _do(message: tuple[Any, ...], detectors: dict[str, Detector], settings: EngineSettings, opener: Opener) -> Any:
    verb, key = message[0], message[1]
    if verb == "open":
        detector, fell_back = _open(message[2], settings, opener)
        detector.group = settings.group
        try:
            warm_ms = _warm_up(detector, settings.full)
        except Exception:
            detector.networks.probe()
            detector.networks.close()
            raise
        detectors[key] = detector
        return OpenedBundle(
            backend=detector.networks.backend,
            mode=detector.mode,
            fell_back=fell_back,
            warm_ms=warm_ms,
            thresholds={name: constants.calibration.threshold for name, constants in detector.classes.items()},
            limits={name: constants.calibration.decision for name, constants in detector.classes.items()},
            settings=detector.settings.to_json(),
            size_px=detector.networks.sizes.size_px,
        )
    if verb == "close":
        detectors.pop(key).networks.close()
        return None
    detector = detectors[key]
    began = time.perf_counter()
    answers = judge(detector, *message[2:])
    return GroupResult(tuple(answers), (time.perf_counter() - began) * 1e3)


def _open(path: Path, settings: EngineSettings, opener: Opener) -> tuple[Detector, str | None]:
    try:
        return opener(path, settings, settings.backend), None
    except (BackendError, MissingExtra) as error:
        if settings.fallback is None or settings.fallback == settings.backend:
            raise
        return opener(path, settings, settings.fallback), str(error)


def _warm_up(detector: Detector, full: bool) -> float:
    """Run every batch size that will come (first runs allocate and choose algorithms, which takes seconds on a GPU).

    Returns the milliseconds of one photo, `full` or not.
    """
    gray = np.full((detector.networks.sizes.size_px,) * 2 + (3,), 128, np.uint8)
    name = sorted(detector.classes)[0]
    for count in dict.fromkeys((detector.group, 1)):
        detector.inspect([gray] * count, name)
    began = time.perf_counter()
    detector.inspect([gray], name, full=full)
    return (time.perf_counter() - began) * 1e3


def judge(
    detector: Detector,
    photos: Sequence[U8],
    classes: Sequence[str],
    full: Sequence[bool],
    deadline: float | None = None,
) -> list[Inspection | str]:
    """A group's answers, `full` and `deadline` as Detector.inspect takes them.

    Where the group fails, each photo is judged alone, so that one costs the others nothing.

    Raises DeviceLost where it failed because the device is gone: no photo is at fault then, and none could be judged.
    """
    try:
        return list(detector.inspect(photos, classes, deadline, full))
    except Exception as error:
        detector.networks.probe()
        if len(photos) == 1:
            kind = "" if isinstance(error, SDEdgeError) else f"{type(error).__name__}: "
            return [f"{kind}{error}"]
    return [
        judge(detector, [photo], [name], [whole], deadline)[0]
        for photo, name, whole in zip(photos, classes, full, strict=True)
    ]
