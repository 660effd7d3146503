"""The bodies of the verbs: each opens the rooms that it needs, in the order in which a user meets them.

Like cli.py this module belongs to no room: it imports training, export and runtime inside its functions only, so that a
box without torch can still run `sd-edge inspect`.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from anomalysd_edge.core.types import Progress
from anomalysd_edge.errors import ClassError, InputError
from anomalysd_edge.method.detector import Detector
from anomalysd_edge.reports import inspection
from anomalysd_edge.vision import images
from anomalysd_edge.workflows.open_options import Opening

if TYPE_CHECKING:
    pass


def inspect_photos(
    bundle_path: Path,
    paths: Sequence[Path],
    class_name: str | None,
    out: Path | None,
    how: Opening | tuple[str, str, int | None, int],
    progress: Progress,
) -> list[dict[str, Any]]:
    """`sd-edge inspect`: every photo is read before the first is judged, so bad input costs no half-done folder."""
    how = how if isinstance(how, Opening) else Opening(*how)
    files = list(_photo_files(paths))
    for file in files:
        images.load_rgb(file)
    with how.detector(bundle_path) as detector:
        name = class_name or _only_class(detector)
        if name not in detector.classes:
            raise ClassError(f"class {name!r} is not in this bundle; it holds: {', '.join(sorted(detector.classes))}")
        results = []
        for start in range(0, len(files), detector.group):
            part = files[start : start + detector.group]
            until = None if how.deadline_ms is None else time.monotonic() + how.deadline_ms / 1e3
            photos = [images.load_rgb(file) for file in part]
            for file, photo, answer in zip(part, photos, detector.inspect(photos, name, until), strict=True):
                told = inspection.inspection_json(answer, str(file))
                if detector.label:
                    told["mode"] = f"{detector.label} ({answer.mode})"
                results.append(told)
                if out:
                    inspection.save_inspection(out / _free_name(file, files), answer, photo, str(file))
            progress("inspect", len(results), len(files), name)
    return results


def _photo_files(paths: Sequence[Path]) -> list[Path]:
    found: list[Path] = []
    for path in paths:
        if path.is_dir():
            inside = images.list_images(path)
            if not inside:
                raise InputError(
                    f"{path} holds no photos; known endings are {', '.join(sorted(images.IMAGE_SUFFIXES))}"
                )
            found += inside
        elif path.exists():
            found.append(path)
        else:
            raise InputError(f"{path} does not exist; give photos or folders of photos")
    return found


def _free_name(file: Path, files: Sequence[Path]) -> str:
    """The photo's stem; with its folder's name where another photo has the same stem."""
    same = [other for other in files if other.stem == file.stem]
    return file.stem if len(same) == 1 else f"{file.parent.name}_{file.stem}_{same.index(file)}"


def _only_class(detector: Detector) -> str:
    names = sorted(detector.classes)
    if len(names) != 1:
        raise ClassError(f"this bundle holds several classes, say which with --class: {', '.join(names)}")
    return names[0]
