"""Defect masks as data sets and drawing programs write them: what counts as marked."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageFilter

from anomalysd_edge.core.types import U8, Mask

LARGEST_LABEL = 63
"""Masks whose values end here number kinds of defects (VisA: 1, 2, 3 ...); a mark painted white is brighter."""
_FEW_VALUES = 12
"""Distinct values up to which a mask may number kinds of defects."""
_EDGE_PX = 5
"""Side of the neighbourhood in which a soft edge reaches the inside of its mark."""


def marked(image: Image.Image) -> Mask:
    """(H,W) bool of a decoded mask, turned upright.

    Not 0 is marked where values number kinds of defects (MVTec LOCO, VisA, palettes); half of the mask's own maximum
    decides where edges are soft or blurred by JPEG and lossy WebP, whose traces reach far around a mark.
    """
    values = _values(image)
    highest = int(values.max()) if values.size else 0
    if image.format == "JPEG" or _is_soft(values, highest):
        return np.asarray(values > highest / 2)
    return np.asarray(values > 0)


def _values(image: Image.Image) -> npt.NDArray[Any]:
    """(H,W): the strongest channel; 0 where transparent. A mark that is drawn in alpha alone is that alpha."""
    if image.mode in ("1", "L", "I", "F") or image.mode.startswith("I;16"):
        values = np.asarray(image)
        return values.astype(np.uint8) if values.dtype == np.bool_ else values
    rgba = np.asarray(image.convert("RGBA"))
    colours: U8 = rgba[..., :3].max(axis=2)
    alpha = rgba[..., 3]
    if not alpha.any():
        return colours
    if not colours.any() and alpha.min() != alpha.max():
        return alpha
    return np.where(alpha > 0, colours, 0)


def _is_soft(values: npt.NDArray[Any], highest: int) -> bool:
    """Whether low values are traces of a mark's blurred edge, not numbers of kinds of defects."""
    if highest <= LARGEST_LABEL:
        return False
    high = values > highest / 2
    low = (values > 0) & ~high
    found = np.unique(values[low])
    if len(found) == 0 or len(found) > _FEW_VALUES:
        return len(found) > 0
    if found[-1] <= highest / 8:  # As JPEG and WebP leave them, or 1, 2, 3 beside a 255: numbers fill areas.
        return len(found) > 3 or _share_of_areas(values, low) < 0.5
    inside = np.asarray(Image.fromarray(high.astype(np.uint8)).filter(ImageFilter.MaxFilter(_EDGE_PX)))
    return not bool((low & (inside == 0)).any())


def _share_of_areas(values: npt.NDArray[Any], low: Mask) -> float:
    """Of the pixels `low` those whose four neighbours have their value."""
    same = low[1:-1, 1:-1].copy()
    for axis, step in ((0, -1), (0, 1), (1, -1), (1, 1)):
        same &= (np.roll(values, step, axis) == values)[1:-1, 1:-1]
    return float(same.sum() / low.sum())
