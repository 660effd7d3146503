"""What a bundle learns of a class from its good photos alone: prototypes, map scales, thresholds, settings of its own.

No defect photo is ever asked for. Thresholds come from held-out normals (holdout.py); where settings are to be chosen
too, from synthetic anomalies painted on those (synthetic_anomalies.py, settings_search.py).
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from anomalysd_edge.calibration.holdout import Fold, Holdout, hold_out
from anomalysd_edge.calibration.holdout_maps import HoldoutJudge, PrototypeScores
from anomalysd_edge.calibration.settings import CalibrationSettings
from anomalysd_edge.calibration.settings_search import Trial
from anomalysd_edge.core.types import F32, U8, Progress
from anomalysd_edge.data.classes import ClassSpec
from anomalysd_edge.method.anomaly_map import MapScale, image_score
from anomalysd_edge.method.class_model import Calibration, ClassConstants
from anomalysd_edge.method.inpainting.schedule import NoiseSchedule
from anomalysd_edge.method.networks import Networks
from anomalysd_edge.method.patches.feature_windows import dense_features, tiled_side, tiles_for
from anomalysd_edge.method.patches.out_of_distribution import Limits, contrast
from anomalysd_edge.method.patches.patch_scorer import Reading
from anomalysd_edge.method.patches.prediction_bounds import upper_bound
from anomalysd_edge.method.settings import PRESETS, InspectSettings
from anomalysd_edge.vision.letterbox import Frame, common_aspect

_ALONE = 0.1
"""False-alarm rate from which the threshold of a single shot is taken."""


@dataclass(frozen=True)
class CalibrationTask:
    """What is calibrated, on what."""

    networks: Networks
    """Thresholds hold for these networks: the ones that will inspect."""
    schedule: NoiseSchedule
    """Of the UNet."""
    specs: Mapping[str, ClassSpec]
    """The classes, by name."""
    prompts: Mapping[str, Mapping[str, F32]]
    """(77,D) text states by class and level."""
    shots: Mapping[str, Sequence[U8]]
    """(H,W,3) uint8 good photos by class; a class may have none."""
    inspect: InspectSettings
    """The preset that is calibrated."""
    settings: CalibrationSettings = field(default_factory=CalibrationSettings)
    """How."""
    negative_states: F32 | None = None
    """(77,D) states of the negative prompt, for guidance above 1."""
    reading: Reading | None = None
    """Patch scorer of these features' distances; None where there is none."""
    holdouts: Mapping[str, Holdout] = field(default_factory=dict)
    """Of an earlier result on the same shots, so that banks are not built again."""


@dataclass(frozen=True)
class CalibrationResult:
    """What was found."""

    classes: dict[str, ClassConstants]
    """By name. A class without shots keeps its prompts alone: no bank, no threshold."""
    trials: dict[str, list[Trial]]
    """What was tried to choose a class's settings; only where settings were to be chosen."""
    holdouts: dict[str, Holdout]
    """Banks and held-out photos by class."""
    seconds: dict[str, float]
    """How long each class took."""


def calibrate(task: CalibrationTask, progress: Progress | None = None) -> CalibrationResult:
    """Calibrate every class of `task.specs`. Deterministic for given settings."""
    found = CalibrationResult({}, {}, dict(task.holdouts), {})
    for number, name in enumerate(task.specs):
        if progress:
            progress("calibrate", number, len(task.specs), name)
        began = time.monotonic()
        found.classes[name] = _calibrate_class(task, name, found)
        found.seconds[name] = round(time.monotonic() - began, 1)
    if progress:
        progress("calibrate", len(task.specs), len(task.specs), "done")
    return found


def _calibrate_class(task: CalibrationTask, name: str, found: CalibrationResult) -> ClassConstants:
    """One class; what was tried and held out goes into `found`."""
    networks, settings, photos = task.networks, task.settings, list(task.shots.get(name, ()))
    shapes = [(photo.shape[0], photo.shape[1]) for photo in photos]
    aspect = common_aspect(shapes)
    spec = replace(task.specs[name], tiles=task.specs[name].tiles or tiles_for(shapes, networks.sizes.features_px))
    bare = ClassConstants(task.prompts[name], spec.kind, aspect, spec.tiles, reading=task.reading)
    if not photos:
        return bare
    if name not in found.holdouts:
        found.holdouts[name] = hold_out(
            networks, photos, spec, aspect, settings.negatives, settings.bank_size, settings.seed, settings.exposures
        )
    held = found.holdouts[name]
    guided, middles = _by_prototypes(networks, held.folds, bare, task.inspect, settings)
    bare = replace(bare, guided=guided)
    judge = HoldoutJudge(task.networks, task.schedule, bare, held.folds, task.inspect, task.negative_states, settings)
    choices: dict[str, Any] = {}
    if settings.synthetic:
        choices, found.trials[name] = judge.choose()
    tuned = replace(task.inspect, **choices)
    fused, scales = judge.normals(tuned)
    rate = settings.false_alarm_rate
    scores = [image_score(m, tuned.top_share) for m in fused]
    expected = _expected(bare, judge.prototype_scores(tuned), scores, scales, tuned, rate)
    # Copies of one shot count as photos only where there is nothing better.
    own = upper_bound(scores, rate) if expected is None or len(photos) == 1 else max(scores)
    threshold = own if expected is None else max(own, expected)
    calibration = Calibration(
        threshold=threshold,
        pixel_threshold=max(threshold, upper_bound([float(m.max()) for m in fused], rate)),
        scales=scales,
        choices=choices,
        clear=judge.clear(tuned, scales, threshold),
        limits=Limits.of(middles, _contrasts(photos, aspect, networks.sizes.size_px)) if middles else None,
    )
    return replace(bare, bank=held.bank, calibration=calibration)


def _expected(
    bare: ClassConstants,
    held_out: PrototypeScores,
    fused: Sequence[float],
    scales: Mapping[str, MapScale],
    settings: InspectSettings,
    rate: float,
) -> float | None:
    """Fused score that a further good photo exceeds with probability `rate`; None where nothing but the class's says.

    From the prototype scores of the shots, each judged without itself, and what the drawn classes' good photos tell of
    how such scores spread (reading.Usual); `fused` are the fused scores of all held-out photos, and the most that the
    other maps added to one of them is added here. Disturbed copies are no further photos and do not enter the bound.
    A single shot has no score, and asking the drawn classes alone for a rate that a dozen photos would carry gives a
    threshold that misses every other defect: there it is _ALONE.
    """
    reading, weight = bare.reading, settings.prototypes_weight
    if bare.map_kind(settings) != "reading" or reading is None or reading.usual is None:
        return None
    if settings.fusion != "scaled" or not weight or "prototypes" not in scales:
        return None
    others = settings.multiscale_weight * ("multiscale" in scales) + settings.guided_weight * ("guided" in scales)
    share, scale = weight / (weight + others), scales["prototypes"]

    def part(scores: Sequence[float]) -> F32:
        return share * scale.apply(np.array(scores, np.float32))

    shots = held_out.shots
    bound = reading.usual[bare.kind == "object"].bound(shots, rate if shots else max(rate, _ALONE))
    added = max(0.0, float((np.array(fused) - part(held_out.all)).max()))
    return float(part([bound])[0]) + added


def _by_prototypes(
    networks: Networks, folds: list[Fold], bare: ClassConstants, inspect: InspectSettings, settings: CalibrationSettings
) -> tuple[dict[str, float], list[float]]:
    """What prototypes say of held-out normals; nothing without prototypes.

    By kind of prototype map, the value that they hardly reach, above which a patch goes into the guided mask; and under
    `inspect`, where a reading judges, the foreign.middle_distance of each.
    """
    kinds = {bare.map_kind(preset): preset for preset in (*PRESETS.values(), inspect)}
    found: dict[str, list[F32]] = {kind: [] for kind in kinds}
    middles: list[float] = []
    for fold in folds:
        if fold.bank is None:
            return {}, []
        side = tiled_side(networks.sizes.features_px, bare.tiles)
        framed = [Frame.of(p.shape[:2], bare.aspect).resize(p, side) for p in fold.photos]
        features = dense_features(networks, framed, bare.tiles)
        for kind, preset in kinds.items():
            for patches in features:
                judged_map, middle = bare.by_prototypes(patches, preset, fold.bank)
                found[kind].append(judged_map)
                if kind == bare.map_kind(inspect) and middle is not None:
                    middles.append(middle)
    guided = {kind: float(np.quantile(np.stack(maps), settings.guided_quantile)) for kind, maps in found.items()}
    return guided, middles


def _contrasts(photos: Sequence[U8], aspect: float | None, side: int) -> list[float]:
    """Of each photo as the networks see it."""
    return [contrast(Frame.of((p.shape[0], p.shape[1]), aspect).resize(p, side)) for p in photos]
