"""The bodies of `inspect` and `eval` over Ray. Like workflow.py it opens the runtime inside functions only."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

from anomalysd_edge.bundle.reader import MANIFEST, Bundle, read_bundle
from anomalysd_edge.core.files import sha256_bytes, sha256_file
from anomalysd_edge.core.types import Progress
from anomalysd_edge.data.datasets import Dataset
from anomalysd_edge.errors import ClassError, ImageError, SettingsError
from anomalysd_edge.evaluation.evaluate import Judged
from anomalysd_edge.reports import inspection
from anomalysd_edge.vision import images
from anomalysd_edge.workflows.open_options import Opening

if TYPE_CHECKING:
    from anomalysd_runtime.distributed.journal import Journal
    from anomalysd_runtime.distributed.ray_inspect import Photo, RaySettings, Task


def inspect_on_ray(
    bundle_path: Path,
    places: Sequence[str],
    class_name: str | None,
    out: Path | None,
    how: Opening,
    settings: RaySettings,
    progress: Progress,
) -> list[dict[str, Any]]:
    """`sd-edge inspect --ray`: photos or URLs -> their results in order; a photo without one has the key `error`."""
    from anomalysd_runtime.distributed.packing import unpack
    from anomalysd_runtime.distributed.photos import list_photos, read_photo
    from anomalysd_runtime.distributed.ray_inspect import Photo, run_groups

    bundle = read_bundle(bundle_path, public_key=how.public_key)
    name = class_name or _only_class(bundle)
    if name not in bundle.manifest.classes:
        raise ClassError(
            f"class {name!r} is not in this bundle; it holds: {', '.join(sorted(bundle.manifest.classes))}"
        )
    task = _task(bundle, how, whole=out is not None)
    photos = [Photo(number, place, name) for number, place in enumerate(list_photos(places))]
    results: list[dict[str, Any]] = []
    with _journal(task, photos, settings) as journal:
        run_groups(task, list(_cut(photos, task.engine.group)), settings, journal, progress)
        folders = _free_names([photo.place for photo in photos]) if out else []
        for kept in journal:
            place = photos[kept.number].place
            if kept.answer is None:
                results.append({"photo": place, "class": name, "error": kept.error})
            elif out is None:
                results.append(json.loads(kept.answer))
            else:
                answer = unpack(kept.answer)
                results.append(inspection.inspection_json(answer, place))
                inspection.save_inspection(out / folders[kept.number], answer, read_photo(place), place)
    return results


class ClusterJudge:
    """Inspections of a data set's test photos, made over Ray beforehand, then read from the journal in order."""

    def __init__(self, bundle: Bundle, how: Opening, settings: RaySettings) -> None:
        self.facts: dict[str, str] = {}
        """backend and mode, as the workers told them."""
        self._task = _task(bundle, how, whole=True)
        self._settings = settings

    def judge(self, data: Dataset, progress: Progress) -> Iterator[Judged]:
        """(sample, photo, inspection) of every test photo, in the data set's order.

        Raises ImageError where photos have no answer: figures without them would be those of another data set.
        """
        from anomalysd_runtime.distributed.packing import unpack
        from anomalysd_runtime.distributed.ray_inspect import Photo, run_groups

        samples = [sample for found in data.classes.values() for sample in found.test]
        photos = [Photo(i, str(sample.path), sample.class_name) for i, sample in enumerate(samples)]
        groups, position = [], 0
        for found in data.classes.values():  # a group lies within a class, as on one machine
            groups += list(_cut(photos[position : position + len(found.test)], self._task.engine.group))
            position += len(found.test)
        with _journal(self._task, photos, self._settings) as journal:
            run_groups(self._task, groups, self._settings, journal, progress)
            failed = [kept for kept in journal if kept.answer is None]
            if failed:
                raise ImageError(
                    f"{len(failed)} of {len(photos)} photos have no inspection, the first: {failed[0].error}; "
                    "mend or remove them and run again"
                )
            for sample, kept in zip(samples, journal, strict=True):
                assert kept.answer is not None
                answer = unpack(kept.answer)
                self.facts = {"backend": answer.backend, "mode": answer.mode}
                yield sample, images.load_rgb(sample.path), answer


def _task(bundle: Bundle, how: Opening, whole: bool) -> Task:
    from anomalysd_runtime.distributed.ray_inspect import Task
    from anomalysd_runtime.server.settings import EngineSettings

    if how.force or how.on_mismatch != "error" or how.deadline_ms is not None or how.memory_budget is not None:
        raise SettingsError(
            "--force, --on-mismatch, --deadline-ms and --memory-budget are for one machine; on a cluster scores must "
            "not depend on which machine made them"
        )
    engine = EngineSettings(
        preset=how.preset, backend=how.backend, threads=how.threads or 1, max_batch=how.max_batch,
        signature_key=how.public_key,
    )  # fmt: skip
    return Task(bundle.path.resolve(), sha256_file(bundle.path / MANIFEST), engine, whole)


def _journal(task: Task, photos: Sequence[Photo], settings: RaySettings) -> Journal:
    """Opened for this run: bundle, settings that make the scores, photos and the form of the answers name it."""
    from anomalysd_runtime.distributed.journal import Journal

    engine = task.engine
    listing = "\n".join(f"{photo.class_name}\t{photo.place}\t{_version(photo.place)}" for photo in photos)
    identity = {
        "bundle": task.bundle_id, "preset": engine.preset, "backend": engine.backend, "threads": engine.threads,
        "max_batch": engine.max_batch, "photos": sha256_bytes(listing.encode()), "count": len(photos),
        "answers": "whole" if task.whole else "plain",
    }  # fmt: skip
    return Journal(settings.journal, identity)


def _version(place: str) -> str:
    """Size and time of a file of this machine, so that a photo that was replaced is judged anew; '' of a URL."""
    path = Path(place)
    if "://" in place or not path.is_file():
        return ""
    found = path.stat()
    return f"{found.st_size} {found.st_mtime_ns}"


def _free_names(places: Sequence[str]) -> list[str]:
    """A folder's name for each photo: its stem, with its own folder and place in the run where stems are not unique."""
    paths = [PurePosixPath(place) for place in places]
    count = Counter(path.stem for path in paths)
    return [p.stem if count[p.stem] == 1 else f"{p.parent.name}_{p.stem}_{i}" for i, p in enumerate(paths)]


def _cut(photos: Sequence[Photo], size: int) -> Iterator[Sequence[Photo]]:
    for start in range(0, len(photos), size):
        yield photos[start : start + size]


def _only_class(bundle: Bundle) -> str:
    names = sorted(bundle.manifest.classes)
    if len(names) != 1:
        raise ClassError(f"this bundle holds several classes, say which with --class: {', '.join(names)}")
    return names[0]
