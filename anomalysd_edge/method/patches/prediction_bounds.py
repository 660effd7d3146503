"""How far a further good photo's score may lie above those that were seen."""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import NormalDist

import numpy as np


def upper_bound(values: Sequence[float], rate: float) -> float:
    """Upper prediction bound: a new normal value exceeds it with probability about `rate`.

    mean + t(1-rate, n-1) * sd * sqrt(1+1/n), for values taken as normal; never below the largest value seen.
    """
    data = np.asarray(values, np.float64)
    count = len(data)
    if count < 2:
        return float(data.max())
    bound = data.mean() + student_t(1 - rate, count - 1) * data.std(ddof=1) * math.sqrt(1 + 1 / count)
    return float(max(bound, data.max()))


def student_t(quantile: float, freedom: int) -> float:
    """Quantile of Student's t: the Cornish-Fisher expansion around the normal (Abramowitz & Stegun 26.7.5)."""
    z = NormalDist().inv_cdf(quantile)
    g1 = (z**3 + z) / 4
    g2 = (5 * z**5 + 16 * z**3 + 3 * z) / 96
    g3 = (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / 384
    return z + g1 / freedom + g2 / freedom**2 + g3 / freedom**3
