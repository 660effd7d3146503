"""The demo product with many parts: a small circuit board, built as demo_products.py says."""

from __future__ import annotations

import numpy as np

from anomalysd_edge.demo.procedural import Field, Rng, box, circle, colour_near, fbm, rotate, segment
from anomalysd_edge.demo.scene import Scene, Shape, lay, lettering, new_scene


def _rectangle(half_x: float, half_y: float, round_by: float) -> Shape:
    return lambda x, y: box(x, y, half_x, half_y, round_by)


def _disc(radius: float) -> Shape:
    return lambda x, y: circle(x, y, radius)


_COPPER = (0.20, 0.44, 0.27)
_TIN = (0.74, 0.75, 0.76)


def _chip(scene: Scene, at: tuple[float, float], half: tuple[float, float], turn: float, text: str) -> None:
    """A black package with legs on its two long sides, a dot at leg 1 and white marking."""
    hx, hy = half

    def legs(x: Field, y: Field) -> Field:
        near = np.mod(x, np.float32(0.072)) - np.float32(0.036)
        return np.maximum(box(near, np.abs(y) - np.float32(hy + 0.025), 0.015, 0.04), np.abs(x) - np.float32(hx - 0.02))

    lay(scene, at, np.hypot(hx, hy) + 0.08, legs, _TIN, turn=turn, rise=0.012, bevel=0.012, metal=0.9, shadow=0.03)
    lay(
        scene, at, np.hypot(hx, hy), _rectangle(hx, hy, 0.012), (0.085, 0.085, 0.09),
        turn=turn, rise=0.05, bevel=0.02, gloss=0.1, shadow=0.07,
    )  # fmt: skip
    c, s = float(np.cos(turn)), float(np.sin(turn))
    dx, dy = -hx + 0.045, hy - 0.04
    lay(scene, (at[0] + c * dx - s * dy, at[1] + s * dx + c * dy), 0.03, _disc(0.016), (0.34, 0.34, 0.35), turn=turn)
    lay(scene, at, hx, lettering(text, min(hy * 0.62, 0.1), 0.006), (0.55, 0.55, 0.54), turn=turn)


def _resistor(scene: Scene, at: tuple[float, float], turn: float, missing: bool, shift: tuple[float, float]) -> None:
    """Two tinned pads and, on them, a chip resistor with white ends, moved by `shift` and turned off its pads."""
    for end in (-1, 1):
        lay(scene, (at[0], at[1] + end * 0.062), 0.06, _rectangle(0.042, 0.034, 0.01), _TIN, rise=0.004, metal=0.85)
    if missing:
        return
    here = (at[0] + shift[0], at[1] + shift[1])
    lay(
        scene, here, 0.1, _rectangle(0.034, 0.075, 0.006), (0.86, 0.86, 0.84),
        turn=turn, rise=0.025, bevel=0.012, metal=0.5, shadow=0.04,
    )  # fmt: skip
    lay(scene, here, 0.08, _rectangle(0.034, 0.048, 0.003), (0.10, 0.10, 0.11), turn=turn, gloss=0.15)


def _screw(scene: Scene, at: tuple[float, float], turn: float, missing: bool) -> None:
    """A tinned ring with a bore and, in it, a cross-head screw."""
    lay(scene, at, 0.12, _disc(0.102), (0.72, 0.62, 0.36), rise=0.004, metal=0.85)
    lay(scene, at, 0.1, _disc(0.062), (0.05, 0.05, 0.05))
    if missing:
        return
    lay(scene, at, 0.1, _disc(0.085), (0.72, 0.72, 0.74), rise=0.03, bevel=0.05, metal=0.95, gloss=0.2, shadow=0.04)

    def cross(x: Field, y: Field) -> Field:
        return np.minimum(box(x, y, 0.05, 0.012), box(x, y, 0.012, 0.05))

    lay(scene, at, 0.07, cross, (0.22, 0.22, 0.23), turn=turn, rise=-0.012, bevel=0.01, metal=0.6)


def board(rng: Rng, side: int, defect: str, defect_rng: Rng) -> Scene:
    """A small circuit board: two chips, resistors, a capacitor, traces, print, four screws."""
    scene = new_scene(rng, side, 0.02, 0.02, 0.01)
    size = scene.side
    mat = fbm(rng, size, 50, 3) * 0.04 + fbm(rng, size, 2, 2) * 0.03
    scene.albedo = np.asarray(colour_near(rng, (0.36, 0.35, 0.34), 0.005) * (1 + mat[..., None]), dtype=np.float32)
    scene.area[:] = 0
    bite, bite_turn = float(defect_rng.uniform(0.1, 0.16)), float(defect_rng.uniform(0, 6))
    bite_at = float(defect_rng.uniform(-0.35, 0.35))

    def plate(x: Field, y: Field) -> Field:
        shape = box(x, y, 0.86, 0.7, 0.05)
        if defect == "chipped_edge":
            lx, ly = rotate(x - np.float32(bite_at), y + np.float32(0.72), bite_turn)
            ragged = 0.01 * np.sin(60 * lx) + 0.008 * np.sin(83 * ly + 1)
            shape = np.maximum(shape, -(box(lx, ly, bite * 1.3, bite, 0.02) + ragged))
        return np.asarray(shape, dtype=np.float32)

    mask_green = colour_near(rng, (0.075, 0.30, 0.17), 0.008)
    lay(scene, (0, 0), 1.2, plate, mask_green, rise=0.03, bevel=0.012, gloss=0.07, shadow=0.09, on_part=True)

    def traces(x: Field, y: Field) -> Field:
        best = np.full(x.shape, 9.0, np.float32)
        for n in range(5):
            k = 0.072 * n
            best = np.minimum(best, segment(x, y, -0.40 + k, 0.12, -0.40 + k, 0.30 + k * 0.5, 0.011))
            best = np.minimum(best, segment(x, y, -0.40 + k, 0.30 + k * 0.5, 0.05 + k * 0.4, 0.30 + k * 0.5, 0.011))
            best = np.minimum(best, segment(x, y, -0.40 + k, -0.28, -0.40 + k, -0.44 - 0.03 * n, 0.011))
            best = np.minimum(best, segment(x, y, -0.40 + k, -0.44 - 0.03 * n, 0.3, -0.44 - 0.03 * n, 0.011))
            best = np.minimum(best, segment(x, y, -0.02, -0.2 + k, 0.28, -0.2 + k, 0.011))
        return np.asarray(best, dtype=np.float32)

    lay(scene, (0, 0), 0.8, traces, _COPPER, rise=0.003, bevel=0.01, gloss=0.07)
    for x, y in ((0.62, 0.22), (0.62, 0.10), (0.62, -0.02), (0.62, -0.14), (-0.62, 0.1), (-0.62, -0.05), (0.1, -0.12)):
        lay(scene, (x, y), 0.05, _disc(0.036), (0.78, 0.66, 0.34), rise=0.003, metal=0.85)
        lay(scene, (x, y), 0.03, _disc(0.016), (0.06, 0.05, 0.05))
    victim = int(defect_rng.integers(4))
    shift = (
        float(defect_rng.choice([-1, 1]) * defect_rng.uniform(0.05, 0.08)),
        float(defect_rng.choice([-1, 1]) * defect_rng.uniform(0.06, 0.11)),
    )
    turned_by = float(defect_rng.choice([-1, 1]) * defect_rng.uniform(0.5, 1.2))
    lose_screw = defect_rng.random() < 0.8
    screw = int(defect_rng.integers(4))
    for n in range(4):
        wrong = n == victim and not (defect == "part_missing" and lose_screw)
        moved = defect == "part_misplaced" and wrong
        at = (0.10 + 0.13 * n, 0.52)
        turn = float(rng.normal(0, 0.02)) + (turned_by if moved else 0)
        _resistor(scene, at, turn, defect == "part_missing" and wrong, shift if moved else (0, 0))
    flip = np.pi / 2 if defect == "part_turned" else 0.0
    _chip(scene, (-0.22, -0.08), (0.235, 0.155), float(rng.normal(0, 0.008)) + flip, "SD47")
    _chip(scene, (0.38, -0.05), (0.15, 0.10), float(np.pi / 2 + rng.normal(0, 0.008)), "E7")
    lay(scene, (-0.30, 0.50), 0.15, _disc(0.125), (0.13, 0.13, 0.15), rise=0.08, bevel=0.02, gloss=0.2, shadow=0.12)
    lay(scene, (-0.30, 0.50), 0.12, _disc(0.112), (0.68, 0.69, 0.71), rise=0.012, bevel=0.02, metal=0.9)
    lay(scene, (-0.30, 0.50), 0.12, lambda x, y: np.maximum(circle(x, y, 0.112), x + np.float32(0.055)), (0.12,) * 3)
    for n, (x, y) in enumerate(((-0.72, -0.56), (0.72, -0.56), (-0.72, 0.56), (0.72, 0.56))):
        _screw(scene, (x, y), float(rng.normal(0.8, 0.15)), defect == "part_missing" and lose_screw and n == screw)
    if defect == "solder_bridge":
        between = -0.22 - 0.144 + 0.072 * int(defect_rng.integers(5))
        row = -0.08 + float(defect_rng.choice([-1, 1])) * 0.19
        wide = float(defect_rng.uniform(0.09, 0.13))
        blob = _rectangle(wide, 0.05, 0.03)
        lay(scene, (between, row), 0.15, blob, (0.72, 0.73, 0.75), rise=0.02, bevel=0.025, metal=0.95, gloss=0.3)
    return scene
