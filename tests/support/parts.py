"""Photos of washers, drawn for tests."""

from __future__ import annotations

import io

import numpy as np
from PIL import Image, ImageFilter


def part(
    seed: int, level: int = 0, mottle: float = 0.0, spot: int = 0, gain: float = 1.0, blur_px: float = 0.0
) -> bytes:
    """A PNG of a washer on a grained table, 64 x 64; a red `spot` of so many pixels' side is its defect.

    `mottle` is the spread of coloured patches of 8 px, `level` is added to all grey levels, `gain` multiplies
    them, `blur_px` is the radius of a Gaussian blur.
    """
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:64, :64] - 31.5 + rng.normal(0, 1, 2)[:, None, None]
    radius = np.hypot(y, x)
    photo = np.where((radius > 10) & (radius < 24), 190, 70)[..., None] + rng.normal(0, 6, (64, 64, 3)) + level
    if mottle:
        photo += rng.normal(0, mottle, (8, 8, 3)).repeat(8, 0).repeat(8, 1)
    if spot:
        at = int(rng.integers(8, max(9, 56 - spot)))
        photo[at : at + spot, at : at + spot] = (220, 30, 30)
    image = Image.fromarray(np.clip(gain * photo, 0, 255).astype(np.uint8))
    if blur_px:
        image = image.filter(ImageFilter.GaussianBlur(blur_px))
    out = io.BytesIO()
    image.save(out, format="PNG")
    return out.getvalue()
