"""Score maps of a class's held-out normals, and of synthetic anomalies on them, each under its own fold's bank."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from anomalysd_edge.calibration.holdout import Fold
from anomalysd_edge.calibration.settings import CalibrationSettings
from anomalysd_edge.calibration.settings_search import (
    Trial,
    TrialScores,
    judged,
    rounds_for,
    search_settings,
    small_masks,
)
from anomalysd_edge.calibration.synthetic_anomalies import Synthetic, synthetic_anomaly
from anomalysd_edge.core.types import F32
from anomalysd_edge.method.anomaly_map import MapScale, image_score
from anomalysd_edge.method.class_model import ClassModel
from anomalysd_edge.method.detector import Detector
from anomalysd_edge.method.fusion import fuse
from anomalysd_edge.method.inpainting.masks import foreground
from anomalysd_edge.method.inpainting.schedule import NoiseSchedule
from anomalysd_edge.method.networks import Networks
from anomalysd_edge.method.settings import InspectSettings


class HoldoutJudge:
    """Maps of a class's normals, and of synthetic anomalies on them, each under its own fold's bank.

    Repaints are the expensive part: settings that differ in fusion and score alone share them.
    """

    _CHEAP = ("prototypes_weight", "multiscale_weight", "guided_weight", "alpha", "fusion", "top_share")

    def __init__(
        self,
        networks: Networks,
        schedule: NoiseSchedule,
        bare: ClassModel,
        folds: list[Fold],
        inspect: InspectSettings,
        negative_states: F32 | None,
        settings: CalibrationSettings,
    ) -> None:
        self._networks, self._schedule, self._bare, self._folds = networks, schedule, bare, folds
        self._inspect, self._negative_states, self._settings = inspect, negative_states, settings
        self._painted: list[list[Synthetic]] = [[] for _ in folds]
        self._maps: dict[tuple[InspectSettings, bool], list[Mapping[str, F32]]] = {}

    def normals(self, settings: InspectSettings) -> tuple[list[F32], dict[str, MapScale]]:
        """Fused maps of the held-out normals, and the scales that brought their parts together."""
        maps = self._judged(settings, synthetic=False)
        scales = _scales(maps, self._settings.spread_quantile)
        return [fuse(m, scales, settings) for m in maps], scales

    def prototype_scores(self, settings: InspectSettings, scales: Mapping[str, MapScale]) -> list[float]:
        """Image scores of what fusion makes of the held-out normals' prototype maps alone; empty without them."""
        maps = [m["prototypes"] for m in self._judged(settings, synthetic=False) if "prototypes" in m]
        if settings.fusion == "scaled":
            maps = [scales["prototypes"].apply(m) for m in maps]
        return [image_score(m, settings.top_share) for m in maps]

    def search_settings(self) -> tuple[dict[str, Any], list[Trial]]:
        """Settings for this class, and what was tried."""
        self._paint()
        masks = small_masks(
            [None for fold in self._folds for _ in fold.photos] + [s.mask for mine in self._painted for s in mine]
        )

        def under(changes: Mapping[str, Any]) -> TrialScores:
            settings = replace(self._inspect, **changes)
            good, scales = self.normals(settings)
            bad = [fuse(m, scales, settings) for m in self._judged(settings, synthetic=True)]
            return judged([*good, *bad], settings.top_share)

        sizes = self._networks.sizes
        return search_settings(under, masks, rounds_for(sizes.size_px, sizes.latent_side))

    def _paint(self) -> None:
        everything = [photo for fold in self._folds for photo in fold.photos]
        share = -(-self._settings.synthetic // len(everything))
        for number, fold in enumerate(self._folds):
            rng = np.random.default_rng((self._settings.seed, 1, number))
            for photo in fold.photos:
                inside = foreground(photo, self._bare.kind)
                for _ in range(share):
                    other = everything[int(rng.integers(len(everything)))]
                    if (made := synthetic_anomaly(photo, inside, other, rng)) is not None:
                        self._painted[number].append(made)

    def _judged(self, settings: InspectSettings, synthetic: bool) -> list[Mapping[str, F32]]:
        default = {name: getattr(self._inspect, name) for name in self._CHEAP}
        key = (replace(settings, **default), synthetic)
        if key not in self._maps:
            found: list[Mapping[str, F32]] = []
            for fold, painted in zip(self._folds, self._painted, strict=True):
                constants = replace(self._bare, banks=fold.banks)
                detector = Detector(self._networks, self._schedule, {"": constants}, key[0], self._negative_states)
                photos = [s.photo for s in painted] if synthetic else fold.photos
                found += [answer.maps for answer in detector.inspect(photos, "")]
            self._maps[key] = found
        return self._maps[key]


def _scales(judged_maps: Sequence[Mapping[str, F32]], quantile: float) -> dict[str, MapScale]:
    """What normals give for each map. S_pg takes S_ms's scale: the same unit, and 0 where the guided mask is empty."""
    scales: dict[str, MapScale] = {}
    for name in ("prototypes", "multiscale"):
        pixels = [maps[name] for maps in judged_maps if name in maps]
        if pixels:
            stacked = np.stack(pixels)
            centre = float(stacked.mean())
            scales[name] = MapScale(centre, max(float(np.quantile(stacked, quantile)) - centre, 1e-6))
    if any("guided" in maps for maps in judged_maps):
        scales["guided"] = MapScale(0.0, scales["multiscale"].centre + scales["multiscale"].spread)
    return scales
