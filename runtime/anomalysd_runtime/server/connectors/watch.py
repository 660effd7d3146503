"""A folder whose new photos are judged and moved to ok/, ng/, unsure/, unknown/ or error/, with their verdicts.

No photo is lost or recorded twice, whenever the process ends. A photo is first claimed: renamed into
.sd-edge/work/UID/, which only one process can do, and the UID is its request key in the record. Then it is judged and
recorded, its verdict file written aside and renamed, and last the photo is moved. After a restart every claimed photo
goes on from there: the record answers for one that was judged already. Polling, because network shares tell of no
changes.

One entry never costs the rest: what cannot be read, listed or moved is named once and tried again or left. What nobody
looks at (a folder that is no class, an unknown suffix, a broken link, an empty file) is named once, too.
"""

from __future__ import annotations

import logging
import secrets
import threading
import time
from concurrent.futures import Future
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from anomalysd_edge.core.files import printable, write_json
from anomalysd_edge.core.locks import exclusive_lock
from anomalysd_edge.data.classes import find_class
from anomalysd_edge.errors import InputError, SettingsError
from anomalysd_edge.vision.images import IMAGE_SUFFIXES
from anomalysd_runtime.server.connectors.inbox_names import (
    ClaimedPhoto,
    free_name,
    is_judged,
    places,
    remove_empty,
    verdict_file,
)
from anomalysd_runtime.server.errors import DeadlineMissed, QueueFull, ServeError, Unavailable
from anomalysd_runtime.server.inference.inflight import PhotoRequest
from anomalysd_runtime.server.inference.service import Service
from anomalysd_runtime.server.verdicts import Verdict, VerdictResult

log = logging.getLogger("sd-edge.watch")
HIDDEN = ".sd-edge"
DEADLINE_S = 3600.0
AGAIN_S = 1.0
"""Pause after a folder could not be read or written."""
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


class FolderWatch:
    """Watches one folder; run() until stop()."""

    def __init__(self, service: Service, settings: WatchSettings) -> None:
        """Raises InputError where the folder is not there, SettingsError where another process watches it."""
        if not settings.folder.is_dir():
            raise InputError(f"{settings.folder} is no folder; make it, or name the one that photos come into")
        self._service, self._settings = service, settings
        self._work = settings.folder / HIDDEN / "work"
        self._work.mkdir(parents=True, exist_ok=True)
        self._lock = ExitStack()
        self._lock.enter_context(
            exclusive_lock(
                settings.folder / HIDDEN / "lock",
                SettingsError,
                lambda holder: (
                    f"another process watches {settings.folder} ({holder}); stop it, or watch another folder"
                ),
            )
        )
        self._seen: dict[Path, tuple[int, int, float]] = {}
        self._running: dict[str, tuple[ClaimedPhoto, Future[VerdictResult]]] = {}
        self._end = threading.Event()
        self._named: set[tuple[str, str]] = set()
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
        self._lock.close()

    def stop(self) -> None:
        """End after the photos that are being judged."""
        self._end.set()

    def _claimed_before(self) -> list[ClaimedPhoto]:
        found = []
        for folder in sorted(self._work.iterdir(), key=lambda path: path.lstat().st_mtime):
            try:
                # A link whose target is gone is claimed, too: it goes to error/ with a sentence.
                files = [path for path in folder.rglob("*") if path.is_symlink() or path.is_file()]
            except OSError as error:
                self._name_once(folder, f"cannot be looked through ({error.strerror}) and is left there")
                continue
            if not files:
                remove_empty(folder, folder.parent)
            found += [ClaimedPhoto(folder.name, path, path.relative_to(folder)) for path in files]
        return found

    def _name_once(self, path: Path, sentence: str) -> None:
        """Log what is wrong with an entry, or why nobody looks at it, the first time."""
        relative = printable(str(path.relative_to(self._settings.folder)))
        if (relative, sentence) not in self._named:
            self._named.add((relative, sentence))
            log.warning("%s %s", relative, sentence)

    def _claim_new(self) -> list[ClaimedPhoto]:
        places = 2 * self._service.settings.engine.group - len(self._running)
        now = time.monotonic()
        seen: dict[Path, tuple[int, int, float]] = {}
        ripe: list[Path] = []
        for path in self._photos():
            try:
                found = path.stat()
            except OSError:
                continue  # taken away between the listing and here
            if not found.st_size:
                # A camera or a copy makes the file first and fills it later: it is not taken away from its writer.
                self._name_once(path, "is empty: it waits until something is written to it")
                continue
            before = self._seen.get(path)
            same = before is not None and before[:2] == (found.st_size, found.st_mtime_ns)
            since = before[2] if same and before is not None else now
            seen[path] = (found.st_size, found.st_mtime_ns, since)
            if now - since >= self._settings.settle_s:
                ripe.append(path)
        ripe.sort(key=lambda path: seen[path][1])
        claimed = []
        for path in ripe[: max(0, places)]:
            del seen[path]
            try:
                found_one = self._claim(path)
            except OSError as error:  # what was claimed before it is kept
                log.error("%s cannot be claimed (%s); trying again", printable(path.name), error)
                break
            if found_one is not None:
                claimed.append(found_one)
        self._seen = seen
        return claimed

    def _photos(self) -> list[Path]:
        """New photos: in the folder, and in its folders that are named after a class. The rest is named once."""
        root = self._settings.folder
        classes, found = self._classes(), self._photos_in(root)
        outputs = places(classes).values()
        for folder in sorted(path for path in root.iterdir() if path.is_dir() and path.name[0] != "."):
            if folder.name in outputs:
                continue
            if find_class(folder.name, classes) is None:
                known = ", ".join(sorted(classes))
                self._name_once(folder, f"is not looked into: no class is called so, they are {known}")
                continue
            try:
                found += self._photos_in(folder)
            except OSError as error:
                self._name_once(folder, f"cannot be looked through ({error.strerror}): mend its permissions")
        return found

    def _classes(self) -> set[str]:
        return {name for loaded in self._service.bundles.loaded() for name in loaded.classes}

    def _photos_in(self, folder: Path) -> list[Path]:
        """The photos that lie in `folder`; everything else in it is named once. Raises OSError."""
        found = []
        for path in sorted(folder.iterdir()):
            if path.name[0] == ".":
                continue
            if path.is_dir():
                if folder != self._settings.folder:
                    self._name_once(path, "is not looked into: photos lie in the class's folder itself")
            elif path.suffix.lower() not in IMAGE_SUFFIXES:
                self._name_once(path, "is left: photos end in " + ", ".join(sorted(IMAGE_SUFFIXES)))
            elif path.is_file() and is_judged(path):
                self._name_once(path, "is left: its verdict lies beside it")
            elif path.is_file():
                found.append(path)
            elif path.is_symlink():
                self._name_once(path, "is a link to nothing that can be read: it waits")
            else:
                self._name_once(path, "is no file and is left")
        return found

    def _claim(self, path: Path) -> ClaimedPhoto | None:
        uid = secrets.token_hex(16)
        relative = path.relative_to(self._settings.folder)
        target = self._work / uid / relative
        target.parent.mkdir(parents=True)
        try:
            pointed = path.resolve() if path.is_symlink() else None
            path.rename(target)
            if pointed is not None:  # a relative link means something else from its new place
                target.unlink()
                target.symlink_to(pointed)
        except OSError as error:
            if not isinstance(error, FileNotFoundError):  # otherwise somebody else took it
                log.error("%s cannot be moved (%s); trying again", printable(relative.as_posix()), error)
            remove_empty(target.parent, self._work)
            return None
        return ClaimedPhoto(uid, target, relative)

    def _begin(self, pending: list[ClaimedPhoto]) -> list[ClaimedPhoto]:
        """Submit as many as there are free places; the rest waits."""
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
                self._reject(claimed, f"the photo cannot be read ({error.strerror})", 422)
                continue
            parts = claimed.relative.parts
            request = PhotoRequest(
                data=data,
                source="watch",
                client="watch",
                class_name=parts[0] if len(parts) > 1 else self._settings.class_name,
                name=claimed.relative.as_posix(),
                request_key=f"watch:{claimed.uid}",
                deadline=time.monotonic() + DEADLINE_S,
            )
            self._running[claimed.uid] = (claimed, self._service.inspect(request))
        return left

    def _collect(self, pending: list[ClaimedPhoto]) -> None:
        for uid, (claimed, future) in list(self._running.items()):
            if not future.done():
                continue
            del self._running[uid]
            error = future.exception()
            if isinstance(error, TEMPORARY):
                log.warning("%s waits: %s", _shown(claimed), error)
                pending.append(claimed)
                self._end.wait(0.2)
                continue
            try:
                if error is None:
                    self._place(claimed, future.result().verdict)
                else:
                    self._reject(claimed, str(error), error.status if isinstance(error, ServeError) else 500)
            except OSError as why:  # asked again under the same key, the record answers
                log.error("%s cannot be put in its place (%s); trying again", _shown(claimed), why)
                pending.append(claimed)
                self._end.wait(AGAIN_S)

    def _place(self, claimed: ClaimedPhoto, verdict: Verdict) -> None:
        self._move(claimed, verdict.verdict, verdict.to_json())
        log.info("%s: %s, score %.4f", _shown(claimed), verdict.verdict, verdict.pred_score)

    def _reject(self, claimed: ClaimedPhoto, sentence: str, status: int) -> None:
        document = {"photo": claimed.relative.as_posix(), "error": sentence, "status": status}
        self._move(claimed, "error", {**document, "request_key": f"watch:{claimed.uid}"})
        log.warning("%s: %s", _shown(claimed), sentence)

    def _move(self, claimed: ClaimedPhoto, kind: str, document: dict[str, Any]) -> None:
        """The verdict file first, then the photo: a photo in ok/ or ng/ always has its verdict."""
        target = free_name(self._settings.folder / places(self._classes())[kind] / claimed.relative, claimed.uid)
        write_json(verdict_file(target), document)
        claimed.path.rename(target)
        remove_empty(claimed.path.parent, self._work)
        self.finished += 1


def _shown(claimed: ClaimedPhoto) -> str:
    return printable(claimed.relative.as_posix())
