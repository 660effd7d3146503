"""What a bundle was before it was rewritten: versions beside it, to go back to and to judge again with.

    BUNDLE.versions/ID/     a whole bundle, its unchanged files hard links: it costs its manifest and constants
    BUNDLE.versions/.lock   held by whoever changes BUNDLE, from reading it to putting the new one in its place

ID is the bundle's id, which every verdict names: the first 16 digits of its manifest's sha256. The last KEPT are kept.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from anomalysd_edge.bundle.reader import MANIFEST, read_bundle
from anomalysd_edge.bundle.signing import SIGNATURE
from anomalysd_edge.bundle.update import LOCK, read_manifest, writing
from anomalysd_edge.core.files import folder_aside, is_aside, sha256_file
from anomalysd_edge.core.locks import exclusive_lock
from anomalysd_edge.errors import BundleError

KEPT = 5
"""Versions of a bundle that are kept, the last replaced ones."""


class BundleBusy(BundleError):
    """Another process, or another request, is changing the bundle."""


@dataclass(frozen=True)
class BundleVersion:
    """A bundle as it is, or as it was."""

    bundle_id: str
    """First 16 digits of its manifest's sha256."""
    path: Path
    """Its folder."""
    created: str
    """UTC, ISO 8601: when it was written."""
    change: str
    """What it did to the one before."""
    signed: bool
    """Whether it carries a signature."""
    current: bool
    """Whether it is the one in use."""


def bundle_id(path: Path) -> str:
    """The id of the bundle in the folder `path`. Raises InputError where it has no manifest."""
    return sha256_file(path / MANIFEST)[:16]


def versions_folder(path: Path) -> Path:
    """Where the versions of the bundle `path` lie; of a link, beside what it points to."""
    path = path.resolve()
    return path.with_name(f"{path.name}.versions")


@contextmanager
def changing(path: Path) -> Iterator[None]:
    """Hold the bundle `path` from reading it to replacing it. Raises BundleBusy where another does, BundleError."""
    if not (path / MANIFEST).is_file():
        raise BundleError(f"{path} holds no {MANIFEST}, expected a bundle: make one with 'sd-edge export'")
    folder = versions_folder(path)
    try:
        folder.mkdir(exist_ok=True)
    except OSError as error:
        raise BundleError(f"{folder} cannot be made ({error.strerror}): the bundle's versions belong there") from error
    with exclusive_lock(
        folder / ".lock",
        BundleBusy,
        lambda holder: f"{path} is being changed by another process ({holder}): wait until it has ended",
    ):
        yield


def keep_version(path: Path) -> None:
    """Keep the bundle at `path` as a version, and remove the oldest ones beyond KEPT. Call it before replacing it."""
    folder, ident = versions_folder(path), bundle_id(path)
    folder.mkdir(exist_ok=True)
    if not (folder / ident / MANIFEST).is_file():
        with folder_aside(folder / ident) as aside:
            link_bundle(path, aside)
    os.utime(folder / ident)
    for old in _folders(folder)[KEPT:]:
        shutil.rmtree(old, ignore_errors=True)


def link_bundle(source: Path, target: Path, without: tuple[str, ...] = ()) -> None:
    """Fill the empty folder `target` with the parts of the bundle `source`: links where the file system allows it.

    The lock file stays out, what a killed process left, and what `without` names.
    """
    for part in sorted(source.iterdir()):
        if part.name not in (LOCK, *without) and not is_aside(part.name):
            link(part, target / part.name)


def link(source: Path, target: Path) -> None:
    """Link a file, or every file of a folder; copy where the file system has no links."""
    if source.is_dir():
        shutil.copytree(source, target, copy_function=_link_file)
    else:
        _link_file(str(source), str(target))


def versions(path: Path) -> list[BundleVersion]:
    """The bundle `path` first, then its versions, the last replaced first. Raises BundleError."""
    if not (path / MANIFEST).is_file():
        raise BundleError(f"{path} holds no {MANIFEST}, expected a bundle: make one with 'sd-edge export'")
    current = _version(path, True)
    kept = [_version(folder, False) for folder in _folders(versions_folder(path))]
    return [current, *(version for version in kept if version.bundle_id != current.bundle_id)]


def version_folder(path: Path, ident: str) -> Path | None:
    """Folder of the bundle with the id `ident`: `path` itself or one of its versions; None where there is none."""
    if bundle_id(path) == ident:
        return path
    return next((f for f in _folders(versions_folder(path)) if f.name == ident and bundle_id(f) == ident), None)


def restore(path: Path, ident: str, public_key: Path | None = None) -> BundleVersion:
    """Put the version `ident` (its first digits will do) in the place of the bundle `path`, which becomes a version.

    With `public_key`, the version must carry its signature. Raises BundleError naming what there is, or where the
    version was damaged; BundleBusy.
    """
    with changing(path), writing(path):
        known = [version for version in versions(path) if not version.current]
        found = [version for version in known if ident and version.bundle_id.startswith(ident)]
        if len(found) != 1:
            there = ", ".join(version.bundle_id for version in known) or "none yet"
            which = "several versions begin with" if found else "has no version"
            raise BundleError(f"{path}: {which} {ident!r}; there are: {there}")
        read_bundle(found[0].path, public_key=public_key)
        with folder_aside(path, marker=MANIFEST) as aside:
            link_bundle(found[0].path, aside)
            # Touched last of all, the version that comes back is not the one that goes to make room.
            os.utime(found[0].path)
            keep_version(path)
        return _version(path, True)


def _version(folder: Path, current: bool) -> BundleVersion:
    manifest = read_manifest(folder)
    signed = (folder / SIGNATURE).is_file()
    return BundleVersion(bundle_id(folder), folder, manifest.created, manifest.change, signed, current)


def _folders(folder: Path) -> list[Path]:
    """Whole versions in `folder`, the last replaced first."""
    found = [f for f in folder.iterdir() if not f.name.startswith(".")] if folder.is_dir() else []
    whole = [f for f in found if (f / MANIFEST).is_file()]
    return sorted(whole, key=lambda f: f.stat().st_mtime_ns, reverse=True)


def _link_file(source: str, target: str) -> str:
    try:
        os.link(source, target)
    except OSError:  # another file system, or one without links
        shutil.copyfile(source, target)
    return target
