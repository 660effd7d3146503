"""From the registry to a box: what is missing, piece by piece, checked, then switched to in one step."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from anomalysd_edge.bundle.manifest import FileRecord, Manifest, manifest_from_json
from anomalysd_edge.bundle.reader import check_engines, inside, read_bundle
from anomalysd_edge.core.files import parse_json, sha256_bytes, sha256_file
from anomalysd_edge.core.types import Progress
from anomalysd_edge.errors import BundleError, RegistryError
from anomalysd_edge.fleet.hub import SCHEME, HubStorage, find_on_hub
from anomalysd_edge.fleet.installed import Installed
from anomalysd_edge.fleet.registry import (
    MOST_PIECE_BYTES,
    RemoteVersion,
    check_remote,
    find,
    object_name,
    transferred_files,
)
from anomalysd_edge.fleet.storage import PAUSES_S, Storage


@dataclass(frozen=True)
class Pulled:
    """What a pull did."""

    name: str
    """Of the bundle."""
    version: str
    """What counts now."""
    before: str | None
    """What counted before."""
    total_bytes: int
    """Of the bundle's files."""
    fetched_bytes: int
    """That came over the wire in this run; the rest was here."""
    switched: bool
    """False where this version counted already."""


def pull(
    url: str,
    name: str,
    box: Path,
    progress: Progress,
    *,
    version: str | None = None,
    public_key: Path | None = None,
    older: bool = False,
    keep: int = 2,
    pauses_s: tuple[float, ...] | None = None,
) -> Pulled:
    """Bring a version (the latest) of `name` to BOX/NAME. What is there stays in use until the new one is whole.

    `url` is a registry's, or hf://OWNER/NAME[@REVISION], a repository of a model hub (hub.py), where `name` is free.

    A pull that broke off goes on where it was. Without `version`, one that is older than what counts is refused unless
    `older`: an attacker may offer an old bundle whose signature is right. Raises RegistryError (unreachable, damaged or
    exchanged pieces), BundleError (not signed as `public_key` demands, unusable here) and InputError.
    """
    installed = Installed(box, name)
    pauses = PAUSES_S if pauses_s is None else pauses_s
    storage = HubStorage(url, pauses) if url.startswith(SCHEME) else Storage(url, pauses)
    with installed.locked():
        remote = find_on_hub(storage, version) if isinstance(storage, HubStorage) else find(storage, name, version)
        aside = installed.versions / f".pull-{remote.version}"
        aside.mkdir(parents=True, exist_ok=True)
        check_remote(remote, aside, public_key)
        where = f"{url}: {name} {remote.version}"
        manifest = manifest_from_json(parse_json(remote.manifest_bytes, Path(where)), where)
        if version is None and not older:
            _check_age(installed, manifest, where)
        before = installed.current
        files = transferred_files(manifest)
        fetched = 0
        if not installed.folder(remote.version).is_dir():
            fetched = _fetch(storage, remote, files, aside, installed, progress)
            bundle = read_bundle(aside, verify=True, public_key=public_key)
            check_engines(bundle)
            aside.rename(installed.folder(remote.version))
        else:
            shutil.rmtree(aside)
            read_bundle(installed.folder(remote.version), verify=True, public_key=public_key)
        switched = before != remote.version
        if switched:
            installed.switch(remote.version)
            installed.sweep(keep)
    return Pulled(name, remote.version, before, sum(record.bytes for record in files), fetched, switched)


def _check_age(installed: Installed, manifest: Manifest, where: str) -> None:
    if installed.current is None:
        return
    present = read_bundle(installed.link, verify=False).manifest
    if manifest.created < present.created:  # ISO 8601 in UTC: the order of the text is that of time
        raise BundleError(
            f"{where} was exported at {manifest.created}, before what is in use here ({present.created}): refused; "
            "name it with --version, or say --older"
        )


def _fetch(
    storage: Storage,
    remote: RemoteVersion,
    files: list[FileRecord],
    aside: Path,
    installed: Installed,
    progress: Progress,
) -> int:
    """Every file of the bundle into `aside`; the bytes that came over the wire."""
    total, done, fetched = sum(record.bytes for record in files), 0, 0
    have = _present(installed)
    for record in files:
        target = inside(aside, record.path)
        target.parent.mkdir(parents=True, exist_ok=True)
        here = target.is_file() and sha256_file(target) == record.sha256
        if not here and not (record.sha256 in have and _copied(have[record.sha256], target, record)):

            def note(count: int, base: int = done) -> None:
                progress("pull", base + count >> 10, total >> 10, "KiB")

            fetched += _fetch_file(storage, remote, record, target, note)
        done += record.bytes
        progress("pull", done >> 10, total >> 10, "KiB")
    return fetched


def _present(installed: Installed) -> dict[str, Path]:
    """sha256 -> file of the version in use: what a new version shares with it is not sent again."""
    if installed.current is None:
        return {}
    manifest = read_bundle(installed.link, verify=False).manifest
    return {record.sha256: installed.link / record.path for record in transferred_files(manifest)}


def _copied(source: Path, target: Path, record: FileRecord) -> bool:
    """Whether the local file is what its manifest said, and now at `target` as well."""
    if not source.is_file() or sha256_file(source) != record.sha256:
        return False
    target.unlink(missing_ok=True)
    shutil.copyfile(source, target)  # a copy, not a link: a later damage of one version must not reach the other
    return True


def _fetch_file(
    storage: Storage, remote: RemoteVersion, record: FileRecord, target: Path, note: Callable[[int], None]
) -> int:
    """One file from its pieces, going on behind those that an earlier run left; the bytes that came over the wire."""
    number_of_pieces = -(-record.bytes // remote.piece_bytes)
    digests: Sequence[str | None] = [None] * number_of_pieces
    if remote.pieces is not None:
        digests = remote.pieces.get(record.path, [])
    if len(digests) != number_of_pieces:
        raise RegistryError(f"{storage.url}: the index of {remote.version} does not fit {record.path}: push it again")
    partial = target.with_name(target.name + ".partial")
    count, came = _good_pieces(partial, digests, remote.piece_bytes), 0
    with partial.open("r+b" if partial.exists() else "wb") as file:
        file.truncate(count * remote.piece_bytes)
        file.seek(count * remote.piece_bytes)
        for number in range(count, len(digests)):
            piece = _piece(storage, remote, record, number, digests)
            file.write(piece)
            came += len(piece)
            note(min(record.bytes, number * remote.piece_bytes + len(piece)))
        file.flush()
        os.fsync(file.fileno())
    if partial.stat().st_size != record.bytes or sha256_file(partial) != record.sha256:
        partial.unlink()
        raise RegistryError(
            f"{storage.url}: the pieces of {record.path} do not make the file that the manifest names: damaged, "
            "tampered with or replaced meanwhile: refused; pull or push again"
        )
    partial.replace(target)
    return came


def _piece(
    storage: Storage, remote: RemoteVersion, record: FileRecord, number: int, digests: Sequence[str | None]
) -> bytes:
    """A piece of the file, checked where it has a digest."""
    if isinstance(storage, HubStorage):
        start = number * remote.piece_bytes
        return storage.part(record.path, start, min(remote.piece_bytes, record.bytes - start))
    name = object_name(str(digests[number]))
    piece = storage.read(name, MOST_PIECE_BYTES)
    if sha256_bytes(piece) != digests[number]:
        raise RegistryError(
            f"{storage.url}/{name}, piece {number + 1} of {len(digests)} of {record.path}, is not what its name says: "
            "damaged or tampered with: refused; push again"
        )
    return piece


def _good_pieces(partial: Path, digests: Sequence[str | None], piece_bytes: int) -> int:
    """How many whole pieces at the start of `partial` are right; without a digest only the whole file tells."""
    if not partial.is_file():
        return 0
    with partial.open("rb") as file:
        for number, digest in enumerate(digests):
            piece = file.read(piece_bytes)
            if len(piece) < piece_bytes if digest is None else sha256_bytes(piece) != digest:
                return number
    return len(digests)
