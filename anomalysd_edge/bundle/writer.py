"""Writing a bundle: aside, digests and golden vectors filled in, then put in its place in one step."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from datetime import datetime, timezone
from pathlib import Path

import numpy as np
from safetensors.numpy import save as save_tensors

from anomalysd_edge.bundle.manifest import ClassRecord, FileRecord, Manifest, manifest_from_json
from anomalysd_edge.bundle.reader import CONSTANTS, MANIFEST, Bundle, check_constants, golden_resizes
from anomalysd_edge.bundle.signing import SIGNATURE, sign
from anomalysd_edge.bundle.update import read_manifest, writing
from anomalysd_edge.bundle.versions import keep_version, link, link_bundle
from anomalysd_edge.core.files import folder_aside, json_ready, sha256_file, write_json
from anomalysd_edge.core.types import Array
from anomalysd_edge.errors import BundleError

ENGINES = "engines"
"""Folder of a bundle's TensorRT engines."""


class BundleWriter:
    """An unfinished bundle in a temporary folder; made by :func:`write_bundle`."""

    def __init__(self, folder: Path, final: Path) -> None:
        self.folder = folder
        """Where the files are written until the bundle is whole."""
        self.final = final
        """Where the finished bundle will be."""
        self.finished = False
        """Whether :meth:`finish` has run."""

    def network_file(self, name: str) -> Path:
        """The path to write the graph `name` to; its folder exists."""
        file = self.folder / name / "model.onnx"
        file.parent.mkdir(exist_ok=True)
        return file

    def finish(self, manifest: Manifest, constants: Mapping[str, Array]) -> Manifest:
        """Write the constants, then the manifest with golden vectors, time and digests filled in, and return it."""
        check_constants(constants, manifest, self.final / CONSTANTS)
        contiguous = {key: np.ascontiguousarray(value) for key, value in sorted(constants.items())}
        (self.folder / CONSTANTS).write_bytes(save_tensors(contiguous))
        files = sorted(file for file in self.folder.rglob("*") if file.is_file())
        records = tuple(
            FileRecord(file.relative_to(self.folder).as_posix(), file.stat().st_size, sha256_file(file))
            for file in files
        )
        sides = tuple(dict.fromkeys(side for side in (manifest.sizes.size_px, manifest.sizes.features_px) if side))
        whole = replace(
            manifest,
            preprocessing=replace(manifest.preprocessing, golden=golden_resizes(sides)),
            files=records,
            created=datetime.now(timezone.utc).isoformat(timespec="seconds"),
        )
        value = json_ready(whole)
        manifest_from_json(value, str(self.final / MANIFEST))  # a NaN would have become null: refuse it here, not there
        write_json(self.folder / MANIFEST, value)
        self.finished = True
        return whole


@contextmanager
def write_bundle(path: Path) -> Iterator[BundleWriter]:
    """Write a bundle aside and put it at `path` when the block ends well; after an error nothing is left.

    An older bundle at `path` is replaced. Raises InputError where `path` is anything else, and BundleError where the
    block ends without :meth:`BundleWriter.finish`.
    """
    with folder_aside(path, marker=MANIFEST) as folder:
        writer = BundleWriter(folder, path)
        yield writer
        if not writer.finished:
            raise BundleError(f"the export to {path} ended without a manifest: nothing was written")


def rewrite_bundle(
    bundle: Bundle,
    out: Path,
    classes: Mapping[str, ClassRecord],
    constants: Mapping[str, Array],
    change: str,
    key: Path | None = None,
) -> None:
    """Write `bundle` with other classes and constants to `out`, which may be its own folder; what lies there becomes a
    version (versions.py). `change` says in a sentence what is different.

    Graphs and engines are linked where the file system allows it, else copied. The signature is dropped, and made anew
    with the private `key` where one is given; so are the verify results of every precision: they compared the verdicts
    of other classes or thresholds. Raises BundleError where `out` is the bundle and was changed since it was read.
    """
    old = bundle.manifest
    precisions = {name: replace(record, gates={}) for name, record in old.precisions.items()}
    with ExitStack() as held:
        if replaced := (out / MANIFEST).is_file():
            held.enter_context(writing(out))
        if replaced and out.resolve() == bundle.path.resolve() and read_manifest(out) != old:
            raise BundleError(f"{out} was changed by another process meanwhile, and is left as it is: run again")
        writer = held.enter_context(write_bundle(out))
        link_bundle(bundle.path, writer.folder, without=(MANIFEST, CONSTANTS, SIGNATURE, ENGINES))
        writer.finish(replace(old, classes=dict(classes), precisions=precisions, change=change), constants)
        # Engines have digests of their own in the manifest, and may be removed: not among the bundle's files.
        if (bundle.path / ENGINES).is_dir():
            link(bundle.path / ENGINES, writer.folder / ENGINES)
        if key is not None:
            sign(writer.folder / MANIFEST, key)
        if replaced:
            keep_version(out)
