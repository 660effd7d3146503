"""`sd-edge inspect`: photos to verdicts, with their pictures."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from anomalysd_edge.core.files import printable
from anomalysd_edge.core.types import U8, Progress
from anomalysd_edge.reports import inspection
from anomalysd_edge.reports.console import say
from anomalysd_edge.vision import images
from anomalysd_edge.workflows.open_options import InspectOptions
from anomalysd_edge.workflows.photo_sources import chosen_class, photo_files, result_folders

KEPT_BYTES = 1 << 30
"""Decoded photos that are kept between the check and the inspection; later ones are decoded a second time."""


def inspect_photos(
    bundle: Path,
    paths: Sequence[Path],
    class_name: str | None,
    out: Path | None,
    options: InspectOptions,
    progress: Progress,
    full: bool = False,
) -> list[dict[str, Any]]:
    """Results as plain values, in order; with `out`, a folder of pictures for each photo.

    Photos are repainted only as far as their verdicts need it, unless `full` or pictures are asked for.
    Every photo is decoded before the first is inspected: a damaged one is reported before anything is written.
    """
    files = photo_files(paths)
    decoded = _decoded(files)
    folders = result_folders([str(file) for file in files])
    with options.detector(bundle) as detector:
        name = chosen_class(class_name, detector.classes)
        results: list[dict[str, Any]] = []
        for start in range(0, len(files), detector.group):
            part = range(start, min(start + detector.group, len(files)))
            photos = [decoded.pop(i) if i in decoded else images.load_rgb(files[i]) for i in part]
            deadline = None if options.deadline_ms is None else time.monotonic() + options.deadline_ms / 1e3
            answers = detector.inspect(photos, name, deadline, full or out is not None)
            for i, photo, answer in zip(part, photos, answers, strict=True):
                result = inspection.inspection_json(answer, str(files[i]))
                if detector.label:
                    result["mode"] = f"{detector.label} ({answer.mode})"
                results.append(result)
                if out:
                    inspection.save_inspection(out / folders[i], answer, photo, str(files[i]))
            progress("inspect", len(results), len(files), name)
    return results


def _decoded(files: Sequence[Path]) -> dict[int, U8]:
    """Photos by number, up to KEPT_BYTES; all are decoded, poor shots are said on stderr. Raises ImageError."""
    kept: dict[int, U8] = {}
    free = KEPT_BYTES
    for number, file in enumerate(files):
        photo = images.load_rgb(file)
        for fault in images.photo_faults(photo):
            say(printable(f"{file} is a poor shot: {fault}"))
        if photo.nbytes <= free:
            kept[number] = photo
            free -= photo.nbytes
    return kept
