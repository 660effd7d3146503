"""What is wrong with the good photos that a class is to be taught with: copies, blurred, dark, blank and foreign ones.

The bounds were chosen on up to 20 good photos of each of eight classes: bottle, circuit board, hazelnut, commutator,
leather, magnetic tile, pavement, toothbrush. None of these 144 photos is found fault with, among 20 or among four. Of
copies compressed to JPEG of quality 75, 143 are known for copies, and all that were scaled to three quarters; all that
were darkened to an eighth are dark. Blurred by 0.8 % of the longer side, 140 are found; not one of the leather, which
has hardly anything to blur. Stronger blur is found less on surfaces: what is left of them is grain of the camera.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image

from anomalysd_edge.core.files import sha256_bytes
from anomalysd_edge.core.types import F32, F64, U8
from anomalysd_edge.vision.images import photo_faults

ALIKE_LEVELS = 2.0
"""Grey levels: root mean square difference of two 64 x 64 copies, up to which one photo is a copy of the other. Two
photos of one part in one fixture differ by 4 or more, a photo and its JPEG by 1.4 at most."""
BLURRED, BLURRED_MORE = 0.7, 0.18
"""Blur (:func:`blur`) from which a photo is blurred; and how much more than the median of the others."""
DARK_LEVEL, DARK_SHARE = 50.0, 0.4
"""Grey level that a dark photo's brightest hundredth stays below; and of the others' median mean, the share that its
own mean stays below."""
FOREIGN_DISTANCE, FOREIGN_FACTOR = 0.15, 3.0
"""Cosine distance of mean features, median to the others, above which a photo is foreign, if it is also this many times
what the others are from each other. Photos of one class lie within 0.11, of two classes beyond 0.17."""
_LEAST_TO_COMPARE = 3
"""Photos, this one included, without which none can be called unlike the rest."""
_BLUR_SIDE, _BLUR_TAPS = 384, 9
"""Longer side in pixels at which blur is judged: finer blur is lost on the networks. And the blur that is added."""


@dataclass(frozen=True)
class GoodPhoto:
    """A photo that a class is taught with."""

    name: str
    """What people call it: a file's name."""
    sha256: str
    """Of its file."""
    pixels: U8
    """(H,W,3)."""


@dataclass(frozen=True)
class PhotoFinding:
    """One fault of one photo."""

    photo: str
    """Its name."""
    kind: str
    """unreadable, duplicate, near-duplicate, blank, dark, blurred or foreign."""
    sentence: str
    """What was seen."""
    left_out: bool
    """Whether the photo is not used; others are used all the same."""


def check_photos(photos: Sequence[GoodPhoto]) -> tuple[list[GoodPhoto], list[PhotoFinding]]:
    """The photos to use, and what is wrong with any. Copies to the pixel and photos of one colour are not used."""
    kept, found, seen = [], [], dict[str, str]()
    for photo in photos:
        content = sha256_bytes(repr(photo.pixels.shape).encode() + photo.pixels.tobytes())
        first, faults = seen.get(content), photo_faults(photo.pixels)
        seen.setdefault(content, photo.name)
        if first is not None:
            what = f"{photo.name} is the same photo as {first}: left out"
            found.append(PhotoFinding(photo.name, "duplicate", what, True))
        elif faults and (photo.pixels == photo.pixels[:1, :1]).all():
            found.append(PhotoFinding(photo.name, "blank", f"{photo.name} shows nothing: {faults[0]}; left out", True))
        else:
            kept.append(photo)
            found += [
                PhotoFinding(photo.name, "blank", f"{photo.name} hardly shows anything: {f}", False) for f in faults
            ]
    small = [_gray(photo.pixels, 64, 64) for photo in kept]
    for j, photo in enumerate(kept):
        twin = next((i for i in range(j) if _rms(small[i] - small[j]) <= ALIKE_LEVELS), None)
        if twin is not None:
            what = f"{photo.name} is nearly the same photo as {kept[twin].name}: photos of other parts would say more"
            found.append(PhotoFinding(photo.name, "near-duplicate", what, False))
    return kept, [*found, *_dark(kept, small), *_blurred(kept)]


def foreign_photos(photos: Sequence[GoodPhoto], features: Sequence[F32]) -> list[PhotoFinding]:
    """Those whose features, (D,f,f) of each photo, are unlike those of the rest."""
    if len(photos) < _LEAST_TO_COMPARE:
        return []
    means = np.stack([f.reshape(len(f), -1).mean(axis=1) for f in features]).astype(np.float64)
    means /= np.maximum(np.linalg.norm(means, axis=1, keepdims=True), 1e-12)
    apart = 1 - means @ means.T
    found = []
    for i, photo in enumerate(photos):
        rest = np.delete(np.arange(len(photos)), i)
        own, others = np.median(apart[i, rest]), apart[np.ix_(rest, rest)][np.triu_indices(len(rest), 1)]
        if own > max(FOREIGN_DISTANCE, FOREIGN_FACTOR * float(np.median(others))):
            distances = f"distance {own:.2f}, theirs {np.median(others):.2f}"
            what = f"{photo.name} is unlike the other photos ({distances}): does it show this class?"
            found.append(PhotoFinding(photo.name, "foreign", what, False))
    return found


def brightness_and_sharpness(photo: U8) -> tuple[float, float]:
    """Mean grey level of (H,W,3), and how sharp it is (1 - blur), each in [0,1]; fast, for every photo of a line."""
    reduced = Image.fromarray(photo).reduce(max(1, max(photo.shape[:2]) // _BLUR_SIDE))
    small = np.asarray(reduced)
    return float(np.asarray(reduced.convert("L"), np.float64).mean()) / 255, 1 - blur(small)


def blur(photo: U8) -> float:
    """How blurred (H,W,3) is, 0 (sharp) to 1: the share of its contrast between neighbours that survives a further blur
    (Crete et al., "The blur effect", 2007), in the direction where that is more."""
    height, width = photo.shape[:2]
    scale = min(1.0, _BLUR_SIDE / max(height, width))
    grey = _gray(photo, max(1, round(height * scale)), max(1, round(width * scale)))
    return max(_surviving(grey), _surviving(grey.T))


def _surviving(grey: F64) -> float:
    half = _BLUR_TAPS // 2
    sums = np.cumsum(np.pad(grey, ((half + 1, half), (0, 0)), mode="edge"), axis=0)
    smooth = (sums[_BLUR_TAPS:] - sums[:-_BLUR_TAPS]) / _BLUR_TAPS
    before, after = np.abs(np.diff(grey, axis=0)), np.abs(np.diff(smooth, axis=0))
    total = float(before.sum())
    return 0.0 if total == 0 else 1 - float(np.maximum(0, before - after).sum()) / total


def _dark(photos: Sequence[GoodPhoto], small: Sequence[F64]) -> list[PhotoFinding]:
    found, means = [], np.array([grey.mean() for grey in small])
    for i, photo in enumerate(photos):
        brightest, others = float(np.percentile(small[i], 99)), np.delete(means, i)
        if brightest < DARK_LEVEL:
            what = f"{photo.name} is dark: its brightest hundredth is at {brightest:.0f} of 255"
        elif len(photos) >= _LEAST_TO_COMPARE and means[i] < DARK_SHARE * np.median(others):
            what = f"{photo.name} is dark: {means[i]:.0f} of 255 on the mean, the others {np.median(others):.0f}"
        else:
            continue
        found.append(PhotoFinding(photo.name, "dark", what, False))
    return found


def _blurred(photos: Sequence[GoodPhoto]) -> list[PhotoFinding]:
    values, found = np.array([blur(photo.pixels) for photo in photos]), []
    for i, photo in enumerate(photos):
        many = len(photos) >= _LEAST_TO_COMPARE
        least = float(np.median(np.delete(values, i))) + BLURRED_MORE if many else BLURRED
        if values[i] >= min(BLURRED, least):
            bound = min(BLURRED, least)
            what = f"{photo.name} is blurred ({values[i]:.2f} of 1, sharp below {bound:.2f}): look at focus and shake"
            found.append(PhotoFinding(photo.name, "blurred", what, False))
    return found


def _gray(photo: U8, height: int, width: int) -> F64:
    resized = Image.fromarray(photo).convert("L").resize((width, height), Image.Resampling.BICUBIC)
    return np.asarray(resized, np.float64)


def _rms(values: F64) -> float:
    return float(np.sqrt(np.square(values).mean()))
