"""Photos that do not show their class at all: another part, a covered lens, a lamp that is off, an empty belt.

A defect is a place that differs from its neighbourhood, and the patch scorer (patch_scorer.py) looks for such places. A
photo that differs everywhere alike, an evenly grey one above all, has none and would be called good. Two numbers of the
whole photo tell it: how far its middle patch is from the class's prototypes, and how much contrast it has.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from anomalysd_edge.core.types import F32, U8

_FARTHEST = 0.25
"""Least bound on the median distance. Of some 3000 good photos of drawn surfaces and parts, each held against one other
shot of its class, the largest had 0.237, 99 in 100 were below 0.173. Four real classes under each other's names
began at 0.26, noise at 0.34."""
_TIMES_HELD_OUT = 2.0
"""Bound in units of the farthest held-out normal, where a class's photos differ more than drawn ones do."""
_FLATTEST_SHARE = 0.25
"""Least contrast, as a share of what the flattest shot has: half the light leaves half of it."""
_SMALLEST = 1e-6
_LARGEST = 10.0
"""Of `Limits.excess`: a photo without any contrast would have an infinite one."""


@dataclass(frozen=True)
class Limits:
    """What a class's photos keep within."""

    far: float
    """Largest median over a photo's patches of the distance (1 - cosine, mean over layers) to the nearest prototype."""
    flat: float
    """Least standard deviation of a photo's grey, in grey levels of 0 to 255, at the networks' size."""

    @classmethod
    def of(cls, middle_distances: Sequence[float], contrasts: Sequence[float]) -> Limits:
        """From held-out normals' `middle_distance` and the shots' `contrast`; neither may be empty."""
        return cls(max(_FARTHEST, _TIMES_HELD_OUT * max(middle_distances)), _FLATTEST_SHARE * min(contrasts))

    def excess(self, middle: float, contrast: float) -> float:
        """How many times the photo leaves the limits: above 1 it does not show its class; at most _LARGEST."""
        flat = self.flat / contrast if contrast > 0 else _LARGEST * (self.flat > 0)
        return min(_LARGEST, max(middle / max(self.far, _SMALLEST), flat))


def raised(score: float, threshold: float, excess: float) -> float:
    """The image score of a photo whose `Limits.excess` is above 1: over the threshold, by how far it is above."""
    return max(score, threshold + (excess - 1) * max(threshold, 1.0))


def contrast(photo: U8) -> float:
    """(H,W,3) -> standard deviation of its grey (the mean of the channels), in grey levels."""
    return float(photo.mean(axis=2, dtype=np.float32).std())


def middle_distance(distances: F32) -> float:
    """(f,f) distances to the nearest prototype -> their median."""
    return float(np.median(distances))
