"""How photos of one class differ: a class is made from one photo of a surface or of a thing, and photographed again.

What a class does is drawn once: how far its light, pose, scale, perspective, shape and mottling go, whether it lies at
any angle, whether it is seen in grey or by a coarse camera. Every photo then draws within that. Classes differ widely
in how much their good photos differ, as real ones do.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageFilter

from anomalysd_edge.calibration.synthetic_anomalies import field
from anomalysd_edge.core.types import F32, U8

Rng = np.random.Generator
Camera = Callable[[str], F32]
"""`camera("shot")` or `camera("test")` -> one more good photo of the class, (S,S,3) float32 in [0,1].

Shots and further photos of a surface show different places of it.
"""

SIDE = 448
"""Of the photos that are made, in pixels."""


@dataclass(frozen=True)
class Warp:
    """Where the camera sees a thing; shares are of the photo's side."""

    angle: float = 0.0
    """Radians."""
    zoom: float = 1.0
    """Above 1 it looks larger."""
    shift: tuple[float, float] = (0.0, 0.0)
    """Shares of the side, right and down."""
    tilt: tuple[float, float] = (0.0, 0.0)
    """Perspective: how much the scale changes from one side to the other."""
    bend: float = 0.0
    """Amplitude of a smooth random displacement, a share of the side."""
    bends: int = 4
    """Cells of that displacement along a side."""

    def apply(self, photo: F32, rng: Rng, side: int = SIDE) -> F32:
        """(h,w,3) -> (side,side,3), bilinear; what lies outside the photo is mirrored."""
        y, x = np.mgrid[0:side, 0:side].astype(np.float32)
        across, down = (x + 0.5) / side - 0.5, (y + 0.5) / side - 0.5
        depth = 1 + self.tilt[0] * across + self.tilt[1] * down
        across, down = across / depth, down / depth
        c, s = math.cos(self.angle) / self.zoom, math.sin(self.angle) / self.zoom
        across, down = c * across + s * down + self.shift[0], -s * across + c * down + self.shift[1]
        if self.bend:
            across = across + self.bend * field(rng, (side, side), self.bends)
            down = down + self.bend * field(rng, (side, side), self.bends)
        return _sampled(photo, down, across)


@dataclass(frozen=True)
class Light:
    """How far the light of a class changes; standard deviations of what each photo draws."""

    lamp: float
    """Of the logarithm of the brightness."""
    gradient: float
    """Of the brightness across the photo."""
    contrast: float
    """Of the logarithm of the contrast."""
    tint: float
    """Of each colour's share."""
    blur: float
    """Largest standard deviation of the lens's blur, in pixels; 0 for a lens that is always sharp."""
    noise: float
    """Of the sensor, in [0,1] brightness."""
    highlights: bool
    """Whether soft highlights come and go."""

    @classmethod
    def drawn(cls, rng: Rng, amount: float) -> Light:
        """That of one class; `amount` scales all that changes."""
        return cls(
            lamp=amount * math.exp(rng.uniform(math.log(0.02), math.log(0.2))),
            gradient=amount * math.exp(rng.uniform(math.log(0.01), math.log(0.12))),
            contrast=amount * rng.uniform(0.01, 0.1),
            tint=amount * rng.uniform(0, 0.04) * float(rng.random() < 0.5),
            blur=rng.uniform(0.3, 1.2) * float(rng.random() < 0.5),
            noise=rng.uniform(0, 0.014),
            highlights=bool(rng.random() < 0.3),
        )

    def apply(self, photo: F32, rng: Rng) -> F32:
        """(S,S,3) in [0,1] -> the same as the camera takes it once more."""
        height, width = photo.shape[:2]
        y, x = np.mgrid[-1 : 1 : height * 1j, -1 : 1 : width * 1j]
        g = rng.normal(0, self.gradient, 5)
        field_of_light = 1 + g[0] * x + g[1] * y + g[2] / 2 * (x * x - 0.3) + g[3] / 2 * (y * y - 0.3) + g[4] * x * y
        taken = photo * (math.exp(rng.normal(0, self.lamp)) * field_of_light[..., None]).astype(np.float32)
        middle = float(taken.mean())
        taken = (taken - middle) * np.float32(math.exp(rng.normal(0, self.contrast))) + middle
        taken = taken * (1 + rng.normal(0, self.tint, 3)).astype(np.float32)
        if self.highlights and rng.random() < 0.6:
            cx, cy = rng.normal(0, 0.4, 2)
            spot = rng.uniform(0.02, 0.15) * np.exp(-((x - cx) ** 2 + (y - cy) ** 2) / rng.uniform(0.15, 0.6) ** 2)
            taken = taken + spot[..., None].astype(np.float32)
        if self.blur:
            taken = blurred(taken, self.blur * rng.uniform(0.3, 1))
        taken = taken + rng.normal(0, self.noise, taken.shape).astype(np.float32)
        return np.asarray(np.clip(taken, 0, 1), np.float32)


@dataclass(frozen=True)
class _Finish:
    """What the camera makes of every photo of a class."""

    pixels: int
    """Side that the camera resolves."""
    grey: bool

    def apply(self, photo: F32) -> F32:
        if self.pixels < SIDE:
            small = Image.fromarray(to_u8(photo)).resize((self.pixels, self.pixels), Image.Resampling.BICUBIC)
            back = small.resize((SIDE, SIDE), Image.Resampling.BICUBIC)
            photo = np.asarray(np.asarray(back, np.float32) / 255, np.float32)
        return np.asarray(np.repeat(photo.mean(axis=2, keepdims=True), 3, axis=2), np.float32) if self.grey else photo


def surface(photo: F32, rng: Rng) -> Camera:
    """A class of photos of one surface, from (h,w,3) of it: each shows another place."""
    height, width = photo.shape[:2]
    short = min(height, width)
    cells_a_side = int(rng.choice([3, 4, 4] if short >= 700 else [2, 3]))
    cells = rng.permutation([(i, j) for i in range(cells_a_side) for j in range(cells_a_side)]).tolist()
    first = max(1, round(0.45 * len(cells)))
    places = {"shot": cells[:first], "test": cells[first:]}
    amount = math.exp(rng.uniform(math.log(0.3), math.log(1.5)))
    light, any_angle = Light.drawn(rng, amount), bool(rng.random() < 0.3)
    angle, zoom, share = math.radians(rng.uniform(0, 3)), rng.uniform(0, 0.06) * amount, rng.uniform(0.7, 1)
    finish = _Finish(int(rng.integers(160, 320)) if rng.random() < 0.35 else SIDE, bool(rng.random() < 0.35))
    taken = {"shot": 0, "test": 0}

    def camera(purpose: str) -> F32:
        row, column = places[purpose][taken[purpose] % len(places[purpose])]
        taken[purpose] += 1
        cell = short / cells_a_side
        size = int(cell * share)
        top = int((height - short) / 2 + (row + rng.uniform(0, 1 - share)) * cell)
        left = int((width - short) / 2 + (column + rng.uniform(0, 1 - share)) * cell)
        top, left = min(top, height - size), min(left, width - size)
        turned = rng.uniform(0, 2 * math.pi) if any_angle else rng.normal(0, angle)
        seen = Warp(turned, math.exp(rng.normal(0, zoom))).apply(photo[top : top + size, left : left + size], rng)
        return finish.apply(light.apply(seen, rng))

    return camera


def thing(photo: F32, rng: Rng) -> Camera:
    """A class of photos of one kind of thing, from (h,w,3) of one: each shows another piece of it, in another pose."""
    longer = max(photo.shape[:2])
    rows, columns = longer - photo.shape[0], longer - photo.shape[1]
    around = ((rows // 2, rows - rows // 2), (columns // 2, columns - columns // 2), (0, 0))
    square = np.pad(photo, around, mode="symmetric")
    amount = math.exp(rng.uniform(math.log(0.25), math.log(1.6)))
    light, any_pose = Light.drawn(rng, 0.8 * amount), bool(rng.random() < 0.4)
    angle, zoom, larger = math.radians(rng.uniform(0, 8)), rng.uniform(0, 0.06) * amount, rng.uniform(0.75, 1.05)
    shift, tilt = rng.uniform(0, 0.04), rng.uniform(0, 0.12) * amount
    bend = float(rng.choice([0, rng.uniform(0.001, 0.012), rng.uniform(0.005, 0.02)])) * amount
    mottle = float(rng.choice([0, rng.uniform(0.01, 0.08) * amount, rng.uniform(0.05, 0.15)]))
    bends, spots, mirrored = int(rng.integers(2, 9)), int(rng.integers(3, 25)), any_pose and bool(rng.random() < 0.4)
    finish = _Finish(int(rng.integers(200, 400)) if rng.random() < 0.25 else SIDE, bool(rng.random() < 0.2))

    def camera(_purpose: str) -> F32:
        piece = square[:, ::-1] if mirrored and rng.random() < 0.5 else square
        if mottle:
            colours = (0.4 + 0.6 * rng.random(3)).astype(np.float32)
            piece = np.clip(piece * (1 + mottle * field(rng, piece.shape, spots)[..., None] * colours), 0, 1)
        pose = Warp(
            rng.uniform(0, 2 * math.pi) if any_pose else rng.normal(0, angle),
            larger * math.exp(rng.normal(0, zoom)),
            (rng.normal(0, shift), rng.normal(0, shift)),
            (rng.normal(0, tilt), rng.normal(0, tilt)),
            bend,
            bends,
        )
        return finish.apply(light.apply(pose.apply(piece.astype(np.float32), rng), rng))

    return camera


def to_u8(photo: F32) -> U8:
    """(h,w,3) in [0,1] -> uint8, rounded."""
    return (np.clip(photo, 0, 1) * 255 + 0.5).astype(np.uint8)


def blurred(photo: F32, sigma_px: float) -> F32:
    """(h,w,3) in [0,1] -> the same behind a Gaussian; at 8 bits."""
    soft = Image.fromarray(to_u8(photo)).filter(ImageFilter.GaussianBlur(float(sigma_px)))
    return np.asarray(np.asarray(soft, np.float32) / 255, np.float32)


def _sampled(photo: F32, down: F32, across: F32) -> F32:
    """(h,w,3) at centred coordinates in shares of the sides, (S,S) each -> (S,S,3)."""
    height, width = photo.shape[:2]
    rows, columns = _mirrored((down + 0.5) * height - 0.5, height), _mirrored((across + 0.5) * width - 0.5, width)
    i, j = rows.astype(np.int64), columns.astype(np.int64)
    a, b = (rows - i)[..., None].astype(np.float32), (columns - j)[..., None].astype(np.float32)
    upper = photo[i, j] * (1 - b) + photo[i, j + 1] * b
    lower = photo[i + 1, j] * (1 - b) + photo[i + 1, j + 1] * b
    return np.asarray(upper * (1 - a) + lower * a, dtype=np.float32)


def _mirrored(at: F32, length: int) -> F32:
    """Pixel coordinates reflected into [0, length - 1)."""
    period = 2 * (length - 1)
    at = np.mod(at, period)
    return np.asarray(np.clip(np.where(at > length - 1, period - at, at), 0, length - 1.001), np.float32)
