"""Whether a line's photos are still those that a class was commissioned on: their light, their sharpness, their scores.

Photos are looked at in blocks of BLOCK. Each block's brightness, sharpness and scores are held against a reference by
the two-sample Kolmogorov-Smirnov test with its exact distribution (Hodges 1958, "The significance probability of the
Smirnov two-sample test"), at a third of FALSE_ALARMS each. So a line that stays as it is raises at most one false alarm
in 1 / FALSE_ALARMS blocks, 20,000 photos, whatever its distributions are. A shift must also be large enough to matter.
About half of a block must have left the reference, so that a few defects in a row are no drift.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from anomalysd_edge.errors import SettingsError

Quantity = Literal["brightness", "sharpness", "score"]
QUANTITIES: tuple[Quantity, ...] = ("brightness", "sharpness", "score")
"""What is watched of every photo."""
BLOCK = 20
"""Photos that are compared at a time; a shift is seen when a whole block came after it: within 2 * BLOCK photos."""
LEAST_REFERENCE, MOST_REFERENCE = 40, 200
"""Photos that are compared with."""
FALSE_ALARMS = 1e-3
"""Probability, at most, that a block of an unchanged line is called a drift."""
LEAST_CHANGE: Mapping[Quantity, float] = {"brightness": 0.03, "sharpness": 0.05, "score": 0.1}
"""Relative change of the median below which a shift does not matter."""


@dataclass(frozen=True)
class DriftFinding:
    """One quantity of the last block, held against the reference."""

    quantity: Quantity
    """Which."""
    change: float
    """Of the median, relative: -0.1 = a tenth less."""
    probability: float
    """That an unchanged line gives a block so far from the reference."""
    drifted: bool
    """Whether that is a drift."""

    def sentence(self) -> str:
        """What a person should look at."""
        amount = f"{100 * abs(self.change):.0f} %"
        if self.quantity == "brightness":
            what = "the lamp ages" if self.change < 0 else "the light or the exposure changed"
            return f"{what}: photos are {amount} {'darker' if self.change < 0 else 'brighter'} than at commissioning"
        if self.quantity == "sharpness":
            what = (
                "the camera lost focus, or its lens is dirty" if self.change < 0 else "the camera was focused or moved"
            )
            return f"{what}: photos are {amount} {'less sharp' if self.change < 0 else 'sharper'} than at commissioning"
        higher = "higher" if self.change > 0 else "lower"
        return f"the camera moved, or the parts changed: scores are {amount} {higher} everywhere than at commissioning"


def compare(quantity: Quantity, reference: Sequence[float], block: Sequence[float]) -> DriftFinding:
    """Whether a block differs from the reference. Raises SettingsError where either is empty."""
    if not reference or not block:
        raise SettingsError("a drift needs photos on both sides")
    probability = smirnov(reference, block)
    before, after = float(np.median(reference)), float(np.median(block))
    change = (after - before) / before if before > 0 else float(after > before)
    drifted = abs(change) >= LEAST_CHANGE[quantity] and probability <= FALSE_ALARMS / len(QUANTITIES)
    return DriftFinding(quantity, change, probability, drifted)


def smirnov(first: Sequence[float], second: Sequence[float]) -> float:
    """Probability that two samples of these sizes from one continuous distribution have empirical distribution
    functions at least as far apart as these; exact, and too large where values are tied.

    A random path through the lattice of counts (i of `first`, j of `second`) stays where |i/n - j/m| is smaller.
    """
    n, m = len(first), len(second)
    everything = np.sort(np.concatenate([first, second]))
    counts = [np.searchsorted(np.sort(part), everything, side="right") for part in (first, second)]
    farthest = int(np.abs(counts[0] * m - counts[1] * n).max())
    if farthest == 0:
        return 1.0
    row = np.zeros(m + 1)
    for i in range(n + 1):
        for j in range(m + 1):
            if i == j == 0:
                row[j] = 1.0
            elif abs(i * m - j * n) >= farthest:
                row[j] = 0.0
            else:
                above, left = row[j] if i else 0.0, row[j - 1] if j else 0.0
                row[j] = (i * above + j * left) / (i + j)
    return max(0.0, 1.0 - float(row[m]))
