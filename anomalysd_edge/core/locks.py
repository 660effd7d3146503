"""A lock between processes: the system's own (flock) on an open file, given back however its holder ends."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from anomalysd_edge.errors import SDEdgeError


@contextmanager
def exclusive_lock(path: Path, error: type[SDEdgeError], busy: Callable[[str], str]) -> Iterator[None]:
    """Hold the lock file `path`, which names this process meanwhile; nothing waits for it.

    Raises `error` where the file cannot be written, and with the sentence `busy(holder)` while another process holds
    it; `holder` is for instance 'process 4711'.
    """
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
    except OSError as cause:
        raise error(f"{path.parent} cannot be written ({cause.strerror}): give write access, or copy it") from cause
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as cause:
            holder = os.read(descriptor, 32).decode("ascii", "replace").strip()
            raise error(busy(holder or "unknown")) from cause
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, f"process {os.getpid()}".encode(), 0)
        yield
    finally:
        os.close(descriptor)
