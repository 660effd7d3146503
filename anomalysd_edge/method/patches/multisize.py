"""One field of distances from two sizes of the photo.

A small defect is lost where the photo is small; a coarse surface is judged better where each patch sees more of it. The
distances of both are averaged with fixed weights.
"""

from __future__ import annotations

import numpy as np

from anomalysd_edge.core.types import F32
from anomalysd_edge.vision.images import resize_map

WEIGHTS = (1.0, 2.0)
"""Of the smaller and the larger size (256 and 448 px). On left-out surfaces and parts the larger alone ranks best by a
point, on real coarse surfaces the smaller: a hedge."""
CORRECTION = 0.5
"""Power of the learned correction: the plain distance and the corrected one have one vote each, as logarithms.

On left-out classes all of the correction takes one to two points more off the balanced error, but a part unlike those
that it was taught on may then be ranked worse than without it.
"""


def combined_distance(coarse: F32, fine: F32, factor: F32 | None = None) -> F32:
    """(g,g) and (f,f) distances to prototypes at the smaller and the larger size -> (f,f) float32: their weighted mean.

    `factor` is (f,f) of distance_correction.DistanceCorrection.factor; the mean is multiplied by its power CORRECTION.
    """
    raised = resize_map(coarse, (fine.shape[0], fine.shape[1]))
    mean = (np.float32(WEIGHTS[0]) * raised + np.float32(WEIGHTS[1]) * fine) / np.float32(sum(WEIGHTS))
    return np.asarray(mean if factor is None else mean * factor ** np.float32(CORRECTION), dtype=np.float32)
