"""From one good photo to many: augmented copies, and copies with a synthetic anomaly. (S,S,3) uint8 in and out."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from PIL import Image

from anomalysd_edge.core.types import F32, U8, Mask
from anomalysd_edge.data.classes import apply_view
from anomalysd_edge.training.settings import TrainSettings


def augmented(
    pixels: U8, shown: Mask, views: Sequence[tuple[int, bool]], settings: TrainSettings, rng: np.random.Generator
) -> tuple[U8, Mask]:
    """A copy that is a good photo again: a view that the class allows, a little shift, zoom and tilt, another light.

    pixels (S,S,3) and their foreground `shown` (S,S) move together; the foreground returned is never empty.
    """
    view = views[int(rng.integers(len(views)))]
    pixels, shown = apply_view(pixels, view), apply_view(shown, view)
    side = len(pixels)
    zoom = 1 + rng.uniform(-settings.zoom, settings.zoom)
    angle = np.deg2rad(rng.uniform(-settings.tilt_degrees, settings.tilt_degrees))
    shift = rng.uniform(-settings.shift, settings.shift, 2) * side
    # Pillow asks where an output pixel comes from; the frame is reflected outwards far enough to answer everywhere.
    margin = side // 2
    cos, sin = np.cos(angle) / zoom, np.sin(angle) / zoom
    middle = side / 2  # Pillow's coordinates run through pixel centres at x + 0.5
    offset_x = middle - cos * middle - sin * middle + shift[0] + margin
    offset_y = middle + sin * middle - cos * middle + shift[1] + margin
    matrix = (cos, sin, offset_x, -sin, cos, offset_y)
    wide = np.pad(pixels, ((margin, margin), (margin, margin), (0, 0)), mode="reflect")
    moved = Image.fromarray(wide).transform((side, side), Image.Transform.AFFINE, matrix, Image.Resampling.BICUBIC)
    wide_shown = np.pad(shown, margin, mode="edge").astype(np.uint8)
    moved_shown = Image.fromarray(wide_shown).transform(
        (side, side), Image.Transform.AFFINE, matrix, Image.Resampling.NEAREST
    )
    gain = 1 + rng.uniform(-settings.jitter, settings.jitter) + rng.uniform(-1, 1, 3) * settings.jitter / 3
    lit = np.clip(np.asarray(moved, np.float32) * gain + rng.uniform(-1, 1) * settings.jitter * 64, 0, 255)
    seen: Mask = np.asarray(np.asarray(moved_shown) > 0)
    return np.rint(lit).astype(np.uint8), seen if seen.any() else np.ones_like(seen)


def with_anomaly(pixels: U8, other: U8, mask: Mask, rng: np.random.Generator) -> U8:
    """(S,S,3) with a synthetic anomaly somewhere inside `mask` (S,S); unchanged if the mask is empty.

    Its outline is a blob, a bar or a thin scar; its filling a piece of another place or photo (CutPaste, Li et al.,
    arXiv 2104.04015), smooth random colours, or one flat colour, blended in at 40 to 100 %.
    """
    inside = np.argwhere(mask)
    if not len(inside):
        return pixels
    side = len(pixels)
    top, left = inside.min(0)
    bottom, right = inside.max(0) + 1
    extent = np.array([bottom - top, right - left])
    row, column = inside[int(rng.integers(len(inside)))]
    y, x = np.mgrid[0:side, 0:side]
    angle = rng.uniform(0, np.pi)
    along = (y - row) * np.sin(angle) + (x - column) * np.cos(angle)
    across = (y - row) * np.cos(angle) - (x - column) * np.sin(angle)
    length = max(2.0, rng.uniform(0.15, 0.6) * float(extent.max()))
    kind = int(rng.integers(3))
    if kind == 0:
        wobble = smooth_field(rng, side, 6) * 0.6
        shape = (along / length) ** 2 + (across / (length * rng.uniform(0.3, 1.0))) ** 2 < 1 + wobble
    elif kind == 1:
        shape = (abs(along) < length) & (abs(across) < max(1.0, length * rng.uniform(0.15, 0.6)))
    else:
        bend = smooth_field(rng, side, 4) * length * 0.3
        shape = (abs(along) < length) & (abs(across + bend) < rng.uniform(0.6, max(0.7, side / 60)))
    filling = int(rng.integers(3))
    paint: F32
    if filling == 0:
        source = other if rng.random() < 0.5 else pixels
        moved = np.roll(source, tuple(int(v) for v in rng.integers(side // 8, side - side // 8, 2)), axis=(0, 1))
        paint = np.rot90(moved, int(rng.integers(4))).astype(np.float32)
    elif filling == 1:
        cells = int(rng.integers(3, 13))
        colours = np.stack([smooth_field(rng, side, cells) for _ in range(3)], axis=2)
        paint = (colours * 80 + rng.uniform(0, 255, 3)).astype(np.float32)
    else:
        paint = np.broadcast_to(rng.uniform(0, 255, 3), pixels.shape).astype(np.float32)
    strength = rng.uniform(0.4, 1.0)
    alpha = ((shape & mask) * strength)[..., None]
    blended: U8 = np.clip(np.rint(pixels * (1 - alpha) + paint * alpha), 0, 255).astype(np.uint8)
    return blended


def smooth_field(rng: np.random.Generator, side: int, cells: int) -> F32:
    """(side,side) float32 of about unit spread: random values on a coarse grid, bicubic between."""
    coarse = rng.standard_normal((cells, cells)).astype(np.float32)
    return np.asarray(Image.fromarray(coarse).resize((side, side), Image.Resampling.BICUBIC), dtype=np.float32)
