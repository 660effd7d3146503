"""`sd-edge inspect --ray` and `eval --ray`: photos inspected by the workers of a Ray cluster."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from anomalysd_edge.bundle.reader import MANIFEST, Bundle, read_bundle
from anomalysd_edge.core.files import sha256_bytes, sha256_file
from anomalysd_edge.core.types import Progress
from anomalysd_edge.data.datasets import Dataset
from anomalysd_edge.errors import ImageError, SettingsError
from anomalysd_edge.evaluation.evaluate import InspectedSample
from anomalysd_edge.reports import inspection
from anomalysd_edge.vision import images
from anomalysd_edge.workflows.open_options import InspectOptions
from anomalysd_edge.workflows.photo_sources import chosen_class, result_folders

if TYPE_CHECKING:
    from anomalysd_runtime.distributed.journal import Journal
    from anomalysd_runtime.distributed.ray_inspect import PhotoTask, RaySettings, RayTask


def inspect_on_ray(
    bundle_path: Path,
    places: Sequence[str],
    class_name: str | None,
    out: Path | None,
    options: InspectOptions,
    settings: RaySettings,
    progress: Progress,
    full: bool = False,
) -> list[dict[str, Any]]:
    """`sd-edge inspect --ray`: photos or URLs -> their results in order; a photo without one has the key `error`.

    Photos are repainted only as far as their verdicts need it, unless `full` or pictures are asked for.
    """
    from anomalysd_runtime.distributed.ray_inspect import PhotoTask, run_groups
    from anomalysd_runtime.distributed.remote_photos import list_photos, read_photo
    from anomalysd_runtime.distributed.serialization import unpack

    bundle = read_bundle(bundle_path, public_key=options.public_key)
    name = chosen_class(class_name, bundle.manifest.classes)
    task = _task(bundle, options, whole=out is not None, full=full or out is not None)
    photos = [PhotoTask(number, place, name) for number, place in enumerate(list_photos(places))]
    results: list[dict[str, Any]] = []
    with _journal(task, photos, settings) as journal:
        run_groups(task, list(_cut(photos, task.engine.group)), settings, journal, progress)
        folders = result_folders([photo.place for photo in photos]) if out else []
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

    def __init__(self, bundle: Bundle, options: InspectOptions, settings: RaySettings) -> None:
        self.facts: dict[str, str] = {}
        """backend and mode, as the workers report them."""
        self._task = _task(bundle, options, whole=True, full=True)
        self._settings = settings

    def judge(self, data: Dataset, progress: Progress) -> Iterator[InspectedSample]:
        """(sample, photo, inspection) of every test photo, in the data set's order.

        Raises ImageError where photos have no answer: figures without them would be those of another data set.
        """
        from anomalysd_runtime.distributed.ray_inspect import PhotoTask, run_groups
        from anomalysd_runtime.distributed.serialization import unpack

        samples = [sample for found in data.classes.values() for sample in found.test]
        photos = [PhotoTask(i, str(sample.path), sample.class_name) for i, sample in enumerate(samples)]
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


def _task(bundle: Bundle, options: InspectOptions, whole: bool, full: bool) -> RayTask:
    from anomalysd_runtime.distributed.ray_inspect import RayTask
    from anomalysd_runtime.server.settings import EngineSettings

    single = (options.force, options.on_mismatch != "error", options.deadline_ms, options.memory_budget_bytes)
    if any(single):
        raise SettingsError(
            "--force, --on-mismatch, --deadline-ms and --memory-budget are for one machine; on a cluster scores must "
            "not depend on which machine made them"
        )
    engine = EngineSettings(
        preset=options.preset, backend=options.backend, threads=options.threads or 1, max_batch=options.max_batch,
        public_key=options.public_key, full=full,
    )  # fmt: skip
    return RayTask(bundle.path.resolve(), sha256_file(bundle.path / MANIFEST), engine, whole)


def _journal(task: RayTask, photos: Sequence[PhotoTask], settings: RaySettings) -> Journal:
    """The journal of this run: its identity is the bundle, the settings that decide scores, and the photos."""
    from anomalysd_runtime.distributed.journal import Journal

    engine = task.engine
    listing = "\n".join(f"{photo.class_name}\t{photo.place}\t{_version(photo.place)}" for photo in photos)
    identity = {
        "bundle": task.bundle_id, "preset": engine.preset, "backend": engine.backend, "threads": engine.threads,
        "max_batch": engine.largest_batch, "photos": sha256_bytes(listing.encode()), "count": len(photos),
        "answers": "whole" if task.whole else "plain", "full": engine.full,
    }  # fmt: skip
    return Journal(settings.journal, identity)


def _version(place: str) -> str:
    """Size and time of a file of this machine, so that a replaced photo is inspected again; '' of a URL."""
    path = Path(place)
    if "://" in place or not path.is_file():
        return ""
    found = path.stat()
    return f"{found.st_size} {found.st_mtime_ns}"


def _cut(photos: Sequence[PhotoTask], size: int) -> Iterator[Sequence[PhotoTask]]:
    for start in range(0, len(photos), size):
        yield photos[start : start + size]
