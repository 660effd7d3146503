"""What a bundle learns of a class from its good photos alone: prototypes, map scales, thresholds, settings of its own.

No photo of a defect is needed. Thresholds come from both sides: what held-out shots score, and synthetic anomalies on
them (evidence.py), read by what many other classes tell (threshold_model.py). Where settings are to be chosen too, it
is on synthetic anomalies (settings_search.py).
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from anomalysd_edge.calibration.bank_photos import split_photos
from anomalysd_edge.calibration.class_features import ClassFeatures
from anomalysd_edge.calibration.evidence import banks_of, observe
from anomalysd_edge.calibration.holdout import Fold, hold_out
from anomalysd_edge.calibration.holdout_maps import HoldoutJudge
from anomalysd_edge.calibration.settings import CalibrationSettings
from anomalysd_edge.calibration.settings_search import Trial
from anomalysd_edge.calibration.threshold_model import ThresholdPrior
from anomalysd_edge.core.types import F32, U8, Progress
from anomalysd_edge.data.classes import ClassSpec
from anomalysd_edge.method.anomaly_map import image_score
from anomalysd_edge.method.class_model import Calibration, ClassModel
from anomalysd_edge.method.fusion import clear_bound, counted_area, finished_prototype_map
from anomalysd_edge.method.inpainting.masks import foreground
from anomalysd_edge.method.inpainting.schedule import NoiseSchedule
from anomalysd_edge.method.networks import Networks
from anomalysd_edge.method.patches.distance_correction import DistanceCorrection
from anomalysd_edge.method.patches.feature_windows import tiles_for
from anomalysd_edge.method.patches.memory_bank import MemoryBank, self_similarity
from anomalysd_edge.method.patches.out_of_distribution import PhotoLimits, contrast
from anomalysd_edge.method.patches.patch_foreground import PatchForeground
from anomalysd_edge.method.patches.patch_scorer import PatchScorer
from anomalysd_edge.method.patches.prediction_bounds import upper_bound
from anomalysd_edge.method.patches.shot_banks import ShotBanks
from anomalysd_edge.method.score_model import SMALLEST, ScoreEvidence, ScoreModel
from anomalysd_edge.method.settings import PRESETS, InspectSettings
from anomalysd_edge.vision.letterbox import Letterbox, common_aspect

_ENOUGH = 8
"""Photos that are judged by the banks, from which leaving out photos of the banks tells nothing more."""
PIXEL_SHARE = 1.1
"""Of the image threshold, the score-map value from which a pixel is in the predicted mask."""


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
    patch_scorer: PatchScorer | None = None
    """Patch scorer of these features' distances; None where there is none."""
    correction: DistanceCorrection | None = None
    """Learned correction of them; None where there is none."""
    threshold_prior: ThresholdPrior | None = None
    """What other classes tell of image scores of these features; None where nobody measured it."""
    banks: Mapping[str, tuple[ShotBanks, ...]] = field(default_factory=dict)
    """Of an earlier result on the same shots, so that they are not built again."""


@dataclass(frozen=True)
class HeldOut:
    """A good photo as banks judged it that were built without it."""

    photo: U8
    """(H,W,3): one of the shots, or a disturbed copy of one."""
    anomaly_map: F32
    """(S,S) fused score map."""
    score: float
    """Image score."""


@dataclass(frozen=True)
class CalibrationResult:
    """What was found."""

    classes: dict[str, ClassModel]
    """By name. A class without shots keeps its prompts alone: no bank, no threshold."""
    trials: dict[str, list[Trial]]
    """What was tried to choose a class's settings; only where settings were to be chosen."""
    banks: dict[str, tuple[ShotBanks, ...]]
    """By class, one a size of the photo."""
    seconds: dict[str, float]
    """How long each class took."""
    held_out: dict[str, list[HeldOut]] = field(default_factory=dict)
    """By class, its held-out normals, under the settings that were found."""


def calibrate(task: CalibrationTask, progress: Progress | None = None) -> CalibrationResult:
    """Calibrate every class of `task.specs`. Deterministic for given settings."""
    found = CalibrationResult({}, {}, dict(task.banks), {})
    for number, name in enumerate(task.specs):
        if progress:
            progress("calibrate", number, len(task.specs), name)
        began = time.monotonic()
        found.classes[name] = _calibrate_class(task, name, found)
        found.seconds[name] = round(time.monotonic() - began, 1)
    if progress:
        progress("calibrate", len(task.specs), len(task.specs), "done")
    return found


def _calibrate_class(task: CalibrationTask, name: str, found: CalibrationResult) -> ClassModel:
    """One class; its banks and what was tried go into `found`."""
    networks, settings = task.networks, task.settings
    photos, others = split_photos(task.shots.get(name, ()))
    shapes = [(photo.shape[0], photo.shape[1]) for photo in (*photos, *others)]
    side, aspect = networks.sizes.features_px, common_aspect(shapes)
    tiles = task.specs[name].tiles or tiles_for(shapes, side)
    spec = replace(task.specs[name], tiles=tiles if task.correction is None else max(2, tiles))
    bare = ClassModel(
        task.prompts[name], spec.kind, aspect, spec.tiles, (), task.patch_scorer, task.correction if side else None
    )
    if not photos:
        return bare
    seen = ClassFeatures(networks, aspect, (spec.tiles,) if bare.correction is None else (1, spec.tiles))
    if side and name not in found.banks:
        found.banks[name] = banks_of(seen, photos, settings.bank_size)
    banks = found.banks.get(name, ())
    if banks and bare.patch_scorer is None and spec.kind == "object":
        # What a patch scorer sees was learned with the background counted.
        bare = replace(bare, patch_foreground=PatchForeground.of([seen(photo)[-1] for photo in photos]))
    folds = hold_out(photos, banks, settings.negatives, settings.seed)
    guided, median_distances = _by_prototypes(seen, folds, bare, task.inspect, settings)
    bare = replace(bare, guided=guided)
    judge = HoldoutJudge(task.networks, task.schedule, bare, folds, task.inspect, task.negative_states, settings)
    choices: dict[str, Any] = {}
    if settings.synthetic:
        choices, found.trials[name] = judge.search_settings()
    tuned = replace(task.inspect, **choices)
    fused, scales = judge.normals(tuned)
    scores, plain = [image_score(m, tuned.top_share) for m in fused], judge.prototype_scores(tuned, scales)
    everything = [photo for fold in folds for photo in fold.photos]
    found.held_out[name] = [HeldOut(*each) for each in zip(everything, fused, scores, strict=True)]
    calibration = Calibration(scales=scales, choices=choices)
    evidence = None
    if tuned.fusion == "modulated" and plain and task.threshold_prior is not None:
        evidence = _evidence(seen, photos, others, banks, bare, tuned, settings.seed)
    if evidence is not None and task.threshold_prior is not None:
        # What the repaint adds to a good photo is known from the held-out ones, and moves the whole scale.
        repaint = float(np.median(np.log(np.maximum(scores, SMALLEST) / np.maximum(plain, SMALLEST))))
        calibration = from_both_sides(
            calibration, task.threshold_prior.score_model(evidence).shifted(repaint), settings
        )
        calibration = replace(calibration, evidence=evidence)
    else:
        threshold = upper_bound(scores, settings.false_alarm_rate)
        pixel = upper_bound([float(m.max()) for m in fused], settings.false_alarm_rate)
        calibration = replace(calibration, threshold=threshold, pixel_threshold=max(threshold, pixel))
    assert calibration.threshold is not None
    contrasts = _contrasts(photos, aspect, networks.sizes.size_px)
    limits = PhotoLimits.of(median_distances, contrasts) if median_distances else None
    return replace(
        bare,
        banks=tuple(bank.joined() for bank in banks),
        calibration=replace(
            calibration,
            clear=clear_bound(plain, min(calibration.steps)) if plain else None,
            limits=limits,
        ),
    )


def from_both_sides(calibration: Calibration, model: ScoreModel, settings: CalibrationSettings) -> Calibration:
    """`calibration` with the threshold, the limits and the expected errors that follow from a score model."""
    threshold = model.threshold(settings.costs)
    return replace(
        calibration,
        threshold=threshold,
        pixel_threshold=PIXEL_SHARE * threshold,
        score_model=model,
        decision=model.limits(settings.costs),
        costs=settings.costs,
        expected=model.errors(threshold),
    )


def _evidence(
    seen: ClassFeatures,
    photos: Sequence[U8],
    others: Sequence[U8],
    banks: Sequence[ShotBanks],
    bare: ClassModel,
    settings: InspectSettings,
    seed: int,
) -> ScoreEvidence | None:
    """What the class's own photos score by their prototype maps; None where no synthetic anomaly shows on any.

    `others` are no part of the banks: where there are enough, what they score takes the place of leaving shots out.
    """
    size = seen.networks.sizes.size_px

    def score(photo: U8, features: Sequence[F32], under: Sequence[MemoryBank]) -> float:
        frame = seen.frame(photo)
        inside = counted_area(frame.resize(photo, size), bare.kind, settings)
        found, _ = bare.by_prototypes(features, settings, under)
        return image_score(finished_prototype_map(found, frame, inside, settings, size), settings.top_share)

    own = [self_similarity(seen(photo)[-1]) for photo in photos]
    inside = [foreground(photo, bare.kind) for photo in photos]
    made = observe(seen, photos, inside, banks, score, seed)
    if not made.synthetic:
        return None
    everything = [bank.joined() for bank in banks]
    held_out = tuple(score(photo, seen(photo), everything) for photo in others)
    left_out = held_out if len(held_out) >= _ENOUGH else (*made.left_out, *held_out)
    return ScoreEvidence(left_out, made.copies, made.synthetic, float(np.mean(own)))


def left_out_numbers(photos: Sequence[U8]) -> list[int]:
    """Which of a class's good photos, (H,W,3), ScoreEvidence.left_out is of, in its order; none of a single one."""
    numbers = {id(photo): number for number, photo in enumerate(photos)}
    inside, others = split_photos(photos)
    judged = others if len(others) >= _ENOUGH else [*inside, *others]
    return [numbers[id(photo)] for photo in judged] if len(photos) > 1 else []


def _by_prototypes(
    seen: ClassFeatures, folds: list[Fold], bare: ClassModel, inspect: InspectSettings, settings: CalibrationSettings
) -> tuple[dict[str, float], list[float]]:
    """What prototypes say of held-out normals; nothing without prototypes.

    By kind of prototype map, the value that they hardly reach, above which a patch goes into the guided mask; and under
    `inspect`, where a patch scorer sees them, the median_patch_distance of each.
    """
    kinds = {bare.map_kind(preset): preset for preset in (*PRESETS.values(), inspect)}
    found: dict[str, list[F32]] = {kind: [] for kind in kinds}
    median_distances: list[float] = []
    for fold in folds if seen.networks.sizes.features_px else ():
        for photo in fold.photos:
            features = seen(photo)
            for kind, preset in kinds.items():
                judged_map, middle = bare.by_prototypes(features[-len(bare.windows(preset)) :], preset, fold.banks)
                found[kind].append(judged_map)
                if kind == bare.map_kind(inspect) and middle is not None:
                    median_distances.append(middle)
    quantile = settings.guided_quantile
    guided = {kind: float(np.quantile(np.stack(maps), quantile)) for kind, maps in found.items() if maps}
    return guided, median_distances


def _contrasts(photos: Sequence[U8], aspect: float | None, side: int) -> list[float]:
    """Of each photo as the networks see it."""
    return [contrast(Letterbox.of((p.shape[0], p.shape[1]), aspect).resize(p, side)) for p in photos]
