"""A learned mask policy against the full grid: which masks to repaint, chosen photo by photo from the prototypes.

    python -m benchmarks.policy BUNDLE --photos RUN --data DIR --tests 24 --out out/policy

A contextual bandit that is told every arm's outcome. The arms are the grids that may be repainted, from none to the
whole plan; the context is what the prototype map says of the photo. On the bundle's own good photos, held out, and on
synthetic anomalies over them, a ridge regression learns how much each arm lowers the verdict's logistic loss; the
policy takes the arm whose foretold gain less its price a UNet sample is largest. It is then held against every arm
fixed for all photos, and against settling, on labelled photos that it has not learned from.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from anomalysd_edge.bundle.detector_factory import calibration_task, preset_settings
from anomalysd_edge.bundle.reader import NEGATIVE_PROMPT, Bundle, read_bundle
from anomalysd_edge.calibration.calibrate import calibrate
from anomalysd_edge.calibration.holdout import Fold, hold_out
from anomalysd_edge.calibration.settings import CalibrationSettings
from anomalysd_edge.calibration.synthetic_anomalies import synthetic_anomaly
from anomalysd_edge.core.files import write_json
from anomalysd_edge.core.types import F32, F64, U8, Progress
from anomalysd_edge.data.datasets import Dataset, open_dataset
from anomalysd_edge.evaluation.evaluate import METRIC_PX, truth_mask
from anomalysd_edge.evaluation.metrics import image_auroc, pixel_auroc
from anomalysd_edge.method.class_model import ClassModel
from anomalysd_edge.method.detector import Detector
from anomalysd_edge.method.inpainting.masks import foreground
from anomalysd_edge.method.inpainting.schedule import NoiseSchedule
from anomalysd_edge.method.patches.memory_bank import MemoryBank
from anomalysd_edge.method.patches.shot_banks import ShotBanks
from anomalysd_edge.method.result import Inspection
from anomalysd_edge.method.settings import InspectSettings
from anomalysd_edge.profiling.network_meter import MeteredNetworks
from anomalysd_edge.reports.console import progress_bars, show_table
from anomalysd_edge.vision.images import load_rgb, resize_map
from anomalysd_edge.workflows.open_options import InspectOptions
from anomalysd_edge.workflows.photo_sources import good_photos
from benchmarks import harness
from benchmarks.harness import few_tests

ALONE = "prototypes alone"
SETTLING = "settling"
PRICES = (0.0, 0.0003, 0.001, 0.003, 0.01)
"""Of a UNet sample, in logistic loss."""
STEEPNESS = 4.0
"""Of the logistic loss, a unit being the way from the middle good photo to the threshold."""
RIDGE = 1.0


@dataclass(frozen=True)
class Outcome:
    """One photo under one arm, on a scale that all arms share: 0 is the middle held-out normal, 1 the threshold."""

    score: float
    map: F32
    """(METRIC_PX,METRIC_PX)."""
    samples: int
    """Of the UNet."""


@dataclass(frozen=True)
class Photo:
    """A photo under all arms."""

    class_name: str
    bad: bool
    mask: npt.NDArray[np.bool_] | None
    """(METRIC_PX,METRIC_PX); None for photos that are learned from."""
    textured: bool
    arms: Mapping[str, Outcome]

    @property
    def context(self) -> F64:
        """(4,) what is known before anything is repainted: score, distance to the threshold, concentration, kind."""
        seen = self.arms[ALONE]
        score = min(max(seen.score, -2.0), 4.0)
        over = np.log10(float((seen.map > 1).mean()) + 1e-3)
        return np.array([score, abs(score - 1), over, float(self.textured)])


def arms_of(scales: Sequence[int]) -> dict[str, dict[str, Any]]:
    """Changes of the preset by arm: no repaint, the finest of its grids, its two finest, and so on to all of them."""
    fine = sorted(scales, reverse=True)
    grids = [tuple(sorted(fine[:count])) for count in range(1, len(fine) + 1)]
    return {ALONE: {"cells": "none"}, **{f"K = {', '.join(map(str, grid))}": {"scales": grid} for grid in grids}}


def main() -> None:
    """Learn, measure, print, write."""
    parser = harness.parser_of(__doc__, "bundle", "--photos", "--data", "--tests", "--out")
    parser.add_argument("--anomalies", type=int, default=24, help="synthetic anomalies a class, and half as many good")
    parser.add_argument("--threads", type=int, default=None)
    asked = parser.parse_args()
    bundle, data = read_bundle(asked.bundle), few_tests(open_dataset(asked.data), asked.tests)
    with progress_bars() as progress, InspectOptions(threads=asked.threads).detector(asked.bundle) as opened:
        arms = arms_of(preset_settings(bundle, "edge").scales)
        lesson, tests = _inspected(asked, bundle, data, opened, {**arms, SETTLING: {"settle": True}}, progress)
    weights = learned(lesson, list(arms))
    rows = {name: _judged(tests, dict.fromkeys(range(len(tests)), name)) for name in (*arms, SETTLING)}
    for price in PRICES:
        taken = {i: decided(weights, photo.context, price, costs(lesson, list(arms))) for i, photo in enumerate(tests)}
        found = _judged(tests, taken)
        rows[f"learned, a sample costs {price:g}"] = {
            **found,
            "share": {arm: list(taken.values()).count(arm) / len(taken) for arm in arms},
        }
    columns = ("masks", "image / pixel AUROC", "UNet samples", "false alarms", "missed")
    show_table(
        f"{len(tests)} labelled photos",
        columns,
        [
            (
                name,
                f"{100 * r['image_auroc']:.1f} / {100 * r['pixel_auroc']:.1f}",
                f"{r['samples']:.1f}",
                f"{r['false_alarms']} of {r['good']}",
                f"{r['missed']} of {r['bad']}",
            )
            for name, r in rows.items()
        ],
    )
    write_json(asked.out, {**harness.facts(asked), "learned_from": len(lesson), "rows": rows})


def learned(lesson: Sequence[Photo], arms: Sequence[str]) -> dict[str, F64]:
    """By arm, weights over `design` of how much less the logistic loss is than with prototypes alone."""
    x = np.stack([design(photo.context) for photo in lesson])
    # Good photos and anomalies count alike, however many there are of each.
    bad = np.array([photo.bad for photo in lesson])
    weight = np.where(bad, 0.5 / bad.mean(), 0.5 / (1 - bad.mean()))
    penalty = RIDGE * np.diag([0.0, *([1.0] * (x.shape[1] - 1))])
    found = {}
    for arm in arms:
        gain = np.array([_loss(p, ALONE) - _loss(p, arm) for p in lesson])
        found[arm] = np.linalg.solve((x * weight[:, None]).T @ x + penalty, (x * weight[:, None]).T @ gain)
    return found


def design(context: F64) -> F64:
    """(C,) -> (1+2C,): a constant, the context, its squares."""
    return np.concatenate([[1.0], context, np.square(context)])


def decided(weights: Mapping[str, F64], context: F64, price: float, samples: Mapping[str, float]) -> str:
    """The arm of the largest foretold gain less what its samples cost."""
    x = design(context)
    return max(weights, key=lambda arm: float(weights[arm] @ x) - price * samples[arm])


def costs(lesson: Sequence[Photo], arms: Sequence[str]) -> dict[str, float]:
    """UNet samples of each arm, on the mean."""
    return {arm: float(np.mean([photo.arms[arm].samples for photo in lesson])) for arm in arms}


def _loss(photo: Photo, arm: str) -> float:
    side = 1 if photo.bad else -1
    return float(np.logaddexp(0, -side * STEEPNESS * (photo.arms[arm].score - 1)))


def _judged(tests: Sequence[Photo], taken: Mapping[int, str]) -> dict[str, Any]:
    """Mean figures over classes of the photos, each under the arm that was taken for it."""
    images, pixels = [], []
    for name in dict.fromkeys(photo.class_name for photo in tests):
        mine = [(photo, photo.arms[taken[i]]) for i, photo in enumerate(tests) if photo.class_name == name]
        images.append(image_auroc([p.bad for p, _ in mine], [o.score for _, o in mine]))
        masked = [(p.mask, o.map) for p, o in mine if p.mask is not None]
        pixels.append(pixel_auroc([m for m, _ in masked], [a for _, a in masked]))
    outcomes = [(photo, photo.arms[taken[i]]) for i, photo in enumerate(tests)]
    return {
        "image_auroc": float(np.mean(images)),
        "pixel_auroc": float(np.mean(pixels)),
        "samples": float(np.mean([o.samples for _, o in outcomes])),
        "false_alarms": sum(o.score >= 1 for p, o in outcomes if not p.bad),
        "good": sum(not p.bad for p, _ in outcomes),
        "missed": sum(o.score < 1 for p, o in outcomes if p.bad),
        "bad": sum(p.bad for p, _ in outcomes),
    }


def _inspected(
    asked: argparse.Namespace,
    bundle: Bundle,
    data: Dataset,
    opened: Detector,
    arms: Mapping[str, Mapping[str, Any]],
    progress: Progress,
) -> tuple[list[Photo], list[Photo]]:
    """Photos to learn from and photos to judge, each under every arm."""
    records = bundle.manifest.classes
    files = good_photos(asked.photos, records, None)
    shots = {name: [load_rgb(file) for file in mine] for name, mine in files.items()}
    base = preset_settings(bundle, "edge")
    schedule = bundle.schedule()
    negative, networks = bundle.constants[NEGATIVE_PROMPT], MeteredNetworks(opened.networks)
    banks: Mapping[str, tuple[ShotBanks, ...]] = {}
    learning = CalibrationSettings(negatives=12)
    lesson: dict[int, tuple[str, bool, None, bool, dict[str, Outcome]]] = {}
    tests: dict[int, tuple[str, bool, npt.NDArray[np.bool_] | None, bool, dict[str, Outcome]]] = {}
    painted: dict[tuple[str, int], list[U8]] = {}
    for number, (arm, changes) in enumerate(arms.items()):
        settings = replace(base, **changes)
        told = harness.labelled(progress, f"{arm}:")
        task = calibration_task(bundle, networks, shots, settings, learning)
        fitted = calibrate(replace(task, banks=banks), told)
        constants, banks = fitted.classes, fitted.banks
        seat = test = 0
        for name, known in constants.items():
            folds = hold_out(shots[name], banks[name], learning.negatives, learning.seed)
            textured = known.kind == "texture"
            if not number:
                painted |= _painted(asked.anomalies, name, folds, known.kind)
            normals = [
                _inspect(networks, schedule, known, fold.banks, settings, negative, fold.photos) for fold in folds
            ]
            middle = float(np.median([answer.pred_score for answers in normals for answer, _ in answers]))
            for place, (fold, answers) in enumerate(zip(folds, normals, strict=True)):
                bad = _inspect(networks, schedule, known, fold.banks, settings, negative, painted[name, place])
                for label, found in [(False, a) for a in answers] + [(True, a) for a in bad]:
                    lesson.setdefault(seat, (name, label, None, textured, {}))[4][arm] = _outcome(found, middle)
                    seat += 1
            for sample in data.classes[name].test:
                progress(f"{arm}: inspect", test, sum(len(c.test) for c in data.classes.values()), name)
                photo = load_rgb(sample.path)
                (found,) = _inspect(networks, schedule, known, known.banks, settings, negative, [photo])
                mask = truth_mask(sample, (photo.shape[0], photo.shape[1]))
                tests.setdefault(test, (name, bool(sample.label), mask, textured, {}))[4][arm] = _outcome(found, middle)
                test += 1
    return [Photo(*row) for row in lesson.values()], [Photo(*row) for row in tests.values()]


def _painted(count: int, name: str, folds: Sequence[Fold], kind: str) -> dict[tuple[str, int], list[U8]]:
    """By class and fold: held-out normals with a synthetic anomaly each."""
    rng = np.random.default_rng(1)
    everything = [photo for fold in folds for photo in fold.photos]
    share = -(-count // len(everything))
    found = {}
    for place, fold in enumerate(folds):
        made = [
            synthetic_anomaly(photo, foreground(photo, kind), everything[int(rng.integers(len(everything)))], rng)
            for photo in fold.photos
            for _ in range(share)
        ]
        found[name, place] = [m.photo for m in made if m is not None]
    return found


def _inspect(
    networks: MeteredNetworks,
    schedule: NoiseSchedule,
    known: ClassModel,
    banks: tuple[MemoryBank, ...],
    settings: InspectSettings,
    negative: F32,
    photos: Sequence[U8],
) -> list[tuple[Inspection, int]]:
    """Each photo alone, so that its UNet samples can be told."""
    detector = Detector(networks, schedule, {"": replace(known, banks=banks)}, settings, negative, 1)
    found = []
    for photo in photos:
        before = networks.meter.jobs["unet"].samples
        (answer,) = detector.inspect([photo], "")
        found.append((answer, networks.meter.jobs["unet"].samples - before))
    return found


def _outcome(found: tuple[Inspection, int], middle: float) -> Outcome:
    answer, samples = found
    assert answer.threshold is not None, "a class with shots has a threshold"
    unit = max(answer.threshold - middle, 1e-6)
    return Outcome(
        (answer.pred_score - middle) / unit,
        resize_map((answer.anomaly_map - middle) / np.float32(unit), (METRIC_PX, METRIC_PX)),
        samples,
    )


if __name__ == "__main__":
    main()
