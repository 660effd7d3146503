"""Pictures for people: colour maps, overlays, contours, and an HTML report that needs nothing but itself.

Colours: the nine control points of COLOURS follow matplotlib's "inferno" (S. van der Walt, N. Smith, 2015, CC0), whose
lightness rises evenly, so that a map reads the same in grey and for a colour-blind eye.
"""

from __future__ import annotations

import numpy as np

from anomalysd_edge.core.types import F32, U8, Mask
from anomalysd_edge.errors import InputError, NumericError, ShapeError
from anomalysd_edge.vision.images import check_photo
from anomalysd_edge.vision.morphology import dilate, erode

COLOURS = np.array(
    [
        (0, 0, 4), (31, 12, 72), (85, 15, 109), (136, 34, 106), (188, 55, 84),
        (227, 89, 51), (249, 140, 10), (249, 201, 50), (252, 255, 164),
    ],
    np.float32,
)  # fmt: skip
"""(9,3) float32 in 0..255: evenly spaced control points from low to high, linear between them."""

ALARM = (64, 224, 255)
"""Outline of what raised the alarm: cyan, a colour that the colour map lacks."""


def heat_range(values: F32, threshold: float | None) -> tuple[float, float]:
    """Low and high end of the colours of a score map (H,W): from its median to its maximum, or to one and a half times
    the threshold's height above the median where that is more."""
    low, high = float(np.median(values)), float(values.max())
    if threshold is not None:
        high = max(high, low + 1.5 * (threshold - low))
    return low, max(high, low + 1e-6)


def heat_map(values: F32, low: float, high: float) -> U8:
    """(H,W) float32 -> (H,W,3) uint8: `low` and below is nearly black, `high` and above pale yellow.

    Raises ShapeError unless `values` is (H,W), NumericError for NaN or Inf, InputError unless low < high.
    """
    t = _unit(values, low, high) * np.float32(len(COLOURS) - 1)
    below = np.minimum(t.astype(np.int64), len(COLOURS) - 2)
    part = (t - below)[..., None]
    return np.asarray(COLOURS[below] * (1 - part) + COLOURS[below + 1] * part + 0.5).astype(np.uint8)


def overlay(
    photo: U8, values: F32, low: float, high: float, threshold: float | None = None, strength: float = 0.75
) -> U8:
    """(H,W,3) uint8: the photo under its heat map, which is the more opaque the higher it is; `strength` at `high`.

    With a `threshold`, the region at or above it is outlined. Raises as :func:`heat_map`, and ShapeError where the
    map and the photo differ in size.
    """
    check_photo(photo, "the photo", values.shape)
    alpha = (np.float32(strength) * np.sqrt(_unit(values, low, high)))[..., None]
    mixed = photo * (1 - alpha) + heat_map(values, low, high) * alpha
    blended = np.asarray(mixed + 0.5).astype(np.uint8)
    return blended if threshold is None else contour(blended, values >= threshold)


def contour(photo: U8, mask: Mask, colour: tuple[int, int, int] = ALARM, width_px: int | None = None) -> U8:
    """(H,W,3) uint8: the photo with the outline of `mask` (H,W) drawn just inside it, and a dark line just outside.

    `width_px` is 1 for each 160 px of the shorter side unless given. Raises ShapeError for another size or dtype.
    """
    if mask.dtype != np.bool_:
        raise ShapeError(f"the mask came as {mask.dtype}; expected bool (H, W)")
    check_photo(photo, "the photo", mask.shape)
    width = width_px if width_px is not None else max(1, round(min(mask.shape) / 160))
    drawn = photo.copy()
    drawn[dilate(mask, 1) & ~mask] //= 3
    drawn[mask & ~erode(mask, width)] = colour
    return drawn


def spotlight(photo: U8, mask: Mask) -> U8:
    """(H,W,3) uint8: the photo dimmed outside `mask` (H,W) bool, the mask outlined: the evidence of an alarm."""
    drawn = contour(photo, mask)
    drawn[~mask] = (drawn[~mask] * np.float32(0.45)).astype(np.uint8)
    return drawn


def _unit(values: F32, low: float, high: float) -> F32:
    if values.ndim != 2:
        raise ShapeError(f"a score map came as {values.shape}; expected (H, W)")
    if not np.isfinite(values).all():
        raise NumericError("a score map holds NaN or Inf, so it cannot be coloured; find the network that made it")
    if not low < high:
        raise InputError(f"the colours were to span {low} to {high}; the low end must lie below the high end")
    return np.asarray(np.clip((values - low) / (high - low), 0, 1), dtype=np.float32)
