"""The images that the embedded base "nano" is made from: surfaces and parts drawn in code, every one seeded.

No photo of anybody's goes in. A family is a noun and a function (rng, side) -> (side,side,3) float32 canvas in about
[0,1]. The families span what line cameras see: grained and woven surfaces, brushed and cast metal, regular patterns,
round and symmetric parts, boards; and "collages" with the statistics of natural images (dead leaves, Lee et al. 2001),
which teach the autoencoder edges and colours that the others lack.

The demo draws a capsule and a board too, but not these: there each is one product with fixed geometry in a lit scene
(demo/products.py), here a random member of a family on a flat canvas. Both share the primitives of demo/procedural.py.
Longer than 300 lines because the 23 families are one list: their order and random draws define the training images.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpy.typing as npt

from anomalysd_edge.demo import procedural as draw
from anomalysd_edge.demo.procedural import Field, Rng

Family = Callable[[Rng, int], Field]


def _flat(colour: Field, side: int) -> Field:
    return np.broadcast_to(colour, (side, side, 3)).astype(np.float32)


def _any_colour(rng: Rng) -> Field:
    """Mostly muted, sometimes vivid, sometimes nearly black or white."""
    grey = rng.uniform(0.06, 0.94)
    vivid = rng.beta(1.0, 2.5) * 0.7
    tint = rng.random(3) - 0.5
    return np.clip(grey + vivid * tint, 0.02, 0.98).astype(np.float32)


def _ramp(field: Field, low: Field, high: Field) -> Field:
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
    a, b = _any_colour(rng), _any_colour(rng)
    b = a + (b - a) * np.float32(rng.random())
    canvas = np.where(over[..., None], a, b) * (0.55 + 0.45 * height[..., None])
    return np.asarray(canvas * (1 + 0.06 * draw.fbm(rng, side, 30, 2))[..., None])


def leather(rng: Rng, side: int) -> Field:
    cells = int(rng.integers(10, 34))
    first, second, _ = draw.worley(rng, side, cells, rng.uniform(0.6, 1.0))
    height = draw.smoothstep(second - first, 0.0, rng.uniform(0.2, 0.5)) + 0.15 * draw.fbm(rng, side, 20, 3)
    colour = _any_colour(rng)
    canvas = _flat(colour, side) * (0.75 + 0.25 * height)[..., None]
    return _lit(canvas, height, rng, rng.uniform(0.4, 1.6)) * (1 + 0.04 * draw.fbm(rng, side, 3, 3))[..., None]


def stone(rng: Rng, side: int) -> Field:
    field = draw.fbm(rng, side, rng.uniform(2, 14), 6, rng.uniform(0.5, 0.8))
    canvas = _ramp(draw.smoothstep(field, -2, 2), _any_colour(rng), _any_colour(rng))
    return _lit(canvas, field, rng, rng.uniform(0, 0.4))


def speckle(rng: Rng, side: int) -> Field:
    first, _, owner = draw.worley(rng, side, int(rng.integers(8, 40)), 1.0)
    palette = np.stack([_any_colour(rng) for _ in range(4)])
    pick = (owner * 7919 % 97) % 4
    spots = draw.cover(first - rng.uniform(0.15, 0.4), 0.1)
    canvas = _flat(_any_colour(rng), side)
    return draw.paint(canvas, palette[pick], spots) * (1 + 0.05 * draw.fbm(rng, side, 10, 3))[..., None]


def wood(rng: Rng, side: int) -> Field:
    x, y = _turned(rng, side)
    bend = draw.fbm(rng, side, 2, 2, stretch=2)
    rings = np.sin(2 * np.pi * (y * rng.uniform(2, 9) + 0.35 * bend + rng.uniform(0, 0.4) * x))
    fibre = draw.fbm(rng, side, 40, 2, stretch=10)
    base = _any_colour(rng)
    dark = base * np.float32(rng.uniform(0.4, 0.85))
    return _ramp(draw.smoothstep(rings + 0.35 * fibre, -1.6, 1.6), dark, base)


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
    canvas = _flat(_any_colour(rng), side) * (1 + rng.uniform(0.01, 0.12) * draw.fbm(rng, side, 2, 3))[..., None]
    return _lit(canvas, field, rng, rng.uniform(0.05, 0.5))


def tiles(rng: Rng, side: int) -> Field:
    x, y = _turned(rng, side)
    nx, ny = rng.uniform(2, 8), rng.uniform(2, 8)
    u, v = x * nx / 2 + rng.random(), y * ny / 2 + rng.random()
    if rng.random() < 0.5:
        u = u + 0.5 * (np.floor(v) % 2)
    gap = np.maximum(np.abs(u - np.floor(u) - 0.5), np.abs(v - np.floor(v) - 0.5))
    joint = draw.smoothstep(gap.astype(np.float32), 0.5 - rng.uniform(0.03, 0.1), 0.5)
    face = _flat(_any_colour(rng), side) * (1 + 0.06 * draw.fbm(rng, side, 12, 4))[..., None]
    return _lit(draw.paint(face, _any_colour(rng), joint), -joint, rng, rng.uniform(0, 0.8))


def grid(rng: Rng, side: int) -> Field:
    x, y = _turned(rng, side, free=bool(rng.random() < 0.6))
    n, thick = rng.uniform(4, 16), rng.uniform(0.12, 0.35)
    bars = np.maximum(np.abs(np.sin(np.pi * x * n)), np.abs(np.sin(np.pi * y * n)))
    wire = draw.smoothstep(bars.astype(np.float32), 1 - thick, 1 - thick / 2)
    return _lit(draw.paint(_flat(_any_colour(rng), side), _any_colour(rng), wire), wire, rng, rng.uniform(0, 0.7))


def carpet(rng: Rng, side: int) -> Field:
    field = 0.7 * draw.fbm(rng, side, 50, 2, 0.9, stretch=rng.uniform(1, 3)) + 0.5 * draw.fbm(rng, side, 20, 2)
    return _ramp(draw.smoothstep(field, -2, 2), _any_colour(rng), _any_colour(rng))


def stripes(rng: Rng, side: int) -> Field:
    x, _ = _turned(rng, side, free=True)
    wave = np.sin(2 * np.pi * (x * rng.uniform(1.5, 14) + 0.03 * draw.fbm(rng, side, 3, 2)))
    edge = rng.uniform(0.1, 1.0)
    canvas = _ramp(draw.smoothstep(wave.astype(np.float32), -edge, edge), _any_colour(rng), _any_colour(rng))
    return canvas * (1 + 0.05 * draw.fbm(rng, side, 25, 3))[..., None]


def collage(rng: Rng, side: int) -> Field:
    """Dead leaves: overlapping shapes with sizes after a power law, each with its own grain and shade."""
    x, y = draw.coordinates(side)
    grain = draw.fbm(rng, side, rng.uniform(4, 40), 3)
    canvas = _flat(_any_colour(rng), side) * (1 + 0.1 * grain)[..., None]
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
        colour = _any_colour(rng) * np.clip(shade, 0.3, 1.7)[..., None]
        canvas = draw.paint(canvas, colour, draw.cover(shape, rng.uniform(0.008, 0.04)))
    return canvas


def _ground(rng: Rng, side: int) -> Field:
    """What a part lies on: usually plain and bright or dark, sometimes grained."""
    x, y = draw.coordinates(side)
    angle = rng.uniform(0, 2 * np.pi)
    plain = (
        _flat(_any_colour(rng), side) * (1 + rng.uniform(0, 0.15) * (x * np.cos(angle) + y * np.sin(angle)))[..., None]
    )
    return np.asarray(
        plain * (1 + rng.choice([0.0, 0.01, 0.05]) * draw.fbm(rng, side, rng.uniform(5, 40), 3))[..., None]
    )


def _posed(rng: Rng, side: int, free: bool) -> tuple[Field, Field]:
    x, y = draw.coordinates(side)
    scale = rng.uniform(0.9, 1.35)
    shift = rng.normal(0, 0.04, 2)
    angle = rng.uniform(0, 2 * np.pi) if free else rng.normal(0, 0.06) + rng.integers(4) * np.pi / 2
    return draw.rotate(
        (x - np.float32(shift[0])) * np.float32(scale), (y - np.float32(shift[1])) * np.float32(scale), angle
    )


def _body(canvas: Field, shape: Field, colour: Field, rng: Rng, side: int) -> Field:
    """A solid: soft shadow, rounded edge light, own grain."""
    canvas = canvas * (1 - rng.uniform(0, 0.5) * draw.cover(shape - 0.05, 0.1))[..., None]
    bevel = draw.smoothstep(-shape, 0, rng.uniform(0.05, 0.3))
    lit = draw.relief(bevel, rng.uniform(0, 2 * np.pi), rng.uniform(0, 3.0))
    grain = 1 + rng.uniform(0, 0.06) * draw.fbm(rng, side, rng.uniform(8, 50), 3)
    return draw.paint(canvas, np.clip(colour * (lit * grain)[..., None], 0, 1), draw.cover(shape))


def round_part(rng: Rng, side: int) -> Field:
    """Rings around one centre, as of bottles seen from above, washers, lids, lenses."""
    x, y = _posed(rng, side, True)
    canvas = _ground(rng, side)
    radius = rng.uniform(0.65, 0.95)
    for _ in range(int(rng.integers(2, 7))):
        canvas = _body(canvas, draw.circle(x, y, radius), _any_colour(rng), rng, side)
        radius *= rng.uniform(0.5, 0.94)
        if radius < 0.08:
            break
    if rng.random() < 0.6:
        n, at, size = int(rng.integers(3, 13)), rng.uniform(0.3, 0.8), rng.uniform(0.03, 0.12)
        fold = np.mod(np.arctan2(y, x) + np.pi / n, 2 * np.pi / n) - np.pi / n
        r = np.hypot(x, y)
        hole = draw.circle((r * np.cos(fold) - at).astype(np.float32), (r * np.sin(fold)).astype(np.float32), size)
        canvas = _body(canvas, hole, _any_colour(rng), rng, side)
    if rng.random() < 0.5:
        r = np.hypot(x, y)
        gloss = np.exp(-((r - rng.uniform(0.2, 0.8)) ** 2) / rng.uniform(0.0005, 0.01)) * (
            np.cos(np.arctan2(y, x) - rng.uniform(0, 6.3)) > rng.uniform(-0.5, 0.9)
        )
        canvas = canvas + rng.uniform(0.1, 0.6) * gloss[..., None]
    return canvas


def nut(rng: Rng, side: int) -> Field:
    x, y = _posed(rng, side, True)
    canvas = _body(
        _ground(rng, side),
        draw.polygon(x, y, int(rng.integers(3, 9)), rng.uniform(0.45, 0.8)),
        _any_colour(rng),
        rng,
        side,
    )
    for radius in sorted(rng.uniform(0.1, 0.5, int(rng.integers(1, 4))), reverse=True):
        canvas = _body(canvas, draw.circle(x, y, radius), _any_colour(rng), rng, side)
    return canvas


def gear(rng: Rng, side: int) -> Field:
    x, y = _posed(rng, side, True)
    r, a = np.hypot(x, y), np.arctan2(y, x)
    teeth = int(rng.integers(6, 25))
    wave = np.clip(rng.uniform(1, 4) * np.cos(teeth * a), -1, 1)
    shape = (r - rng.uniform(0.6, 0.85) - rng.uniform(0.02, 0.1) * wave).astype(np.float32)
    canvas = _body(_ground(rng, side), shape, _any_colour(rng), rng, side)
    for radius in sorted(rng.uniform(0.1, 0.5, int(rng.integers(1, 4))), reverse=True):
        canvas = _body(canvas, draw.circle(x, y, radius), _any_colour(rng), rng, side)
    return canvas


def capsule(rng: Rng, side: int) -> Field:
    x, y = _posed(rng, side, bool(rng.random() < 0.5))
    length, width = rng.uniform(0.45, 0.8), rng.uniform(0.18, 0.42)
    shape = draw.segment(x, y, -length, 0, length, 0, width)
    left, right = _any_colour(rng), _any_colour(rng)
    halves = np.where((x < rng.uniform(-0.3, 0.3))[..., None], left, right)
    canvas = _body(_ground(rng, side), shape, halves, rng, side)
    gloss = np.exp(-((y + width * rng.uniform(0.2, 0.6)) ** 2) / (width * 0.15) ** 2) * draw.cover(shape + 0.05)
    return np.asarray(canvas + rng.uniform(0, 0.4) * gloss[..., None])


def pill(rng: Rng, side: int) -> Field:
    x, y = _posed(rng, side, True)
    canvas = _body(
        _ground(rng, side),
        draw.box(x, y, rng.uniform(0.4, 0.85), rng.uniform(0.3, 0.7), rng.uniform(0.05, 0.3)),
        _any_colour(rng),
        rng,
        side,
    )
    for _ in range(int(rng.integers(0, 4))):
        ax, ay, bx, by = rng.uniform(-0.3, 0.3, 4)
        mark = draw.segment(x, y, ax, ay, bx, by, rng.uniform(0.01, 0.05))
        canvas = draw.paint(canvas, _any_colour(rng), draw.cover(mark))
    dots = draw.worley(rng, side, int(rng.integers(8, 30)), 1.0)[0]
    return draw.paint(canvas, _any_colour(rng), draw.cover(dots - rng.uniform(0, 0.15), 0.05) * rng.uniform(0, 0.6))


def screw(rng: Rng, side: int) -> Field:
    x, y = _posed(rng, side, bool(rng.random() < 0.5))
    width, pitch = rng.uniform(0.08, 0.2), rng.uniform(14, 40)
    thread = width + rng.uniform(0, 0.04) * np.sin(pitch * x + rng.uniform(-3, 3) * y)
    shaft = np.maximum(np.abs(y) - thread, np.abs(x) - 0.75).astype(np.float32)
    colour = _any_colour(rng) * (1 + 0.3 * np.sin(pitch * x))[..., None]
    canvas = _body(_ground(rng, side), shaft, colour.astype(np.float32), rng, side)
    head = draw.box(x + 0.75, y, rng.uniform(0.08, 0.16), width * rng.uniform(1.4, 2.6), 0.05)
    return _body(canvas, head, _any_colour(rng), rng, side)


def board(rng: Rng, side: int) -> Field:
    x, y = _posed(rng, side, False)
    canvas = _body(
        _ground(rng, side),
        draw.box(x, y, rng.uniform(0.7, 1.1), rng.uniform(0.5, 1.0), 0.05),
        _any_colour(rng),
        rng,
        side,
    )
    tracks = _any_colour(rng)
    for _ in range(int(rng.integers(3, 12))):
        a = rng.uniform(-0.8, 0.8, 2)
        b = np.array([rng.uniform(-0.8, 0.8), a[1]]) if rng.random() < 0.5 else np.array([a[0], rng.uniform(-0.8, 0.8)])
        canvas = draw.paint(
            canvas, tracks, draw.cover(draw.segment(x, y, a[0], a[1], b[0], b[1], rng.uniform(0.008, 0.025)))
        )
    for _ in range(int(rng.integers(2, 8))):
        cx, cy = rng.uniform(-0.7, 0.7, 2)
        w, h = rng.uniform(0.06, 0.3, 2)
        pads = int(rng.integers(0, 7))
        for i in range(pads):
            offset = (i - (pads - 1) / 2) * 2 * w / max(pads, 1)
            for sign in (-1, 1):
                pin = draw.box(x - cx - offset, y - cy - sign * h, 0.5 * w / pads, 0.05, 0.01)
                canvas = draw.paint(canvas, (0.8, 0.8, 0.78), draw.cover(pin))
        canvas = _body(canvas, draw.box(x - cx, y - cy, w, h, 0.02), _any_colour(rng), rng, side)
    for cx, cy in ((-0.6, -0.5), (0.6, -0.5), (-0.6, 0.5), (0.6, 0.5))[: int(rng.integers(0, 5))]:
        canvas = _body(canvas, draw.circle(x - cx, y - cy, 0.07), _any_colour(rng), rng, side)
    return canvas


def connector(rng: Rng, side: int) -> Field:
    x, y = _posed(rng, side, False)
    canvas = _body(_ground(rng, side), draw.box(x, y, 0.85, rng.uniform(0.3, 0.8), 0.06), _any_colour(rng), rng, side)
    n, rows = int(rng.integers(3, 12)), int(rng.integers(1, 5))
    colour, size = _any_colour(rng), rng.uniform(0.2, 0.45)
    u = (np.mod(x * n / 1.6 + n / 2, 1) - 0.5) * 1.6 / n
    v = (np.mod(y * rows / 0.8 + rows / 2, 1) - 0.5) * 0.8 / rows
    cell = min(1.6 / n, 0.8 / rows) * size
    hole = draw.box(u, v, cell, cell, cell * rng.uniform(0, 0.9))
    hole = np.maximum(hole, draw.box(x, y, 0.8, 0.4)).astype(np.float32)
    return _body(canvas, hole, colour, rng, side)


def cable(rng: Rng, side: int) -> Field:
    x, y = _posed(rng, side, True)
    canvas = _body(_ground(rng, side), draw.circle(x, y, 0.85), _any_colour(rng), rng, side)
    n = int(rng.integers(2, 6))
    first, _, _ = draw.worley(rng, side, int(rng.integers(14, 30)), 0.6)
    for i in range(n):
        a = 2 * np.pi * i / n
        u, v = x - np.float32(0.45 * np.cos(a)), y - np.float32(0.45 * np.sin(a))
        radius = min(0.38, 0.42 * np.sin(np.pi / n) + 0.08)
        canvas = _body(canvas, draw.circle(u, v, radius), _any_colour(rng), rng, side)
        strands = _any_colour(rng) * (1.1 - 0.9 * first)[..., None]
        canvas = draw.paint(canvas, strands.astype(np.float32), draw.cover(draw.circle(u, v, radius * 0.75)))
    return canvas


def organic(rng: Rng, side: int) -> Field:
    """Nuts, kernels, fruit: a wobbly outline with a spotted, shaded skin."""
    x, y = _posed(rng, side, True)
    r, a = np.hypot(x, y * rng.uniform(1.0, 1.5)), np.arctan2(y, x)
    outline = rng.uniform(0.5, 0.8) + sum(
        rng.normal(0, 0.05 / k) * np.cos(k * a + rng.uniform(0, 6.3)) for k in range(1, 6)
    )
    skin = draw.fbm(rng, side, rng.uniform(4, 20), 4)
    colour = _ramp(draw.smoothstep(skin, -2, 2), _any_colour(rng), _any_colour(rng))
    dome = np.sqrt(np.clip(1 - (r / outline) ** 2, 0, 1))
    return _body(
        _ground(rng, side), (r - outline).astype(np.float32), colour * (0.5 + 0.6 * dome)[..., None], rng, side
    )


def array_of_parts(rng: Rng, side: int) -> Field:
    """Several equal parts in a row or a block, as in trays and blisters."""
    x, y = _posed(rng, side, False)
    nx, ny = int(rng.integers(1, 4)), int(rng.integers(1, 4))
    u = (np.mod(x * nx / 2 + nx / 2, 1) - 0.5) * 2
    v = (np.mod(y * ny / 2 + ny / 2, 1) - 0.5) * 2
    canvas = _ground(rng, side)
    radius = rng.uniform(0.4, 0.85)
    kind, sides = rng.integers(3), int(rng.integers(4, 8))
    for _ in range(int(rng.integers(1, 4))):
        if kind == 0:
            shape = draw.circle(u, v, radius)
        elif kind == 1:
            shape = draw.box(u, v, radius, radius * 0.7, 0.1 * radius)
        else:
            shape = draw.polygon(u, v, sides, radius)
        canvas = _body(canvas, shape, _any_colour(rng), rng, side)
        radius *= rng.uniform(0.3, 0.8)
    return canvas


FAMILIES: dict[str, Family] = {
    "cloth": cloth, "leather": leather, "stone": stone, "speckled plate": speckle, "wood": wood,
    "brushed metal": brushed_metal, "cast surface": cast_surface, "tile": tiles, "grid": grid, "carpet": carpet,
    "striped sheet": stripes, "collage": collage, "round part": round_part, "nut": nut, "gear": gear,
    "capsule": capsule, "pill": pill, "screw": screw, "board": board, "connector": connector, "cable": cable,
    "kernel": organic, "tray": array_of_parts,
}  # fmt: skip

# Families that carry more than their share: natural statistics for the autoencoder, round parts for their symmetry.
_WEIGHTS = {"collage": 3.0, "round part": 2.0, "stone": 1.5, "cast surface": 2.0, "brushed metal": 1.5, "leather": 1.5}


def render(seed: int, number: int, side: int) -> tuple[str, npt.NDArray[np.uint8]]:
    """Image `number` of the set `seed`: (noun of its family, (side,side,3) uint8). Same arguments, same bytes."""
    rng = np.random.default_rng((seed, number))
    names = list(FAMILIES)
    weights = np.array([_WEIGHTS.get(name, 1.0) for name in names])
    name = names[int(rng.choice(len(names), p=weights / weights.sum()))]
    canvas = FAMILIES[name](rng, side)
    if rng.random() < 0.15:
        canvas = np.repeat(canvas.mean(axis=2, keepdims=True), 3, axis=2)
    return name, draw.finish(canvas, rng, grain=float(rng.exponential(0.008)), light=float(rng.exponential(0.08)))
