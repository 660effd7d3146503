"""The renderer of the demo products: albedo, height and material maps of a scene, shaded by one light.

A scene is rendered at twice the side of the photo and averaged down, so that edges are smooth. Lengths are in units of
half a photo; angles in radians; colours in [0,1]. Lighting follows Blinn, "Models of light reflection for computer
synthesized pictures", 1977, plus a one-dimensional environment map for metal.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import numpy.typing as npt
from PIL import Image

from anomalysd_edge.core.types import F32
from anomalysd_edge.demo.procedural import (
    Field,
    Rng,
    colour_near,
    coordinates,
    cover,
    fbm,
    paint,
    rotate,
    segment,
    smoothstep,
)

SUPERSAMPLE = 2
Shape = Callable[[Field, Field], Field]
"""Local coordinates (h,w) float32 twice -> signed distance (h,w) float32, negative inside."""
Window = tuple[slice, slice]


@dataclass
class Scene:
    """Geometry and material maps of one photo, (S,S) float32 unless said otherwise, modified in place."""

    side: int
    """S: pixels along one side, SUPERSAMPLE times the photo's."""
    x: Field
    """Rightwards in the photo's frame, [-1,1]."""
    y: Field
    """Downwards in the photo's frame, [-1,1]."""
    u: Field
    """x in the part's frame, which is shifted, rotated and scaled."""
    v: Field
    """y in the part's frame."""
    pose: tuple[float, float, float, float]
    """Shift x, shift y, rotation in radians, scale."""
    light: tuple[float, float]
    """Azimuth of the light in the photo's plane, and its polar angle from the camera's axis, in radians."""
    light_colour: Field
    """(3,) RGB of the light, around 1."""
    albedo: Field
    """(S,S,3) diffuse colour of the surface."""
    height: Field
    """Height of the surface, same unit as x."""
    metal: Field
    """Metalness: 0 = matte, 1 = mirrors the environment."""
    gloss: Field
    """Specular strength."""
    shade: Field
    """Share of the light that reaches the surface: 1 = all, less in shadows and creases."""
    area: Field
    """1 where a surface defect may sit: on the part, not on the background."""
    sharpness: float = 40.0
    """Specular exponent."""

    @property
    def soft(self) -> float:
        """Half-width of an antialiased edge: three quarters of a scene pixel."""
        return 1.5 / self.side

    def locate(self, u: float, v: float) -> tuple[float, float]:
        """A point of the part's frame, in the photo's frame."""
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

    def toward_light(self, length: float, turn: float = 0.0) -> tuple[float, float]:
        """The vector of `length` towards the light, in the part's frame rotated by a further `turn`."""
        angle = self.light[0] - self.pose[2] - turn
        return length * float(np.cos(angle)), length * float(np.sin(angle))


def new_scene(rng: Rng, side: int, shift: float, turn: float, zoom: float, size: float = 1.0) -> Scene:
    """An empty scene for a photo of `side` pixels, its pose and light drawn from `rng`.

    `shift`, `turn` and `zoom` are the largest deviations of the pose (uniform draws) around the scale `size`.
    """
    pixels = side * SUPERSAMPLE
    dx, dy = rng.uniform(-shift, shift, 2)
    angle = rng.uniform(-turn, turn)
    scale = size * (1 + rng.uniform(-zoom, zoom))
    # The light is at the camera's upper left, as in an inspection station; its azimuth varies by a tenth of a turn.
    light = (float(np.pi * 1.25 + rng.uniform(-0.3, 0.3)), float(rng.uniform(0.56, 0.66)))
    warmth = rng.normal(0, 0.012)
    light_colour = (rng.uniform(0.94, 1.05) * np.array([1 + warmth, 1, 1 - warmth])).astype(np.float32)
    x, y = coordinates(pixels)
    u, v = rotate((x - np.float32(dx)) / np.float32(scale), (y - np.float32(dy)) / np.float32(scale), float(angle))

    def empty(value: float) -> Field:
        return np.full((pixels, pixels), value, np.float32)

    return Scene(
        pixels, x, y, u, v, (float(dx), float(dy), float(angle), float(scale)), light, light_colour,
        albedo=np.full((pixels, pixels, 3), 0.5, np.float32), height=empty(0), metal=empty(0), gloss=empty(0),
        shade=empty(1), area=empty(1),
    )  # fmt: skip


def add_background(
    scene: Scene, rng: Rng, colour: tuple[float, float, float], spread: float, *octaves: tuple[float, int, float]
) -> Field:
    """Fill the scene with a grained background that no defect lies on; returns its grain, (S,S) around 0.

    `colour` varies by `spread`; each of `octaves` is (cells, octaves, amplitude) of one fractal noise.
    """
    grain = np.zeros_like(scene.height)
    for cells, count, amplitude in octaves:
        grain = grain + fbm(rng, scene.side, cells, count) * amplitude
    scene.albedo = np.asarray(colour_near(rng, colour, spread) * (1 + grain[..., None]), dtype=np.float32)
    scene.area[:] = 0
    return grain


def place(
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
    """Place a body on the scene at the part's (u, v) `at`; returns its window and its coverage there, (h,w) in [0,1].

    `shape` gets local coordinates rotated by `turn` and must lie within `reach`. The body rises by `rise` over a rim
    `bevel` wide and casts a shadow `shadow` long. `on_part`: surface defects may lie on it.
    """
    w = scene.window(*scene.locate(*at), (reach + shadow) * scene.pose[3] * 1.05 + 4 * scene.soft)
    lu, lv = rotate(scene.u[w] - np.float32(at[0]), scene.v[w] - np.float32(at[1]), turn)
    distance = shape(lu, lv)
    here = cover(distance, scene.soft)
    if shadow > 0:
        ou, ov = scene.toward_light(shadow * 0.5, turn)
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


def environment(tilt: Field) -> Field:
    """Environment map: reflected radiance of a mirror tilted towards the light by `tilt` in about [-1,1].

    A linear ramp with one bright lobe (the light) and one dark lobe on the other side.
    """
    bright = 0.75 * np.exp(-(((tilt - 0.6) / 0.28) ** 2))
    dark = 0.3 * np.exp(-(((tilt + 0.55) / 0.25) ** 2))
    return np.asarray(0.72 + 0.3 * tilt + bright - dark, dtype=np.float32)


def render_scene(scene: Scene) -> F32:
    """Shade the scene: (side,side,3) float32 in [0,1] without sensor noise, averaged down from the scene's pixels."""
    gy, gx = np.gradient(scene.height, np.float32(2 / scene.side))
    nz = 1 / np.sqrt(1 + gx * gx + gy * gy)
    direction, tilt = scene.light
    toward = -(gx * np.float32(np.cos(direction)) + gy * np.float32(np.sin(direction))) * nz
    lx, lz = np.float32(np.sin(tilt)), np.float32(np.cos(tilt))
    diffuse = np.maximum(toward * lx + nz * lz, 0) / lz
    matte = np.float32(0.3) + np.float32(0.7) * np.minimum(diffuse, np.float32(1.7))
    reflection = environment(2 * nz * toward)
    halfway = np.sqrt(np.float32((1 + lz) / 2))
    shine = np.clip(toward * (lx / (2 * halfway)) + nz * halfway, 0, 1) ** np.float32(scene.sharpness)
    amount = (matte + (reflection - matte) * scene.metal) * scene.shade
    canvas = (scene.albedo * amount[..., None] + (scene.gloss * scene.shade * shine)[..., None]) * scene.light_colour
    # A soft shoulder keeps highlights from burning out in one step.
    canvas = np.minimum(canvas, 0.8 + 0.2 * np.tanh(np.maximum(canvas - 0.8, 0) / np.float32(0.2)))
    step = SUPERSAMPLE
    total = sum(canvas[row::step, column::step] for row in range(step) for column in range(step))
    return np.asarray(total / np.float32(step**2), dtype=np.float32)


def rotated_map(field: Field, angle: float) -> Field:
    """(S,S) float32 `field` rotated about its centre, enlarged by 1.3 so that no corner is empty."""
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
        for index, letter in enumerate(text):
            for path in _STROKES.get(letter, ()):
                points = [
                    (left + index * step + path[n] * size / 2, (path[n + 1] - 1) * size / 2)
                    for n in range(0, len(path), 2)
                ]
                for (ax, ay), (bx, by) in pairwise(points):
                    best = np.minimum(best, segment(x, y, ax, ay, bx, by, weight))
        return best

    return distance
