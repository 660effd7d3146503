"""Surfaces drawn in code for the embedded base, every one seeded.

A family is a function (rng, side) -> canvas. These span what line cameras see of surfaces: grained and woven ones,
brushed and cast metal, regular patterns; and "collages" with the statistics of natural images (dead leaves, Lee et al.
2001), which teach the autoencoder edges and colours that the others lack.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from anomalysd_edge.demo import procedural as draw
from anomalysd_edge.demo.procedural import Field, Rng

Family = Callable[[Rng, int], Field]
"""(rng, side in px) -> (side,side,3) float32 canvas in about [0,1]."""


def flat(colour: Field, side: int) -> Field:
    """(3,) colour -> (side,side,3) float32 of it."""
    return np.broadcast_to(colour, (side, side, 3)).astype(np.float32)


def any_colour(rng: Rng) -> Field:
    """Mostly muted, sometimes vivid, sometimes nearly black or white."""
    grey = rng.uniform(0.06, 0.94)
    vivid = rng.beta(1.0, 2.5) * 0.7
    tint = rng.random(3) - 0.5
    return np.clip(grey + vivid * tint, 0.02, 0.98).astype(np.float32)


def ramp(field: Field, low: Field, high: Field) -> Field:
    """(H,W) in [0,1] -> colours between two."""
    return (low + (high - low) * field[..., None]).astype(np.float32)


def _turned(rng: Rng, side: int, free: bool = False) -> tuple[Field, Field]:
    x, y = draw.coordinates(side)
    angle = rng.uniform(0, 2 * np.pi) if free else rng.normal(0, 0.15) + rng.integers(4) * np.pi / 2
    return draw.rotate(x, y, angle)


def _lit(canvas: Field, height: Field, rng: Rng, strength: float) -> Field:
    return (canvas * draw.relief(height, rng.uniform(0, 2 * np.pi), strength)[..., None]).astype(np.float32)


def cloth(rng: Rng, side: int) -> Field:
    x, y = _turned(rng, side, free=bool(rng.random() < 0.5))
    threads = rng.uniform(8, 26)
    wobble = 0.15 * draw.fbm(rng, side, 4, 2)
    u, v = x * threads + wobble, y * threads * rng.uniform(0.8, 1.2) + wobble
    over = np.sin(np.pi * u) * np.sin(np.pi * v) > 0
    warp, weft = np.abs(np.cos(np.pi * u)), np.abs(np.cos(np.pi * v))
    height = np.where(over, warp, weft).astype(np.float32)
    a, b = any_colour(rng), any_colour(rng)
    b = a + (b - a) * np.float32(rng.random())
    canvas = np.where(over[..., None], a, b) * (0.55 + 0.45 * height[..., None])
    return np.asarray(canvas * (1 + 0.06 * draw.fbm(rng, side, 30, 2))[..., None])


def leather(rng: Rng, side: int) -> Field:
    cells = int(rng.integers(10, 34))
    first, second, _ = draw.worley(rng, side, cells, rng.uniform(0.6, 1.0))
    height = draw.smoothstep(second - first, 0.0, rng.uniform(0.2, 0.5)) + 0.15 * draw.fbm(rng, side, 20, 3)
    colour = any_colour(rng)
    canvas = flat(colour, side) * (0.75 + 0.25 * height)[..., None]
    return _lit(canvas, height, rng, rng.uniform(0.4, 1.6)) * (1 + 0.04 * draw.fbm(rng, side, 3, 3))[..., None]


def stone(rng: Rng, side: int) -> Field:
    field = draw.fbm(rng, side, rng.uniform(2, 14), 6, rng.uniform(0.5, 0.8))
    canvas = ramp(draw.smoothstep(field, -2, 2), any_colour(rng), any_colour(rng))
    return _lit(canvas, field, rng, rng.uniform(0, 0.4))


def speckle(rng: Rng, side: int) -> Field:
    first, _, owner = draw.worley(rng, side, int(rng.integers(8, 40)), 1.0)
    palette = np.stack([any_colour(rng) for _ in range(4)])
    pick = (owner * 7919 % 97) % 4
    spots = draw.cover(first - rng.uniform(0.15, 0.4), 0.1)
    canvas = flat(any_colour(rng), side)
    return draw.paint(canvas, palette[pick], spots) * (1 + 0.05 * draw.fbm(rng, side, 10, 3))[..., None]


def wood(rng: Rng, side: int) -> Field:
    x, y = _turned(rng, side)
    bend = draw.fbm(rng, side, 2, 2, stretch=2)
    rings = np.sin(2 * np.pi * (y * rng.uniform(2, 9) + 0.35 * bend + rng.uniform(0, 0.4) * x))
    fibre = draw.fbm(rng, side, 40, 2, stretch=10)
    base = any_colour(rng)
    dark = base * np.float32(rng.uniform(0.4, 0.85))
    return ramp(draw.smoothstep(rings + 0.35 * fibre, -1.6, 1.6), dark, base)


def brushed_metal(rng: Rng, side: int) -> Field:
    fibre = draw.fbm(rng, side, rng.uniform(30, 64), 2, stretch=rng.uniform(8, 30))
    if rng.random() < 0.5:
        fibre = np.ascontiguousarray(fibre.T)
    x, y = _turned(rng, side, free=True)
    band = np.exp(-((x - rng.uniform(-1, 1)) ** 2) / rng.uniform(0.1, 1.5)) + 0 * y
    grey = rng.uniform(0.25, 0.7)
    tint = 1 + rng.normal(0, 0.03, 3)
    return np.asarray(
        ((grey + rng.uniform(0.01, 0.09) * fibre + rng.uniform(0, 0.25) * band)[..., None] * tint).astype(np.float32)
    )


def cast_surface(rng: Rng, side: int) -> Field:
    field = draw.fbm(rng, side, rng.uniform(12, 50), 3, 0.7)
    canvas = flat(any_colour(rng), side) * (1 + rng.uniform(0.01, 0.12) * draw.fbm(rng, side, 2, 3))[..., None]
    return _lit(canvas, field, rng, rng.uniform(0.05, 0.5))


def tiles(rng: Rng, side: int) -> Field:
    x, y = _turned(rng, side)
    nx, ny = rng.uniform(2, 8), rng.uniform(2, 8)
    u, v = x * nx / 2 + rng.random(), y * ny / 2 + rng.random()
    if rng.random() < 0.5:
        u = u + 0.5 * (np.floor(v) % 2)
    gap = np.maximum(np.abs(u - np.floor(u) - 0.5), np.abs(v - np.floor(v) - 0.5))
    joint = draw.smoothstep(gap.astype(np.float32), 0.5 - rng.uniform(0.03, 0.1), 0.5)
    face = flat(any_colour(rng), side) * (1 + 0.06 * draw.fbm(rng, side, 12, 4))[..., None]
    return _lit(draw.paint(face, any_colour(rng), joint), -joint, rng, rng.uniform(0, 0.8))


def grid(rng: Rng, side: int) -> Field:
    x, y = _turned(rng, side, free=bool(rng.random() < 0.6))
    n, thick = rng.uniform(4, 16), rng.uniform(0.12, 0.35)
    bars = np.maximum(np.abs(np.sin(np.pi * x * n)), np.abs(np.sin(np.pi * y * n)))
    wire = draw.smoothstep(bars.astype(np.float32), 1 - thick, 1 - thick / 2)
    return _lit(draw.paint(flat(any_colour(rng), side), any_colour(rng), wire), wire, rng, rng.uniform(0, 0.7))


def carpet(rng: Rng, side: int) -> Field:
    field = 0.7 * draw.fbm(rng, side, 50, 2, 0.9, stretch=rng.uniform(1, 3)) + 0.5 * draw.fbm(rng, side, 20, 2)
    return ramp(draw.smoothstep(field, -2, 2), any_colour(rng), any_colour(rng))


def stripes(rng: Rng, side: int) -> Field:
    x, _ = _turned(rng, side, free=True)
    wave = np.sin(2 * np.pi * (x * rng.uniform(1.5, 14) + 0.03 * draw.fbm(rng, side, 3, 2)))
    edge = rng.uniform(0.1, 1.0)
    canvas = ramp(draw.smoothstep(wave.astype(np.float32), -edge, edge), any_colour(rng), any_colour(rng))
    return canvas * (1 + 0.05 * draw.fbm(rng, side, 25, 3))[..., None]


def collage(rng: Rng, side: int) -> Field:
    """Dead leaves: overlapping shapes with sizes after a power law, each with its own grain and shade."""
    x, y = draw.coordinates(side)
    grain = draw.fbm(rng, side, rng.uniform(4, 40), 3)
    canvas = flat(any_colour(rng), side) * (1 + 0.1 * grain)[..., None]
    for _ in range(int(rng.integers(6, 45))):
        radius = min(0.7, 0.05 * (1 - rng.random()) ** -0.6)
        u, v = draw.rotate(x - np.float32(rng.uniform(-1, 1)), y - np.float32(rng.uniform(-1, 1)), rng.uniform(0, 6.3))
        kind = rng.integers(4)
        if kind == 0:
            shape = draw.circle(u, v, radius)
        elif kind == 1:
            shape = draw.box(u, v, radius, radius * rng.uniform(0.1, 1), radius * 0.08)
        elif kind == 2:
            shape = draw.polygon(u, v, int(rng.integers(3, 9)), radius)
        else:
            shape = draw.segment(u, v, -radius, 0, radius, 0, radius * rng.uniform(0.03, 0.25))
        shade = 1 + rng.uniform(0, 0.25) * u / radius + rng.uniform(0, 0.15) * grain
        colour = any_colour(rng) * np.clip(shade, 0.3, 1.7)[..., None]
        canvas = draw.paint(canvas, colour, draw.cover(shape, rng.uniform(0.008, 0.04)))
    return canvas
