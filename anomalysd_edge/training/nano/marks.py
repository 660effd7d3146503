"""Thin marks drawn on pictures: hairlines, scratches and specks, a pixel or two wide, of faint to strong contrast.

The autoencoder is taught with them and judged by them: an average over pixels hardly notices when it forgets a
hairline, yet a hairline may be the whole defect.
"""

from __future__ import annotations

import numpy as np

from anomalysd_edge.core.types import F32

Rng = np.random.Generator


def hairline(rng: Rng, side: int, width_px: float, length_px: float) -> F32:
    """(side,side) coverage in [0,1] of a slightly bent line of this width and length, antialiased, somewhere within."""
    y, x = np.mgrid[0:side, 0:side].astype(np.float32)
    cx, cy = rng.uniform(0.15 * side, 0.85 * side, 2)
    angle = rng.uniform(0, np.pi)
    along = ((x - cx) * np.cos(angle) + (y - cy) * np.sin(angle)).astype(np.float32)
    across = ((y - cy) * np.cos(angle) - (x - cx) * np.sin(angle)).astype(np.float32)
    bend = rng.normal(0, 0.12) / length_px
    return _covered(np.abs(across + bend * along**2), width_px / 2) * _covered(np.abs(along), length_px / 2)


def speck(rng: Rng, side: int, width_px: float) -> F32:
    """(side,side) coverage in [0,1] of a round speck of this width somewhere within."""
    y, x = np.mgrid[0:side, 0:side].astype(np.float32)
    cx, cy = rng.uniform(2, side - 2, 2)
    return _covered(np.hypot(x - cx, y - cy), width_px / 2)


def random_marks(rng: Rng, picture: F32, least: int = 0) -> tuple[F32, F32]:
    """(H,H,3) float32 in [-1,1] -> the picture with `least` to three marks, and the (H,H) coverage of them all."""
    side = len(picture)
    cover = np.zeros((side, side), np.float32)
    for _ in range(int(rng.integers(least, 4))):
        if rng.random() < 0.75:
            width, length = rng.uniform(0.7, 2.2), np.exp(rng.uniform(np.log(5), np.log(side)))
            mark = hairline(rng, side, float(width), float(length))
        else:
            mark = speck(rng, side, float(rng.uniform(1.2, 4.0)))
        shade = np.exp(rng.uniform(np.log(0.08), np.log(1.0))) * rng.choice([-1, 1])
        tint = rng.normal(0, 0.25, 3) * abs(shade) if rng.random() < 0.3 else 0.0
        colour = (shade + np.broadcast_to(np.asarray(tint), (3,))).astype(np.float32)
        picture = np.clip(picture + mark[..., None] * colour, -1, 1)
        cover = np.maximum(cover, mark)
    return picture.astype(np.float32), cover


def _covered(distance: F32, half: float) -> F32:
    """Share of a pixel within `half` of the middle, both in pixels; thinner lines are fainter."""
    inside = np.clip(half + 0.5 - distance, 0, 1) - np.clip(0.5 - half - distance, 0, 1)
    return np.asarray(np.clip(inside, 0, 1), dtype=np.float32)
