"""Boolean planes: connected regions, growing, shrinking, filling holes. Plain numpy, no loop over pixels."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from anomalysd_edge.core.types import I32, Mask
from anomalysd_edge.errors import ShapeError


def label_regions(mask: Mask, diagonal: bool = True) -> tuple[I32, int]:
    """(H,W) bool -> ((H,W) int32 labels, number of regions): 0 is outside, regions count from 1 in reading order.

    `diagonal` True: pixels that touch at a corner belong together (8 neighbours), else 4. Runs of pixels along rows are
    joined with those they touch in the row above; roots are found by pointer jumping over all runs at once.
    """
    if mask.ndim != 2:
        raise ShapeError(f"a mask has the shape {mask.shape}; expected (H, W)")
    height, width = mask.shape
    # A column of False on either side keeps runs, and diagonal touches, from crossing from one row into the next.
    padded = np.zeros((height, width + 2), np.int8)
    padded[:, 1:-1] = mask
    flat = padded.ravel()
    steps = np.diff(flat)
    starts, ends = np.flatnonzero(steps == 1) + 1, np.flatnonzero(steps == -1) + 1
    reach = 1 if diagonal else 0
    first = np.searchsorted(ends, starts - (width + 2) - reach, side="right")
    last = np.searchsorted(starts, ends - (width + 2) + reach, side="left")
    touching = np.maximum(last - first, 0)
    lower = np.repeat(np.arange(len(starts)), touching)
    offsets = np.arange(len(lower)) - np.repeat(np.cumsum(touching) - touching, touching)
    upper = np.repeat(first, touching) + offsets
    roots, number = np.unique(_roots(len(starts), lower, upper), return_inverse=True)
    labels = np.zeros(flat.shape, np.int32)
    labels[flat == 1] = np.repeat(number.ravel() + 1, ends - starts)
    return np.ascontiguousarray(labels.reshape(height, width + 2)[:, 1:-1]), len(roots)


def dilate(mask: Mask, radius: int) -> Mask:
    """(H,W) bool grown by `radius` pixels in all eight directions."""
    along = mask.copy()
    for shift in range(1, radius + 1):
        along[shift:] |= mask[:-shift]
        along[:-shift] |= mask[shift:]
    grown = along.copy()
    for shift in range(1, radius + 1):
        grown[:, shift:] |= along[:, :-shift]
        grown[:, :-shift] |= along[:, shift:]
    return grown


def erode(mask: Mask, radius: int) -> Mask:
    """(H,W) bool shrunk by `radius` pixels from all eight directions; beyond the image the edge repeats."""
    return np.asarray(~dilate(~mask, radius))


def fill_holes(mask: Mask) -> Mask:
    """(H,W) bool with every hole filled: what is outside but not 4-connected to the image's border."""
    outside, _ = label_regions(np.pad(~mask, 1, constant_values=True), diagonal=False)
    return np.asarray(outside != outside[0, 0])[1:-1, 1:-1]


def box_sum(planes: npt.NDArray[Any], radius: int) -> npt.NDArray[Any]:
    """(H,W,C) -> (H,W,C): sums over squares of side 2*radius+1; beyond the image the edge repeats."""
    span = 2 * radius + 1
    total = planes.copy()
    for axis in (0, 1):
        pad = [(0, 0)] * 3
        pad[axis] = (radius, radius)
        wide = np.pad(total, pad, mode="edge")
        total = np.zeros_like(planes)
        for shift in range(span):
            part = slice(shift, shift + planes.shape[axis])
            total += wide[part] if axis == 0 else wide[:, part]
    return total


def _roots(runs: int, lower: npt.NDArray[np.int64], upper: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """The smallest run of each run's region, where run lower[i] touches run upper[i]."""
    root = np.arange(runs)
    while True:
        a, b = root[lower], root[upper]
        apart = a != b
        if not apart.any():
            return root
        np.minimum.at(root, np.maximum(a, b)[apart], np.minimum(a, b)[apart])
        while not np.array_equal(jumped := root[root], root):
            root = jumped
