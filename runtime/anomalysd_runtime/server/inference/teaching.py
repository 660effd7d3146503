"""Teaching at the box: in a process of its own (lesson_process.py), then recorded, then live.

The box switches to the new bundle as a reload does: photos that the old one has are finished with it. Where recording
or opening fails, the old one comes back.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from anomalysd_edge.bundle import versions
from anomalysd_edge.bundle.acceptance import AcceptedClass, LineLesson
from anomalysd_edge.bundle.signing import check_key_pair
from anomalysd_edge.bundle.teaching import MOST_PHOTOS, Lesson, TaughtClass
from anomalysd_edge.calibration.photo_checks import GoodPhoto, PhotoFinding
from anomalysd_edge.core.files import clear_asides, sha256_bytes
from anomalysd_edge.errors import SDEdgeError
from anomalysd_runtime.server.decoding import decode, photo_size
from anomalysd_runtime.server.errors import BadRequest, Conflict, NotFound, ServeError, Unavailable
from anomalysd_runtime.server.inference.bundles import BundleStore
from anomalysd_runtime.server.inference.lesson_process import LessonProcess
from anomalysd_runtime.server.records.teachings import Teaching, begin_teaching, drop_teaching, end_teaching, settle
from anomalysd_runtime.server.records.verdict_store import VerdictStore
from anomalysd_runtime.server.settings import ServeSettings

log = logging.getLogger("sd-edge.teaching")


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


@dataclass
class _Change:
    """A change of a bundle that runs."""

    begun: Teaching
    """As it stands in the record from the beginning."""
    done: Teaching | None = None
    """As it shall stand there in the end; None until the bundle was replaced."""
    scores: Mapping[str, float] = field(default_factory=dict)
    """Image scores under the new bundle, by verdict's uid."""


class Teacher:
    """One lesson, acceptance or restore at a time. Methods block, and may be called from any thread."""

    def __init__(self, settings: ServeSettings, bundles: BundleStore, store: VerdictStore | None) -> None:
        """Raises SDEdgeError where the box shall sign with a key that cannot be read, or that it would not trust."""
        self._settings, self._bundles, self._store = settings, bundles, store
        if settings.engine.sign_key is not None:
            check_key_pair(settings.engine.sign_key, settings.engine.public_key)
        self._busy = threading.Lock()
        self._lessons = LessonProcess(settings.engine)

    def settle(self) -> None:
        """Before the bundles are opened: bring the record in line with what an earlier process did last."""
        for name, path in self._bundles.paths.items():
            clear_asides(path)
            if self._store is None or not path.exists():
                continue
            for row in settle(self._store, name, lambda path=path: versions.bundle_id(path)):  # type: ignore[misc]
                log.warning("bundle %s: %s by %s had ended unrecorded: %s", name, row.action, row.who, row.after_id)

    def teach(self, order: TeachOrder) -> TaughtClass:
        """Teach, record, switch. Raises ServeError; the bundle is then what it was."""
        name = self._bundles.resolve(order.bundle, None)
        self._refuse_unsigned()
        if not 1 <= len(order.photos) <= MOST_PHOTOS:
            raise BadRequest(f"{len(order.photos)} photos came; a class is taught with 1 to {MOST_PHOTOS} good ones")
        with self._alone():
            photos, unreadable = _decoded(order.photos, self._settings.security.max_pixels)
            lesson = Lesson(
                name=order.class_name, photos=photos, unreadable=unreadable, noun=order.noun,
                key=self._settings.engine.sign_key,
            )  # fmt: skip
            files = {sha256_bytes(data): data for _, data in order.photos}
            kept = {photo.sha256: files[photo.sha256] for photo in photos}
            begun = self._teaching(name, "teach", order.client, order.class_name, list(kept))
            with self._change(begun, kept) as change:
                taught: TaughtClass = self._lessons.run(self._bundles.paths[name], lesson)
                change.done = replace(
                    begun, class_name=taught.name, photos=[digest for _, digest in taught.photos],
                    before_id=taught.before_id, after_id=taught.after_id,
                )  # fmt: skip
            log.info("bundle %s: %s, asked by %s", name, taught.sentence(), order.client)
            return taught

    def accept(
        self, name: str, lesson: LineLesson, client: str, details: Mapping[str, Any], seen_id: str
    ) -> AcceptedClass:
        """Put what the line says of a class into the bundle `seen_id`, record it with `details`, switch.

        Raises ServeError; the bundle is then what it was.
        """
        self._refuse_unsigned()
        path = self._path(name)
        with self._alone():
            if versions.bundle_id(path) != seen_id:
                raise Conflict("the bundle was changed since the proposal was made: load it again, and look")
            bank = (*lesson.own, *(photo.data for photo in lesson.stream if photo.label == "good"))
            digests = {sha256_bytes(data): data for data in bank}
            begun = self._teaching(name, "accept", client, lesson.name, list(digests))
            with self._change(begun, digests) as change:
                done: AcceptedClass = self._lessons.run(path, replace(lesson, key=self._settings.engine.sign_key))
                told = {**details, **done.to_json(), "repaint": done.repaint}
                change.done = replace(begun, photos=list(done.photos), after_id=done.after_id, details=told)
                change.scores = done.scores
            log.info("bundle %s: class %s accepted by %s: %s", name, done.name, client, done.found.reason)
            return done

    def restore(self, name: str, ident: str, client: str) -> versions.BundleVersion:
        """Go back to a version, record, switch. Raises ServeError."""
        path = self._path(name)
        with self._alone(), self._change(self._teaching(name, "restore", client, None, ())) as change:
            try:
                found = versions.restore(path, ident, self._settings.engine.public_key)
            except SDEdgeError as error:
                raise Conflict(str(error)) from error
            change.done = replace(change.begun, after_id=found.bundle_id)
        return found

    def versions(self, name: str) -> list[versions.BundleVersion]:
        """The bundle as it is, then what it was. Raises NotFound, SDEdgeError."""
        return versions.versions(self._path(name))

    def stop(self) -> None:
        """End a lesson that runs; the bundle is then the old or the new one, whole."""
        self._lessons.kill()

    def _path(self, name: str) -> Path:
        if name not in self._bundles.paths:
            raise NotFound(f"bundle {name!r} is not here; there are: {', '.join(self._bundles.names())}")
        return self._bundles.paths[name]

    def _refuse_unsigned(self) -> None:
        if self._settings.engine.public_key is not None and self._settings.engine.sign_key is None:
            raise Conflict(
                "this box takes signed bundles alone and holds no key to sign with: start it with --sign KEY"
            )

    def _teaching(self, name: str, action: Any, who: str, class_name: str | None, photos: Sequence[str]) -> Teaching:
        before = versions.bundle_id(self._bundles.paths[name])
        return Teaching(
            at=time.time(), who=who, action=action, bundle=name, class_name=class_name, photos=photos, before_id=before
        )

    @contextmanager
    def _alone(self) -> Iterator[None]:
        if self._lessons.stopping:
            raise Unavailable("the box is stopping; teach after its restart", retry_after_s=5)
        if not self._busy.acquire(blocking=False):
            raise Conflict("another class is being taught on this box: ask again when it is done", retry_after_s=15)
        try:
            yield
        finally:
            self._busy.release()

    @contextmanager
    def _change(self, begun: Teaching, photos: Mapping[str, bytes] | None = None) -> Iterator[_Change]:
        """Record that a change begins; after the block, what was done, and open the new bundle.

        Where anything fails the old bundle is put back, the row is removed, and a ServeError raised.
        """
        name, change, store = begun.bundle, _Change(begun), self._store
        try:
            kept = photos if self._settings.record.keep_photo else None
            number = None if store is None else begin_teaching(store, begun, kept)
        except SDEdgeError as error:
            raise Unavailable(str(error), retry_after_s=5) from error
        try:
            yield change
            assert change.done is not None
            if store is not None and number is not None:
                end_teaching(store, number, change.done, change.scores)
            self._bundles.load(name, again=True)
        except BaseException as error:
            self._take_back(change, number, error)
            if isinstance(error, SDEdgeError) and not isinstance(error, ServeError):
                raise Unavailable(str(error), retry_after_s=5) from error
            raise

    def _take_back(self, change: _Change, number: int | None, why: BaseException) -> None:
        before, path = change.begun.before_id, self._bundles.paths[change.begun.bundle]
        name = change.begun.bundle
        if change.done is not None and not self._lessons.stopping:
            log.error("bundle %s: %s; it goes back to %s", name, why, before)
            versions.restore(path, before)
            if (open_now := self._bundles.known(name)) is None or open_now.bundle_id != before:
                self._bundles.load(name, again=True)
        if self._store is None or number is None:
            return
        if versions.bundle_id(path) != before:  # the process ended between the switch and its answer
            log.error("bundle %s: %s; what it is now, %s, is recorded at the next start", name, why, before)
            return
        try:
            drop_teaching(self._store, number)
        except SDEdgeError as error:  # the next start removes it
            log.error("bundle %s: a row of what came to nothing stays for now: %s", name, error)


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
