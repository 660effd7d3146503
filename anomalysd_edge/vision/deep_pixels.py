"""More than 8 bits a channel: which value a camera meant as white.

Cameras write 10, 12 and 14 bits into 16-bit files, aligned to the upper end (the lowest bits are always 0, white is
near 65535) or to the lower end (white is 1023, 4095 or 16383). Files rarely say which. What they say is taken; else
the highest bit in use tells: whoever uses one of the two uppermost bits uses the full range, whichever the alignment.
Below that the smallest of the usual ranges that holds the values is taken, and noted. A dark photo of a deeper camera
looks like a bright one of a shallower: photos that lie in a folder are therefore read with the range that the deepest
of them needs, and BITS_VARIABLE states the depth where no bright photo tells.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from anomalysd_edge.core.types import U8
from anomalysd_edge.errors import ImageError

BITS_VARIABLE = "SD_EDGE_PHOTO_BITS"
"""Environment variable: bits a channel of 16-bit files, aligned to the lower end; 16 = the full range."""
DEPTHS = (10, 12, 14, 16)
"""Bits a channel that cameras deliver."""
QUARTER = 1 << 14
"""From this value on a 16-bit file uses its full range."""

_BITS_PER_SAMPLE, _PHOTOMETRIC, _MAX_SAMPLE_VALUE = 258, 262, 281
_WHITE_IS_ZERO = 0


def to_8_bit(values: npt.NDArray[np.uint16], bits: int) -> U8:
    """uint16 of any shape -> uint8: 0..2**bits - 1 onto 0..255, rounded; larger values are white."""
    white = (1 << bits) - 1
    scaled = (np.arange(1 << 16, dtype=np.uint32).clip(0, white) * 255 + white // 2) // white
    return scaled.astype(np.uint8)[values]


def bits_of(values: npt.NDArray[np.uint16], neighbours: Callable[[], int] | None, notes: list[str]) -> int:
    """Bits a channel of a file that states none, one of DEPTHS; what is assumed joins `notes`."""
    bits = _set_bits()
    if bits is None:
        bits = used_bits(values)
        if bits < 16 and neighbours is not None:
            bits = max(bits, neighbours())
    if bits < 16:
        notes.append(
            f"16-bit files that use {bits} bits are read with {(1 << bits) - 1} as white; "
            f"if that is wrong for this camera, set {BITS_VARIABLE} to its bits ({', '.join(map(str, DEPTHS))})"
        )
    return bits


def used_bits(values: npt.NDArray[np.uint16]) -> int:
    """One of DEPTHS, by the bits that `values` use.

    Aligned to the upper end: a common number of zero bits at the lower end, and more than 8 bits above them, so that
    8-bit data shifted into a range of 10, 12 or 14 bits is not taken for it.
    """
    if values.size == 0:
        return 16
    used, highest = int(np.bitwise_or.reduce(values, axis=None)), int(values.max())
    zeros = (used & -used).bit_length() - 1 if used else 0
    if highest >= QUARTER or (zeros in (2, 4, 6) and highest >= 256 << zeros):
        return 16
    return next(depth for depth in DEPTHS if highest < 1 << depth)


def stated_bits(image: Image.Image) -> int | None:
    """What the file itself says: TIFF's bits a sample or its largest value; a PPM's pixels are scaled by its own."""
    if image.format == "PPM":
        return 16
    tags = getattr(image, "tag_v2", {})
    bits = tags.get(_BITS_PER_SAMPLE, (16,))[0]
    if 8 < bits < 16:
        return int(bits)
    largest = tags.get(_MAX_SAMPLE_VALUE)
    largest = largest[0] if isinstance(largest, tuple) else largest
    return next((depth for depth in DEPTHS if largest == (1 << depth) - 1), None)


def upright(gray: npt.NDArray[Any], image: Image.Image) -> npt.NDArray[np.uint16]:
    """uint16 with dark as 0: 16-bit TIFF may say that white is 0, which Pillow heeds for 8 bits only."""
    values = gray if gray.dtype == np.uint16 else gray.clip(0, 65535).astype(np.uint16)
    if getattr(image, "tag_v2", {}).get(_PHOTOMETRIC) != _WHITE_IS_ZERO:
        return values
    white = np.uint16((1 << (stated_bits(image) or 16)) - 1)
    return np.asarray(white - np.minimum(values, white))


def _set_bits() -> int | None:
    word = os.environ.get(BITS_VARIABLE, "")
    if word and word not in map(str, DEPTHS):
        raise ImageError(f"{BITS_VARIABLE} is {word!r}; expected one of {', '.join(map(str, DEPTHS))}, or nothing")
    return int(word) if word else None


def are_16_bit(source: Path | memoryview, image: Image.Image) -> bool:
    """Whether the colours of a PNG or TIFF, which Pillow gives as 8 bits, have 16 in the file."""
    if image.format == "TIFF":
        return bool(max(getattr(image, "tag_v2", {}).get(_BITS_PER_SAMPLE, (8,))) == 16)
    if isinstance(source, Path):
        with source.open("rb") as file:
            return file.read(25)[24:] == b"\x10"
    return bytes(source[24:25]) == b"\x10"


def swap_bytes(image: Image.Image) -> bool:
    """Let an image that is opened, not loaded, take the other byte of each sample. False where Pillow cannot."""
    if image.format == "TIFF" and getattr(image, "tag_v2", {}).get(284, 1) == 2:
        return False
    native = "L" if sys.byteorder == "little" else "B"
    tiles = []
    for tile in getattr(image, "tile", ()):
        args = tile[3]
        raw = args if isinstance(args, str) else args[0]
        mode, _, order = raw.rpartition(";16")
        if mode not in ("RGB", "RGBA") or order not in ("B", "L", "N"):
            return False
        other = f"{mode};16{'L' if (native if order == 'N' else order) == 'B' else 'B'}"
        tiles.append((*tile[:3], other if isinstance(args, str) else (other, *args[1:])))
    image.tile = [type(tile)(*new) for tile, new in zip(image.tile, tiles, strict=True)]  # type: ignore[attr-defined]
    return True
