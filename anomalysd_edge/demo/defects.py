"""Defects on the surface of a demo part: each changes the scene's maps before the lamp is switched on.

A defect is a function (scene, rng) -> None. It lands on a random spot of `scene.area` and is clipped to it. Sizes are
drawn so that some defects are plain and some are subtle.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from anomalysd_edge.demo.procedural import Field, Rng, circle, cover, fbm, paint, rotate, segment, smoothstep
from anomalysd_edge.demo.scene import Scene, Window


def spot(scene: Scene, rng: Rng, margin: float) -> tuple[float, float]:
    """A random point (x, y) of the area that lies `margin` inside it where the area allows, and inside the photo."""
    step = max(1, scene.side // 96)
    inside = scene.area[::step, ::step] > 0.5
    reach = max(1, round(margin * scene.side / 2 / step))
    deep = inside.copy()
    for axis in (0, 1):
        for shift in (-reach, reach):
            deep &= np.roll(inside, shift, axis)
    deep[:reach], deep[-reach:], deep[:, :reach], deep[:, -reach:] = False, False, False, False
    rows, columns = np.nonzero(deep if deep.any() else inside)
    pick = int(rng.integers(len(rows)))
    return float(scene.x[0, columns[pick] * step]), float(scene.y[rows[pick] * step, 0])


def blob(scene: Scene, rng: Rng, x: float, y: float, radius: float, ragged: float) -> tuple[Window, Field]:
    """A ragged patch: its window and a field that is 0 on its outline, negative inside (in radii)."""
    w = scene.window(x, y, radius * 2)
    stretch, angle = float(rng.uniform(0.65, 1.0)), float(rng.uniform(0, np.pi))
    lx, ly = rotate(scene.x[w] - np.float32(x), scene.y[w] - np.float32(y), angle)
    noise = fbm(rng, max(lx.shape), 3, 4)[: lx.shape[0], : lx.shape[1]]
    return w, np.asarray(np.hypot(lx, ly / stretch) / radius - 1 + ragged * noise, dtype=np.float32)


def scratch(scene: Scene, rng: Rng) -> None:
    """A bent line that digs into the surface and throws up a bright burr."""
    x, y = spot(scene, rng, 0.08)
    angle, length = float(rng.uniform(0, np.pi)), float(rng.uniform(0.3, 0.7))
    bend, width = float(rng.uniform(-0.15, 0.15)) * length, float(rng.uniform(0.013, 0.026))
    w = scene.window(x, y, length * 0.6 + 0.03)
    lx, ly = rotate(scene.x[w] - np.float32(x), scene.y[w] - np.float32(y), angle)
    ly = ly + np.float32(bend) * (2 * lx / np.float32(length)) ** 2
    taper = 1 - smoothstep(np.abs(lx), length * 0.25, length * 0.5)
    here = cover(segment(lx, ly, -length / 2, 0, length / 2, 0, width), scene.soft * 1.5) * taper * scene.area[w]
    depth = float(rng.uniform(0.6, 1.0))
    scene.height[w] -= np.float32(0.02 * depth) * here
    lighter = np.clip(scene.albedo[w] * 1.25 + 0.12, 0, 1)
    scene.albedo[w] = paint(scene.albedo[w], lighter, here * np.float32(depth))


def dent(scene: Scene, rng: Rng) -> None:
    """A round hollow, or a bump: only the light tells."""
    radius = float(rng.uniform(0.11, 0.2))
    x, y = spot(scene, rng, radius)
    w = scene.window(x, y, radius * 2.6)
    squared = ((scene.x[w] - np.float32(x)) ** 2 + (scene.y[w] - np.float32(y)) ** 2) / np.float32(radius**2)
    # A mirror shows a slope far more plainly than a matte surface does.
    plain = 0.55 if scene.metal[scene.side // 2].mean() > 0.4 else 1.0
    depth = plain * radius * float(rng.uniform(0.26, 0.46)) * (1 if rng.random() < 0.25 else -1)
    scene.height[w] += np.float32(depth) * np.exp(-1.6 * squared) * smoothstep(scene.area[w], 0.2, 0.9)


def stain(scene: Scene, rng: Rng) -> None:
    """A dried drop: it darkens, more so at its rim."""
    radius = float(rng.uniform(0.13, 0.26))
    x, y = spot(scene, rng, radius * 0.6)
    w, field = blob(scene, rng, x, y, radius, 0.16)
    inside = 1 - smoothstep(field, -0.08, 0.08)
    rim = np.exp(-((field / 0.14) ** 2)) * inside
    strength = float(rng.uniform(0.55, 0.95))
    tint = np.array([[0.78, 0.62, 0.42], [0.62, 0.6, 0.56], [0.75, 0.66, 0.36]], np.float32)[int(rng.integers(3))]
    amount = np.clip(np.float32(strength) * (inside + 0.6 * rim), 0, 1) * scene.area[w]
    scene.albedo[w] = paint(scene.albedo[w], scene.albedo[w] * tint, amount)
    scene.gloss[w] *= 1 - 0.5 * amount


def colour(scene: Scene, rng: Rng) -> None:
    """A patch of another hue with a soft edge: heat tint, bleaching, rust."""
    radius = float(rng.uniform(0.14, 0.26))
    x, y = spot(scene, rng, radius * 0.5)
    w, field = blob(scene, rng, x, y, radius, 0.1)
    inside = (1 - smoothstep(field, -0.6, 0.15)) * scene.area[w]
    tint = np.array([[1.18, 0.9, 0.62], [0.72, 0.86, 1.22], [1.15, 0.78, 0.7]], np.float32)[int(rng.integers(3))]
    amount = np.float32(rng.uniform(0.6, 1.0)) * inside
    scene.albedo[w] = paint(scene.albedo[w], np.clip(scene.albedo[w] * tint, 0, 1), amount)


def hole(scene: Scene, rng: Rng) -> None:
    """A ragged hole through the surface, dark inside, with a torn rim."""
    radius = float(rng.uniform(0.06, 0.12))
    x, y = spot(scene, rng, radius)
    w, field = blob(scene, rng, x, y, radius, 0.14)
    inside = cover(field, 0.1) * scene.area[w]
    scene.height[w] += 0.015 * np.exp(-(((field - 0.2) / 0.2) ** 2)) * scene.area[w] - 0.05 * inside
    scene.albedo[w] = paint(scene.albedo[w], (0.035, 0.032, 0.03), inside)
    scene.metal[w] *= 1 - inside
    scene.gloss[w] *= 1 - inside


def contamination(scene: Scene, rng: Rng) -> None:
    """Foreign matter on top: a fibre, or a few crumbs, with their small shadows."""
    fibre = rng.random() < 0.5
    x, y = spot(scene, rng, 0.12)
    w = scene.window(x, y, 0.34)
    lx, ly = rotate(scene.x[w] - np.float32(x), scene.y[w] - np.float32(y), float(rng.uniform(0, np.pi)))
    sx, sy = np.cos(scene.lamp[0]), np.sin(scene.lamp[0])
    matter = np.array(
        [[0.08, 0.07, 0.07], [0.85, 0.83, 0.78], [0.5, 0.12, 0.1], [0.16, 0.22, 0.42]], np.float32
    )[int(rng.integers(4))]  # fmt: skip
    reach = scene.side // 160
    if fibre:
        length, waves, phase = float(rng.uniform(0.12, 0.22)), float(rng.uniform(6, 16)), float(rng.uniform(0, 6))
        ly = ly + np.float32(rng.uniform(0.015, 0.04)) * np.sin(np.float32(waves) * lx + np.float32(phase))
        distance = segment(lx, ly, -length, 0, length, 0, float(rng.uniform(0.014, 0.022)))
    else:
        distance = np.full(lx.shape, 9.0, np.float32)
        for _ in range(int(rng.integers(2, 6))):
            ox, oy = rng.normal(0, 0.06, 2)
            grain = circle(lx - np.float32(ox), ly - np.float32(oy), float(rng.uniform(0.025, 0.055)))
            distance = np.minimum(distance, grain)
        distance = distance + 0.006 * fbm(rng, max(lx.shape), 14, 2)[: lx.shape[0], : lx.shape[1]]
    here = cover(distance, scene.soft) * scene.area[w]
    down, right = round(-float(sy) * 2 * reach), round(-float(sx) * 2 * reach)
    rows = np.clip(np.arange(lx.shape[0]) - down, 0, lx.shape[0] - 1)
    columns = np.clip(np.arange(lx.shape[1]) - right, 0, lx.shape[1] - 1)
    shadow = cover(distance, 0.02)[rows[:, None], columns] * scene.area[w]
    scene.shade[w] *= 1 - 0.45 * shadow * (1 - here)
    scene.albedo[w] = paint(scene.albedo[w], matter, here)
    scene.metal[w] *= 1 - here
    scene.height[w] += 0.02 * smoothstep(-distance, -0.01, 0.012) * here


SURFACE_DEFECTS: dict[str, Callable[[Scene, Rng], None]] = {
    "scratch": scratch,
    "dent": dent,
    "stain": stain,
    "colour": colour,
    "hole": hole,
    "contamination": contamination,
}
"""Defects that any part can have, by the name of their folder."""
