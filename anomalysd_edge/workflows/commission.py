"""The line's part of `sd-edge calibrate`: unlabelled photos of its stream, and a few known bad ones, judged and fitted.

Nothing is asked here. Whoever answers puts the photo among the good ones or the known bad ones, and calibrates again.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from anomalysd_edge.calibration.calibrate import from_both_sides
from anomalysd_edge.calibration.commissioning import LEAST_STREAM, CommissioningSettings, belief_of, commission
from anomalysd_edge.calibration.outcome import LineFinding
from anomalysd_edge.calibration.score_posterior import LineScores
from anomalysd_edge.calibration.settings import CalibrationSettings
from anomalysd_edge.calibration.threshold_model import ThresholdPrior
from anomalysd_edge.core.files import printable, sha256_file
from anomalysd_edge.core.types import Progress
from anomalysd_edge.data.datasets import ClassData
from anomalysd_edge.errors import DatasetError, SettingsError
from anomalysd_edge.method.class_model import ClassModel
from anomalysd_edge.method.detector import Detector
from anomalysd_edge.vision.images import load_rgb
from anomalysd_edge.workflows.datasets import open_for


@dataclass(frozen=True)
class LinePhotos:
    """By class, no photo in two places."""

    unlabelled: dict[str, list[Path]]
    """Of every class, LEAST_STREAM or more."""
    known_bad: dict[str, list[Path]]
    """Of any class."""


def line_photos(
    shots: Mapping[str, Iterable[Path]], unlabelled: Path, known_bad: Path | None, dataset: str | None = None
) -> LinePhotos:
    """The line's photos of the classes of `shots`.

    Raises DatasetError where a class has no unlabelled photos or too few of them, where no class has known bad ones
    though a folder of them was given, and where a photo (by its bytes) is in two places.
    """
    data = open_for(shots, unlabelled, dataset)
    stream = {name: _every(data.classes[name]) for name in shots if name in data.classes}
    if missing := [name for name in shots if not stream.get(name)]:
        raise DatasetError(
            f"{unlabelled} holds no photos of {', '.join(missing)}; give unlabelled ones of every class of the bundle"
        )
    for name, files in stream.items():
        if len(files) < LEAST_STREAM:
            raise DatasetError(
                f"{unlabelled} holds {len(files)} unlabelled photo{'s' * (len(files) > 1)} of {name}, which say too "
                f"little; give {LEAST_STREAM} or more"
            )
    bad: dict[str, list[Path]] = {}
    if known_bad is not None:
        found = open_for(shots, known_bad, dataset).classes
        bad = {name: _bad(found[name]) for name in shots if name in found}
        if not any(bad.values()):
            raise DatasetError(f"{known_bad} holds no photos of {', '.join(shots)}; give known bad ones, or no folder")
    for name, good in shots.items():
        _refuse_twins(name, {"good": good, "unlabelled": stream[name], "known bad": bad.get(name, [])})
    return LinePhotos(stream, bad)


def _every(part: ClassData) -> list[Path]:
    """Whatever its folders say of them."""
    return sorted({*part.train, *(sample.path for sample in part.test)})


def _bad(part: ClassData) -> list[Path]:
    """Those in folders of bad photos, or where there is no such folder all."""
    marked = [sample.path for sample in part.test if sample.label]
    return marked or _every(part)


def _refuse_twins(name: str, groups: Mapping[str, Iterable[Path]]) -> None:
    seen: dict[str, tuple[str, Path]] = {}
    for kind, files in groups.items():
        for file in files:
            other, first = seen.setdefault(sha256_file(file), (kind, file))
            if other != kind:
                raise DatasetError(
                    printable(f"{file} of {name} is given as {kind} and, as {first}, as {other}: remove it from one")
                )


def commission_classes(
    detector: Detector,
    photos: LinePhotos,
    prior: ThresholdPrior | None,
    settings: CalibrationSettings,
    progress: Progress,
) -> tuple[dict[str, ClassModel], dict[str, LineFinding]]:
    """The detector's classes with what the line's photos say of their thresholds, and what was found.

    A class keeps its threshold where nothing is proposed. Raises SettingsError for a class without a score model.
    """
    classes, findings = dict(detector.classes), {}
    asked = CommissioningSettings(costs=settings.costs, seed=settings.seed)
    total, done = sum(len(each) for part in (photos.unlabelled, photos.known_bad) for each in part.values()), 0

    def judged(name: str, files: list[Path]) -> list[tuple[Path, float]]:
        """Those that show the class."""
        nonlocal done
        found = []
        for start in range(0, len(files), detector.group):
            part = files[start : start + detector.group]
            answers = detector.inspect([load_rgb(file) for file in part], name)
            found += [(f, a.pred_score) for f, a in zip(part, answers, strict=True) if a.evidence.kind != "photo"]
            done += len(part)
            progress("line", done, total, name)
        return found

    for name, files in photos.unlabelled.items():
        calibration = classes[name].calibration
        belief = None if prior is None else belief_of(calibration, prior)
        if belief is None or calibration.score_model is None:
            raise SettingsError(
                f"the threshold of {name} rests on good photos alone (the preset, or shots on which no synthetic "
                "anomaly shows), and unlabelled photos cannot move it; calibrate without --unlabelled"
            )
        stream, bad = judged(name, files), judged(name, photos.known_bad.get(name, []))
        kept = {file for file, _ in stream}
        foreign = [file for file in files if file not in kept]
        if len(stream) < LEAST_STREAM:
            raise DatasetError(
                f"{len(foreign)} of the {len(files)} unlabelled photos of {name} do not show it at all (the first is "
                f"{foreign[0]}); give {LEAST_STREAM} or more that do"
            )
        scores = LineScores(unlabelled=tuple(score for _, score in stream), known_bad=tuple(score for _, score in bad))
        found = commission(belief, scores, asked, calibration.score_model.cap)
        if found.model is not None:
            classes[name] = replace(classes[name], calibration=from_both_sides(calibration, found.model, settings))
        findings[name] = LineFinding(found, tuple(str(file) for file, _ in stream), tuple(map(str, foreign)))
    return classes, findings
