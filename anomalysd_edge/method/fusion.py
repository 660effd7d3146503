"""From one photo's measured distances to its fused map, and what further repaints could still make of it.

Every step from S^(k) to the image score grows with every S^(k): harmonic mean, smoothing, scaling, cap, weighted sum or
factor, mean of the highest pixels. So a map made of the smallest value that a missing S^(k) can have bounds the score
from below, one made of the largest from above, and where no step of the verdict lies between them it is settled.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from anomalysd_edge.core.types import F32, U8, Mask
from anomalysd_edge.method import anomaly_map
from anomalysd_edge.method.anomaly_map import MapScale
from anomalysd_edge.method.inpainting.mask_plan import GUIDED
from anomalysd_edge.method.inpainting.masks import foreground
from anomalysd_edge.method.inpainting.reconstruction_error import SMALLEST
from anomalysd_edge.method.photo_state import PhotoState
from anomalysd_edge.method.settings import InspectSettings
from anomalysd_edge.vision import images
from anomalysd_edge.vision.letterbox import Letterbox
from anomalysd_edge.vision.morphology import dilate

_LARGEST = np.float32(1e6)
"""Stands for 'no bound': a finite number, since resizing would make NaN of infinity times zero."""
_SLACK = 1e-4
"""Share by which a bound must clear the threshold: float rounding moves neither bound by so much."""


class MapFusion:
    """Maps and bounds of photos under one settings object."""

    def __init__(self, settings: InspectSettings, size_px: int, scales: tuple[int, ...]) -> None:
        """`scales` of the plan, in order; size_px the side S of every map."""
        self._settings, self._size_px, self._scales = settings, size_px, scales

    def finish(self, work: PhotoState) -> None:
        """Fill work.maps from what was measured. Scales that are missing leave the fused map within its bounds."""
        known = [self._filled(work, k) for k in self._planned(work) if k in work.per_scale]
        raw: dict[str, F32] = {}
        if known:
            raw["multiscale"] = anomaly_map.harmonic_mean(known)
        if GUIDED in work.per_scale:
            raw["guided"] = work.per_scale[GUIDED]
        work.maps = self._smoothed(work, raw)
        fused = fuse(work.maps, work.constants.calibration.scales, self._settings)
        if not self._complete(work) and (between := self.bounds(work)) is not None:
            fused = np.clip(fused, *between)
        work.maps["fused"] = fused

    def bounds(self, work: PhotoState) -> tuple[F32, F32] | None:
        """(S,S) lowest and highest fused map that the slots still missing can lead to; None where nothing says."""
        if self._settings.fusion != "paper" and not work.constants.calibration.scales:
            return None
        found = []
        for unknown in (SMALLEST, _LARGEST):
            raw: dict[str, F32] = {}
            scales = [self._filled(work, k, unknown) for k in self._planned(work)]
            if scales:
                raw["multiscale"] = np.minimum(anomaly_map.harmonic_mean(scales), _LARGEST)
            if any(slot.scale == GUIDED for slot in work.slots):
                raw["guided"] = work.per_scale.get(GUIDED, self._constant(unknown))
            found.append(fuse(self._smoothed(work, raw), work.constants.calibration.scales, self._settings))
        return found[0], found[1]

    def settled(self, work: PhotoState) -> str | None:
        """The verdict, good, uncertain or anomalous, if no missing repaint can change it or the label; else None."""
        calibration = work.constants.calibration
        between = self.bounds(work) if calibration.steps else None
        if between is None:
            return None
        low, high = (anomaly_map.image_score(bound, self._settings.top_share) for bound in between)

        def on_one_side(step: float) -> bool:
            # Scaled maps are differences: their rounding does not shrink with the score.
            slack = _SLACK * (max(1.0, abs(step)) if self._settings.fusion == "scaled" else abs(step))
            return low >= step + slack or high < step - slack

        return calibration.verdict(low) if all(on_one_side(step) for step in calibration.steps) else None

    def prototypes_score(self, work: PhotoState) -> float | None:
        """Image score of what fusion makes of the prototype map alone; None without prototypes or their scale."""
        if work.prototype_map is None or "prototypes" not in work.constants.calibration.scales:
            return None
        found = self._smoothed(work, {})["prototypes"]
        if self._settings.fusion == "scaled":
            found = work.constants.calibration.scales["prototypes"].apply(found)
        return anomaly_map.image_score(found, self._settings.top_share)

    def _planned(self, work: PhotoState) -> tuple[int, ...]:
        """The scales that count for this photo: all, or none where it is judged by prototypes alone."""
        return self._scales if work.slots else ()

    def _complete(self, work: PhotoState) -> bool:
        return all(slot.scale in work.per_scale for slot in work.slots)

    def _filled(self, work: PhotoState, scale: int, unknown: np.float32 | None = None) -> F32:
        """S^(k): as measured or `unknown` where slots repaint; the normals' centre where none does."""
        inside = work.per_scale[scale] if unknown is None else work.per_scale.get(scale, self._constant(unknown))
        if scale not in work.planned:
            return inside
        usual = work.constants.calibration.scales.get("multiscale", MapScale(0.0, 1.0)).centre
        return np.where(work.planned[scale], inside, np.float32(usual))

    def _constant(self, value: np.float32) -> F32:
        return np.full((self._size_px, self._size_px), value, np.float32)

    def _smoothed(self, work: PhotoState, raw: dict[str, F32]) -> dict[str, F32]:
        """(S,S) raw repaint maps -> those and the prototypes', each as `finished` leaves it."""
        settings, side = self._settings, self._size_px
        sigma = settings.repaint_smoothing * side
        maps = {name: finished(m, work.frame, work.foreground, sigma) for name, m in raw.items()}
        if work.prototype_map is not None:
            maps["prototypes"] = finished_prototype_map(work.prototype_map, work.frame, work.foreground, settings, side)
        return maps


def finished(score_map: F32, frame: Letterbox, inside: Mask | None, sigma_px: float) -> F32:
    """(S,S) -> the same with its least value outside (S,S) `inside`, cut to the photo, smoothed."""
    if inside is not None:
        score_map = np.where(inside, score_map, score_map[inside].min())
    return anomaly_map.smooth(frame.cut(score_map), sigma_px)


def finished_prototype_map(
    found: F32, frame: Letterbox, inside: Mask | None, settings: InspectSettings, side: int
) -> F32:
    """(f,f) of ClassModel.by_prototypes -> the map that is fused and scored."""
    return finished(images.resize_map(found, (side, side)), frame, inside, settings.smoothing * side)


def counted_area(seen: U8, kind: str, settings: InspectSettings) -> Mask | None:
    """(S,S,3) the photo as the networks see it -> (S,S) an object's outline, widened; None where every pixel counts."""
    if not settings.foreground or kind != "object":
        return None
    return dilate(foreground(seen, "object"), max(1, len(seen) // 32))


def fuse(maps: Mapping[str, F32], scales: Mapping[str, MapScale], settings: InspectSettings) -> F32:
    """(S,S) prototypes, multiscale and guided maps -> the fused one, as `settings.fusion` says.

    A class without calibrated scales (0 shots) has S_ms alone: there is nothing to bring the maps together with.
    """
    weights = {"multiscale": settings.multiscale_weight, "guided": settings.guided_weight}
    if settings.fusion == "modulated" and scales and "prototypes" in maps:
        return anomaly_map.fuse_modulated(maps, scales, weights, settings.multiscale_cap)
    if settings.fusion != "paper" and scales:
        weights["prototypes"] = settings.prototypes_weight
        return anomaly_map.fuse_scaled(
            maps, scales, weights, {"multiscale": settings.multiscale_cap} if "prototypes" in maps else None
        )
    if "multiscale" not in maps:
        return maps["prototypes"]
    if "guided" in maps:
        return anomaly_map.fuse_paper(maps["multiscale"], maps["guided"], settings.alpha)
    return maps["multiscale"]


def clear_bound(scores: list[float], threshold: float) -> float:
    """Prototype score below which a photo is clearly good, from the scores of held-out normals.

    Their median: half of the good photos are spared the repaint, and a defect is missed by it only if its prototypes
    look more normal than those of the middle normal do. Never above the verdict's own `threshold`.
    """
    return min(float(np.median(scores)), threshold)
