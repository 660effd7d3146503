"""Teaching at the box: in a process of its own at low priority, so that inspections go on and a crash costs nothing.

The process changes the bundle's folder (bundle/teaching.py); then the box writes the record and switches to the new
bundle as a reload does: photos that the old one has are finished with it. Where either fails, the old one comes back.
The process holds the networks once more, on the CPU, as long as it runs.
"""

from __future__ import annotations

import logging
import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from anomalysd_edge.bundle import versions
from anomalysd_edge.bundle.reader import read_bundle
from anomalysd_edge.bundle.teaching import MOST_PHOTOS, Lesson, TaughtClass, teach
from anomalysd_edge.calibration.photo_checks import GoodPhoto, PhotoFinding
from anomalysd_edge.core.files import sha256_bytes
from anomalysd_edge.errors import SDEdgeError
from anomalysd_runtime.server.decoding import decode, photo_size
from anomalysd_runtime.server.errors import BadRequest, Conflict, Failed, NotFound, ServeError, Unavailable
from anomalysd_runtime.server.inference.bundles import BundleStore
from anomalysd_runtime.server.records.teachings import Teaching, add_teaching
from anomalysd_runtime.server.records.verdict_store import VerdictStore
from anomalysd_runtime.server.settings import ServeSettings

log = logging.getLogger("sd-edge.teaching")
LIMIT_S = 600.0
"""A lesson that takes longer is given up."""
NICENESS = 10
"""Added to the process's own: inspections come first."""


@dataclass(frozen=True, kw_only=True)
class TeachOrder:
    """A lesson as a client sent it."""

    bundle: str | None
    """Its name; the only one if None."""
    class_name: str
    """The class, new or known."""
    noun: str | None
    """What the prompts call it."""
    photos: Sequence[tuple[str, bytes]]
    """(name, the image file's bytes)."""
    client: str
    """Who asks, for the record."""


class Teacher:
    """One lesson or restore at a time. Methods block, and may be called from any thread."""

    def __init__(self, settings: ServeSettings, bundles: BundleStore, store: VerdictStore | None) -> None:
        self._settings, self._bundles, self._store = settings, bundles, store
        self._busy = threading.Lock()
        self._process: Any = None
        self._stopping = False

    def teach(self, order: TeachOrder) -> TaughtClass:
        """Teach, record, switch. Raises ServeError; the bundle is then what it was."""
        name = self._bundles.resolve(order.bundle, None)
        engine = self._settings.engine
        if engine.public_key is not None and engine.sign_key is None:
            raise Conflict(
                "this box takes signed bundles alone and holds no key to sign with: start it with --sign KEY"
            )
        if not 1 <= len(order.photos) <= MOST_PHOTOS:
            raise BadRequest(f"{len(order.photos)} photos came; a class is taught with 1 to {MOST_PHOTOS} good ones")
        with self._alone():
            photos, unreadable = _decoded(order.photos, self._settings.security.max_pixels)
            lesson = Lesson(
                name=order.class_name, photos=photos, unreadable=unreadable, noun=order.noun, key=engine.sign_key
            )
            path = self._bundles.paths[name]
            taught = self._in_process(path, lesson)
            digests = [digest for _, digest in taught.photos]
            self._switch(name, taught.before_id, Teaching(
                at=time.time(), who=order.client, action="teach", bundle=name, class_name=taught.name, photos=digests,
                before_id=taught.before_id, after_id=taught.after_id,
            ))  # fmt: skip
            log.info("bundle %s: %s, asked by %s", name, taught.sentence(), order.client)
            return taught

    def restore(self, name: str, ident: str, client: str) -> versions.BundleVersion:
        """Go back to a version, record, switch. Raises ServeError."""
        path = self._path(name)
        with self._alone():
            before = versions.bundle_id(path)
            try:
                found = versions.restore(path, ident, self._settings.engine.public_key)
            except SDEdgeError as error:
                raise Conflict(str(error)) from error
            self._switch(name, before, Teaching(
                at=time.time(), who=client, action="restore", bundle=name, class_name=None, photos=(),
                before_id=before, after_id=found.bundle_id,
            ))  # fmt: skip
            return found

    def versions(self, name: str) -> list[versions.BundleVersion]:
        """The bundle as it is, then what it was. Raises NotFound, SDEdgeError."""
        return versions.versions(self._path(name))

    def stop(self) -> None:
        """End a lesson that runs; the bundle is then the old or the new one, whole."""
        self._stopping = True
        process = self._process
        if process is not None:
            process.kill()

    def _path(self, name: str) -> Path:
        if name not in self._bundles.paths:
            raise NotFound(f"bundle {name!r} is not here; there are: {', '.join(self._bundles.names())}")
        return self._bundles.paths[name]

    @contextmanager
    def _alone(self) -> Iterator[None]:
        if self._stopping:
            raise Unavailable("the box is stopping; teach after its restart", retry_after_s=5)
        if not self._busy.acquire(blocking=False):
            raise Conflict("another class is being taught on this box: ask again when it is done", retry_after_s=15)
        try:
            yield
        finally:
            self._busy.release()

    def _switch(self, name: str, before: str, done: Teaching) -> None:
        """Record what was done and open the new bundle; where that fails, put the old one back and raise."""
        try:
            if self._store is not None:
                add_teaching(self._store, done)
            self._bundles.load(name, again=True)
        except SDEdgeError as error:
            log.error("bundle %s: %s; it goes back to %s", name, error, before)
            versions.restore(self._bundles.paths[name], before)
            if (open_now := self._bundles.known(name)) is None or open_now.bundle_id != before:
                self._bundles.load(name, again=True)
            if isinstance(error, ServeError):
                raise
            raise Unavailable(str(error), retry_after_s=5) from error

    def _in_process(self, path: Path, lesson: Lesson) -> TaughtClass:
        context = multiprocessing.get_context("spawn")
        ours, theirs = context.Pipe()
        self._process = process = context.Process(
            target=_teach_apart, args=(theirs, path, lesson, self._settings), name="sd-edge-teacher", daemon=True
        )
        process.start()
        theirs.close()
        try:
            if not ours.poll(LIMIT_S):
                raise Failed(f"the lesson took longer than {LIMIT_S:g} s and was given up; the bundle is what it was")
            kind, value = ours.recv()
        except (EOFError, OSError) as error:
            if self._stopping:
                raise Unavailable("the box is stopping; teach after its restart", retry_after_s=5) from error
            process.join(5)
            raise Failed(f"the teaching process died (exit code {process.exitcode}); see the box's log") from error
        finally:
            process.kill()
            process.join()
            ours.close()
            self._process = None
        if kind == "taught":
            return value  # type: ignore[no-any-return]
        raise {"busy": Conflict, "input": BadRequest}.get(kind, Failed)(value)


def _decoded(photos: Sequence[tuple[str, bytes]], max_pixels: int) -> tuple[list[GoodPhoto], list[PhotoFinding]]:
    """Those that can be read, and what is wrong with the others."""
    found, faults = [], []
    shared = [given for given, _ in photos]
    for number, (given, data) in enumerate(photos, 1):
        # Cameras of telephones call every photo alike.
        name = given[:200] if given and shared.count(given) == 1 else f"{given[:200] or 'photo'} ({number})"
        try:
            photo_size(data, max_pixels)
            found.append(GoodPhoto(name, sha256_bytes(data), decode(data)))
        except ServeError as error:
            faults.append(PhotoFinding(name, "unreadable", f"{name}: {error}: left out", True))
    return found, faults


def _teach_apart(pipe: Connection, path: Path, lesson: Lesson, settings: ServeSettings) -> None:
    """The process. Ctrl-C and SIGTERM reach the parent, which decides."""
    from anomalysd_edge.errors import InputError
    from anomalysd_runtime.onnx.networks import OnnxNetworks

    signal.signal(signal.SIGINT, signal.SIG_IGN)
    os.nice(NICENESS)
    engine = settings.engine
    try:
        with versions.changing(path):
            bundle = read_bundle(path, public_key=engine.public_key)
            with OnnxNetworks.of_bundle(bundle, "cpu", engine.threads) as networks:
                taught = teach(bundle, networks, lesson, None)
        answer: tuple[str, Any] = ("taught", taught)
    except versions.BundleBusy as error:
        answer = ("busy", str(error))
    except InputError as error:
        answer = ("input", str(error))
    except SDEdgeError as error:
        answer = ("error", str(error))
    except Exception as error:  # an internal fault fails this lesson only, and its kind is reported
        answer = ("error", f"{type(error).__name__}: {error}")
    pipe.send(answer)
