"""`sd-edge calibrate`: fit a bundle's prototypes, map scales, thresholds and class settings again, from good photos.

The graphs stay as they are. The bundle is written aside and put in its place when it is whole.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from anomalysd_edge.bundle.detector_factory import calibration_task, class_record, constant_tensors, preset_settings
from anomalysd_edge.bundle.reader import NEGATIVE_PROMPT, read_bundle
from anomalysd_edge.bundle.writer import rewrite_bundle
from anomalysd_edge.calibration.calibrate import calibrate
from anomalysd_edge.calibration.outcome import Calibrated, LineFinding, Seen
from anomalysd_edge.calibration.settings import CalibrationSettings
from anomalysd_edge.core.files import sha256_file
from anomalysd_edge.core.threads import use_threads
from anomalysd_edge.core.types import Progress
from anomalysd_edge.data.datasets import Dataset, NamedFolders
from anomalysd_edge.errors import DatasetError, InputError
from anomalysd_edge.method.detector import Detector
from anomalysd_edge.vision.images import load_rgb
from anomalysd_edge.workflows.commission import commission_classes, line_photos
from anomalysd_edge.workflows.datasets import open_for, say_faults
from anomalysd_edge.workflows.open_options import InspectOptions
from anomalysd_edge.workflows.photo_sources import good_photos


@dataclass(frozen=True, kw_only=True)
class CalibrateRequest:
    """What `sd-edge calibrate` shall do; it runs on the CPU."""

    bundle: Path
    """The bundle to calibrate."""
    photos: Path
    """A run (its shots), or a data set or folder (its good photos)."""
    dataset: str | None = None
    """Name of the published data set that `photos` holds, if it is one."""
    named: NamedFolders | None = None
    """The folder of good photos of the bundle's class, where it was named."""
    unlabelled: Path | None = None
    """Photos of the line's stream, mostly good ones, of every class; they move thresholds, never the banks."""
    known_bad: Path | None = None
    """A few photos of defects; only beside `unlabelled`."""
    out: Path | None = None
    """Where the new bundle goes; in the place of the old one if None."""
    shots: int | None = None
    """Good photos a class, the first ones; all that `photos` holds if None."""
    preset: str = "edge"
    """The preset that is calibrated; others lose their thresholds, since the prototypes change."""
    settings: CalibrationSettings = field(default_factory=CalibrationSettings)
    """Costs, false-alarm rate, synthetic anomalies and the like."""
    threads: int | None = None
    """CPU threads; all cores if None."""


def recalibrate(request: CalibrateRequest, progress: Progress) -> Calibrated:
    """Calibrate and write. Raises BundleError, DatasetError (a class without photos), ImageError, SettingsError."""
    from anomalysd_runtime.onnx.networks import OnnxNetworks

    bundle, preset = read_bundle(request.bundle), request.preset
    inspect = preset_settings(bundle, preset)
    records = bundle.manifest.classes
    files = good_photos(
        request.photos, records, request.shots, every=request.shots is None, dataset=request.dataset,
        named=request.named,
    )  # fmt: skip
    say_faults(files)
    if request.known_bad is not None and request.unlabelled is None:
        raise InputError("known bad photos are judged beside the line's stream: give --unlabelled too")
    line = None if request.unlabelled is None else line_photos(files, request.unlabelled, request.known_bad)
    shots = {name: [load_rgb(file) for file in mine] for name, mine in files.items()}
    use_threads(request.threads)
    with OnnxNetworks.of_bundle(bundle, "cpu", request.threads) as networks:
        task = calibration_task(bundle, networks, shots, inspect, request.settings)
        found = calibrate(task, progress)
        models = found.classes
        findings: dict[str, LineFinding] = {}
        if line is not None:
            detector = Detector(networks, task.schedule, models, inspect, task.negative_states)
            models, findings = commission_classes(detector, line, task.threshold_prior, request.settings, progress)
    out = request.out or request.bundle
    classes = {
        name: class_record(spec, len(shots[name]), {preset: models[name]}) for name, spec in bundle.specs().items()
    }
    change = f"calibrated{' on the line' if line else ''}: {', '.join(sorted(models))}"
    rewrite_bundle(bundle, out, classes, constant_tensors(models, bundle.constants[NEGATIVE_PROMPT]), change)
    return Calibrated(
        bundle=out,
        trials=found.trials,
        before={n: r.calibration[preset].threshold if preset in r.calibration else None for n, r in records.items()},
        after={name: constants.calibration.threshold for name, constants in models.items()},
        choices={name: chosen for name, c in models.items() if (chosen := dict(c.calibration.choices))},
        seconds=found.seconds,
        preset=preset,
        false_alarm_rate=request.settings.false_alarm_rate,
        shots={name: [sha256_file(file) for file in mine] for name, mine in files.items()},
        calibrations={name: constants.calibration for name, constants in models.items()},
        line=findings,
        features="" if bundle.manifest.features is None else bundle.manifest.features.kind,
    )


def false_alarms(
    found: Calibrated, photos: Path, options: InspectOptions, progress: Progress, dataset: str | None = None
) -> dict[str, Seen]:
    """Scores of the good photos in `photos` that were no shots (compared by their bytes), of each class with any.

    Raises DatasetError where no class of the bundle has any.
    """
    data = open_for(found.after, photos, dataset)
    others = {name: _others(data, name, set(found.shots[name])) for name in found.after if name in data.classes}
    others = {name: files for name, files in others.items() if files}
    if not others:
        raise DatasetError(f"{photos} holds no good photos but the shots; a false-alarm rate needs others")
    total, done = sum(map(len, others.values())), 0
    seen = {}
    with options.detector(found.bundle) as detector:
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
