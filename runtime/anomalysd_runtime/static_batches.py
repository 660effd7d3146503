"""Static batch sizes: how many samples are cut into runs of the sizes that there are, padded where they must be."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from anomalysd_edge.core.types import I64
from anomalysd_edge.errors import SettingsError

PIXELS_A_CALL = 2**20
"""Pixels that one call of an image network sees at most: its activations, not its weights, fill the memory."""
PIXELS_ON_CPU = 2**17
"""The same on a CPU, which is as fast with two pictures of 256 px: three at a time took 60 MiB more at the peak."""
CALL_COST = 1.0
"""What a run costs beside its samples, in samples, where nothing was measured: starting it and filling the GPU."""


@dataclass(frozen=True)
class BatchRun:
    """One run of an engine."""

    start: int
    """First sample."""
    stop: int
    """One past its last."""
    size: int
    """The static size it runs at: at least stop - start; the rest is padding."""


def cover(count: int, costs: Mapping[int, float]) -> list[BatchRun]:
    """Cut `count` samples into runs of the sizes in `costs` (size -> milliseconds, or any unit) as cheaply as possible.

    Exact, by dynamic programming; equal costs go to fewer runs. Raises SettingsError without sizes.
    """
    if not costs or min(costs) < 1:
        raise SettingsError(f"the static batch sizes are {sorted(costs)}, expected one or more of at least 1")
    best: list[tuple[float, int, int]] = [(0.0, 0, 0)]  # cost, runs, size of the last run
    for n in range(1, count + 1):
        found = [
            (best[max(0, n - size)][0] + cost, best[max(0, n - size)][1] + 1, size) for size, cost in costs.items()
        ]
        best.append(min(found))
    runs: list[BatchRun] = []
    left = count
    while left > 0:
        size = best[left][2]
        start = max(0, left - size)
        runs.append(BatchRun(start, left, size))
        left = start
    return runs[::-1]


def assumed_costs(sizes: Sequence[int]) -> dict[int, float]:
    """Costs before anything was measured: a run's samples and CALL_COST."""
    return {size: size + CALL_COST for size in sizes}


def references_of(batch: int) -> int:
    """Rows of the perceptual network's references in a profile of `batch` repaints: a photo brings several repaints."""
    return max(1, batch // 4)


def within_references(reference_of: I64, sizes: Sequence[int]) -> list[slice]:
    """Cut (N,) reference rows, in their order, into slices that one perceptual profile can take whole.

    A slice holds no more repaints than the largest of `sizes` and no more distinct references than its profile.
    """
    largest = max(sizes)
    slices: list[slice] = []
    start = 0
    for stop in range(1, len(reference_of) + 1):
        seen = len(np.unique(reference_of[start:stop]))
        if stop - start > largest or seen > references_of(_smallest(stop - start, sizes)):
            # A larger profile holds more references: it is taken as long as it is there.
            if stop - start <= largest and seen <= references_of(largest):
                continue
            slices.append(slice(start, stop - 1))
            start = stop - 1
    slices.append(slice(start, len(reference_of)))
    return slices


def profile_for(repaints: int, references: int, sizes: Sequence[int]) -> int:
    """The smallest of `sizes` that holds so many repaints and references."""
    return min(size for size in sizes if size >= repaints and references_of(size) >= references)


def padded(array: npt.NDArray[np.generic], size: int) -> npt.NDArray[np.generic]:
    """`array` with its last row repeated up to `size` rows: padding that is as harmless as a sample."""
    if len(array) == size:
        return np.ascontiguousarray(array)
    return np.concatenate([array, np.repeat(array[-1:], size - len(array), axis=0)])


def _smallest(count: int, sizes: Sequence[int]) -> int:
    return min((size for size in sizes if size >= count), default=max(sizes))
