"""What the good photos of a class that nobody described say of it: part or surface, and which copies are good again.

A part lies before a background: the photo's four corners are alike, and its middle is not like them. A surface fills
the photo: middle and corners differ no more than corners do. Of a surface, light and dark run in all directions alike,
along one, or neither; that says which turns and mirrors leave it as it is. A part gets none: that a screw is as good
upside down cannot be seen on one screw.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from anomalysd_edge.core.types import U8
from anomalysd_edge.data.classes import ClassSpec
from anomalysd_edge.vision.images import resize

_SIDE = 64
_CELLS = 8
"""Cells along a side whose mean colours and roughness are compared."""
PART_FROM = 1.4
"""Distance of the middle from the border in units of the corners' own unlikeness, from which a photo shows a part.

On surfaces and parts drawn in code (training/reading_images.py), 70 each, it tells some 95 in 100 of both.
"""
_NOISE = 3.0
"""Grey levels added to the corners' unlikeness: corners of a rendered background do not differ at all."""
_EVEN = 0.15
"""Coherence of the gradients (0 all directions alike, 1 one direction) up to which a surface has no direction."""
_SLANT = 0.35
"""Sine of twice the direction's angle up to which it runs along a side of the photo."""


def guess(spec: ClassSpec, photos: Sequence[U8]) -> ClassSpec:
    """`spec` with kind and symmetries as (H,W,3) good photos show them; as it is where there are none."""
    if not photos:
        return spec
    if float(np.median([middle_apart(photo) for photo in photos])) >= PART_FROM:
        return replace(spec, kind="object")
    return replace(spec, kind="texture", symmetries=symmetries_of(photos))


def middle_apart(photo: U8) -> float:
    """How far the middle of (H,W,3) is from its border, in units of how far its corners are from each other."""
    small = resize(photo, _SIDE).astype(np.float32)
    grey = small.mean(axis=2)
    roughness = 40 * np.log(4 + np.hypot(*np.gradient(grey)))
    fields = np.concatenate([small, roughness[..., None]], axis=2)
    width = _SIDE // _CELLS
    cells = fields.reshape(_CELLS, width, _CELLS, width, 4).mean(axis=(1, 3))
    border = np.ones((_CELLS, _CELLS), np.bool_)
    border[1:-1, 1:-1] = False
    middle = cells[2:-2, 2:-2].reshape(-1, 4).mean(axis=0)
    corners = cells[[0, 0, -1, -1], [0, -1, 0, -1]]
    unlike = float(np.linalg.norm(corners - corners.mean(axis=0), axis=1).mean())
    return float(np.linalg.norm(cells[border].mean(axis=0) - middle)) / (unlike + _NOISE)


def symmetries_of(photos: Sequence[U8]) -> tuple[str, ...]:
    """Turns and mirrors of a surface, by the structure tensor of its gradients over all photos."""
    xx = yy = xy = 0.0
    for photo in photos:
        down, across = np.gradient(resize(photo, 2 * _SIDE).astype(np.float32).mean(axis=2))
        xx, yy, xy = xx + float((across**2).sum()), yy + float((down**2).sum()), xy + float((across * down).sum())
    total, along = xx + yy, float(np.hypot(xx - yy, 2 * xy))
    if total == 0 or along / total <= _EVEN:
        return ("rotate90", "flip_x")
    return ("rotate180", "flip_x") if abs(2 * xy) / along <= _SLANT else ("rotate180",)
