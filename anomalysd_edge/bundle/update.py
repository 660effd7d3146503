"""Changing a bundle that is there: new files first, the manifest last, one writer at a time.

A reader sees the manifest of before or the one of after: files that a manifest names are never changed in place.
"""

from __future__ import annotations

import fcntl
import os
import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from anomalysd_edge.bundle.manifest import FileRecord, Manifest, manifest_from_json
from anomalysd_edge.bundle.reader import MANIFEST, inside
from anomalysd_edge.core.files import read_json, sha256_file, write_json
from anomalysd_edge.errors import BundleError

LOCK = ".writing"


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Hold the bundle `path` for writing. Raises BundleError where another process holds it.

    The lock is the system's, on an open file: a process that dies gives it back.
    """
    if not (path / MANIFEST).is_file():
        raise BundleError(f"{path} holds no {MANIFEST}, expected a bundle: make one with 'sd-edge export'")
    try:
        descriptor = os.open(path / LOCK, os.O_RDWR | os.O_CREAT, 0o644)
    except OSError as error:
        raise BundleError(f"{path} cannot be written ({error.strerror}): give write access, or copy it") from error
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            holder = os.read(descriptor, 32).decode("ascii", "replace").strip()
            raise BundleError(
                f"{path} is being written by another process ({holder or 'unknown'}): wait until it has ended"
            ) from error
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, f"process {os.getpid()}".encode(), 0)
        yield
    finally:
        os.close(descriptor)


def read_manifest(path: Path) -> Manifest:
    """The manifest as it stands, without checking any file. Raises BundleError."""
    return manifest_from_json(read_json(path / MANIFEST), str(path / MANIFEST))


def write_manifest(path: Path, manifest: Manifest) -> None:
    """Put `manifest` in the place of the bundle's; a signature over the older one no longer holds."""
    write_json(path / MANIFEST, manifest)


def replace_files(path: Path, manifest: Manifest, gone: Iterable[str], new: Iterable[str]) -> Manifest:
    """`manifest` with the file records `gone` (paths in the bundle) taken out and those of `new` put in."""
    removed = set(gone)
    kept = [record for record in manifest.files if record.path not in removed]
    added = []
    for name in new:
        file = inside(path, name)
        added.append(FileRecord(name, file.stat().st_size, sha256_file(file)))
    return replace(manifest, files=tuple(sorted([*kept, *added], key=lambda record: record.path)))


def remove_folders(path: Path, names: Iterable[str]) -> None:
    """Remove folders of the bundle that its manifest no longer names."""
    for name in set(names):
        shutil.rmtree(inside(path, name), ignore_errors=True)
