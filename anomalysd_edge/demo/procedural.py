"""Procedural image primitives: noise fields, signed distance functions, relief lighting. Seeded, numpy only.

Fields are (H,W) float32; a colour is three floats in [0,1]; coordinates run from -1 to 1 over the shorter side.
Used by the demo products (products.py, board.py) and the training images of the nano base (training/nano/).
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

Field = npt.NDArray[np.floating[Any]]
"""float32 as the functions here return it; they take float64 as well."""
Rng = np.random.Generator


def coordinates(side: int) -> tuple[Field, Field]:
    """(side,side) float32 x (rightwards) and y (downwards) in [-1,1], at pixel centres."""
    axis = ((np.arange(side, dtype=np.float32) + 0.5) / side * 2 - 1).astype(np.float32)
    x, y = np.meshgrid(axis, axis)
    return x, y


def smoothstep(field: Field, low: float, high: float) -> Field:
    """Hermite ramp from 0 at `low` to 1 at `high`."""
    t = np.clip((field - low) / (high - low), 0.0, 1.0)
    return np.asarray(t * t * (3 - 2 * t), dtype=np.float32)


def value_noise(rng: Rng, side: int, cells_x: float, cells_y: float | None = None) -> Field:
    """(side,side) float32 in about [0,1]: random values on a grid of cells, bicubic between them."""
    nx = max(2, round(cells_x) + 1)
    ny = max(2, round(cells_y if cells_y is not None else cells_x) + 1)
    grid = Image.fromarray(rng.random((ny, nx), dtype=np.float32))
    return np.asarray(grid.resize((side, side), Image.Resampling.BICUBIC), dtype=np.float32)


def fbm(rng: Rng, side: int, cells: float, octaves: int = 4, gain: float = 0.5, stretch: float = 1.0) -> Field:
    """(side,side) float32, mean 0 and deviation 1: octaves of value noise; `stretch` > 1 draws it out along x."""
    total = np.zeros((side, side), np.float32)
    weight = 1.0
    for octave in range(octaves):
        scale = cells * 2**octave
        total += weight * value_noise(rng, side, min(scale / stretch, side), min(scale, side))
        weight *= gain
    return standard(total)


def standard(field: Field) -> Field:
    """`field` moved and scaled to mean 0 and deviation 1; a constant one becomes 0."""
    spread = float(field.std())
    return np.asarray((field - field.mean()) / (spread if spread > 1e-6 else 1.0), dtype=np.float32)


def worley(rng: Rng, side: int, cells: int, jitter: float = 1.0) -> tuple[Field, Field, npt.NDArray[np.int32]]:
    """Cellular noise: distances to the nearest and second nearest of cells*cells jittered points, the nearest's number.

    Distances are in cell widths. Source: Worley, "A cellular texture basis function", 1996.
    """
    gx, gy = np.meshgrid(np.arange(-1, cells + 1), np.arange(-1, cells + 1))
    px = (gx + 0.5 + jitter * (rng.random(gx.shape) - 0.5)).astype(np.float32)
    py = (gy + 0.5 + jitter * (rng.random(gy.shape) - 0.5)).astype(np.float32)
    axis = (np.arange(side, dtype=np.float32) + 0.5) / side * cells
    x, y = np.meshgrid(axis, axis)
    cx, cy = np.floor(x).astype(np.int32), np.floor(y).astype(np.int32)
    first = np.full((side, side), 9.0, np.float32)
    second = first.copy()
    owner = np.zeros((side, side), np.int32)
    for dy in (-1, 0, 1):
        for dx in (-1, 0, 1):
            jx, jy = cx + dx + 1, cy + dy + 1
            distance = np.hypot(px[jy, jx] - x, py[jy, jx] - y)
            nearer = distance < first
            second = np.where(nearer, first, np.minimum(second, distance))
            owner = np.where(nearer, jy * (cells + 2) + jx, owner).astype(np.int32)
            first = np.where(nearer, distance, first)
    return first, second, owner


def rotate(x: Field, y: Field, angle_rad: float) -> tuple[Field, Field]:
    """Coordinates in a frame rotated by `angle_rad`."""
    c, s = np.float32(np.cos(angle_rad)), np.float32(np.sin(angle_rad))
    return c * x + s * y, c * y - s * x


def circle(x: Field, y: Field, radius: float) -> Field:
    """Signed distance to a circle around the origin; negative inside."""
    return np.asarray(np.hypot(x, y) - radius, dtype=np.float32)


def box(x: Field, y: Field, half_x: float, half_y: float, round_by: float = 0.0) -> Field:
    """Signed distance to a box around the origin with corners rounded by `round_by`."""
    dx, dy = np.abs(x) - (half_x - round_by), np.abs(y) - (half_y - round_by)
    outside = np.hypot(np.maximum(dx, 0), np.maximum(dy, 0))
    return np.asarray(outside + np.minimum(np.maximum(dx, dy), 0) - round_by, dtype=np.float32)


def polygon(x: Field, y: Field, sides: int, radius: float) -> Field:
    """Signed distance (exact inside) to a regular polygon with inradius `radius`."""
    angle = np.arctan2(y, x)
    sector = 2 * np.pi / sides
    folded = np.mod(angle + sector / 2, sector) - sector / 2
    return np.asarray(np.hypot(x, y) * np.cos(folded) - radius, dtype=np.float32)


def segment(x: Field, y: Field, ax: float, ay: float, bx: float, by: float, radius: float) -> Field:
    """Signed distance to the thick line from a to b."""
    px, py, dx, dy = x - ax, y - ay, bx - ax, by - ay
    along = np.clip((px * dx + py * dy) / max(dx * dx + dy * dy, 1e-9), 0, 1)
    return np.asarray(np.hypot(px - along * dx, py - along * dy) - radius, dtype=np.float32)


def cover(distance: Field, soft: float = 0.012) -> Field:
    """Signed distance -> coverage in [0,1] with an edge `soft` wide (antialiasing)."""
    return np.asarray(1 - smoothstep(distance, -soft, soft), dtype=np.float32)


def paint(canvas: Field, colour: npt.ArrayLike, coverage: Field) -> Field:
    """(H,W,3) canvas with `colour` ((3,) or (H,W,3)) laid over it by `coverage` (H,W)."""
    alpha = coverage[..., None]
    return np.asarray(canvas * (1 - alpha) + np.asarray(colour, np.float32) * alpha, dtype=np.float32)


def relief(height: Field, light_rad: float, strength: float) -> Field:
    """Factor around 1 by which a surface of this `height` is lit from the direction `light_rad`."""
    gy, gx = np.gradient(height)
    slope = gx * np.cos(light_rad) + gy * np.sin(light_rad)
    return np.asarray(np.clip(1 + strength * slope, 0.2, 1.9), dtype=np.float32)


def colour_near(rng: Rng, colour: npt.ArrayLike, spread: float) -> Field:
    """A (3,) float32 colour near `colour`, clipped to [0.02,0.98]."""
    return np.clip(np.asarray(colour, np.float32) + rng.normal(0, spread, 3).astype(np.float32), 0.02, 0.98)


def finish(canvas: Field, rng: Rng, grain: float, light: float) -> npt.NDArray[np.uint8]:
    """(H,W,3) float canvas -> uint8 photo with uneven light (relative `light`) and sensor grain (deviation `grain`)."""
    side = canvas.shape[0]
    x, y = coordinates(side)
    direction = rng.uniform(0, 2 * np.pi)
    shade = 1 + light * (x * np.cos(direction) + y * np.sin(direction))
    noisy = canvas * shade[..., None].astype(np.float32) + rng.normal(0, grain, canvas.shape).astype(np.float32)
    return np.asarray(np.clip(noisy * 255 + 0.5, 0, 255), dtype=np.uint8)
