"""From features at two sizes and a bank of each to one anomaly map: the whole patch side of an inspection."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from anomalysd_edge.core.types import F32
from anomalysd_edge.method.anomaly_map import image_score
from anomalysd_edge.method.patches.distance_correction import DistanceCorrection, inputs_of
from anomalysd_edge.method.patches.memory_bank import Bank
from anomalysd_edge.method.patches.multisize import TOP_SHARE, combined_map
from anomalysd_edge.method.patches.patch_scorer import Reading

MAP_SIDE = 128
"""Side of the map, in pixels."""


@dataclass(frozen=True)
class MultisizeScorer:
    """Scores photos at two sizes; with a patch scorer and a correction, or by the plain distance."""

    reading: Reading | None = None
    """Patch scorer of the features at the smaller size."""
    correction: DistanceCorrection | None = None
    """Read beside it; None where there is none for these features, and the plain distance serves."""

    def map(self, features: Sequence[F32], banks: Sequence[Bank], side: int = MAP_SIDE) -> F32:
        """Unit features (D,f,f) at each size from the smallest, and the banks of both -> (side,side) anomaly map."""
        if self.reading is None or self.correction is None:
            return combined_map([bank.distance(part) for bank, part in zip(banks, features, strict=True)], side)
        seen = inputs_of(features, banks, self.reading)
        distances = [bank.distance(part) for bank, part in zip(banks, features, strict=True)]
        return combined_map(distances, side, factor=self.correction.factor(seen))

    def score(self, features: Sequence[F32], banks: Sequence[Bank]) -> float:
        """Image score of `map`."""
        return image_score(self.map(features, banks), TOP_SHARE)
