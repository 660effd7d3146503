"""Measuring the modes: each is calibrated on the same good photos, then judges the same photos one at a time."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from anomalysd_edge.bundle.detector_factory import calibration_task
from anomalysd_edge.bundle.reader import Bundle
from anomalysd_edge.calibration.calibrate import calibrate
from anomalysd_edge.calibration.holdout import perturbed
from anomalysd_edge.calibration.synthetic_anomalies import synthetic_anomaly
from anomalysd_edge.core.types import U8, Mask, Progress
from anomalysd_edge.evaluation import metrics
from anomalysd_edge.method.class_model import ClassModel
from anomalysd_edge.method.detector import Detector
from anomalysd_edge.method.inpainting.masks import foreground
from anomalysd_edge.method.networks import Networks
from anomalysd_edge.method.patches.shot_banks import ShotBanks
from anomalysd_edge.method.settings import InspectSettings
from anomalysd_edge.profiling.network_meter import MeteredNetworks
from anomalysd_edge.profiling.operating_points import OperatingPoint, at_operating_point, mark_pareto_front
from anomalysd_edge.vision import images

_METRIC_PX = 256

CANDIDATES: dict[str, dict[str, Any]] = {
    "prototypes alone": {"cells": "none"},
    "middle": {"scales": (8,), "settle": True},
    "fine": {"scales": (16,), "settle": True},
    "whole": {},
    "whole, settling": {"settle": True},
    "whole, cascade": {"cascade": True, "settle": True},
    "whole, suspect cells": {"cells": "suspect", "cascade": True},
    "three grids, two draws": {"scales": (4, 8, 16), "draws": 2},
    "two passes": {"passes": 2, "strength": 0.25},
    "four passes, DPM-Solver++": {"passes": 4, "strength": 0.25, "sampler": "dpm2m"},
}
"""Changes over preset edge that are tried."""


@dataclass(frozen=True)
class LabelledPhoto:
    """A photo whose truth is known."""

    class_name: str
    load: Callable[[], U8]
    """Reads it, so that reading is timed with the rest."""
    mask: Mask | None
    """(256,256) defective pixels; None: bad, but nobody drew where."""
    bad: bool


@dataclass(frozen=True)
class SearchRequest:
    """What is measured."""

    bundle: Bundle
    preset: str
    settings: InspectSettings
    """Of the preset."""
    shots: Mapping[str, Sequence[U8]]
    """Good photos that each mode is calibrated on."""
    judged: Sequence[LabelledPhoto]
    candidates: Mapping[str, Mapping[str, Any]]


def measure_operating_points(
    asked: SearchRequest, networks: Networks, base: Detector, progress: Progress
) -> tuple[OperatingPoint, ...]:
    """The modes, from fast to slow. `base` is the bundle's own detector over `networks`."""
    calibrated: dict[InspectSettings, dict[str, ClassModel]] = {}
    banks: Mapping[str, tuple[ShotBanks, ...]] = {}
    side = networks.sizes.latent_side
    fitting = {n: c for n, c in asked.candidates.items() if max(c.get("scales", asked.settings.scales)) <= side}
    modes: list[OperatingPoint] = []
    for number, (name, changes) in enumerate(fitting.items()):
        progress("modes", number, len(fitting), name)
        settings = InspectSettings.from_json({**asked.settings.to_json(), **changes})
        # What leaves repaints out is calibrated without it: normals must be seen whole to say what is normal.
        plain = replace(settings, cascade=False, settle=False, cells="none" if settings.cells == "none" else "all")
        if plain not in calibrated:
            task = calibration_task(asked.bundle, networks, asked.shots, plain)
            found = calibrate(replace(task, banks=banks))
            calibrated[plain], banks = found.classes, found.banks
        records = {
            n: replace(c.calibration, choices={}, limits=None)
            for n, c in calibrated[plain].items()
            if c.calibration.threshold is not None
        }
        bare = OperatingPoint(name, dict(changes), 0, 0, 0, 0, 0, 0, 0, 0, 0, {}, records)
        modes.append(_measure_point(bare, at_operating_point(base, bare, asked.settings), asked.judged))
    progress("modes", len(fitting), len(fitting), "done")
    return mark_pareto_front(modes)


def synthetic_judged(shots: Mapping[str, Sequence[U8]], kinds: Mapping[str, str], count: int) -> list[LabelledPhoto]:
    """`count` disturbed copies of the good photos of each class, and as many with a synthetic anomaly."""
    found: list[LabelledPhoto] = []
    for number, (name, photos) in enumerate(shots.items()):
        rng = np.random.default_rng((7, number))
        nothing = np.zeros((_METRIC_PX, _METRIC_PX), np.bool_)
        for i in range(count):
            good = perturbed(photos[i % len(photos)], rng)
            found.append(LabelledPhoto(name, _given(good), nothing, False))
            other = photos[int(rng.integers(len(photos)))]
            if (made := synthetic_anomaly(good, foreground(good, kinds[name]), other, rng)) is not None:
                found.append(LabelledPhoto(name, _given(made.photo), _small(made.mask), True))
    return found


def labelled(samples: Sequence[Any], count: int) -> list[LabelledPhoto]:
    """At most `count` good and `count` bad test photos of each class, spread over its folders' order."""
    found: list[LabelledPhoto] = []
    for name in dict.fromkeys(sample.class_name for sample in samples):
        for bad in (False, True):
            mine = [s for s in samples if s.class_name == name and bool(s.label) == bad]
            spread = np.linspace(0, max(0, len(mine) - 1), min(count, len(mine))).round().astype(int)
            found += [_labelled(mine[i]) for i in spread]
    return found


def _labelled(sample: Any) -> LabelledPhoto:
    if not sample.label:
        mask: Mask | None = np.zeros((_METRIC_PX, _METRIC_PX), np.bool_)
    elif sample.mask_path is None:
        mask = None
    else:
        height, width = images.load_rgb(sample.path).shape[:2]
        mask = _small(images.load_mask(sample.mask_path, (height, width)))
    return LabelledPhoto(sample.class_name, lambda: images.load_rgb(sample.path), mask, bool(sample.label))


def _given(photo: U8) -> Callable[[], U8]:
    return lambda: photo


def _small(mask: Mask) -> Mask:
    picture = Image.fromarray(mask.astype(np.uint8)).resize((_METRIC_PX, _METRIC_PX), Image.Resampling.NEAREST)
    return np.asarray(picture) > 0


def _measure_point(mode: OperatingPoint, detector: Detector, judged: Sequence[LabelledPhoto]) -> OperatingPoint:
    """`mode` with its figures."""
    networks = MeteredNetworks(detector.networks)
    metered = detector.over(networks)
    metered.inspect([judged[0].load()], judged[0].class_name)  # warm-up: batches of this mode's sizes
    samples = networks.meter.jobs["unet"].samples
    taken: list[float] = []
    ended: Counter[str] = Counter()
    by_class: dict[str, list[tuple[LabelledPhoto, float, int | None, npt.NDArray[np.float32]]]] = {}
    for photo in judged:
        began = time.perf_counter()
        (answer,) = metered.inspect([photo.load()], photo.class_name)
        taken.append((time.perf_counter() - began) * 1e3)
        ended[answer.ended] += 1
        small = images.resize_map(answer.anomaly_map, (_METRIC_PX, _METRIC_PX))
        by_class.setdefault(photo.class_name, []).append((photo, answer.pred_score, answer.pred_label, small))
    image, pixel = [], []
    for found in by_class.values():
        image.append(metrics.image_auroc([int(p.bad) for p, *_ in found], [score for _, score, *_ in found]))
        drawn = [(p.mask, m) for p, _, _, m in found if p.mask is not None]
        pixel.append(metrics.pixel_auroc([mask for mask, _ in drawn], [m for _, m in drawn]))
    every = [entry for found in by_class.values() for entry in found]
    return replace(
        mode,
        p50_ms=float(np.percentile(taken, 50)),
        p95_ms=float(np.percentile(taken, 95)),
        image_auroc=_mean(image),
        pixel_auroc=_mean(pixel),
        missed=sum(p.bad and label == 0 for p, _, label, _ in every),
        bad=sum(p.bad for p, *_ in every),
        false_alarms=sum(not p.bad and label == 1 for p, _, label, _ in every),
        good=sum(not p.bad for p, *_ in every),
        unet_samples=(networks.meter.jobs["unet"].samples - samples) / len(judged),
        ended=dict(ended),
    )


def _mean(values: Sequence[float]) -> float:
    """Over the classes for which the figure is defined; 0 where it is for none."""
    defined = [value for value in values if not np.isnan(value)]
    return sum(defined) / len(defined) if defined else 0.0
