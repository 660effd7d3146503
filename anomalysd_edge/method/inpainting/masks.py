"""Masks, True = repaint: multi-scale grids, prototype-guided, random training rectangles; and an object's foreground.

Masks live on the latent grid, (side,side) bool, so that no latent cell is half repainted; :func:`to_pixels` turns
their cells into squares of pixels.
"""

from __future__ import annotations

import functools

import numpy as np
import numpy.typing as npt
from PIL import Image

from anomalysd_edge.core.types import F32, Mask
from anomalysd_edge.errors import NumericError, ShapeError
from anomalysd_edge.vision import morphology
from anomalysd_edge.vision.images import check_photo

_WORK_PX = 256
"""Longer side at which the foreground is sought: its outline need not be finer, and big photos stay cheap."""


def grid_cells(k: int, side: int) -> Mask:
    """(k*k, side, side) bool: the cells of a k x k grid in row-major order; together they cover each cell once.

    Where k does not divide `side`, cells differ by at most one latent cell a side. Raises ShapeError if k > side.
    """
    if not 1 <= k <= side:
        raise ShapeError(f"a grid of {k}x{k} cells does not fit on {side}x{side} latent cells; expected 1 to {side}")
    strip = np.arange(side) * k // side == np.arange(k)[:, None]
    cells = strip[:, None, :, None] & strip[None, :, None, :]
    return np.asarray(cells.reshape(k * k, side, side))


def prototype_guided(distance: F32, threshold: float, side: int, dilate: int = 1) -> Mask:
    """(h,w) float32 distances to the prototypes -> (side,side) bool: where any patch is farther than `threshold`.

    A latent cell is marked if any feature patch that overlaps it is far; then the mask grows by `dilate` cells in all
    eight directions, since a defect's features bleed over its edge. Raises NumericError on NaN or infinity.
    """
    if distance.ndim != 2:
        raise ShapeError(f"prototype distances have the shape {distance.shape}; expected (h, w)")
    if not np.isfinite(distance).all():
        raise NumericError("prototype distances hold NaN or infinity; the feature network's output is broken")
    far = (distance > threshold).astype(np.float32)
    rows, columns = (_overlaps(side, patches) for patches in distance.shape)
    return morphology.dilate(rows @ far @ columns.T > 0, dilate)


def random_rectangles(
    rng: np.random.Generator, side: int, most: int, foreground: Mask, smallest: float = 0.125, largest: float = 1.0
) -> Mask:
    """(side,side) bool training mask: 1 to `most` random rectangles, cut to `foreground` (side,side).

    Each rectangle covers at least one foreground cell, so the mask is empty only where the foreground is. Its sides are
    drawn log-uniformly from `smallest` to `largest` of the image's: inspection masks range from a cell to the whole.
    """
    if foreground.shape != (side, side):
        raise ShapeError(f"the foreground has the shape {foreground.shape}; expected {(side, side)}")
    mask = np.zeros((side, side), bool)
    inside = np.argwhere(foreground)
    if len(inside) == 0:
        return mask
    for _ in range(int(rng.integers(1, most + 1))):
        row, column = (int(v) for v in inside[rng.integers(len(inside))])
        spans = np.exp(rng.uniform(np.log(smallest), np.log(largest), 2)) * side
        height, width = (int(v) for v in np.clip(np.rint(spans), 1, side))
        # The chosen cell lies anywhere within the rectangle; the rectangle stays within the image.
        top = min(max(row - int(rng.integers(height)), 0), side - height)
        left = min(max(column - int(rng.integers(width)), 0), side - width)
        mask[top : top + height, left : left + width] = True
    return mask & foreground


def to_pixels(mask: Mask, factor: int) -> Mask:
    """(h,w) bool -> (h*factor, w*factor) bool: every latent cell becomes a square of pixels."""
    return np.repeat(np.repeat(mask, factor, axis=0), factor, axis=1)


def foreground(image: npt.NDArray[np.uint8], kind: str) -> Mask:
    """(H,W,3) uint8 -> (H,W) bool: the object before its background; for the kind "texture" all True.

    The background's colour is modelled from the image's border as a plane per channel, which follows uneven light;
    Otsu's threshold (IEEE Trans. SMC 9, 1979) on the distance from it separates the object; specks and thin lines are
    opened away and holes filled. Where that marks under 5% or over 95%, or the border more than half as densely as the
    whole, it has not found an object before a background: all True.
    """
    check_photo(image)
    height, width = image.shape[:2]
    everything = np.ones((height, width), bool)
    if kind == "texture":
        return everything
    scale = min(1.0, _WORK_PX / max(height, width))
    small = (max(8, round(width * scale)), max(8, round(height * scale)))
    pixels = np.asarray(Image.fromarray(image).resize(small, Image.Resampling.BOX), dtype=np.float32)
    distance = _distance_from_border(pixels)
    found = distance > otsu_threshold(distance)
    radius = max(1, max(small) // 100)
    closed = morphology.fill_holes(morphology.erode(morphology.dilate(found, radius), radius))
    found = morphology.dilate(morphology.erode(closed, radius), radius)
    share, share_of_border = float(found.mean()), float(found[_ring(found.shape)].mean())
    if not 0.05 <= share <= 0.95 or share_of_border > 0.5 * share:
        return everything
    back = Image.fromarray(found.astype(np.uint8)).resize((width, height), Image.Resampling.NEAREST)
    return np.asarray(back, dtype=np.uint8) > 0


def _overlaps(cells: int, patches: int) -> F32:
    """(cells, patches) float32: 1 where latent cell i and feature patch j of the same image side share any ground."""
    i, j = np.arange(cells)[:, None], np.arange(patches)[None, :]
    shared: F32 = ((i * patches < (j + 1) * cells) & (j * cells < (i + 1) * patches)).astype(np.float32)
    return shared


def _distance_from_border(pixels: F32) -> F32:
    """(h,w,3) -> (h,w): log(1 + colour distance from the plane that fits the border's colours, in deviations of it).

    The logarithm keeps an object of bright and dull halves in one class: else Otsu would part bright from dull.
    """
    height, width = pixels.shape[:2]
    terms = _plane_terms(height, width)
    colours = pixels.reshape(-1, 3)
    ring = np.flatnonzero(_ring((height, width)))
    # An object that reaches the border is trimmed off: first the pixels far from the border's median colour.
    use = ring[_near_half(np.linalg.norm(colours[ring] - np.median(colours[ring], axis=0), axis=1))]
    for _ in range(3):
        plane = np.linalg.lstsq(terms[use], colours[use], rcond=None)[0]
        use = ring[_near_half(np.linalg.norm(colours[ring] - terms[ring] @ plane, axis=1))]
    residual = colours - terms @ plane
    # +2 of 255: a background painted by a computer has no deviation of its own.
    spread = residual[use].std(axis=0) + 2
    smooth = morphology.box_sum((residual / spread).reshape(pixels.shape), 1) / 9
    return np.asarray(np.log1p(np.sqrt(np.einsum("hwc,hwc->hw", smooth, smooth))), dtype=np.float32)


@functools.lru_cache(maxsize=8)
def _plane_terms(height: int, width: int) -> F32:
    """(h*w,3) of 1, x and y, about the middle and in sides: what a plane over an image is a sum of."""
    y, x = np.mgrid[0:height, 0:width].astype(np.float32)
    return np.stack([np.ones_like(x), x / width - 0.5, y / height - 0.5], axis=2).reshape(-1, 3)


def _ring(shape_hw: tuple[int, ...]) -> Mask:
    """(h,w) bool: the border that is taken for background, 1/32 of the shorter side thick."""
    ring = np.ones(shape_hw, bool)
    thick = max(1, min(shape_hw) // 32)
    ring[thick:-thick, thick:-thick] = False
    return ring


def _near_half(distance: F32) -> Mask:
    """True up to twice the median distance: most of a clean border, little of an object that crosses it."""
    return np.asarray(distance <= 2 * np.median(distance) + 1e-3)


def otsu_threshold(values: F32) -> float:
    """The threshold that parts `values` into two classes of the largest variance between them (256 bins)."""
    # Without the clip a few glints stretch the histogram until the object shares a bin with the background.
    clipped = np.minimum(values, np.percentile(values, 98))
    counts, edges = np.histogram(clipped, bins=256)
    centres = (edges[:-1] + edges[1:]) / 2
    below, total = np.cumsum(counts), counts.sum()
    mass = np.cumsum(counts * centres)
    with np.errstate(divide="ignore", invalid="ignore"):
        between = (mass[-1] * below / total - mass) ** 2 / (below * (total - below))
    return float(edges[1 + int(np.argmax(np.nan_to_num(between[:-1])))])
