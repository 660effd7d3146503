"""Many photos over Ray Data: actors that hold a detector, groups as one machine would make them, a journal.

A score is the one of a single machine to the last bit because a group is: the same photos, in the same order, share
their batches. Where an actor or its machine is lost, Ray gives its group to another one. Where a photo kills the
process that runs the networks, its group is inspected photo by photo, and only the photo at fault has an error in place
of a score.
"""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from anomalysd_edge.bundle.reader import MANIFEST, read_bundle
from anomalysd_edge.core.files import sha256_file
from anomalysd_edge.core.types import U8, Progress
from anomalysd_edge.errors import BackendError, BundleError, ImageError, SDEdgeError, SettingsError
from anomalysd_edge.method.result import Inspection
from anomalysd_edge.reports import inspection
from anomalysd_runtime.distributed.journal import Journal, JournalEntry
from anomalysd_runtime.distributed.ray_start import ray_running
from anomalysd_runtime.distributed.remote_photos import read_photo
from anomalysd_runtime.distributed.serialization import pack
from anomalysd_runtime.server.inference.worker import Opener, Worker, WorkerLost, open_bundle
from anomalysd_runtime.server.settings import EngineSettings

KEY = "bundle"
MOST_BLOCKS = 10_000
"""Blocks of one run: one a group while there are no more; Ray keeps an entry for each."""


@dataclass(frozen=True)
class RaySettings:
    """How a run is spread."""

    address: str = "local"
    """'local' starts Ray on this machine; else a cluster's address, or 'auto' on one of its machines."""
    workers: int = 2
    """Actors, each with a detector of its own."""
    gpus: float = 0.0
    """GPUs that one of them claims; below 1 several share one."""
    journal: Path | None = None
    """File in which answers are kept as they come; the same run with it goes on where it stopped."""

    def __post_init__(self) -> None:
        if self.workers < 1 or self.gpus < 0:
            raise SettingsError(f"{self.workers} workers with {self.gpus:g} GPUs each; expected at least 1 and 0")


@dataclass(frozen=True)
class PhotoTask:
    """One photo of a run."""

    number: int
    """Its place in the order."""
    place: str
    """Path or URL, the same on every machine."""
    class_name: str
    """Class to inspect it as."""


@dataclass(frozen=True)
class RayTask:
    """What every worker needs to know of a run."""

    bundle: Path
    """Its folder, the same on every machine."""
    bundle_id: str
    """sha256 of its manifest: a machine with another bundle must not judge."""
    engine: EngineSettings
    """Preset, backend, threads of one worker."""
    whole: bool
    """Send whole inspections, not only their plain values."""
    opener: Opener = open_bundle


class Inspector:
    """The actor: a group a call. Networks run in a process of its own, so that a photo that kills it costs itself."""

    def __init__(self, task: RayTask) -> None:
        """Check and open the bundle. An error is returned by every call: Ray would try a failed start again."""
        self._task = task
        self._worker = Worker(task.engine, task.opener)
        self._refusal = ""
        try:
            _check_bundle(task)
            self._start()
        except SDEdgeError as error:
            self._refusal = f"on {os.uname().nodename}: {error}"

    def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        """Rows of a group each (`photos`: JSON) -> rows of a photo each: number, answer (bytes), error, refusal."""
        rows: list[tuple[int, bytes, str]] = []
        for text in batch["photos"]:
            photos = [PhotoTask(**entry) for entry in json.loads(str(text))]
            found: list[Inspection | str] = [self._refusal] * len(photos)
            if not self._refusal:
                found = self._read_and_judge(photos)
            for photo, each in zip(photos, found, strict=True):
                if isinstance(each, str):
                    rows.append((photo.number, b"", each))
                else:
                    rows.append((photo.number, self._bytes(each, photo), ""))
        return {
            "number": np.array([row[0] for row in rows], np.int64),
            "answer": np.array([row[1] for row in rows], object),
            "error": np.array([row[2] for row in rows], object),
            "refused": np.full(len(rows), bool(self._refusal)),
        }

    def _start(self) -> None:
        self._worker.start()
        self._worker.open(KEY, self._task.bundle)

    def _bytes(self, answer: Inspection, photo: PhotoTask) -> bytes:
        if self._task.whole:
            return pack(answer)
        return json.dumps(inspection.inspection_json(answer, photo.place), allow_nan=False).encode()

    def _read_and_judge(self, photos: Sequence[PhotoTask]) -> list[Inspection | str]:
        read: list[Any] = []
        for photo in photos:
            try:
                read.append(read_photo(photo.place))
            except ImageError as error:
                read.append(str(error))
        fine = [i for i, each in enumerate(read) if not isinstance(each, str)]
        judged = self._judge([read[i] for i in fine], [photos[i].class_name for i in fine])
        for i, found in zip(fine, judged, strict=True):
            read[i] = found
        return read

    def _judge(self, photos: Sequence[U8], names: Sequence[str]) -> list[Inspection | str]:
        """A group's answers; one whose process died is judged photo by photo: only the photo at fault has none."""
        if not photos:
            return []
        try:
            return list(self._worker.inspect(KEY, photos, names, [self._task.engine.full] * len(photos)).answers)
        except WorkerLost as error:
            self._worker.end(grace_s=0)
            self._start()
            if len(photos) == 1:
                return [f"{error} while it judged this photo; look at the photo"]
        return [self._judge([photo], [name])[0] for photo, name in zip(photos, names, strict=True)]


def _check_bundle(task: RayTask) -> None:
    """Raise BundleError where this machine's bundle is another one, damaged, or not signed as it should be."""
    found = sha256_file(task.bundle / MANIFEST)
    if found != task.bundle_id:
        raise BundleError(
            f"{task.bundle} is another bundle ({found[:16]}, expected {task.bundle_id[:16]}): copy it there, "
            "for instance with 'sd-edge pull'"
        )
    read_bundle(task.bundle, verify=True, public_key=task.engine.public_key)


def run_groups(
    task: RayTask,
    groups: Sequence[Sequence[PhotoTask]],
    settings: RaySettings,
    journal: Journal,
    progress: Progress,
) -> None:
    """Judge what the journal lacks and keep it there. Afterwards every photo has an answer or an error.

    Raises BackendError where no worker can be started, MissingExtra without Ray.
    """
    done = journal.answered()
    total = sum(len(group) for group in groups)
    # A group that is half done (photos with an error) is judged whole again: a score depends on the whole group.
    left = [group for group in groups if any(photo.number not in done for photo in group)]
    if not left:
        return
    threads = task.engine.threads or 1
    finished = len(done - {photo.number for group in left for photo in group})
    with ray_running(settings.address, settings.workers * threads) as ray:
        try:
            for found in _answers(task, left, settings):
                journal.add(found)
                finished += len(found)
                progress("inspect", finished, total, f"{settings.workers} workers")
        except ray.exceptions.RayError as error:
            said = [line for line in str(error).strip().splitlines() if line.strip()]
            last = said[-1].strip() if said else type(error).__name__
            raise BackendError(f"Ray gave up ({last}); look at its logs in /tmp/ray") from error


def _answers(
    task: RayTask, groups: Sequence[Sequence[PhotoTask]], settings: RaySettings
) -> Iterator[list[JournalEntry]]:
    """What came of the groups, a group at a time, in whatever order they end."""
    from ray import data

    context = data.DataContext.get_current()
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    context.execution_options.preserve_order = False  # the journal orders; a slow group holds nothing up
    rows = [{"photos": json.dumps([vars(photo) for photo in group])} for group in groups]
    answers = data.from_items(rows, override_num_blocks=min(len(rows), MOST_BLOCKS)).map_batches(
        Inspector,
        batch_size=1,
        # One call at a time: an actor that is lost takes along the group that it had, not some that wait.
        compute=data.ActorPoolStrategy(size=min(settings.workers, len(rows)), max_tasks_in_flight_per_actor=1),
        fn_constructor_args=(task,),
        num_cpus=task.engine.threads or 1,
        num_gpus=settings.gpus or None,
    )
    logging.getLogger("ray.data").setLevel(logging.CRITICAL)  # it sets its own level when it is imported
    for batch in answers.iter_batches(batch_size=None, prefetch_batches=1):
        if batch["refused"].any():
            raise BackendError(f"a worker cannot judge {batch['error'][0]}")
        yield [
            JournalEntry(int(number), None if error else bytes(answer), str(error) or None)
            for number, answer, error in zip(batch["number"], batch["answer"], batch["error"], strict=True)
        ]
