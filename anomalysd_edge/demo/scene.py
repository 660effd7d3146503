"""The studio of the demo parts: a scene of albedo and height maps, things laid on it, and one lamp above.

A scene is rendered at twice the side of the photo and averaged down, so that edges are smooth. Lengths are in units of
half a photo; angles in radians; colours in [0,1]. Lighting follows Blinn, "Models of light reflection for computer
synthesized pictures", 1977, plus a one-dimensional mirrored room for metal.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import numpy.typing as npt
from PIL import Image

from anomalysd_edge.demo.procedural import Field, Rng, coordinates, cover, paint, rotate, segment, smoothstep

SUPERSAMPLE = 2
Shape = Callable[[Field, Field], Field]
"""Local coordinates (h,w) float32 twice -> signed distance (h,w) float32, negative inside."""
Window = tuple[slice, slice]


@dataclass
class Scene:
    """What the lamp sees; every map is (S,S) float32 unless said otherwise and is painted in place."""

    side: int
    """S: pixels along one side, SUPERSAMPLE times the photo's."""
    x: Field
    """Rightwards in the photo's frame, [-1,1]."""
    y: Field
    """Downwards in the photo's frame, [-1,1]."""
    u: Field
    """x in the frame of the part, which is shifted, turned and scaled."""
    v: Field
    """y in the frame of the part."""
    pose: tuple[float, float, float, float]
    """Shift x, shift y, turn in radians, scale."""
    lamp: tuple[float, float]
    """Direction the light comes from in the photo's plane, and its tilt away from the camera."""
    tone: Field
    """(3,) colour of the light."""
    albedo: Field
    """(S,S,3) own colour of the surface."""
    height: Field
    """Height of the surface, same unit as x."""
    metal: Field
    """0 = matte, 1 = mirrors the room."""
    gloss: Field
    """Strength of the highlight."""
    shade: Field
    """Light that reaches the surface: 1 = all, less in shadows and creases."""
    area: Field
    """1 where a surface defect may sit: on the part, not on the background."""
    sharpness: float = 40.0
    """Exponent of the highlight."""

    @property
    def soft(self) -> float:
        """Half-width of an antialiased edge: three quarters of a scene pixel."""
        return 1.5 / self.side

    def locate(self, u: float, v: float) -> tuple[float, float]:
        """A point of the part's frame in the photo's frame."""
        dx, dy, turn, scale = self.pose
        c, s = float(np.cos(turn)), float(np.sin(turn))
        return dx + scale * (c * u - s * v), dy + scale * (s * u + c * v)

    def window(self, x: float, y: float, reach: float) -> Window:
        """Index of the square of half-side `reach` around (x, y), cut at the border."""
        half = self.side / 2

        def span(centre: float) -> slice:
            low = max(0, int((centre - reach + 1) * half))
            return slice(min(low, self.side - 2), max(2, min(self.side, int((centre + reach + 1) * half) + 2)))

        return span(y), span(x)

    def toward_lamp(self, length: float, turn: float = 0.0) -> tuple[float, float]:
        """The step of `length` towards the lamp, in the part's frame turned by a further `turn`."""
        angle = self.lamp[0] - self.pose[2] - turn
        return length * float(np.cos(angle)), length * float(np.sin(angle))


def new_scene(rng: Rng, side: int, shift: float, turn: float, zoom: float, size: float = 1.0) -> Scene:
    """An empty scene for a photo of `side` pixels, its pose and lamp drawn from `rng`.

    `shift`, `turn` and `zoom` are the largest deviations of the pose (uniform draws) around the scale `size`.
    """
    pixels = side * SUPERSAMPLE
    dx, dy = rng.uniform(-shift, shift, 2)
    angle = rng.uniform(-turn, turn)
    scale = size * (1 + rng.uniform(-zoom, zoom))
    # The lamp hangs on the upper left of the camera, as at a line's station; it wanders by a tenth of a turn.
    lamp = (float(np.pi * 1.25 + rng.uniform(-0.3, 0.3)), float(rng.uniform(0.56, 0.66)))
    warmth = rng.normal(0, 0.012)
    tone = (rng.uniform(0.94, 1.05) * np.array([1 + warmth, 1, 1 - warmth])).astype(np.float32)
    x, y = coordinates(pixels)
    u, v = rotate((x - np.float32(dx)) / np.float32(scale), (y - np.float32(dy)) / np.float32(scale), float(angle))

    def empty(value: float) -> Field:
        return np.full((pixels, pixels), value, np.float32)

    return Scene(
        pixels, x, y, u, v, (float(dx), float(dy), float(angle), float(scale)), lamp, tone,
        albedo=np.full((pixels, pixels, 3), 0.5, np.float32), height=empty(0), metal=empty(0), gloss=empty(0),
        shade=empty(1), area=empty(1),
    )  # fmt: skip


def lay(
    scene: Scene,
    at: tuple[float, float],
    reach: float,
    shape: Shape,
    colour: npt.ArrayLike,
    *,
    turn: float = 0.0,
    rise: float = 0.0,
    bevel: float = 0.02,
    metal: float = 0.0,
    gloss: float = 0.0,
    shadow: float = 0.0,
    on_part: bool = False,
) -> tuple[Window, Field]:
    """Lay a thing on the scene at the part's (u, v) `at`; returns its window and its coverage there, (h,w).

    `shape` is given local coordinates turned by `turn` and must lie within `reach`. It rises by `rise` over a rim
    `bevel` wide and throws a shadow `shadow` long. `on_part` makes its area a place for surface defects.
    """
    w = scene.window(*scene.locate(*at), (reach + shadow) * scene.pose[3] * 1.05 + 4 * scene.soft)
    lu, lv = rotate(scene.u[w] - np.float32(at[0]), scene.v[w] - np.float32(at[1]), turn)
    distance = shape(lu, lv)
    here = cover(distance, scene.soft)
    if shadow > 0:
        ou, ov = scene.toward_lamp(shadow * 0.5, turn)
        dark = cover(shape(lu + np.float32(ou), lv + np.float32(ov)), shadow * 0.55 + scene.soft)
        contact = cover(distance, shadow * 0.3 + scene.soft)
        scene.shade[w] *= 1 - np.maximum(0.5 * dark, 0.4 * contact)
    scene.shade[w] = scene.shade[w] * (1 - here) + here
    scene.albedo[w] = paint(scene.albedo[w], colour, here)
    scene.metal[w] = scene.metal[w] * (1 - here) + metal * here
    scene.gloss[w] = scene.gloss[w] * (1 - here) + gloss * here
    if rise:
        scene.height[w] += np.float32(rise) * smoothstep(-distance, -scene.soft, bevel)
    if on_part:
        scene.area[w] = np.maximum(scene.area[w], here)
    return w, here


def mirrored_room(tilt: Field) -> Field:
    """Brightness that a mirror tilted towards the lamp by `tilt` in about [-1,1] shows: a lamp, a wall, a dark door."""
    lamp = 0.75 * np.exp(-(((tilt - 0.6) / 0.28) ** 2))
    door = 0.3 * np.exp(-(((tilt + 0.55) / 0.25) ** 2))
    return np.asarray(0.72 + 0.3 * tilt + lamp - door, dtype=np.float32)


def lit(scene: Scene) -> Field:
    """The photo before grain: (side,side,3) float32 in [0,1], averaged down from the scene's pixels."""
    gy, gx = np.gradient(scene.height, np.float32(2 / scene.side))
    nz = 1 / np.sqrt(1 + gx * gx + gy * gy)
    direction, tilt = scene.lamp
    toward = -(gx * np.float32(np.cos(direction)) + gy * np.float32(np.sin(direction))) * nz
    lx, lz = np.float32(np.sin(tilt)), np.float32(np.cos(tilt))
    diffuse = np.maximum(toward * lx + nz * lz, 0) / lz
    matte = np.float32(0.3) + np.float32(0.7) * np.minimum(diffuse, np.float32(1.7))
    room = mirrored_room(2 * nz * toward)
    halfway = np.sqrt(np.float32((1 + lz) / 2))
    shine = np.clip(toward * (lx / (2 * halfway)) + nz * halfway, 0, 1) ** np.float32(scene.sharpness)
    amount = (matte + (room - matte) * scene.metal) * scene.shade
    canvas = (scene.albedo * amount[..., None] + (scene.gloss * scene.shade * shine)[..., None]) * scene.tone
    # A soft shoulder keeps highlights from burning out in one step.
    canvas = np.minimum(canvas, 0.8 + 0.2 * np.tanh(np.maximum(canvas - 0.8, 0) / np.float32(0.2)))
    step = SUPERSAMPLE
    total = sum(canvas[row::step, column::step] for row in range(step) for column in range(step))
    return np.asarray(total / np.float32(step**2), dtype=np.float32)


def turned(field: Field, angle: float) -> Field:
    """(S,S) float32 `field` turned about its centre and enlarged by a quarter so that no corner is empty."""
    side = field.shape[0]
    c, s, centre = np.cos(angle) / 1.3, np.sin(angle) / 1.3, side / 2
    matrix = (c, s, centre - c * centre - s * centre, -s, c, centre + s * centre - c * centre)
    image = Image.fromarray(field).transform((side, side), Image.Transform.AFFINE, matrix, Image.Resampling.BILINEAR)
    return np.asarray(image, dtype=np.float32)


_STROKES: dict[str, tuple[tuple[float, ...], ...]] = {
    "A": ((0, 2, 0.5, 0, 1, 2), (0.25, 1.2, 0.75, 1.2)),
    "D": ((0, 0, 0.6, 0, 1, 0.5, 1, 1.5, 0.6, 2, 0, 2, 0, 0),),
    "E": ((1, 0, 0, 0, 0, 2, 1, 2), (0, 1, 0.8, 1)),
    "S": ((1, 0.2, 0.7, 0, 0, 0.2, 0.1, 0.9, 0.9, 1.1, 1, 1.8, 0.3, 2, 0, 1.8),),
    "0": ((0.5, 0, 1, 0.5, 1, 1.5, 0.5, 2, 0, 1.5, 0, 0.5, 0.5, 0),),
    "4": ((0.75, 2, 0.75, 0, 0, 1.4, 1, 1.4),),
    "7": ((0, 0, 1, 0, 0.35, 2),),
}


def lettering(text: str, size: float, weight: float) -> Shape:
    """The shape of `text` centred on the origin, `size` high, drawn with strokes `weight` thick (half)."""
    step = size * 0.78
    left = -step * len(text) / 2 + size * 0.14

    def distance(x: Field, y: Field) -> Field:
        best = np.full(x.shape, 9.0, np.float32)
        for place, letter in enumerate(text):
            for path in _STROKES.get(letter, ()):
                points = [
                    (left + place * step + path[n] * size / 2, (path[n + 1] - 1) * size / 2)
                    for n in range(0, len(path), 2)
                ]
                for (ax, ay), (bx, by) in pairwise(points):
                    best = np.minimum(best, segment(x, y, ax, ay, bx, by, weight))
        return best

    return distance
