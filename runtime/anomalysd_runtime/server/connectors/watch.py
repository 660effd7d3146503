"""A folder whose new photos are judged and moved to ok/, ng/, unknown/ or error/, each with its verdict beside it.

No photo is lost or recorded twice, whenever the process ends. A photo is first claimed: renamed into
.sd-edge/work/UID/, which only one process can do, and the UID is its request key in the record. Then it is judged and
recorded, its verdict file written aside and renamed, and last the photo is moved. After a restart every claimed photo
goes on from there: the record answers for one that was judged already. Polling, because network shares tell of no
changes.
"""

from __future__ import annotations

import fcntl
import json
import logging
import os
import secrets
import threading
import time
from concurrent.futures import Future
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from anomalysd_edge.core.files import write_json
from anomalysd_edge.errors import InputError, SettingsError
from anomalysd_edge.vision.images import IMAGE_SUFFIXES
from anomalysd_runtime.server.errors import DeadlineMissed, QueueFull, ServeError, Unavailable
from anomalysd_runtime.server.inference.inflight import Ask
from anomalysd_runtime.server.inference.service import Service
from anomalysd_runtime.server.verdicts import Told, Verdict

log = logging.getLogger("sd-edge.watch")
PLACES = {"good": "ok", "anomalous": "ng", "unknown": "unknown"}
ERROR = "error"
HIDDEN = ".sd-edge"
DEADLINE_S = 3600.0
AGAIN_S = 1.0
"""Pause after the folder could not be read or written: a share that is away, a full disk."""
TEMPORARY = (QueueFull, Unavailable, DeadlineMissed)
"""What may be otherwise in a moment; everything else is the photo's own fault."""


@dataclass(frozen=True)
class WatchSettings:
    """Where photos come from and as what they are judged."""

    folder: Path
    """Photos lie in it, or in folders in it that are named after classes."""
    class_name: str | None = None
    """Class of the photos that lie in it directly; may be left out where the bundle has one class."""
    poll_s: float = 1.0
    """Pause between two looks."""
    settle_s: float = 1.0
    """A file must keep its size and time for so long: a camera may still be writing it."""


@dataclass(frozen=True)
class Claimed:
    """A photo that is this process's to finish."""

    uid: str
    path: Path
    """In .sd-edge/work/UID/."""
    relative: Path
    """Where it lay in the folder."""


class FolderWatch:
    """Watches one folder; run() until stop()."""

    def __init__(self, service: Service, settings: WatchSettings) -> None:
        """Raises InputError where the folder is not there, SettingsError where another process watches it."""
        if not settings.folder.is_dir():
            raise InputError(f"{settings.folder} is no folder; make it, or name the one that photos come into")
        self._service, self._settings = service, settings
        self._work = settings.folder / HIDDEN / "work"
        self._work.mkdir(parents=True, exist_ok=True)
        self._lock = _lock(settings.folder / HIDDEN / "lock")
        self._seen: dict[Path, tuple[int, int, float]] = {}
        self._running: dict[str, tuple[Claimed, Future[Told]]] = {}
        self._end = threading.Event()
        self.finished = 0

    def run(self, once: bool = False) -> None:
        """Finish what an earlier process claimed, then look for new photos; `once` ends when none is left."""
        pending = self._claimed_before()
        if pending:
            log.info("%d photos were claimed before the last end: they come first", len(pending))
        while not self._end.is_set():
            try:
                pending += self._claim_new()
            except OSError as error:
                log.error("%s cannot be looked through (%s); trying again", self._settings.folder, error)
                self._end.wait(AGAIN_S)
            pending = self._begin(pending)
            self._collect(pending)
            if once and not pending and not self._running and not self._seen:
                break
            self._end.wait(0.02 if self._running or pending else self._settings.poll_s)
        while self._running:  # those that were begun are finished; those that were only claimed wait on the disk
            self._collect(pending)
            time.sleep(0.02)
        os.close(self._lock)

    def stop(self) -> None:
        """End after the photos that are being judged."""
        self._end.set()

    def _claimed_before(self) -> list[Claimed]:
        found = []
        for folder in sorted(self._work.iterdir(), key=lambda path: path.stat().st_mtime):
            files = [path for path in folder.rglob("*") if path.is_file()]
            if not files:
                _remove_empty(folder, folder.parent)
            found += [Claimed(folder.name, path, path.relative_to(folder)) for path in files]
        return found

    def _claim_new(self) -> list[Claimed]:
        room = 2 * self._service.settings.engine.group - len(self._running)
        now = time.monotonic()
        seen: dict[Path, tuple[int, int, float]] = {}
        ripe: list[Path] = []
        for path in self._photos():
            try:
                found = path.stat()
            except FileNotFoundError:
                continue  # taken away between the listing and here
            before = self._seen.get(path)
            same = before is not None and before[:2] == (found.st_size, found.st_mtime_ns)
            since = before[2] if same and before is not None else now
            seen[path] = (found.st_size, found.st_mtime_ns, since)
            if now - since >= self._settings.settle_s:
                ripe.append(path)
        ripe.sort(key=lambda path: seen[path][1])
        claimed = []
        for path in ripe[: max(0, room)]:
            found_one = self._claim(path)
            del seen[path]
            if found_one is not None:
                claimed.append(found_one)
        self._seen = seen
        return claimed

    def _photos(self) -> list[Path]:
        """New photos: in the folder, and in its folders that are named after a class."""
        root = self._settings.folder
        classes = {name for loaded in self._service.bundles.loaded() for name in loaded.classes}
        found = []
        for folder in (root, *(root / name for name in sorted(classes - {*PLACES.values(), ERROR}))):
            if folder.is_dir():
                inside = sorted(folder.iterdir())
                found += [p for p in inside if p.suffix.lower() in IMAGE_SUFFIXES and p.name[0] != "." and p.is_file()]
        return found

    def _claim(self, path: Path) -> Claimed | None:
        uid = secrets.token_hex(16)
        relative = path.relative_to(self._settings.folder)
        target = self._work / uid / relative
        target.parent.mkdir(parents=True)
        try:
            path.rename(target)
        except OSError as error:
            if not isinstance(error, FileNotFoundError):  # otherwise somebody else took it
                log.error("%s cannot be moved (%s); trying again", relative, error)
            _remove_empty(target.parent, self._work)
            return None
        return Claimed(uid, target, relative)

    def _begin(self, pending: list[Claimed]) -> list[Claimed]:
        """Ask for as many as the box has room for; the rest waits."""
        left = list(pending)
        while left and len(self._running) < 2 * self._service.settings.engine.group and not self._end.is_set():
            try:
                self._service.reserve()
            except (QueueFull, Unavailable):
                break
            claimed = left.pop(0)
            try:
                data = claimed.path.read_bytes()
            except OSError as error:
                self._service.unreserve()
                self._refuse(claimed, f"the photo cannot be read ({error.strerror})", 422)
                continue
            parts = claimed.relative.parts
            ask = Ask(
                data=data,
                source="watch",
                client="watch",
                class_name=parts[0] if len(parts) > 1 else self._settings.class_name,
                name=claimed.relative.as_posix(),
                request_key=f"watch:{claimed.uid}",
                deadline=time.monotonic() + DEADLINE_S,
            )
            self._running[claimed.uid] = (claimed, self._service.inspect(ask))
        return left

    def _collect(self, pending: list[Claimed]) -> None:
        for uid, (claimed, future) in list(self._running.items()):
            if not future.done():
                continue
            del self._running[uid]
            error = future.exception()
            if isinstance(error, TEMPORARY):
                log.warning("%s waits: %s", claimed.relative, error)
                pending.append(claimed)
                self._end.wait(0.2)
                continue
            try:
                if error is None:
                    self._place(claimed, future.result().verdict)
                else:
                    self._refuse(claimed, str(error), error.status if isinstance(error, ServeError) else 500)
            except OSError as why:  # asked again under the same key, the record answers
                log.error("%s cannot be put in its place (%s); trying again", claimed.relative, why)
                pending.append(claimed)
                self._end.wait(AGAIN_S)

    def _place(self, claimed: Claimed, verdict: Verdict) -> None:
        self._move(claimed, PLACES[verdict.verdict], verdict.to_json())
        log.info("%s: %s, score %.4f", claimed.relative, verdict.verdict, verdict.pred_score)

    def _refuse(self, claimed: Claimed, sentence: str, status: int) -> None:
        told = {"photo": claimed.relative.as_posix(), "error": sentence, "status": status}
        self._move(claimed, ERROR, {**told, "request_key": f"watch:{claimed.uid}"})
        log.warning("%s: %s", claimed.relative, sentence)

    def _move(self, claimed: Claimed, place: str, told: dict[str, Any]) -> None:
        """The verdict file first, then the photo: a photo in ok/ or ng/ always has its verdict."""
        target = self._free_name(self._settings.folder / place / claimed.relative, claimed.uid)
        write_json(_verdict_file(target), told)
        claimed.path.rename(target)
        _remove_empty(claimed.path.parent, self._work)
        self.finished += 1

    def _free_name(self, target: Path, uid: str) -> Path:
        """`target`, or with the UID in its name where another photo has it."""
        other = f"{target.stem}-{uid[:8]}{target.suffix}"
        return target if _owner(target) in (None, f"watch:{uid}") else target.with_name(other)


def _verdict_file(photo: Path) -> Path:
    return photo.with_name(photo.name + ".json")


def _owner(target: Path) -> str | None:
    """The request key of the photo or verdict that lies at `target`; None where nothing does."""
    try:
        told = json.loads(_verdict_file(target).read_text(encoding="utf-8"))
        return str(told.get("request_key"))
    except FileNotFoundError:
        return "another" if target.exists() else None
    except (ValueError, AttributeError):
        return "another"


def _remove_empty(folder: Path, root: Path) -> None:
    """Remove `folder` and the folders above it, up to `root`, as far as they are empty."""
    while folder != root:
        try:
            folder.rmdir()
        except OSError:
            return
        folder = folder.parent


def _lock(path: Path) -> int:
    """A lock that ends with this process, however it ends. Raises SettingsError where another has it."""
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        raise SettingsError(f"another process watches {path.parent.parent}; stop it, or watch another folder") from None
    return descriptor
