"""Writing a bundle: aside, digests and golden vectors filled in, then put in its place in one step."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from datetime import datetime, timezone
from pathlib import Path

import numpy as np
from safetensors.numpy import save as save_tensors

from anomalysd_edge.bundle.manifest import ClassRecord, FileRecord, Manifest, manifest_from_json
from anomalysd_edge.bundle.reader import CONSTANTS, MANIFEST, Bundle, check_constants, golden_resizes
from anomalysd_edge.bundle.signing import SIGNATURE
from anomalysd_edge.bundle.update import LOCK
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
    bundle: Bundle, out: Path, classes: Mapping[str, ClassRecord], constants: Mapping[str, Array]
) -> None:
    """Write `bundle` with other classes and constants to `out`, which may be its own folder.

    Graphs and engines are linked where the file system allows it, else copied. The signature is dropped, and so are the
    verify results of every precision: they compared the verdicts of other classes or thresholds.
    """
    old = bundle.manifest
    precisions = {name: replace(record, gates={}) for name, record in old.precisions.items()}
    with write_bundle(out) as writer:
        for part in sorted(bundle.path.iterdir()):
            if part.name not in (MANIFEST, CONSTANTS, LOCK, SIGNATURE, ENGINES):
                _link(part, writer.folder / part.name)
        writer.finish(replace(old, classes=dict(classes), precisions=precisions), constants)
        # Engines have digests of their own in the manifest, and may be removed: not among the bundle's files.
        if (bundle.path / ENGINES).is_dir():
            _link(bundle.path / ENGINES, writer.folder / ENGINES)


def _link(source: Path, target: Path) -> None:
    if source.is_dir():
        shutil.copytree(source, target, copy_function=_link_file)
    else:
        _link_file(str(source), str(target))


def _link_file(source: str, target: str) -> str:
    try:
        os.link(source, target)
    except OSError:  # another file system, or one without links
        shutil.copyfile(source, target)
    return target
