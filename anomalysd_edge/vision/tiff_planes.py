"""Uncompressed TIFF whose 16-bit channels lie in planes apart (PlanarConfiguration 2): Pillow reads it as 8 bits.

TIFF 6.0, sections 8 and 15: each plane is cut into strips of whole rows or into tiles of one size, all of the first
plane before all of the second. Tiles at the right and lower edge are padded to the full size.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from anomalysd_edge.errors import ImageError

_BITS, _COMPRESSION, _STRIP_OFFSETS, _ROWS_PER_STRIP, _PLANAR = 258, 259, 273, 278, 284
_TILE_WIDTH, _TILE_LENGTH, _TILE_OFFSETS = 322, 323, 324
_UNCOMPRESSED, _APART = 1, 2


def not_for_pillow(image: Image.Image) -> bool:
    """Whether an opened image is a TIFF of this kind. Compressed ones go through libtiff, which reads them right."""
    tags: Any = getattr(image, "tag_v2", {})
    return (
        image.format == "TIFF"
        and tags.get(_PLANAR, 1) == _APART
        and max(tags.get(_BITS, (8,))) > 8
        and tags.get(_COMPRESSION, _UNCOMPRESSED) == _UNCOMPRESSED
    )


def read(image: Image.Image, data: bytes) -> npt.NDArray[np.uint16]:
    """The (H,W,channels) values of such a file, whose bytes are `data`. Raises ImageError for other than 16 bits."""
    tags: Any = image.tag_v2  # type: ignore[attr-defined]
    bits = set(tags[_BITS])
    if bits != {16}:
        raise ImageError(f"this TIFF has planes of {max(bits)} bits; save it with 8 or 16 bits a channel")
    # Pillow has turned the size with the orientation; the pixels lie as the tags say.
    width, height = int(tags[256]), int(tags[257])
    order = np.dtype("<u2" if data[:2] == b"II" else ">u2")
    if _TILE_OFFSETS in tags:
        offsets, across, down = tags[_TILE_OFFSETS], int(tags[_TILE_WIDTH]), int(tags[_TILE_LENGTH])
    else:
        offsets, across, down = tags[_STRIP_OFFSETS], width, min(height, int(tags.get(_ROWS_PER_STRIP, height)))
    columns, rows = -(-width // across), -(-height // down)
    found = np.zeros((height, width, len(tags[_BITS])), np.uint16)
    for number, offset in enumerate(offsets[: columns * rows * found.shape[2]]):
        plane, place = divmod(number, columns * rows)
        y, x = place // columns * down, place % columns * across
        stored = down if _TILE_OFFSETS in tags else min(down, height - y)
        part = np.frombuffer(data, order, across * stored, offset).reshape(stored, across)
        into = found[y : y + down, x : x + across, plane]
        into[...] = part[: into.shape[0], : into.shape[1]]
    return found
