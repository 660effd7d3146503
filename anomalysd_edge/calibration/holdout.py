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

from anomalysd_edge.core.types import U8
from anomalysd_edge.method.patches.memory_bank import MemoryBank
from anomalysd_edge.method.patches.shot_banks import ShotBanks


@dataclass(frozen=True)
class Fold:
    """Normals that banks built without them judge."""

    photos: list[U8]
    """The shot itself first, where it was held out, then disturbed copies of it."""
    banks: tuple[MemoryBank, ...]
    """One a size of the photo; empty where the networks have no features."""


def hold_out(photos: list[U8], banks: Sequence[ShotBanks], negatives: int, seed: int) -> list[Fold]:
    """A fold per shot, `negatives` photos in all, each with the banks of the other shots; a single shot has its own."""
    alone = len(photos) == 1
    return [
        Fold(
            _negatives(photo, i, len(photos), negatives, seed),
            tuple(bank.joined(None if alone else i) for bank in banks),
        )
        for i, photo in enumerate(photos)
    ]


def perturbed(photo: U8, rng: np.random.Generator) -> U8:
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
    copies = [perturbed(photo, rng) for _ in range(share)]
    return copies if shots == 1 else [photo, *copies[1:]]
