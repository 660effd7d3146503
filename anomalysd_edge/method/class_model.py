"""What a bundle knows of one class: prompts, memory bank, score statistics, thresholds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from anomalysd_edge.core.types import F32
from anomalysd_edge.method.anomaly_map import MapScale
from anomalysd_edge.method.patches.distance_correction import DistanceCorrection, inputs_of
from anomalysd_edge.method.patches.memory_bank import MemoryBank, prototype_distance
from anomalysd_edge.method.patches.multisize import combined_distance
from anomalysd_edge.method.patches.out_of_distribution import PhotoLimits, median_patch_distance
from anomalysd_edge.method.patches.patch_foreground import PatchForeground
from anomalysd_edge.method.patches.patch_scorer import PatchScorer, layer_distances, mean_layer_distance
from anomalysd_edge.method.score_model import Costs, ErrorRates, Limits, ScoreEvidence, ScoreModel
from anomalysd_edge.method.settings import InspectSettings


@dataclass(frozen=True)
class Calibration:
    """What the good photos of one class gave under one preset: other settings give other scores."""

    threshold: float | None = None
    """Image score from which the verdict is 'anomalous'; None where there were no normals to calibrate on."""
    pixel_threshold: float | None = None
    """Score-map value from which a pixel is in pred_mask."""
    scales: dict[str, MapScale] = field(default_factory=dict)
    """By score map: (map - centre) / spread brings it to the common scale before fusion."""
    choices: dict[str, Any] = field(default_factory=dict)
    """Inspection settings that calibration chose for the class, over the preset's."""
    clear: float | None = None
    """Image score of the scaled prototype distance below which `InspectSettings.cascade` calls a photo good; absent
    in older bundles."""
    limits: PhotoLimits | None = None
    """What a photo of the class keeps within as a whole; absent in older bundles and where no patch scorer was used."""
    score_model: ScoreModel | None = None
    """How the class's image scores are believed to be distributed; absent in older bundles and for other fusions than
    'modulated'."""
    decision: Limits | None = None
    """Between these image scores the verdict is uncertain; absent with `score_model`."""
    costs: Costs | None = None
    """What threshold and `decision` cost least at."""
    expected: ErrorRates | None = None
    """Error rates to expect at the threshold."""
    evidence: ScoreEvidence | None = None
    """Image scores of the shots that `score_model` was made from, before the repaint was counted."""

    def verdict(self, score: float) -> str | None:
        """'good', 'anomalous' or 'uncertain'; None without a threshold. Without limits the threshold alone decides."""
        if self.threshold is None:
            return None
        low, high = (self.threshold,) * 2 if self.decision is None else (self.decision.good, self.decision.anomalous)
        return "anomalous" if score >= high else "good" if score < low else "uncertain"

    def probability(self, score: float) -> float | None:
        """Probability in [0,1] that a photo of this image score is defective; None without a score model."""
        rate = (self.costs or Costs()).defect_rate
        return None if self.score_model is None else self.score_model.probability(score, rate)

    @property
    def steps(self) -> tuple[float, ...]:
        """Image scores at which the answer changes: the threshold and the limits of `decision`; empty without one."""
        limits = () if self.decision is None else (self.decision.good, self.decision.anomalous)
        return () if self.threshold is None else (self.threshold, *limits)


@dataclass(frozen=True)
class ClassModel:
    """What a bundle knows of one class."""

    prompts: Mapping[str, F32]
    """(77,D) text states by level: 'whole' and, where the class has named parts, 'detail'."""
    kind: str = "texture"
    """'object' or 'texture': only an object has a background."""
    aspect: float | None = None
    """Width / height of its photos (letterbox.common_aspect); None for 0 shots."""
    tiles: int = 1
    """Windows along a side through which the prototypes see a photo."""
    banks: tuple[MemoryBank, ...] = ()
    """Memory banks of good patches: of the photo at one window and at `tiles`, or at `tiles` alone; empty for 0
    shots."""
    patch_scorer: PatchScorer | None = None
    """Patch scorer of its distances; None where these features have none."""
    correction: DistanceCorrection | None = None
    """Learned correction of its distances at both sizes; None where these features have none."""
    patch_foreground: PatchForeground | None = None
    """What tells an object's patches from its background's; None where every patch counts."""
    guided: Mapping[str, float] = field(default_factory=dict)
    """By kind of prototype map (`map_kind`): the value above which a patch goes into the guided mask; empty for 0
    shots."""
    calibration: Calibration = field(default_factory=Calibration)
    """Score statistics and thresholds under the preset in use."""

    def calibrated(self, **changes: Any) -> ClassModel:
        """The same class with fields of its calibration changed."""
        return replace(self, calibration=replace(self.calibration, **changes))

    def tuned(self, settings: InspectSettings) -> InspectSettings:
        """`settings` with this class's own choices on top."""
        return replace(settings, **self.calibration.choices) if self.calibration.choices else settings

    def windows(self, settings: InspectSettings) -> tuple[int, ...]:
        """Windows along a side at each size of the photo that `by_prototypes` takes features of."""
        return (1, self.tiles) if self.map_kind(settings) == "corrected" else (self.tiles,)

    def by_prototypes(
        self, features: Sequence[F32], settings: InspectSettings, banks: Sequence[MemoryBank] = ()
    ) -> tuple[F32, float | None]:
        """How far each patch is from good ones, (f,f), as `settings.prototype_map` says.

        `features` are (D,f,f) unit features at each of `windows`. And the photo's
        out_of_distribution.median_patch_distance where a patch scorer saw it. `banks` take the place of the class's
        own: held-out normals are scored by some that have not seen them.
        """
        banks = tuple(banks or self.banks)[-len(features) :]
        map_kind, scorer = self.map_kind(settings), self.patch_scorer
        if map_kind not in ("reading", "corrected"):
            share = self.self_share_of(settings) if map_kind == "own" else 0.0
            found = prototype_distance(banks[-1], features[-1], share)
            inside = self.patch_foreground.of_photo(features[-1]) if self.patch_foreground else None
            return found if inside is None else np.where(inside, found, found.min()), None
        assert scorer is not None
        distances = layer_distances(banks[0], features[0], scorer.layers)
        median = median_patch_distance(mean_layer_distance(distances, textured=False))
        if map_kind == "reading":
            return scorer.score(distances, self.kind == "texture"), median
        assert self.correction is not None
        nearest = [bank.distance(part) for bank, part in zip(banks, features, strict=True)]
        factor = self.correction.factor(inputs_of(features[-1], nearest, distances, scorer))
        return combined_distance(nearest[0], nearest[-1], factor), median

    def guided_threshold(self, settings: InspectSettings) -> float | None:
        """Value of the prototype map above which a patch goes into the guided mask; None for 0 shots."""
        return self.guided.get(self.map_kind(settings))

    def map_kind(self, settings: InspectSettings) -> str:
        """What the prototype map holds, in the words that bundles store.

        'corrected' is the corrected distance at two sizes, 'reading' a patch scorer's map, 'distance' the distance to
        the bank, 'own' the same with the distance to the photo's own patches.
        """
        if settings.prototype_map == "corrected":
            able = self.correction is not None and self.patch_scorer is not None and self.tiles > 1
            return "corrected" if able else "distance"
        if settings.prototype_map == "reading" and self.patch_scorer is not None:
            return "reading"
        return "own" if self.self_share_of(settings) else "distance"

    def self_share_of(self, settings: InspectSettings) -> float:
        """The share of a photo's own patches to compare with: only a texture repeats itself."""
        return settings.self_share if self.kind == "texture" else 0.0

    def states(self, level: str) -> F32:
        """(77,D) states of a level; a class without named parts answers 'detail' with 'whole'."""
        return self.prompts.get(level, self.prompts["whole"])
