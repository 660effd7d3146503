"""Photos of another shape than their class's: mirrored out to the class's aspect instead of squeezed into it.

The networks see squares. A camera's photos all have one shape, and squeezing that into a square costs nothing: good and
bad are squeezed alike. Crops of parts do not: squeezed, their grain would have another width in every photo, and each
would be far from every prototype. Such a photo keeps its class's scale along both sides, and mirrored content fills the
square; maps are cut back to the photo, so nothing that leaves the detector shows the filling.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median

import numpy as np
from PIL import Image

from anomalysd_edge.core.types import F32, U8, Mask
from anomalysd_edge.vision import images

TOLERANCE = 0.1
"""Aspects that differ by less than this share count as one."""
SMALLEST_SHARE = 0.25
"""A photo never fills less than this share of a side: a strip of 20:1 is squeezed after all."""


def common_aspect(shapes_hw: Sequence[tuple[int, int]]) -> float | None:
    """Width / height that a class's photos share; 1 where they differ; None for no photos."""
    if not shapes_hw:
        return None
    aspects = [width / height for height, width in shapes_hw]
    return median(aspects) if max(aspects) <= min(aspects) * (1 + TOLERANCE) else 1.0


@dataclass(frozen=True)
class Frame:
    """Where a photo lies in its square: in the middle, over these shares of its sides."""

    share_y: float = 1.0
    share_x: float = 1.0

    @classmethod
    def of(cls, shape_hw: tuple[int, int], aspect: float | None) -> Frame:
        """For a photo of (height, width) in a class of this aspect (None: every photo fills its square)."""
        if aspect is None:
            return cls()
        ratio = shape_hw[1] / shape_hw[0] / aspect
        if 1 / (1 + TOLERANCE) <= ratio <= 1 + TOLERANCE:
            return cls()
        return cls(max(SMALLEST_SHARE, min(1.0, 1 / ratio)), max(SMALLEST_SHARE, min(1.0, ratio)))

    @property
    def fills(self) -> bool:
        """Whether the photo covers the whole square."""
        return self.share_y == 1 and self.share_x == 1

    def resize(self, photo: U8, size_px: int) -> U8:
        """(H,W,3) -> (size_px,size_px,3): images.resize, or the photo in the middle with mirrored content around it."""
        return self.squares(photo, (size_px,))[0]

    def squares(self, photo: U8, sizes_px: Sequence[int]) -> list[U8]:
        """The same for several sizes at once: a large photo's pixels are read together."""
        spans = [(self._span(self.share_y, size), self._span(self.share_x, size)) for size in sizes_px]
        shapes = [(rows.stop - rows.start, columns.stop - columns.start) for rows, columns in spans]
        found = images.resize_to(photo, shapes)
        if self.fills:
            return found
        return [
            np.pad(
                small,
                ((rows.start, size - rows.stop), (columns.start, size - columns.stop), (0, 0)),
                mode="symmetric",
            )
            for small, size, (rows, columns) in zip(found, sizes_px, spans, strict=True)
        ]

    def cut(self, plane: F32) -> F32:
        """(S,S) of the square -> (S,S) of the photo alone, bilinear."""
        if self.fills:
            return plane
        side = len(plane)
        return images.resize_map(plane[self._span(self.share_y, side), self._span(self.share_x, side)], (side, side))

    def cut_mask(self, mask: Mask) -> Mask:
        """The same for (S,S) bool, nearest neighbour."""
        if self.fills:
            return mask
        side = len(mask)
        part = mask[self._span(self.share_y, side), self._span(self.share_x, side)].astype(np.uint8)
        return np.asarray(Image.fromarray(part).resize((side, side), Image.Resampling.NEAREST)) > 0

    def under(self, row: int, column: int, side: int) -> tuple[int, int]:
        """(row, column) of a photo of (side,side) -> of the square of (side,side) that `cut` takes it from."""
        spans = self._span(self.share_y, side), self._span(self.share_x, side)
        y, x = (
            span.start + int((at + 0.5) * (span.stop - span.start) / side)
            for at, span in zip((row, column), spans, strict=True)
        )
        return y, x

    @staticmethod
    def _span(share: float, size_px: int) -> slice:
        length = max(1, round(share * size_px))
        start = (size_px - length) // 2
        return slice(start, start + length)
