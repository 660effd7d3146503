"""Defects that stand for real ones: ten kinds in two families, painted by other means than calibration's own.

Calibration paints synthetic anomalies on the shots (calibration/synthetic_anomalies.py) and asks how high they score.
How that relates to the scores of real defects is what the threshold prior learns, so its defects must not be the same
generator's. A class shows one to three kinds of one family at one severity, as a line does.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

from anomalysd_edge.calibration.synthetic_anomalies import field
from anomalysd_edge.core.types import F32, F64, Mask
from anomalysd_edge.training.threshold_prior.variation import Rng, Warp, blurred

FAMILIES = (("scratch", "stain", "foreign", "shift", "hole"), ("crack", "gone", "dent", "fibre", "blob"))
"""Kinds of defects. Fitting on classes of one family and judging on those of the other tells what carries over."""
_LEAST_PX = 25
_VISIBLE = 0.035
"""Brightness in [0,1] by which three tenths of a defect's pixels must differ, or it is drawn again."""


@dataclass(frozen=True)
class Spot:
    """Where a defect lies and how large and strong it is."""

    centre: F64
    """(2,) column and row in pixels."""
    along: F32
    """(S,S) position along the defect's axis, in units of its half length."""
    across: F32
    """(S,S) position across it, in units of its half width."""
    outline: Mask
    """(S,S) a wobbly ellipse."""
    size: float
    """Half length in pixels."""
    contrast: float
    """0 to about 1."""

    @classmethod
    def drawn(cls, inside: Mask, severity: float, rng: Rng) -> Spot:
        """Somewhere in (S,S) `inside`; `severity` 0 to about 1.5 scales size and contrast."""
        side = len(inside)
        places = np.argwhere(inside)
        row, column = places[int(rng.integers(len(places)))]
        size = side * math.exp(rng.uniform(math.log(0.03), math.log(0.22))) * (0.6 + 0.5 * severity)
        y, x = np.mgrid[0:side, 0:side].astype(np.float32)
        angle, wide = rng.uniform(0, math.pi), rng.uniform(0.35, 1)
        along = ((x - column) * math.cos(angle) + (y - row) * math.sin(angle)) / size
        across = ((y - row) * math.cos(angle) - (x - column) * math.sin(angle)) / (size * wide)
        outline = along**2 + across**2 < 1 + 0.4 * field(rng, inside.shape, 12)
        strength = rng.uniform(0.5, 1) * (0.35 + 0.65 * severity)
        centre = np.array([column, row], np.float64)
        return cls(centre, along, across, np.asarray(outline & inside), size, strength)


def defect(photo: F32, inside: Mask, kind: str, severity: float, foreign: F32, rng: Rng) -> tuple[F32, Mask] | None:
    """(S,S,3) good photo in [0,1] -> the same with one defect within `inside`, and its (S,S) mask.

    `foreign` is (h,w,3) of something else, for contamination. None where what was drawn does not show.
    """
    if inside.sum() < 2 * _LEAST_PX:
        return None
    spot = Spot.drawn(inside, severity, rng)
    paint = _line if kind in ("scratch", "crack", "fibre") else _patch
    changed, mask = paint(photo, inside, kind, severity, foreign, spot, rng)
    if mask.sum() < _LEAST_PX:
        return None
    visible = np.abs(changed - photo).max(axis=2)[mask] > _VISIBLE
    return (changed, mask) if visible.mean() >= 0.3 else None


def _line(
    photo: F32, inside: Mask, kind: str, severity: float, _foreign: F32, spot: Spot, rng: Rng
) -> tuple[F32, Mask]:
    side = len(inside)
    length = side * math.exp(rng.uniform(math.log(0.08), math.log(0.6))) * (0.6 + 0.4 * severity)
    width = math.exp(rng.uniform(math.log(0.8), math.log(4))) * (0.7 + 0.4 * severity)
    steps, wild = {"scratch": (6, 0.08), "fibre": (24, 0.35), "crack": (40, 0.5)}[kind]
    path = _path(rng, steps, length, wild)
    lines = [(spot.centre + path, width)]
    if kind == "crack":
        for _ in range(int(rng.integers(0, 3))):
            start = spot.centre + path[int(rng.integers(len(path)))]
            lines.append((start + _path(rng, 15, 0.4 * length, wild), max(0.7, 0.6 * width)))
    covered = np.max([_drawn(side, points, wide) for points, wide in lines], axis=0) * inside
    alpha = _softened(covered, 0.6)
    if kind == "crack":
        laid: F32 = photo * np.float32(1 - rng.uniform(0.4, 0.9) * min(1.0, spot.contrast))
    elif kind == "fibre":
        colour = photo[inside].mean(axis=0) + rng.choice([-1, 1]) * rng.uniform(0.2, 0.5) + _colour(photo, rng, 0.15)
        laid = np.broadcast_to(np.clip(colour, 0, 1).astype(np.float32), photo.shape)
    else:  # A scratch: brighter or darker than its ground, with a shadow on one side.
        step = max(0.18, 1.2 * max(0.04, float(photo[inside].std())))
        laid = photo + np.float32(rng.choice([-1, 1]) * spot.contrast * step)
        photo = photo - np.float32(0.12 * spot.contrast) * np.roll(alpha, (1, 1), (0, 1))
    return _laid(photo, laid, alpha), np.asarray(covered > 0.3)


def _patch(
    photo: F32, inside: Mask, kind: str, severity: float, foreign: F32, spot: Spot, rng: Rng
) -> tuple[F32, Mask]:
    strength, mask, shade = spot.contrast, spot.outline, spot.across[..., None]
    if kind == "hole":
        mask = np.asarray((spot.along**2 + spot.across**2 < 0.25) & inside)
        laid = photo * np.float32(rng.uniform(0.1, 0.5)) + np.float32(0.12 * strength) * shade
        alpha = _softened(mask, 0.8) * np.float32(min(1.0, 0.5 + strength))
    elif kind == "stain":
        laid = photo * (1 + np.clip(_colour(photo, rng, 0.12), -0.3, 0.3)).astype(np.float32)
        laid = laid - np.float32(rng.choice([-1, 1]) * rng.uniform(0.1, 0.35) * strength) * photo
        alpha = _softened(mask, rng.uniform(1, 6))
    elif kind == "foreign":
        laid = Warp(rng.uniform(0, 2 * math.pi), rng.uniform(0.8, 2)).apply(foreign, rng, len(inside))
        laid = laid * np.float32(rng.uniform(0.7, 1.2))
        alpha = _softened(mask, rng.uniform(0.5, 1.5)) * np.float32(min(1.0, 0.45 + 0.6 * strength))
    elif kind == "shift":
        laid = photo + (strength * (_colour(photo, rng, 0.16) + 0.1 * rng.choice([-1, 1]))).astype(np.float32)
        alpha = _softened(mask, rng.uniform(0.6, 3))
    elif kind == "gone":
        laid = _without(photo, inside, severity, rng)
        alpha = _softened(mask, rng.uniform(0.6, 2))
    elif kind == "dent":
        laid, mask = _dented(photo, inside, severity, spot, rng)
        alpha = np.ones((*inside.shape, 1), np.float32)
    else:
        return _blobs(photo, inside, spot, rng)
    return _laid(photo, laid, alpha), mask


def _without(photo: F32, inside: Mask, severity: float, rng: Rng) -> F32:
    """What shows where a piece is gone: the background, a smear, or something from elsewhere on the photo."""
    side = len(inside)
    if not inside.all() and rng.random() < 0.6:
        return (np.median(photo[~inside], axis=0) + rng.normal(0, 0.01, photo.shape)).astype(np.float32)
    if rng.random() < 0.5:
        return blurred(photo, rng.uniform(4, 12) * (0.5 + severity))
    down, right = (int(v) for v in rng.integers(side // 8, side - side // 8, 2))
    return np.roll(np.rot90(photo, int(rng.integers(1, 4))), (down, right), (0, 1))


def _dented(photo: F32, inside: Mask, severity: float, spot: Spot, rng: Rng) -> tuple[F32, Mask]:
    """Content pushed aside, with light on one flank and shadow on the other."""
    side = len(inside)
    depth = np.clip(1 - (spot.along**2 + spot.across**2), 0, 1)
    far = 2 * side * (0.01 + 0.03 * severity) * rng.uniform(0.5, 1.3)
    turned = rng.uniform(0, 2 * math.pi)
    y, x = np.mgrid[0:side, 0:side]
    rows = np.clip(y + far * depth * math.sin(turned), 0, side - 1).astype(np.int64)
    columns = np.clip(x + far * depth * math.cos(turned), 0, side - 1).astype(np.int64)
    shade = 1 + 0.45 * spot.contrast * (depth * spot.across)[..., None]
    return (photo[rows, columns] * shade).astype(np.float32), np.asarray((depth > 0.05) & inside)


def _blobs(photo: F32, inside: Mask, spot: Spot, rng: Rng) -> tuple[F32, Mask]:
    """One to five drops of something."""
    side = len(inside)
    y, x = np.mgrid[0:side, 0:side]
    wobble, mask = 1 + 0.4 * field(rng, inside.shape, 12), np.zeros(inside.shape, np.bool_)
    for _ in range(int(rng.integers(1, 6))):
        column, row = spot.centre + rng.normal(0, 0.8 * spot.size, 2)
        mask |= (x - column) ** 2 + (y - row) ** 2 < (spot.size * rng.uniform(0.15, 0.45)) ** 2 * wobble
    mask &= inside
    away = max(0.12, 1.5 * max(0.04, float(photo[inside].std()))) * spot.contrast
    colour = photo[inside].mean(axis=0) + rng.choice([-1, 1]) * away + _colour(photo, rng, 0.08)
    grain = 0.05 * field(rng, inside.shape, int(rng.integers(20, 60)))[..., None]
    alpha = _softened(mask, rng.uniform(0.5, 2)) * np.float32(min(1.0, 0.5 + 0.5 * spot.contrast))
    return _laid(photo, np.clip(colour + grain, 0, 1).astype(np.float32), alpha), mask


def _colour(photo: F32, rng: Rng, spread: float) -> F64:
    """(3,) a random colour's distance from grey; a grey photo gets a grey one."""
    drawn = rng.normal(0, spread, 3)
    if float((photo - photo.mean(axis=2, keepdims=True)).std()) < 0.02:
        return np.full(3, 1.7 * float(drawn.mean()))
    return np.asarray(drawn)


def _path(rng: Rng, steps: int, length: float, wild: float) -> F64:
    """(steps + 1, 2) points around the origin: a walk whose direction drifts by `wild` radians a step."""
    angles = rng.uniform(0, 2 * math.pi) + np.cumsum(rng.normal(0, wild, steps))
    points = np.cumsum(length / steps * np.stack([np.cos(angles), np.sin(angles)], axis=1), axis=0)
    points = np.concatenate([np.zeros((1, 2)), points])
    return np.asarray(points - points.mean(axis=0))


def _drawn(side: int, points: F64, width: float) -> F32:
    """(side,side) how much of each pixel a line covers."""
    plane = Image.new("L", (2 * side, 2 * side))
    ImageDraw.Draw(plane).line([(2 * x, 2 * y) for x, y in points], fill=255, width=max(1, round(2 * width)))
    return np.asarray(np.asarray(plane.resize((side, side), Image.Resampling.BOX), np.float32) / 255, np.float32)


def _softened(mask: Mask | F32, sigma_px: float) -> F32:
    """(S,S) in [0,1] -> (S,S,1) opacity with soft edges."""
    plane = Image.fromarray((np.asarray(mask, np.float32) * 255).astype(np.uint8))
    soft = np.asarray(plane.filter(ImageFilter.GaussianBlur(float(sigma_px))), np.float32)
    return np.asarray(soft[..., None] / 255, np.float32)


def _laid(photo: F32, laid: F32, alpha: F32) -> F32:
    return np.clip(photo * (1 - alpha) + laid * alpha, 0, 1).astype(np.float32)
