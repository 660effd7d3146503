"""Training cases of the patch scorer: procedurally drawn shots and further photos of surfaces and parts.

A case is one shot and some further photos of the same surface or part, good ones and good ones with one synthetic
anomaly. Good photos differ as they do on a line: another place of the surface, another light, a lamp's gradient, focus,
grain, and a border where the part ends and the shot's did not. No real photo is used.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from PIL import Image

from anomalysd_edge.calibration.holdout import perturbed
from anomalysd_edge.calibration.synthetic_anomalies import field, synthetic_anomaly
from anomalysd_edge.core.types import F32, U8, Mask
from anomalysd_edge.method.anomaly_map import smooth
from anomalysd_edge.method.inpainting.masks import foreground
from anomalysd_edge.training.nano import parts, surfaces

Rng = np.random.Generator

SURFACES = (
    surfaces.cloth, surfaces.leather, surfaces.stone, surfaces.speckle, surfaces.wood,
    surfaces.brushed_metal, surfaces.cast_surface, surfaces.tiles, surfaces.grid, surfaces.carpet,
    surfaces.stripes,
)  # fmt: skip
PARTS = (
    parts.round_part, parts.nut, parts.gear, parts.capsule, parts.pill,
    parts.screw, parts.board, parts.connector, parts.cable, parts.organic,
    parts.array_of_parts,
)  # fmt: skip
_WHOLE_PX = 640
"""Side of a drawn surface, of which every photo shows a part."""


@dataclass(frozen=True)
class Case:
    """A shot and further photos of one surface or part."""

    shot: U8
    """(S,S,3) uint8: the photo that the memory bank is built from."""
    photos: list[U8]
    """(S,S,3) uint8: photos to score."""
    masks: list[Mask]
    """(S,S) bool: defect mask of each photo; all False for a good one."""
    textured: bool
    """A surface, not a part before a background."""


def draw_case(seed: int, number: int, side: int) -> Case:
    """Case `number` of a seeded endless list, photos of `side` pixels."""
    rng = np.random.default_rng((seed, number))
    textured = bool(rng.random() < 0.65)
    another = _surface(rng, side) if textured else _part(rng, side)
    shot, photos, masks = another(False), [], []
    strong = bool(rng.random() < 0.7)
    for _ in range(3):
        good = another(strong)
        photos.append(good)
        masks.append(np.zeros((side, side), np.bool_))
        other = shot if rng.random() < 0.5 else another(strong)
        inside = np.ones((side, side), np.bool_) if textured else foreground(good, "object")
        changed: tuple[U8, Mask] | None
        if textured and rng.random() < 0.22:
            changed = _unevenness(good, other, rng)
        elif not textured and rng.random() < 0.3:
            changed = large_damage(good, inside, rng)
        else:
            made = synthetic_anomaly(good, inside, other, rng)
            changed = (made.photo, made.mask) if made else None
        if changed is not None:
            photos.append(changed[0])
            masks.append(changed[1])
    return Case(shot, photos, masks, textured)


def _surface(rng: Rng, side: int) -> Callable[[bool], U8]:
    """Draws photos of one surface; the argument asks for a light that changes much."""
    if rng.random() < 0.4:
        whole = noise_surface(rng, _WHOLE_PX)
    else:
        whole = np.asarray(SURFACES[int(rng.integers(len(SURFACES)))](rng, _WHOLE_PX), np.float32)
    seen = int(rng.integers(round(0.78 * side), round(1.3 * side)))

    def another(strong: bool) -> U8:
        y, x = rng.integers(0, _WHOLE_PX - seen, 2)
        return _resized(_taken(whole[y : y + seen, x : x + seen], rng, strong), side)

    return another


def _part(rng: Rng, side: int) -> Callable[[bool], U8]:
    """Draws photos of one part: turned a little, moved, relit."""
    drawn = PARTS[int(rng.integers(len(PARTS)))](rng, side)
    base = (np.clip(drawn, 0, 1) * 255).astype(np.uint8)

    def another(_strong: bool) -> U8:
        corner = tuple(int(v) for v in base[2, 2])
        turned = Image.fromarray(base).rotate(rng.uniform(-8, 8), Image.Resampling.BICUBIC, fillcolor=corner)
        return perturbed(np.asarray(turned), rng)

    return another


def noise_surface(rng: Rng, side: int) -> F32:
    """(side,side,3) about [0,1]: noise in one to three bands, even or streaked: ground, cast and sintered faces."""
    fy, fx = np.meshgrid(np.fft.fftfreq(side), np.fft.rfftfreq(side), indexing="ij")
    total = np.zeros((side, side))
    for _ in range(int(rng.integers(1, 4))):
        across = np.exp(rng.uniform(np.log(0.6), np.log(6)))
        along = across * (1 if rng.random() < 0.5 else rng.uniform(2, 30))
        pass_band = np.exp(-2 * np.pi**2 * ((fy * along) ** 2 + (fx * across) ** 2))
        band = np.fft.irfft2(np.fft.rfft2(rng.standard_normal((side, side))) * pass_band, (side, side))
        total += band / band.std() * rng.uniform(0.3, 1)
    total /= total.std()
    total += rng.uniform(-0.5, 0.5) * total**2
    tint = 1 + (rng.random(3) - 0.5) * rng.choice([0, 0, 0.3])
    return np.asarray((rng.uniform(0.2, 0.8) + rng.uniform(0.015, 0.14) * total)[..., None] * tint, np.float32)


def _taken(scene: F32, rng: Rng, strong: bool) -> U8:
    """(h,w,3) in [0,1] -> as a camera takes it today."""
    height, width = scene.shape[:2]
    y, x = np.mgrid[-1 : 1 : height * 1j, -1 : 1 : width * 1j]
    angle = rng.uniform(0, 2 * np.pi)
    along = np.cos(angle) * x + np.sin(angle) * y
    lamp = np.exp(rng.normal(0, 0.25 if strong else 0.08)) * (
        1 + rng.normal(0, 0.12) * along + rng.normal(0, 0.08) * along**2
    )
    taken = np.asarray(scene * lamp[..., None], np.float32)
    taken = (taken - taken.mean()) * np.float32(np.exp(rng.normal(0, 0.12))) + taken.mean()
    if rng.random() < 0.4:
        taken = _blurred(taken, rng.uniform(0.2, 0.9))
    taken = taken + rng.normal(0, rng.uniform(0, 0.012), taken.shape).astype(np.float32)
    if rng.random() < 0.35:
        taken = _ended(taken, rng)
    return np.asarray(np.clip(taken, 0, 1) * 255 + 0.5, np.uint8)


def _ended(taken: F32, rng: Rng) -> F32:
    """A ragged strip along one side where the part ends: black, white or nearly."""
    turns = int(rng.integers(4))
    turned = np.rot90(taken, turns)
    height, width = turned.shape[:2]
    wide = max(1.0, width * rng.uniform(0.005, 0.06))
    edge = wide + np.clip(np.cumsum(rng.normal(0, 0.35, height)), -0.7 * wide, wide)
    outside = np.arange(width)[None] < edge[:, None]
    if rng.random() < 0.4:
        outside[: int(rng.integers(height // 2))] = False
    alpha = smooth(outside.astype(np.float32), 1.0)[..., None]
    return np.rot90(turned * (1 - alpha) + alpha * np.float32(rng.choice([0.02, 0.1, 0.9, 0.98])), -turns)


def _unevenness(good: U8, other: U8, rng: Rng) -> tuple[U8, Mask] | None:
    """A large region finished otherwise: light, sharpness, direction, coarseness, contrast. None where it is hidden."""
    side = len(good)
    y, x = np.mgrid[-1 : 1 : side * 1j, -1 : 1 : side * 1j]
    angle = rng.integers(4) * np.pi / 2 + rng.normal(0, 0.1)
    u = x * np.cos(angle) + y * np.sin(angle) + field(rng, (side, side), 4) * 0.03
    v = -x * np.sin(angle) + y * np.cos(angle) + field(rng, (side, side), 4) * 0.03
    shape = rng.random()
    if shape < 0.4:
        mask = ((u - rng.uniform(-0.4, 0.4)) / rng.uniform(0.2, 0.5)) ** 2 + (
            (v - rng.uniform(-0.4, 0.4)) / rng.uniform(0.2, 0.6)
        ) ** 2 < 1
    else:
        mask = u > rng.uniform(-0.2, 0.8)
        if shape < 0.65:
            mask &= np.abs(v - rng.uniform(-0.4, 0.4)) < rng.uniform(0.3, 0.8)
    base, kind = good.astype(np.float32), int(rng.integers(5))
    if kind == 0:
        finish = base * np.float32(rng.choice([rng.uniform(0.6, 0.85), rng.uniform(1.2, 1.6)]))
    elif kind == 1:
        finish = _blurred(base, rng.uniform(1.5, 4))
    elif kind == 2:
        finish = np.rot90(other).astype(np.float32) * np.float32(rng.uniform(0.8, 1.2))
    elif kind == 3:
        part = round(side / rng.uniform(1.4, 2.2))
        finish = _resized(np.ascontiguousarray(other[:part, :part]), side) * np.float32(rng.uniform(0.85, 1.15))
    else:
        finish = (base - base.mean()) * np.float32(rng.choice([0.4, 1.8])) + base.mean() * np.float32(
            rng.uniform(0.85, 1.15)
        )
    if not mask.any() or np.abs(finish - base)[mask].mean() < 6:
        return None
    alpha = smooth(mask.astype(np.float32), rng.uniform(0.5, 3))[..., None]
    return np.clip(base * (1 - alpha) + finish * alpha, 0, 255).astype(np.uint8), mask


def large_damage(good: U8, inside: Mask, rng: Rng) -> tuple[U8, Mask] | None:
    """A part of which a large piece is gone, covered, bent or turned; None where it does not show.

    (S,S,3) photo and (S,S) its foreground -> (S,S,3) and the (S,S) mask of what was changed.
    """
    side = len(good)
    region = _large_region(inside, rng)
    if region.sum() < 0.004 * side * side:
        return None
    base, kind = good.astype(np.float32), int(rng.integers(5))
    if kind == 0:  # gone: what lies behind the part shows, or its broken face
        behind = base[~inside] if (~inside).any() else base[region]
        middle = np.median(behind, axis=0) if rng.random() < 0.7 else base[inside].mean(axis=0) * rng.uniform(0.4, 1.5)
        grain = _blurred(rng.standard_normal(base.shape).astype(np.float32), rng.uniform(0.5, 3))
        laid = middle + grain / grain.std() * np.float32(rng.uniform(0.5, 1) * min(float(behind.std()), 12.0))
    elif kind == 1:  # covered with something else
        laid = noise_surface(rng, side) * 255
    elif kind == 2:  # covered with another part's material
        laid = PARTS[int(rng.integers(len(PARTS)))](rng, side) * 255
    elif kind == 3:  # bent, crushed
        y, x = np.mgrid[0:side, 0:side]
        cells, far = int(rng.integers(3, 9)), side * rng.uniform(0.015, 0.06)
        rows, columns = (np.rint(at + far * field(rng, (side, side), cells)) for at in (y, x))
        laid = base[np.clip(rows, 0, side - 1).astype(int), np.clip(columns, 0, side - 1).astype(int)]
    else:  # assembled otherwise
        turned = np.rot90(base, int(rng.integers(1, 4)))
        laid = np.roll(turned, tuple(int(v) for v in rng.integers(-side // 6, side // 6, 2)), axis=(0, 1))
    alpha = smooth(region.astype(np.float32), rng.uniform(0.5, 1.5))[..., None]
    changed = np.clip(base * (1 - alpha) + laid * alpha, 0, 255).astype(np.uint8)
    apart = smooth(np.abs(changed.astype(np.float32) - base).max(axis=2), 2)
    # Where a bent or turned piece looks as it did, nothing is wrong with it.
    mask = region & (apart > 8)
    return (changed, mask) if mask.sum() >= 0.3 * region.sum() else None


def _large_region(inside: Mask, rng: Rng) -> Mask:
    """A twentieth to two fifths of the foreground: cut off along a ragged line, or a blob."""
    side = len(inside)
    spots = np.argwhere(inside)
    if not len(spots):
        return np.zeros_like(inside)
    y, x = np.mgrid[0:side, 0:side]
    angle, share = rng.uniform(0, 2 * np.pi), np.exp(rng.uniform(np.log(0.05), np.log(0.4)))
    ragged = field(rng, (side, side), int(rng.integers(4, 14)))
    if rng.random() < 0.5:
        across = x * np.cos(angle) + y * np.sin(angle) + ragged * side * 0.03
        return np.asarray(inside & (across <= np.quantile(across[inside], share)))
    row, column = spots[int(rng.integers(len(spots)))]
    u = (x - column) * np.cos(angle) + (y - row) * np.sin(angle)
    v = (y - row) * np.cos(angle) - (x - column) * np.sin(angle)
    away = np.hypot(u, v / rng.uniform(0.4, 1)) * (1 + 0.2 * ragged)
    return np.asarray(inside & (away <= np.quantile(away[inside], share)))


def _blurred(image: F32, sigma_px: float) -> F32:
    return np.stack([smooth(image[..., c], sigma_px) for c in range(3)], axis=2)


def _resized(image: U8, side: int) -> U8:
    return np.asarray(Image.fromarray(image).resize((side, side), Image.Resampling.BICUBIC))
