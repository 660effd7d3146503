"""`sd-edge calibrate`: a bundle's constants once more, from good photos alone, with settings chosen for each class.

The graphs stay as they are; prototypes, map scales, thresholds and each class's own settings are new. The bundle is
written aside (its graphs linked, not copied, where the disk allows it) and put in its place when it is whole.
"""

from __future__ import annotations

import os
import shutil
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from anomalysd_edge.bundle.detector_factory import (
    calibration_task,
    class_record,
    constant_tensors,
    preset_settings,
)
from anomalysd_edge.bundle.manifest import ClassRecord, Manifest
from anomalysd_edge.bundle.reader import CONSTANTS, MANIFEST, NEGATIVE_PROMPT, Bundle, read_bundle
from anomalysd_edge.bundle.signing import SIGNATURE
from anomalysd_edge.bundle.update import LOCK
from anomalysd_edge.bundle.writer import write_bundle
from anomalysd_edge.calibration.calibrate import calibrate
from anomalysd_edge.calibration.settings import CalibrationSettings
from anomalysd_edge.core.files import read_json, sha256_file
from anomalysd_edge.core.threads import use_threads
from anomalysd_edge.core.types import Progress
from anomalysd_edge.data.classes import ClassSpec
from anomalysd_edge.data.datasets import few_shot, open_dataset
from anomalysd_edge.errors import DatasetError
from anomalysd_edge.method.class_model import ClassConstants
from anomalysd_edge.vision.images import load_rgb

if TYPE_CHECKING:
    from anomalysd_edge.method.networks import Networks

from anomalysd_edge.calibration.outcome import Calibrated, Seen
from anomalysd_edge.data.datasets import Dataset
from anomalysd_edge.workflows.open_options import Opening

RUN_RECORD = "run.json"
ENGINES = "engines"


@dataclass(frozen=True)
class CalibrateRequest:
    """What `sd-edge calibrate` was asked for."""

    bundle: Path
    """Bundle whose constants are to be found again."""
    photos: Path
    """A run (its shots) or a data set (its good training photos)."""
    out: Path | None = None
    """Where the new bundle goes; in the place of the old one if None."""
    shots: int | None = None
    """Good photos a class; as many as the bundle was fitted to if None."""
    preset: str = "edge"
    """The preset that is calibrated; others lose their thresholds, since the prototypes change."""
    settings: CalibrationSettings = field(default_factory=CalibrationSettings)
    """How."""
    threads: int | None = None
    """CPU threads; all cores if None."""


def recalibrate(asked: CalibrateRequest, progress: Progress) -> Calibrated:
    """Calibrate and write. Raises BundleError, DatasetError (a class without photos), ImageError, SettingsError."""
    bundle = read_bundle(asked.bundle)
    inspect = preset_settings(bundle, asked.preset)
    records = bundle.manifest.classes
    files = good_photos(asked.photos, records, asked.shots)
    shots = {name: [load_rgb(file) for file in mine] for name, mine in files.items()}
    with _networks(bundle, asked.threads) as networks:
        found = calibrate(calibration_task(bundle, networks, shots, inspect, asked.settings), progress)
    specs = bundle.specs()
    out = asked.out or asked.bundle
    _write(bundle, out, specs, shots, found.classes, asked.preset)
    return Calibrated(
        bundle=out,
        trials=found.trials,
        before={n: r.calibration[asked.preset].threshold if asked.preset in r.calibration else None
                for n, r in records.items()},
        after={name: constants.calibration.threshold for name, constants in found.classes.items()},
        choices={name: chosen for name, c in found.classes.items() if (chosen := dict(c.calibration.choices))},
        seconds=found.seconds,
        preset=asked.preset,
        false_alarm_rate=asked.settings.false_alarm_rate,
        shots={name: [sha256_file(file) for file in mine] for name, mine in files.items()},
    )  # fmt: skip


def good_photos(source: Path, records: dict[str, ClassRecord], shots: int | None) -> dict[str, list[Path]]:
    """By class: the shots of a run, or the first good photos of a data set, `shots` or as many as the bundle had."""
    if (source / RUN_RECORD).is_file():
        classes = read_json(source / RUN_RECORD).get("classes", {})
        found = {name: [source / shot["file"] for shot in entry["shots"]] for name, entry in classes.items()}
    else:
        found = {name: list(part.train) for name, part in open_dataset(source).classes.items()}
        if len(records) == 1 and len(found) == 1:  # a lone folder of photos is the bundle's only class
            found = {next(iter(records)): next(iter(found.values()))}
    missing = [name for name in records if not found.get(name)]
    if missing:
        raise DatasetError(
            f"{source} holds no good photos of {', '.join(missing)}; the bundle's classes are {', '.join(records)}"
        )
    return {name: list(few_shot(tuple(found[name]), shots or r.shots or 4, None, name)) for name, r in records.items()}


def _networks(bundle: Bundle, threads: int | None) -> Networks:
    from anomalysd_runtime.onnx.networks import OnnxNetworks

    use_threads(threads)
    return OnnxNetworks.of_bundle(bundle, "cpu", threads)


def _write(
    bundle: Bundle,
    out: Path,
    specs: dict[str, ClassSpec],
    shots: dict[str, list[Any]],
    found: dict[str, ClassConstants],
    preset: str,
) -> None:
    old: Manifest = bundle.manifest
    manifest = replace(
        old,
        classes={name: class_record(specs[name], len(shots[name]), {preset: found[name]}) for name in specs},
        # A gate compared verdicts at the old thresholds: it has to be asked again.
        precisions={name: replace(record, gates={}) for name, record in old.precisions.items()},
    )
    with write_bundle(out) as writer:
        parts = [p for p in sorted(bundle.path.iterdir()) if p.name not in (MANIFEST, CONSTANTS, LOCK, SIGNATURE)]
        for part in parts:
            if part.name != ENGINES:
                link(part, writer.folder / part.name)
        writer.finish(manifest, constant_tensors(found, bundle.constants[NEGATIVE_PROMPT]))
        # After the digests were taken: engines have records of their own, and may be removed without harm.
        if (bundle.path / ENGINES).is_dir():
            link(bundle.path / ENGINES, writer.folder / ENGINES)


def link(source: Path, target: Path) -> None:
    """The same files under another folder: linked where the disk allows it, else copied."""
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


def false_alarms(found: Calibrated, photos: Path, how: Opening, progress: Progress) -> dict[str, Seen]:
    """Judge the good photos of `photos` that were no shots (told by their bytes), for each class that has some.

    Raises DatasetError where no class of the bundle has any.
    """
    data = open_dataset(photos)
    others = {name: _others(data, name, set(found.shots[name])) for name in found.after if name in data.classes}
    others = {name: files for name, files in others.items() if files}
    if not others:
        raise DatasetError(f"{photos} holds no good photos but the shots; a false-alarm rate needs others")
    total, done = sum(map(len, others.values())), 0
    seen = {}
    with how.detector(found.bundle) as detector:
        for name, files in others.items():
            scores: list[float] = []
            for start in range(0, len(files), detector.group):
                part = [load_rgb(file) for file in files[start : start + detector.group]]
                scores += [answer.pred_score for answer in detector.inspect(part, name)]
                done += len(part)
                progress("check", done, total, name)
            seen[name] = Seen(tuple(scores), detector.classes[name].calibration.threshold)
    return seen


def _others(data: Dataset, name: str, shots: set[str]) -> list[Path]:
    part = data.classes[name]
    good = [*part.train, *(sample.path for sample in part.test if not sample.label)]
    return [file for file in good if sha256_file(file) not in shots]
