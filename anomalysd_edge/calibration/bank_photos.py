"""Which of a class's good photos make its banks, and which stay outside to be judged by them."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from PIL import Image

from anomalysd_edge.core.types import F64, U8

BANK_PHOTOS = 16
"""Good photos that make a class's banks, at most."""
_THUMBNAIL_PX = 16
"""Side of the copies that are compared: pose and light show, grain does not."""


def split_photos(photos: Sequence[U8]) -> tuple[list[U8], list[U8]]:
    """Good photos of a class, (H,W,3) -> those that make its banks, at most BANK_PHOTOS, and those that are judged by
    them.

    The judged ones stand for further photos, so they are evenly spread over those given, never what the bank left
    over. Up to twice BANK_PHOTOS, all that are not in the bank are judged. Of more photos half is judged, and of the
    other half those make the bank that cover it best (`k_centre`).
    """
    count = len(photos)
    if count <= BANK_PHOTOS:
        return list(photos), []
    candidates = _spread(count, max(BANK_PHOTOS, count // 2))
    others = [photo for i, photo in enumerate(photos) if i not in set(candidates)]
    chosen = k_centre(np.stack([thumbnail(photos[i]) for i in candidates]), BANK_PHOTOS)
    return [photos[candidates[i]] for i in sorted(chosen)], others


def k_centre(points: F64, count: int) -> list[int]:
    """(N,D) -> numbers of `count` points that lie near all: the greedy 2-approximation of the k-centre problem
    (Gonzalez 1985), from the point nearest to the mean. All of them where there are no more."""
    if len(points) <= count:
        return list(range(len(points)))
    chosen = [int(np.square(points - points.mean(axis=0)).sum(axis=1).argmin())]
    nearest = np.square(points - points[chosen[0]]).sum(axis=1)
    nearest[chosen] = -1.0  # Copies of a photo are at distance 0: none is taken twice.
    while len(chosen) < count:
        chosen.append(int(nearest.argmax()))
        nearest = np.minimum(nearest, np.square(points - points[chosen[-1]]).sum(axis=1))
        nearest[chosen] = -1.0
    return chosen


def thumbnail(photo: U8) -> F64:
    """(H,W,3) -> (D,) its small copy, in [0,1]."""
    small = Image.fromarray(photo).resize((_THUMBNAIL_PX, _THUMBNAIL_PX), Image.Resampling.BOX)
    return np.asarray(small, np.float64).ravel() / 255


def _spread(count: int, wanted: int) -> list[int]:
    return sorted(set(np.linspace(0, count - 1, wanted).round().astype(int).tolist()))
