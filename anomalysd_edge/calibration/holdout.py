"""Held-out normals: good photos judged by prototypes that have not seen them.

With two or more shots every shot is judged by a bank built without it; with one, by a bank of itself, but only in
disturbed copies (moved, turned, relit, grained), so that it is never its own negative.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageEnhance

from anomalysd_edge.core.types import F32, U8
from anomalysd_edge.data.classes import ClassSpec, apply_view, symmetry_group
from anomalysd_edge.method.networks import Networks
from anomalysd_edge.method.patches.feature_windows import dense_features, tiled_side
from anomalysd_edge.method.patches.memory_bank import Bank, build_bank
from anomalysd_edge.vision.letterbox import Frame


@dataclass(frozen=True)
class Fold:
    """Normals that a bank built without them judges."""

    photos: list[U8]
    """The shot itself first, where it was held out, then disturbed copies of it."""
    bank: Bank | None
    """None where the networks have no features."""


@dataclass(frozen=True)
class Holdout:
    """The good photos of one class, each held out in turn."""

    folds: list[Fold]
    """One a shot."""
    bank: Bank | None
    """Of all shots; None where the networks have no features."""


def hold_out(
    networks: Networks,
    photos: list[U8],
    spec: ClassSpec,
    aspect: float | None,
    negatives: int,
    bank_size: int,
    seed: int,
    exposures: Sequence[float] = (),
) -> Holdout:
    """A fold per shot, `negatives` photos in all, and the bank of all shots; `exposures` are further lights."""
    held = [_negatives(photo, i, len(photos), negatives, seed) for i, photo in enumerate(photos)]
    if not networks.sizes.features_px:
        return Holdout([Fold(mine, None) for mine in held], None)
    views = [_view_features(networks, photo, spec, aspect, (1.0,)) for photo in photos]
    lit = [_view_features(networks, photo, spec, aspect, exposures) if exposures else views[0][:0] for photo in photos]

    def bank_of(shots: list[int]) -> Bank:
        return build_bank(np.concatenate([views[i] for i in shots]), bank_size, np.concatenate([lit[i] for i in shots]))

    bank = bank_of(list(range(len(photos))))
    folds = []
    for i, mine in enumerate(held):
        others = [j for j in range(len(photos)) if j != i]
        folds.append(Fold(mine, bank_of(others) if others else bank))
    return Holdout(folds, bank)


def disturbed(photo: U8, rng: np.random.Generator) -> U8:
    """(H,W,3) -> the same good part as another shot might show it: moved, turned, scaled, relit, grained a little."""
    height, width = photo.shape[:2]
    angle, zoom = rng.normal(0, 1.5), math.exp(rng.normal(0, 0.015))
    c, s = math.cos(math.radians(angle)) / zoom, math.sin(math.radians(angle)) / zoom
    dx, dy = rng.normal(0, 0.012, 2) * (width, height)
    cx, cy = width / 2, height / 2
    margin = max(4, round(0.08 * max(height, width)))
    # Mirrored margins, so that no black corner turns up and is learned as normal.
    padded = Image.fromarray(np.pad(photo, ((margin, margin), (margin, margin), (0, 0)), mode="reflect"))
    mx, my = cx + margin, cy + margin
    moved = padded.transform(
        (width, height),
        Image.Transform.AFFINE,
        (c, s, mx - c * cx - s * cy + dx, -s, c, my + s * cx - c * cy + dy),
        Image.Resampling.BICUBIC,
    )
    lit = ImageEnhance.Contrast(ImageEnhance.Brightness(moved).enhance(math.exp(rng.normal(0, 0.03)))).enhance(
        math.exp(rng.normal(0, 0.03))
    )
    grain = rng.normal(0, rng.uniform(0, 2.5), (height, width, 3))
    return np.clip(np.asarray(lit, np.float32) + grain + 0.5, 0, 255).astype(np.uint8)


def _negatives(photo: U8, number: int, shots: int, negatives: int, seed: int) -> list[U8]:
    """A shot's share of the negatives: the shot itself where its bank was built without it, then disturbed copies."""
    share = max(1, round(negatives / shots))
    rng = np.random.default_rng((seed, number))
    copies = [disturbed(photo, rng) for _ in range(share)]
    return copies if shots == 1 else [photo, *copies[1:]]


def exposed(photo: U8, exposure: float) -> U8:
    """(H,W,3) -> the same under a light `exposure` times as strong; what it makes too bright is white."""
    if exposure == 1:
        return photo
    return np.asarray(np.clip(photo * np.float32(exposure) + np.float32(0.5), 0, 255), np.uint8)


def _view_features(
    networks: Networks, photo: U8, spec: ClassSpec, aspect: float | None, exposures: Sequence[float]
) -> F32:
    """(V*E,D,f,f) features of the photo and of every copy that the class's symmetries allow, at each exposure."""
    side = tiled_side(networks.sizes.features_px, spec.tiles)
    small = Frame.of(photo.shape[:2], aspect).resize(photo, side)
    views = [
        np.ascontiguousarray(apply_view(exposed(small, exposure), view))
        for exposure in exposures
        for view in symmetry_group(spec.symmetries)
    ]
    return dense_features(networks, views, spec.tiles)
