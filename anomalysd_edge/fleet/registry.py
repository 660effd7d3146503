"""A registry of bundles: a folder or URL, nothing that runs. What it holds is named by what it is.

    objects/ab/abcd...                        a piece of a file, by the sha256 of its bytes
    bundles/NAME/VERSION/manifest.json        the bundle's own, and its manifest.sig where it is signed
    bundles/NAME/VERSION/index.json           {"schema": 1, "piece_bytes": ..., "files": {path: [sha256, ...]}}
    bundles/NAME/latest.json                  {"version": ...}, written last

VERSION is the first 16 digits of manifest.json's sha256: the bundle_id that `sd-edge serve` reports. Pieces let a
broken transfer go on, and a new version share what it has in common with others. Nothing of the registry is trusted:
pieces are checked against the index, files against the manifest, and the manifest against its signature.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from anomalysd_edge.bundle.manifest import FileRecord, Manifest
from anomalysd_edge.bundle.reader import MANIFEST, inside, read_bundle
from anomalysd_edge.bundle.signing import SIGNATURE, check_signature
from anomalysd_edge.core.files import sha256_bytes
from anomalysd_edge.core.types import Progress
from anomalysd_edge.errors import BundleError, InputError, RegistryError
from anomalysd_edge.fleet.storage import Storage

SCHEMA = 1
PIECE_BYTES = 8 << 20
MOST_PIECE_BYTES = 64 << 20
MOST_TEXT_BYTES = 64 << 20
"""Of manifest, signature and index."""
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")
_DIGEST = re.compile(r"[0-9a-f]{64}")
_VERSION = re.compile(r"[0-9a-f]{16}")


def check_name(name: str) -> str:
    """`name`, if it can be a bundle's name on every file system. Raises InputError."""
    if not _NAME.fullmatch(name):
        raise InputError(f"{name!r} is no name for a bundle; use letters, digits, dots, dashes and underscores")
    return name


def version_of(manifest: bytes) -> str:
    """The version that manifest.json's bytes are."""
    return sha256_bytes(manifest)[:16]


def transferred_files(manifest: Manifest) -> list[FileRecord]:
    """Every file that a bundle is made of beside its manifest: the listed ones and the engines."""
    return [*manifest.files, *(FileRecord(e.file, e.bytes, e.sha256) for e in manifest.engines)]


@dataclass(frozen=True)
class Pushed:
    """What a push did."""

    name: str
    """Of the bundle."""
    version: str
    """Its version."""
    signed: bool
    """Whether it carries a signature."""
    total_bytes: int
    """Of the bundle."""
    sent_bytes: int
    """Of the pieces that the registry did not have."""


def push(
    path: Path,
    url: str,
    name: str | None,
    progress: Progress,
    public_key: Path | None = None,
    pauses_s: tuple[float, ...] | None = None,
) -> Pushed:
    """Put the bundle `path` into the registry at `url` as `name` (its folder's by default), as the latest version.

    Pieces that are there already are not sent: a broken push, started again, goes on. Raises BundleError for a bundle
    that is damaged, or not signed as `public_key` demands, and RegistryError.
    """
    name = check_name(name or path.resolve().name)
    manifest = read_bundle(path, verify=True, public_key=public_key).manifest
    data = (path / MANIFEST).read_bytes()
    version = version_of(data)
    signature = path / SIGNATURE
    storage = Storage(url) if pauses_s is None else Storage(url, pauses_s)
    files = transferred_files(manifest)
    total, seen, sent = sum(record.bytes for record in files), 0, 0
    index: dict[str, list[str]] = {}
    for record in files:
        whole = hashlib.sha256()
        index[record.path] = []
        with inside(path, record.path).open("rb") as file:
            while piece := file.read(PIECE_BYTES):
                whole.update(piece)
                digest = sha256_bytes(piece)
                index[record.path].append(digest)
                if storage.size(object_name(digest)) != len(piece):
                    storage.write(object_name(digest), piece)
                    sent += len(piece)
                seen += len(piece)
                progress("push", seen >> 10, total >> 10, "KiB")
        if whole.hexdigest() != record.sha256:
            raise BundleError(f"{path / record.path} is not what its manifest says: it was changed; build it again")
    place = f"bundles/{name}/{version}"
    storage.write(f"{place}/index.json", _text({"schema": SCHEMA, "piece_bytes": PIECE_BYTES, "files": index}))
    if signature.is_file():
        storage.write(f"{place}/{SIGNATURE}", signature.read_bytes())
    storage.write(f"{place}/{MANIFEST}", data)
    storage.write(f"bundles/{name}/latest.json", _text({"version": version}))
    return Pushed(name, version, signature.is_file(), total, sent)


def object_name(digest: str) -> str:
    """Where a piece lies."""
    return f"objects/{digest[:2]}/{digest}"


@dataclass(frozen=True)
class RemoteVersion:
    """A version as the registry describes it, to be checked before use."""

    version: str
    """Which."""
    manifest_bytes: bytes
    """manifest.json."""
    signature: bytes | None
    """manifest.sig."""
    piece_bytes: int
    """Length of every piece but a file's last."""
    pieces: Mapping[str, list[str]] | None
    """File -> digests of its pieces; None where files lie whole (hub.py)."""


def find(storage: Storage, name: str, version: str | None) -> RemoteVersion:
    """The description of a version, the latest if None. Raises RegistryError."""
    place = f"bundles/{check_name(name)}"
    if version is None:
        version = str(_object(storage, f"{place}/latest.json").get("version"))
    if not _VERSION.fullmatch(version):
        raise RegistryError(f"{version!r} is no version of a bundle; expected 16 hexadecimal digits")
    manifest, signature = signed_manifest(storage, f"{place}/{version}/")
    if version_of(manifest) != version:
        raise RegistryError(
            f"{storage.url}/{place}/{version}/{MANIFEST} is another manifest ({version_of(manifest)}): it was damaged "
            "or exchanged: refused; push the bundle again"
        )
    index = _object(storage, f"{place}/{version}/index.json")
    piece_bytes, files = index.get("piece_bytes"), index.get("files")
    fits = type(piece_bytes) is int and 0 < piece_bytes <= MOST_PIECE_BYTES and isinstance(files, dict)
    if index.get("schema") != SCHEMA or not fits:
        raise RegistryError(f"{storage.url}/{place}/{version}/index.json is no index of schema {SCHEMA}: push again")
    assert isinstance(piece_bytes, int)
    assert isinstance(files, dict)
    for path, digests in files.items():
        if not isinstance(digests, list) or not all(isinstance(d, str) and _DIGEST.fullmatch(d) for d in digests):
            raise RegistryError(f"{storage.url}/{place}/{version}/index.json is damaged at {path!r}: push again")
    return RemoteVersion(version, manifest, signature, piece_bytes, files)


def signed_manifest(storage: Storage, place: str) -> tuple[bytes, bytes | None]:
    """manifest.json below `place` and its signature, None where it has none. Raises RegistryError."""
    manifest = storage.read(f"{place}{MANIFEST}", MOST_TEXT_BYTES)
    signed = storage.size(f"{place}{SIGNATURE}") is not None
    return manifest, storage.read(f"{place}{SIGNATURE}", MOST_TEXT_BYTES) if signed else None


def check_remote(remote: RemoteVersion, folder: Path, key: Path | None) -> None:
    """Write manifest and signature into `folder` and, with `key`, check them. Raises BundleError."""
    (folder / MANIFEST).write_bytes(remote.manifest_bytes)
    (folder / SIGNATURE).unlink(missing_ok=True)
    if remote.signature is not None:
        (folder / SIGNATURE).write_bytes(remote.signature)
    if key is not None:
        check_signature(remote.manifest_bytes, folder, key)


def _object(storage: Storage, name: str) -> dict[str, Any]:
    data = storage.read(name, MOST_TEXT_BYTES)
    try:
        value = json.loads(data)
    except ValueError as error:
        raise RegistryError(f"{storage.url}/{name} is not valid JSON ({error}): push the bundle again") from error
    if not isinstance(value, dict):
        raise RegistryError(f"{storage.url}/{name} holds no object: push the bundle again")
    return value


def _text(value: Mapping[str, Any]) -> bytes:
    return (json.dumps(value, indent=1, sort_keys=True) + "\n").encode()
