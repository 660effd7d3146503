"""Parts drawn in code for the embedded base: round and symmetric ones, boards, screws, kernels, trays; all seeded."""

from __future__ import annotations

import numpy as np

from anomalysd_edge.demo import procedural as draw
from anomalysd_edge.demo.procedural import Field, Rng
from anomalysd_edge.training.nano.surfaces import any_colour, flat, ramp


def _ground(rng: Rng, side: int) -> Field:
    """What a part lies on: usually plain and bright or dark, sometimes grained."""
    x, y = draw.coordinates(side)
    angle = rng.uniform(0, 2 * np.pi)
    plain = (
        flat(any_colour(rng), side) * (1 + rng.uniform(0, 0.15) * (x * np.cos(angle) + y * np.sin(angle)))[..., None]
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
        canvas = _body(canvas, draw.circle(x, y, radius), any_colour(rng), rng, side)
        radius *= rng.uniform(0.5, 0.94)
        if radius < 0.08:
            break
    if rng.random() < 0.6:
        n, at, size = int(rng.integers(3, 13)), rng.uniform(0.3, 0.8), rng.uniform(0.03, 0.12)
        fold = np.mod(np.arctan2(y, x) + np.pi / n, 2 * np.pi / n) - np.pi / n
        r = np.hypot(x, y)
        hole = draw.circle((r * np.cos(fold) - at).astype(np.float32), (r * np.sin(fold)).astype(np.float32), size)
        canvas = _body(canvas, hole, any_colour(rng), rng, side)
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
        any_colour(rng),
        rng,
        side,
    )
    for radius in sorted(rng.uniform(0.1, 0.5, int(rng.integers(1, 4))), reverse=True):
        canvas = _body(canvas, draw.circle(x, y, radius), any_colour(rng), rng, side)
    return canvas


def gear(rng: Rng, side: int) -> Field:
    x, y = _posed(rng, side, True)
    r, a = np.hypot(x, y), np.arctan2(y, x)
    teeth = int(rng.integers(6, 25))
    wave = np.clip(rng.uniform(1, 4) * np.cos(teeth * a), -1, 1)
    shape = (r - rng.uniform(0.6, 0.85) - rng.uniform(0.02, 0.1) * wave).astype(np.float32)
    canvas = _body(_ground(rng, side), shape, any_colour(rng), rng, side)
    for radius in sorted(rng.uniform(0.1, 0.5, int(rng.integers(1, 4))), reverse=True):
        canvas = _body(canvas, draw.circle(x, y, radius), any_colour(rng), rng, side)
    return canvas


def capsule(rng: Rng, side: int) -> Field:
    x, y = _posed(rng, side, bool(rng.random() < 0.5))
    length, width = rng.uniform(0.45, 0.8), rng.uniform(0.18, 0.42)
    shape = draw.segment(x, y, -length, 0, length, 0, width)
    left, right = any_colour(rng), any_colour(rng)
    halves = np.where((x < rng.uniform(-0.3, 0.3))[..., None], left, right)
    canvas = _body(_ground(rng, side), shape, halves, rng, side)
    gloss = np.exp(-((y + width * rng.uniform(0.2, 0.6)) ** 2) / (width * 0.15) ** 2) * draw.cover(shape + 0.05)
    return np.asarray(canvas + rng.uniform(0, 0.4) * gloss[..., None])


def pill(rng: Rng, side: int) -> Field:
    x, y = _posed(rng, side, True)
    canvas = _body(
        _ground(rng, side),
        draw.box(x, y, rng.uniform(0.4, 0.85), rng.uniform(0.3, 0.7), rng.uniform(0.05, 0.3)),
        any_colour(rng),
        rng,
        side,
    )
    for _ in range(int(rng.integers(0, 4))):
        ax, ay, bx, by = rng.uniform(-0.3, 0.3, 4)
        mark = draw.segment(x, y, ax, ay, bx, by, rng.uniform(0.01, 0.05))
        canvas = draw.paint(canvas, any_colour(rng), draw.cover(mark))
    dots = draw.worley(rng, side, int(rng.integers(8, 30)), 1.0)[0]
    return draw.paint(canvas, any_colour(rng), draw.cover(dots - rng.uniform(0, 0.15), 0.05) * rng.uniform(0, 0.6))


def screw(rng: Rng, side: int) -> Field:
    x, y = _posed(rng, side, bool(rng.random() < 0.5))
    width, pitch = rng.uniform(0.08, 0.2), rng.uniform(14, 40)
    thread = width + rng.uniform(0, 0.04) * np.sin(pitch * x + rng.uniform(-3, 3) * y)
    shaft = np.maximum(np.abs(y) - thread, np.abs(x) - 0.75).astype(np.float32)
    colour = any_colour(rng) * (1 + 0.3 * np.sin(pitch * x))[..., None]
    canvas = _body(_ground(rng, side), shaft, colour.astype(np.float32), rng, side)
    head = draw.box(x + 0.75, y, rng.uniform(0.08, 0.16), width * rng.uniform(1.4, 2.6), 0.05)
    return _body(canvas, head, any_colour(rng), rng, side)


def board(rng: Rng, side: int) -> Field:
    x, y = _posed(rng, side, False)
    canvas = _body(
        _ground(rng, side),
        draw.box(x, y, rng.uniform(0.7, 1.1), rng.uniform(0.5, 1.0), 0.05),
        any_colour(rng),
        rng,
        side,
    )
    tracks = any_colour(rng)
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
        canvas = _body(canvas, draw.box(x - cx, y - cy, w, h, 0.02), any_colour(rng), rng, side)
    for cx, cy in ((-0.6, -0.5), (0.6, -0.5), (-0.6, 0.5), (0.6, 0.5))[: int(rng.integers(0, 5))]:
        canvas = _body(canvas, draw.circle(x - cx, y - cy, 0.07), any_colour(rng), rng, side)
    return canvas


def connector(rng: Rng, side: int) -> Field:
    x, y = _posed(rng, side, False)
    canvas = _body(_ground(rng, side), draw.box(x, y, 0.85, rng.uniform(0.3, 0.8), 0.06), any_colour(rng), rng, side)
    n, rows = int(rng.integers(3, 12)), int(rng.integers(1, 5))
    colour, size = any_colour(rng), rng.uniform(0.2, 0.45)
    u = (np.mod(x * n / 1.6 + n / 2, 1) - 0.5) * 1.6 / n
    v = (np.mod(y * rows / 0.8 + rows / 2, 1) - 0.5) * 0.8 / rows
    cell = min(1.6 / n, 0.8 / rows) * size
    hole = draw.box(u, v, cell, cell, cell * rng.uniform(0, 0.9))
    hole = np.maximum(hole, draw.box(x, y, 0.8, 0.4)).astype(np.float32)
    return _body(canvas, hole, colour, rng, side)


def cable(rng: Rng, side: int) -> Field:
    x, y = _posed(rng, side, True)
    canvas = _body(_ground(rng, side), draw.circle(x, y, 0.85), any_colour(rng), rng, side)
    n = int(rng.integers(2, 6))
    first, _, _ = draw.worley(rng, side, int(rng.integers(14, 30)), 0.6)
    for i in range(n):
        a = 2 * np.pi * i / n
        u, v = x - np.float32(0.45 * np.cos(a)), y - np.float32(0.45 * np.sin(a))
        radius = min(0.38, 0.42 * np.sin(np.pi / n) + 0.08)
        canvas = _body(canvas, draw.circle(u, v, radius), any_colour(rng), rng, side)
        strands = any_colour(rng) * (1.1 - 0.9 * first)[..., None]
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
    colour = ramp(draw.smoothstep(skin, -2, 2), any_colour(rng), any_colour(rng))
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
        canvas = _body(canvas, shape, any_colour(rng), rng, side)
        radius *= rng.uniform(0.3, 0.8)
    return canvas
