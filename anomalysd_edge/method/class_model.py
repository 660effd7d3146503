"""What a bundle knows of one class: prompts, memory bank, score statistics, thresholds."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from anomalysd_edge.core.types import F32
from anomalysd_edge.method.anomaly_map import MapScale
from anomalysd_edge.method.patches.memory_bank import Bank, prototype_distance
from anomalysd_edge.method.patches.out_of_distribution import Limits, middle_distance
from anomalysd_edge.method.patches.patch_scorer import Reading, layer_distances, plain
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
    limits: Limits | None = None
    """What a photo of the class keeps within as a whole; absent in older bundles and where no patch scorer was used."""


@dataclass(frozen=True)
class ClassConstants:
    """What a bundle knows of one class."""

    prompts: Mapping[str, F32]
    """(77,D) text states by level: 'whole' and, where the class has named parts, 'detail'."""
    kind: str = "texture"
    """'object' or 'texture': only an object has a background."""
    aspect: float | None = None
    """Width / height of its photos (letterbox.common_aspect); None for 0 shots."""
    tiles: int = 1
    """Windows along a side through which the prototypes see a photo."""
    bank: Bank | None = None
    """Memory bank of good patches; None for 0 shots."""
    reading: Reading | None = None
    """Patch scorer of its distances; None where these features have none."""
    guided: Mapping[str, float] = field(default_factory=dict)
    """By kind of prototype map (`map_kind`): the value above which a patch goes into the guided mask; empty for 0
    shots."""
    calibration: Calibration = field(default_factory=Calibration)
    """Score statistics and thresholds under the preset in use."""

    def calibrated(self, **changes: Any) -> ClassConstants:
        """The same class with fields of its calibration changed."""
        return replace(self, calibration=replace(self.calibration, **changes))

    def tuned(self, settings: InspectSettings) -> InspectSettings:
        """`settings` with this class's own choices on top."""
        return replace(settings, **self.calibration.choices) if self.calibration.choices else settings

    def by_prototypes(
        self, features: F32, settings: InspectSettings, bank: Bank | None = None
    ) -> tuple[F32, float | None]:
        """(D,f,f) unit features -> (f,f): how far each patch is from good ones, as `settings.prototype_map` says.

        And the photo's foreign.middle_distance where a reading made the map. `bank` takes the place of the class's own:
        held-out normals are judged by one that has not seen them.
        """
        bank = bank or self.bank
        assert bank is not None
        if self.map_kind(settings) == "reading":
            assert self.reading is not None
            distances = layer_distances(bank, features, self.reading.layers)
            found = self.reading.judge(distances, self.kind == "texture")
            return found, middle_distance(plain(distances, textured=False))
        return prototype_distance(bank, features, self.own_share(settings)), None

    def guided_threshold(self, settings: InspectSettings) -> float | None:
        """Value of the prototype map above which a patch goes into the guided mask; None for 0 shots."""
        return self.guided.get(self.map_kind(settings))

    def map_kind(self, settings: InspectSettings) -> str:
        """What the prototype map holds: 'reading', 'distance', or 'own' where the photo's own patches count too."""
        if settings.prototype_map == "reading" and self.reading is not None:
            return "reading"
        return "own" if self.own_share(settings) else "distance"

    def own_share(self, settings: InspectSettings) -> float:
        """The share of a photo's own patches to compare with: only a texture repeats itself."""
        return settings.self_share if self.kind == "texture" else 0.0

    def states(self, level: str) -> F32:
        """(77,D) states of a level; a class without named parts answers 'detail' with 'whole'."""
        return self.prompts.get(level, self.prompts["whole"])
