"""The five demo products: how each is built on the scene, and the defects that change its structure.

A builder is (rng, side, defect, defect_rng) -> Scene. It draws the same from `rng` whatever the defect is, so that a
part with and without its defect are the same part in the same pose and light.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from anomalysd_edge.demo.board import board
from anomalysd_edge.demo.procedural import (
    Field,
    Rng,
    box,
    circle,
    colour_near,
    cover,
    fbm,
    paint,
    rotate,
    segment,
    smoothstep,
    value_noise,
)
from anomalysd_edge.demo.scene import Scene, Shape, lay, lettering, new_scene, turned


def weave(rng: Rng, side: int, defect: str, defect_rng: Rng) -> Scene:
    """Cloth in 2/2 twill: each yarn runs over two and under two others, which the surfaces of the yarns decide."""
    scene = new_scene(rng, side, 0.1, 0.03, 0.02)
    size = scene.side
    per_unit = np.float32(5.5)
    u = scene.u * per_unit + 0.05 * fbm(rng, size, 5, 2)
    v = scene.v * per_unit + 0.05 * fbm(rng, size, 5, 2)
    place = defect_rng.uniform(-0.55, 0.55, 2) * per_unit
    if defect == "pulled_thread":
        near = np.exp(-(((u - place[0]) / defect_rng.uniform(1.6, 3)) ** 2) - ((v - place[1]) / 1.3) ** 2)
        v = v + np.float32(defect_rng.uniform(0.9, 1.4) * defect_rng.choice([-1, 1])) * near
    u, v = np.asarray(u, np.float32), np.asarray(v, np.float32)
    i, j = np.floor(u), np.floor(v)
    fu, fv = u - i - np.float32(0.5), v - j - np.float32(0.5)
    tau = np.float32(np.pi / 2)
    warp = np.sqrt(np.maximum(1 - (fu / 0.49) ** 2, 0)) + 0.62 * np.cos(tau * (v + i - 1))
    weft = np.sqrt(np.maximum(1 - (fv / 0.49) ** 2, 0)) + 0.62 * np.cos(tau * (u + j - 3))
    if defect == "broken_thread":
        half = float(defect_rng.uniform(2.6, 5.0))
        gap = (i == np.floor(place[0])) * (1 - smoothstep(np.abs(v - np.float32(place[1])), half - 0.4, half + 0.1))
        warp = warp - 2.2 * gap
    lines = 64
    shade_warp, shade_weft = rng.normal(1, 0.02, lines), rng.normal(1, 0.02, lines)
    column, row = i.astype(np.int32) % lines, j.astype(np.int32) % lines
    blue, cream = colour_near(rng, (0.25, 0.34, 0.45), 0.006), colour_near(rng, (0.72, 0.67, 0.56), 0.006)
    fibre_warp = value_noise(rng, size, size / 3, size / 26)
    fibre_weft = value_noise(rng, size, size / 26, size / 3)
    twist = np.sin(2 * np.pi * (1.1 * v + 0.9 * fu)), np.sin(2 * np.pi * (1.1 * u + 0.9 * fv))
    light_warp = shade_warp.astype(np.float32)[column] * (0.85 + 0.24 * fibre_warp + 0.05 * twist[0])
    light_weft = shade_weft.astype(np.float32)[row] * (0.88 + 0.20 * fibre_weft + 0.04 * twist[1])
    dyed = np.broadcast_to(cream, (*u.shape, 3))
    if defect == "colour_thread":
        wrong = (j == np.floor(place[1])) * np.float32(defect_rng.uniform(0.5, 0.9))
        dyed = paint(np.asarray(dyed), np.array([[0.6, 0.3, 0.22], [0.36, 0.42, 0.3]])[defect_rng.integers(2)], wrong)
    top = np.maximum(warp, weft)
    over = smoothstep(warp - weft, -0.05, 0.05)[..., None]
    scene.albedo = np.asarray(
        blue * light_warp[..., None] * over + dyed * light_weft[..., None] * (1 - over), dtype=np.float32
    )
    scene.height = np.asarray(0.034 * top + 0.02 * fbm(rng, size, 2, 2), dtype=np.float32)
    scene.shade = np.asarray(0.28 + 0.72 * smoothstep(top, -0.5, 1.15), dtype=np.float32)
    return scene


def metal(rng: Rng, side: int, _defect: str, _defect_rng: Rng) -> Scene:
    """A brushed steel sheet: streaks along the brush, and broad bands of the mirrored room across it."""
    scene = new_scene(rng, side, 0.1, 0.09, 0.05)
    size = scene.side
    fine = turned(value_noise(rng, size, 7, size / 1.6), -scene.pose[2])
    middle = turned(value_noise(rng, size, 4, size / 6), -scene.pose[2])
    deep = turned(smoothstep(value_noise(rng, size, 10, size / 2), 0.86, 1.0), -scene.pose[2])
    streaks = 0.5 * (fine - 0.5) + 0.3 * (middle - 0.5) - 0.16 * deep
    bands = 0.035 * np.sin(np.float32(2.1) * scene.v + np.float32(rng.uniform(0, 6.3)))
    scene.height = np.asarray(bands + 0.02 * value_noise(rng, size, 2), dtype=np.float32)
    steel = colour_near(rng, (0.70, 0.71, 0.73), 0.006)
    scene.albedo = np.asarray(steel * (1 + 0.42 * streaks[..., None]), dtype=np.float32)
    scene.metal[:] = 1
    return scene


def _gear(tooth: float) -> Shape:
    """Twelve rounded teeth around radius 0.62; `tooth` is their height."""

    def distance(x: Field, y: Field) -> Field:
        wave = np.cos(12 * np.arctan2(y, x))
        return np.asarray((np.hypot(x, y) - 0.6 - tooth * np.tanh(2.2 * wave)) * 0.85, dtype=np.float32)

    return distance


def washer(rng: Rng, side: int, defect: str, defect_rng: Rng) -> Scene:
    """A stamped and faced gear washer on felt: bore with keyway, three punched holes, an embossed ring."""
    scene = new_scene(rng, side, 0.025, 0.04, 0.012, size=1.18)
    size = scene.side
    felt = fbm(rng, size, 60, 3) * 0.05 + fbm(rng, size, 3, 2) * 0.03
    scene.albedo = np.asarray(colour_near(rng, (0.20, 0.25, 0.31), 0.004) * (1 + felt[..., None]), dtype=np.float32)
    scene.height = np.asarray(0.004 * felt, dtype=np.float32)
    scene.area[:] = 0
    teeth = _gear(0.05)
    places = [(0.425 * float(np.cos(a)), 0.425 * float(np.sin(a))) for a in np.array([0.0, 2.0, 4.0]) * np.pi / 3 + 0.4]
    victim = int(defect_rng.integers(3))
    if defect == "part_missing":
        places.pop(victim)
    elif defect == "part_misplaced":
        angle = np.arctan2(places[victim][1], places[victim][0]) + defect_rng.choice([-1, 1]) * defect_rng.uniform(
            0.22, 0.5
        )
        places[victim] = (0.425 * float(np.cos(angle)), 0.425 * float(np.sin(angle)))
    chip_at = float(defect_rng.uniform(-np.pi, np.pi))
    chip_size, chip_turn = float(defect_rng.uniform(0.09, 0.14)), float(defect_rng.uniform(0, 6))

    def shape(x: Field, y: Field) -> Field:
        body = np.maximum(teeth(x, y), -circle(x, y, 0.235))
        body = np.maximum(body, -box(x, y + np.float32(0.24), 0.06, 0.07, 0.01))
        for hx, hy in places:
            body = np.maximum(body, -circle(x - np.float32(hx), y - np.float32(hy), 0.062))
        if defect == "chipped_edge":
            cx, cy = 0.655 * float(np.cos(chip_at)), 0.655 * float(np.sin(chip_at))
            lx, ly = rotate(x - np.float32(cx), y - np.float32(cy), chip_turn)
            ragged = 0.012 * np.sin(70 * lx + 1) * np.sin(55 * ly)
            body = np.maximum(body, -(box(lx, ly, chip_size * 1.3, chip_size, 0.02) + ragged))
        return np.asarray(body, dtype=np.float32)

    radius = np.hypot(scene.u, scene.v)
    turns = value_noise(rng, 512, 170)[0]
    lathe = np.interp(radius.ravel(), np.linspace(0, 1.6, 512), turns).reshape(radius.shape).astype(np.float32) - 0.5
    glance = np.cos(2 * (np.arctan2(scene.v, scene.u) + np.float32(scene.pose[2] - scene.lamp[0])))
    steel = colour_near(rng, (0.60, 0.60, 0.60), 0.006)
    faced = steel * (1 + 0.07 * lathe + 0.09 * glance + 0.03 * fbm(rng, size, 8, 3))[..., None]
    w = scene.window(*scene.locate(0, 0), (0.7 + 0.12) * scene.pose[3] * 1.05 + 4 * scene.soft)
    lay(
        scene, (0, 0), 0.7, shape, np.asarray(faced[w], dtype=np.float32),
        rise=0.03, bevel=0.03, metal=0.7, gloss=0.12, shadow=0.12, on_part=True,
    )  # fmt: skip
    ring = np.exp(-(((radius - 0.33) / 0.014) ** 2)) + np.exp(-(((radius - 0.52) / 0.014) ** 2))
    scene.height += np.asarray(0.009 * ring * scene.area, dtype=np.float32)
    return scene


def capsule(rng: Rng, side: int, defect: str, defect_rng: Rng) -> Scene:
    """A two-tone gelatine capsule with print on its body; the cap is a little wider and overlaps the body."""
    scene = new_scene(rng, side, 0.025, 0.04, 0.012, size=1.14)
    size = scene.side
    pad = fbm(rng, size, 40, 3) * 0.012 + fbm(rng, size, 2, 2) * 0.015
    scene.albedo = np.asarray(colour_near(rng, (0.60, 0.63, 0.64), 0.007) * (1 + pad[..., None]), dtype=np.float32)
    scene.area[:] = 0
    scene.sharpness = 70.0
    half, r_body, r_cap = 0.68, 0.25, 0.268
    edge = 0.06 + float(rng.uniform(-0.015, 0.015))
    cream, red = colour_near(rng, (0.84, 0.78, 0.62), 0.01), colour_near(rng, (0.66, 0.15, 0.13), 0.01)
    ink_at = float(rng.uniform(-0.5, 0.5)), float(rng.uniform(-0.02, 0.02))
    slip = float(defect_rng.uniform(0.05, 0.11)) if defect == "part_misplaced" else 0.0
    dip = 0.0
    if defect == "dent":
        dip = float(defect_rng.uniform(0.10, 0.17))
    dip_at = float(defect_rng.uniform(-0.5, 0.5)), float(defect_rng.uniform(-0.1, 0.1))

    def tube(radius: float, low: float, high: float) -> Shape:
        """A cylinder along u from `low` to `high`; an end beyond the round tip is round, an inner end is cut flat."""

        def distance(x: Field, y: Field) -> Field:
            line = segment(x, y, -half + r_body, 0, half - r_body + slip * (high > 1), 0, radius)
            return np.asarray(np.maximum(np.maximum(line, low - x), x - high), dtype=np.float32)

        return distance

    def crown(radius: float) -> Field:
        along = np.maximum(np.abs(scene.u - np.float32(slip / 2)) - (half + slip / 2 - r_body), 0)
        return np.asarray(np.sqrt(np.maximum(radius**2 - along**2 - scene.v**2, 0)), dtype=np.float32)

    whole = tube(r_body, -9, 0.3)
    cap = tube(r_cap, edge + slip, 9)
    w, on_body = lay(scene, (0, 0), 1.0, whole, cream, gloss=0.75, shadow=0.16, on_part=True)
    _, on_cap = lay(scene, (0, 0), 1.0, cap, red, gloss=0.75, shadow=0.16, on_part=True)
    mound = np.where(on_cap > 0.5, crown(r_cap)[w], np.where(on_body > 0.5, crown(r_body)[w], 0))
    scene.height[w] += np.asarray(0.8 * mound, dtype=np.float32)
    # The ring moulded into the cap, the cap's rim, and the light that gelatine swallows towards its outline.
    groove = np.exp(-(((scene.u - edge - slip - 0.16) / 0.014) ** 2)) + 0.7 * np.exp(
        -(((scene.u - edge - slip - 0.03) / 0.012) ** 2)
    )
    scene.height[w] -= np.asarray(0.006 * groove[w] * on_cap, dtype=np.float32)
    rim = np.exp(-(np.maximum(edge + slip - scene.u, 0) / 0.022))[w] * on_body * (1 - on_cap)
    rounded = np.clip(np.abs(scene.v[w]) / np.float32(r_body), 0, 1) ** 4 * np.maximum(on_body, on_cap)
    scene.shade[w] *= np.asarray((1 - 0.35 * rim) * (1 - 0.35 * rounded), dtype=np.float32)
    if dip:
        squared = (scene.u - np.float32(dip_at[0])) ** 2 + (scene.v - np.float32(dip_at[1])) ** 2
        scene.height -= np.asarray(0.5 * dip * np.exp(-squared / dip**2 * 1.8) * scene.area, dtype=np.float32)
    # Print is stretched around the tube: equal steps of the angle, not of v.
    p = scene.window(*scene.locate(-0.3, 0), 0.42 * scene.pose[3])
    lateral = r_body * np.arcsin(np.clip(scene.v[p] / r_body, -1, 1)) - 0.12 * ink_at[0] * r_body
    along = scene.u[p] + np.float32(0.3 - ink_at[1])
    sign = np.float32(-1 if defect == "part_turned" else 1)
    letters = lettering("ED40", 0.19, 0.014)
    worn = smoothstep(fbm(rng, size, 70, 2)[p], -2.6, -1.4)
    ink = cover(letters(along * sign, np.asarray(lateral * sign, np.float32)), scene.soft) * worn
    ink = ink * (scene.area[p] * (scene.u[p] < edge + slip)) * np.float32(0 if defect == "part_missing" else 0.85)
    scene.albedo[p] = paint(scene.albedo[p], (0.16, 0.14, 0.16), ink)
    if defect == "crack":
        x0, y0 = float(defect_rng.uniform(-0.5, 0.45)), float(defect_rng.uniform(-0.06, 0.06))
        lx, ly = rotate(scene.u - np.float32(x0), scene.v - np.float32(y0), float(defect_rng.uniform(0, np.pi)))
        ly = ly + 0.022 * np.abs(np.mod(lx * np.float32(11), 2) - 1) + 0.008 * np.sin(60 * lx)
        length = float(defect_rng.uniform(0.12, 0.24))
        line = cover(segment(lx, ly, -length, 0, length, 0, 0.006), scene.soft) * scene.area
        scene.albedo = paint(scene.albedo, scene.albedo * 0.25, line)
        scene.height -= np.asarray(0.012 * line, dtype=np.float32)
    return scene


BUILDERS: dict[str, Callable[[Rng, int, str, Rng], Scene]] = {
    "demo_weave": weave,
    "demo_metal": metal,
    "demo_washer": washer,
    "demo_capsule": capsule,
    "demo_board": board,
}
"""(rng, side in px, defect, its rng) -> Scene, by class name; a defect that a builder does not know changes nothing."""
