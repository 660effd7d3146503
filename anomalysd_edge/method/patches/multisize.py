"""One anomaly map from prototype distances at two sizes of the photo.

A small defect is lost where the photo is small; a coarse surface is judged better where each patch sees more of it. The
distances of both are brought to one map and averaged with fixed weights.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from anomalysd_edge.core.types import F32
from anomalysd_edge.errors import ShapeError
from anomalysd_edge.method.anomaly_map import image_score, smooth
from anomalysd_edge.vision.images import resize_map

WEIGHTS = (1.0, 2.0)
"""Of the smaller and the larger size (256 and 448 px). On left-out surfaces and parts the larger alone ranks best by a
point, on real coarse surfaces the smaller: a hedge."""
CORRECTION = 0.5
"""Power of the learned correction: the plain distance and the corrected one have one vote each, as logarithms.

On left-out classes all of the correction takes one to two points more off the balanced error, but a part unlike those
that it was taught on may then be ranked worse than without it.
"""
TOP_SHARE = 0.01
"""The image score is the mean of this share of the map's highest pixels."""
SMOOTHING = 4 / 256
"""Sigma of the Gaussian, as a share of the map's side."""


def combined_map(
    distances: Sequence[F32], side: int, weights: Sequence[float] = WEIGHTS, factor: F32 | None = None
) -> F32:
    """(f,f) distances at each size -> (side,side) float32: their weighted mean, corrected and smoothed.

    The sizes may have fields of different f. `factor` is (f,f) of distance_correction.DistanceCorrection.factor; the
    map is multiplied by it to the power CORRECTION. Raises ShapeError where there are more or fewer weights than sizes.
    """
    if len(distances) != len(weights) or not distances:
        raise ShapeError(f"{len(distances)} fields of distances came with {len(weights)} weights; expected one each")
    total = np.zeros((side, side), np.float32)
    for field, weight in zip(distances, weights, strict=True):
        total += np.float32(weight / sum(weights)) * resize_map(field, (side, side))
    if factor is not None:
        total *= resize_map(np.asarray(factor ** np.float32(CORRECTION), np.float32), (side, side))
    return smooth(total, SMOOTHING * side)


def patch_score(
    distances: Sequence[F32], side: int, weights: Sequence[float] = WEIGHTS, factor: F32 | None = None
) -> float:
    """Image score of :func:`combined_map`."""
    return image_score(combined_map(distances, side, weights, factor), TOP_SHARE)
