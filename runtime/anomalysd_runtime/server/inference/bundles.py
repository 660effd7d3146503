"""The bundles of a box: opened when first asked for, kept by use, replaced without losing a request."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from anomalysd_edge.bundle.manifest import Manifest
from anomalysd_edge.bundle.reader import Bundle, read_bundle
from anomalysd_edge.bundle.versions import bundle_id
from anomalysd_edge.data.classes import find_class
from anomalysd_edge.errors import BundleError, SDEdgeError
from anomalysd_edge.reports.inspection import limits_json
from anomalysd_runtime.server.errors import NotFound, Unavailable
from anomalysd_runtime.server.inference.engine import Engine
from anomalysd_runtime.server.inference.worker import OpenedBundle
from anomalysd_runtime.server.settings import bundle_path

log = logging.getLogger("sd-edge.bundles")


@dataclass
class LoadedBundle:
    """An opened bundle. A reload makes another one beside it; this one closes when its last photo is answered."""

    name: str
    """What clients call it."""
    bundle_id: str
    """First 16 digits of its manifest's sha256: the manifest names every file's digest, so this names the content."""
    key: str
    """The engine's name for it: one for every load."""
    bytes: int
    """Of its files: a proxy for its memory."""
    classes: dict[str, dict[str, Any]]
    """Class -> kind, shots, threshold."""
    opened: OpenedBundle
    """What the worker said."""
    manifest: Manifest
    """What the bundle says of itself."""
    uses: int = 0
    """Photos that it owes an answer."""
    retired: bool = False
    """Replaced or unloaded: closes at `uses` 0."""
    used_at: float = field(default_factory=time.monotonic)
    """time.monotonic() of its last use."""


class BundleStore:
    """Knows bundles by name; a name is all that a client can say, so no path of a client reaches the file system."""

    def __init__(
        self, paths: Sequence[Path], engine: Engine, memory_bytes: int = 0, signature_key: Path | None = None
    ) -> None:
        # Not resolved: where the path is a link to a version, a reload shall open what it points to then.
        self.paths = {bundle_path(path).name: bundle_path(path) for path in paths}
        self._engine = engine
        self._memory_bytes = memory_bytes
        self._signature_key = signature_key
        self._loaded: dict[str, LoadedBundle] = {}
        self._all: dict[str, LoadedBundle] = {}
        self._classes: dict[str, dict[str, dict[str, Any]]] = {}
        self._loads = 0
        self._lock = threading.RLock()
        self._loading = threading.Lock()

    def names(self) -> list[str]:
        """Every bundle that this box was started with."""
        return sorted(self.paths)

    def known(self, name: str) -> LoadedBundle | None:
        """The opened bundle of this name, if it is open."""
        return self._loaded.get(name)

    def classes(self, name: str) -> dict[str, dict[str, Any]]:
        """Class -> kind, shots, threshold of a bundle as it was last open: one that was closed is opened when asked."""
        return self._classes.get(name, {})

    def loaded(self) -> list[LoadedBundle]:
        """Those that are open, retired ones included."""
        with self._lock:
            return list(self._all.values())

    def resolve(self, name: str | None, class_name: str | None) -> str:
        """The bundle meant by an optional name and an optional class. Raises NotFound naming what there is."""
        if name is not None:
            if name not in self.paths:
                raise NotFound(f"bundle {name!r} is not here; there are: {', '.join(self.names())}")
            return name
        if len(self.paths) == 1:
            return next(iter(self.paths))
        # Closed ones count, too: who answers must not depend on what is in memory just now.
        holding = [n for n in self.names() if class_name and find_class(class_name, self.classes(n)) is not None]
        if len(holding) == 1:
            return holding[0]
        raise NotFound(f"say which bundle judges the photo; there are: {', '.join(self.names())}")

    @contextmanager
    def in_use(self, name: str) -> Iterator[LoadedBundle]:
        """As acquire() and release()."""
        found = self.acquire(name)
        try:
            yield found
        finally:
            self.release(found)

    def acquire(self, name: str) -> LoadedBundle:
        """The open bundle of this name, opened if need be; it stays open until release(). Raises ServeError."""
        while True:
            with self._lock:
                found = self._loaded.get(name)
                again = found is not None and found.key in self._engine.state.unopened
                if found is not None and not again:
                    found.uses += 1
                    found.used_at = time.monotonic()
                    return found
            self.load(name, again)  # `again`: a restarted worker could not open it; perhaps it can be now

    def release(self, loaded: LoadedBundle) -> None:
        """One answer less owed; a retired bundle closes with its last one."""
        with self._lock:
            loaded.uses -= 1
            close = loaded.retired and loaded.uses == 0
        if close:  # in a thread: closing waits for the engine's group, and release() is called from anywhere
            threading.Thread(target=self._close, args=(loaded,), name="sd-edge-close", daemon=True).start()

    def load(self, name: str, again: bool = False) -> LoadedBundle:
        """Check and open a bundle; with `again` even if it is open: the new one takes over, the old one finishes.

        Raises NotFound for an unknown name, Unavailable with the reason where it cannot be opened.
        """
        path = self.paths.get(name)
        if path is None:
            raise NotFound(f"bundle {name!r} is not here; there are: {', '.join(self.names())}")
        with self._loading:  # one at a time: checking and opening fill memory
            with self._lock:
                found = self._loaded.get(name)
            if found is not None and not again:
                return found
            try:
                fresh = self._open(name, path)
            except SDEdgeError as error:
                log.error("bundle %s: %s", name, error)
                raise Unavailable(f"bundle {name!r} cannot be opened: {error}", retry_after_s=30) from error
            with self._lock:
                old = self._loaded.get(name)
                self._loaded[name] = self._all[fresh.key] = fresh
                self._classes[name] = fresh.classes
            if old is not None:
                self._retire(old)
            self._shrink(keep=fresh)
            return fresh

    def unload(self, name: str) -> bool:
        """Take a bundle out; it closes after its last photo. False where it was not open. Raises NotFound."""
        if name not in self.paths:
            raise NotFound(f"bundle {name!r} is not here; there are: {', '.join(self.names())}")
        with self._lock:
            old = self._loaded.pop(name, None)
        if old is None:
            return False
        self._retire(old)
        return True

    def _open(self, name: str, path: Path) -> LoadedBundle:
        path = path.resolve()  # one version from here on, should the link be switched meanwhile
        bundle = read_bundle(path, verify=True, public_key=self._signature_key)
        ident = bundle_id(path)
        self._loads += 1
        key = f"{name}@{ident}#{self._loads}"
        opened = self._engine.open(key, path)
        if bundle_id(path) != ident:
            self._engine.close(key)
            raise BundleError(f"{path} was replaced while it was opened: load it again")
        if opened.fell_back is not None:
            log.warning("bundle %s runs on the fallback %s: %s", name, opened.backend, opened.fell_back)
        log.info("bundle %s (%s) is open on %s, %.0f ms a photo", name, ident, opened.backend, opened.warm_ms)
        size = sum(record.bytes for record in bundle.manifest.files)
        return LoadedBundle(name, ident, key, size, _classes(bundle, opened), opened, bundle.manifest)

    def _retire(self, old: LoadedBundle) -> None:
        with self._lock:
            old.retired = True
            close = old.uses == 0
        if close:
            self._close(old)

    def _close(self, loaded: LoadedBundle) -> None:
        with self._lock:
            if self._all.pop(loaded.key, None) is None:
                return
        try:
            self._engine.close(loaded.key)
        except SDEdgeError as error:  # the box is stopping, or the worker is gone and its memory with it
            log.info("bundle %s (%s) ended with its worker: %s", loaded.name, loaded.bundle_id, error)
        else:
            log.info("bundle %s (%s) is closed", loaded.name, loaded.bundle_id)

    def _shrink(self, keep: LoadedBundle) -> None:
        """Unload the longest unused while the files' bytes exceed the limit; what is in use stays."""
        while self._memory_bytes:
            with self._lock:
                total = sum(loaded.bytes for loaded in self._all.values())
                idle = [x for x in self._loaded.values() if x is not keep and x.uses == 0]
                if total <= self._memory_bytes or not idle:
                    return
                oldest = min(idle, key=lambda loaded: loaded.used_at)
                del self._loaded[oldest.name]
                oldest.retired = True
            self._close(oldest)


def _classes(bundle: Bundle, opened: OpenedBundle) -> dict[str, dict[str, Any]]:
    return {
        name: {
            "kind": record.kind,
            "shots": record.shots,
            "threshold": opened.thresholds.get(name),
            "limits": limits_json(opened.limits.get(name)),
        }
        for name, record in bundle.manifest.classes.items()
    }
