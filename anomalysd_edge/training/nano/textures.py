"""Crops of a folder of photos: real surfaces and objects for a recipe whose weights may ship where the licences allow.

The photos stay where they are; a recipe records their names and SHA-256. A fixed fifth of them, chosen by their hash,
is held out of any training, for evaluation.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from anomalysd_edge.core.files import sha256_file
from anomalysd_edge.core.types import U8
from anomalysd_edge.errors import InputError
from anomalysd_edge.vision.images import list_images, load_rgb

HELD_OUT_OF = 5
"""One photo in this many is held out."""
_SMALLEST_PX = 128
"""The smallest side of a crop, as far as the photo has it."""


@dataclass(frozen=True)
class PhotoFile:
    """One photo of the folder."""

    path: Path
    sha256: str
    pixels: int
    """Height times width."""

    @property
    def held_out(self) -> bool:
        """Whether it is kept for evaluation: a function of the file's content, so no new photo changes it."""
        return int(self.sha256[:8], 16) % HELD_OUT_OF == 0

    @property
    def noun(self) -> str:
        """For a prompt: the words of four letters and more in its name, "tex_RoofingTiles003" -> "roofing tiles"."""
        split = re.sub(r"(?<=[a-z])(?=[A-Z])", " ", self.path.stem)
        words = re.findall(r"[A-Za-z]{4,}", split)
        return " ".join(words).lower() or "surface"


def split_photos(folder: Path) -> tuple[list[PhotoFile], list[PhotoFile]]:
    """The photos to train on and those held out. Raises InputError where there are none of a kind."""
    files = [PhotoFile(path, sha256_file(path), _pixels(path)) for path in list_images(folder)]
    taught = [file for file in files if not file.held_out]
    held_out = [file for file in files if file.held_out]
    if not taught or not held_out:
        raise InputError(f"{folder} has {len(files)} photos; expected enough to teach with and to leave a fifth out")
    return taught, held_out


def crop(photo: U8, side: int, rng: np.random.Generator) -> U8:
    """(H,W,3) -> (side,side,3): a random square from `_SMALLEST_PX` to the whole height, turned, mirrored and relit."""
    height, width = photo.shape[:2]
    largest = min(height, width)
    seen = round(float(np.exp(rng.uniform(np.log(min(_SMALLEST_PX, largest)), np.log(largest)))))
    if rng.random() < 0.15:
        seen = largest
    top, left = (int(rng.integers(0, room + 1)) for room in (height - seen, width - seen))
    window = Image.fromarray(photo[top : top + seen, left : left + seen])
    small = window if seen == side else window.resize((side, side), Image.Resampling.LANCZOS)
    array = np.rot90(np.asarray(small), int(rng.integers(4)))
    if rng.random() < 0.5:
        array = array[:, ::-1]
    return relit(array, rng)


def relit(image: U8, rng: np.random.Generator) -> U8:
    """(H,W,3) in another light: brightness, contrast and colourfulness change; now and then no colour is left."""
    pixels = np.asarray(image, np.float32)
    middle = pixels.mean()
    grey = pixels.mean(axis=2, keepdims=True)
    vivid = 0.0 if rng.random() < 0.12 else rng.uniform(0.5, 1.5)
    pixels = grey + np.float32(vivid) * (pixels - grey)
    pixels = (pixels - middle) * rng.uniform(0.75, 1.3) + middle * rng.uniform(0.7, 1.35)
    return np.asarray(np.clip(np.rint(pixels), 0, 255), dtype=np.uint8)


def chosen(photos: Sequence[PhotoFile], number: int, seed: tuple[int, ...]) -> PhotoFile:
    """The photo of crop `number` of the endless list `seed`: drawn by the photos' numbers of pixels."""
    shares = np.cumsum([photo.pixels for photo in photos], dtype=np.float64)
    drawn = np.random.default_rng((*seed, number)).random() * shares[-1]
    return photos[int(np.searchsorted(shares, drawn, side="right"))]


def cropped(photos: Sequence[PhotoFile], numbers: Sequence[int], side: int, seed: tuple[int, ...]) -> dict[int, U8]:
    """Crops `numbers` of the endless list `seed`, (side,side,3) each; every photo is read once."""
    wanted: dict[PhotoFile, list[int]] = {}
    for number in numbers:
        wanted.setdefault(chosen(photos, number, seed), []).append(number)
    found: dict[int, U8] = {}
    for photo, mine in wanted.items():
        whole = load_rgb(photo.path)
        for number in mine:
            found[number] = crop(whole, side, np.random.default_rng((*seed, number, 1)))
    return found


def _pixels(path: Path) -> int:
    with Image.open(path) as image:
        return image.width * image.height
