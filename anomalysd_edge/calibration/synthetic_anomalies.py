"""Synthetic anomalies: what settings are chosen on, since no photo of a defect is ever asked for.

Six kinds, in the spirit of CutPaste (Li et al., arXiv 2104.04015) and of the noise textures of DRAEM (Zavrtanik et al.,
arXiv 2108.07610): a pasted patch, a thin scar, foreign grain, a speck, a stain, a smear. Sizes are shares of the longer
side of the photo, contrasts follow its own spread, colours its own colourfulness: a grey photo gets grey ones.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageFilter

from anomalysd_edge.core.types import F32, U8, Mask

KINDS = ("patch", "scar", "grain", "speck", "stain", "smear")
_SMALLEST_PX = 6
"""An anomaly of fewer pixels is drawn again."""
_VISIBLE = 12
"""Grey levels by which at least two fifths of its pixels must differ from the photo."""
_TRIES = 40


@dataclass(frozen=True)
class Synthetic:
    """A good photo with one anomaly."""

    photo: U8
    """(H,W,3)."""
    mask: Mask
    """(H,W) where it was changed."""
    kind: str
    """One of KINDS."""


def synthetic_anomaly(photo: U8, inside: Mask, other: U8, rng: np.random.Generator) -> Synthetic | None:
    """One anomaly on (H,W,3) `photo`, within `inside` (H,W); `other` is another good photo, for pasted patches.

    None where forty draws gave nothing that shows: a foreground of a few pixels, for instance.
    """
    if not inside.any():
        return None
    for _ in range(_TRIES):
        kind = str(rng.choice(KINDS))
        mask = _outline(kind, inside, rng)
        if mask.sum() < _SMALLEST_PX:
            continue
        soft = Image.fromarray(mask.astype(np.uint8) * 255).filter(ImageFilter.GaussianBlur(rng.uniform(0.4, 1.2)))
        paint, strength = _paint(kind, photo, inside, other, rng)
        alpha = (np.asarray(soft, np.float32) / 255 * strength)[..., None]
        changed = np.clip(np.rint(photo * (1 - alpha) + paint * alpha), 0, 255).astype(np.uint8)
        apart = np.abs(changed.astype(np.int16) - photo).max(axis=2)
        if float((apart[mask] > _VISIBLE).mean()) >= 0.4:
            return Synthetic(changed, mask, kind)
    return None


def _outline(kind: str, inside: Mask, rng: np.random.Generator) -> Mask:
    height, width = inside.shape
    side = max(height, width)
    spots = np.argwhere(inside)
    row, column = spots[int(rng.integers(len(spots)))]
    y, x = np.mgrid[0:height, 0:width]
    angle = rng.uniform(0, np.pi)
    along = (y - row) * np.sin(angle) + (x - column) * np.cos(angle)
    across = (y - row) * np.cos(angle) - (x - column) * np.sin(angle)
    smallest, largest = {"speck": (0.012, 0.05), "scar": (0.045, 0.3)}.get(kind, (0.03, 0.2))
    length = side * np.exp(rng.uniform(np.log(smallest), np.log(largest)))
    if kind == "scar":
        bend = field(rng, inside.shape, 5) * length * 0.17 + field(rng, inside.shape, 20) * side * 0.006
        thick = side * np.exp(rng.uniform(np.log(0.0025), np.log(0.012)))
        shape = (np.abs(along) < length) & (np.abs(across + bend) < thick)
    else:
        wobble = field(rng, inside.shape, 10) * 0.5
        shape = (along / length) ** 2 + (across / (length * rng.uniform(0.35, 1))) ** 2 < 1 + wobble
    return np.asarray(shape & inside)


def _paint(kind: str, photo: U8, inside: Mask, other: U8, rng: np.random.Generator) -> tuple[F32, float]:
    """(H,W,3) of what is laid over the photo, and how opaque it is."""
    pixels = photo.astype(np.float32)
    height, width = inside.shape
    middle, spread = pixels[inside].mean(axis=0), pixels[inside].std(axis=0) + 4
    colourful = min(1.0, float((pixels - pixels.mean(axis=2, keepdims=True)).std()) / 12)

    def tint(values: F32) -> F32:
        return np.asarray(values.mean(axis=-1, keepdims=True) * (1 - colourful) + values * colourful, np.float32)

    if kind == "patch":
        source = np.ascontiguousarray(np.rot90(other if rng.random() < 0.5 else photo, int(rng.integers(4))))
        fitted = np.asarray(Image.fromarray(source).resize((width, height)), np.float32)
        away = (int(rng.integers(height // 6, height - height // 6)), int(rng.integers(width // 6, width - width // 6)))
        return np.roll(fitted, away, axis=(0, 1)), float(rng.uniform(0.6, 1))
    if kind == "grain":
        cells = [int(c) for c in rng.integers(8, 40, 4)]
        colour = np.stack([field(rng, inside.shape, c) for c in cells[:3]], axis=2)
        light = field(rng, inside.shape, cells[3])[..., None]
        return pixels + (tint(colour) * rng.uniform(0.3, 1) + light) * rng.uniform(15, 50), 1.0
    if kind == "stain":
        shade = tint(rng.uniform(-25, 25, 3).astype(np.float32)) + rng.choice([-1, 1]) * rng.uniform(8, 30)
        return np.asarray(pixels * rng.uniform(0.8, 1.2) + shade, np.float32), 1.0
    if kind == "smear":
        by = int(rng.integers(3, 8))
        small = Image.fromarray(photo).resize((max(1, width // by), max(1, height // by)), Image.Resampling.BOX)
        return np.asarray(small.resize((width, height), Image.Resampling.BICUBIC), np.float32), 1.0
    away_from_middle = np.maximum(spread * rng.uniform(1, 3), 20) * rng.choice([-1, 1])
    colour_of_it = middle + away_from_middle + tint(rng.uniform(-15, 15, 3).astype(np.float32))
    return np.broadcast_to(colour_of_it.astype(np.float32), photo.shape), float(rng.uniform(0.5, 1))


def field(rng: np.random.Generator, shape_hw: tuple[int, ...], cells: int) -> F32:
    """(H,W) of about unit spread: random values on a grid of `cells` cells along the longer side, bicubic between."""
    height, width = shape_hw[:2]
    longer = max(height, width)
    coarse = (max(2, round(cells * height / longer)), max(2, round(cells * width / longer)))
    values = Image.fromarray(rng.standard_normal(coarse).astype(np.float32))
    return np.asarray(values.resize((width, height), Image.Resampling.BICUBIC), dtype=np.float32)
