"""Masks and regions against hand-worked small cases and a slow flood fill."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest

from anomalysd_edge.core.types import Mask
from anomalysd_edge.errors import NumericError, ShapeError
from anomalysd_edge.method.inpainting.masks import (
    foreground,
    grid_cells,
    prototype_guided,
    random_rectangles,
    to_pixels,
)
from anomalysd_edge.vision.morphology import dilate, erode, fill_holes, label_regions


def plane(*rows: str) -> Mask:
    return np.array([[mark == "#" for mark in row] for row in rows])


def test_grid_of_a_hand_worked_4x4_case() -> None:
    cells = grid_cells(2, 4)
    expected = [
        plane("##..", "##..", "....", "...."),
        plane("..##", "..##", "....", "...."),
        plane("....", "....", "##..", "##.."),
        plane("....", "....", "..##", "..##"),
    ]
    np.testing.assert_array_equal(cells, expected)
    assert grid_cells(1, 4).all()


@pytest.mark.parametrize(("k", "side"), [(8, 64), (3, 16), (5, 32), (7, 7)])
def test_grid_cells_cover_each_latent_cell_once(k: int, side: int) -> None:
    cells = grid_cells(k, side)
    np.testing.assert_array_equal(cells.sum(axis=0), 1)
    heights, widths = cells.any(axis=2).sum(axis=1), cells.any(axis=1).sum(axis=1)
    for spans in (heights, widths):
        assert spans.max() - spans.min() <= 1
        assert spans.min() >= 1


def test_more_cells_than_latents_are_refused() -> None:
    for k in (0, 5):
        with pytest.raises(ShapeError, match="does not fit"):
            grid_cells(k, 4)


def test_prototype_guided_marks_every_overlapped_cell_and_grows() -> None:
    distance = np.zeros((4, 4), np.float32)
    distance[1, 2] = 0.5
    spot = plane("....", "..#.", "....", "....")
    np.testing.assert_array_equal(prototype_guided(distance, 0.4, 4, dilate=0), spot)
    np.testing.assert_array_equal(prototype_guided(distance, 0.4, 4), plane(".###", ".###", ".###", "...."))
    np.testing.assert_array_equal(prototype_guided(distance, 0.4, 8, dilate=0), to_pixels(spot, 2))
    np.testing.assert_array_equal(prototype_guided(distance, 0.4, 2, dilate=0), plane(".#", ".."))
    # 4 patches on 3 cells: patch 1 spans cells 0 and 1, patch 2 spans cells 1 and 2.
    np.testing.assert_array_equal(prototype_guided(distance, 0.4, 3, dilate=0), plane(".##", ".##", "..."))
    assert not prototype_guided(distance, 0.5, 4).any()
    distance[0, 0] = np.nan
    with pytest.raises(NumericError):
        prototype_guided(distance, 0.4, 4)


def test_random_rectangles_stay_in_the_foreground_and_are_never_empty() -> None:
    rng = np.random.default_rng(0)
    thin = np.zeros((16, 16), bool)
    thin[3, 5:9] = True
    shares = []
    for _ in range(300):
        mask = random_rectangles(rng, 16, 3, thin)
        assert mask.any()
        assert not (mask & ~thin).any()
        shares.append(random_rectangles(rng, 16, 1, np.ones((16, 16), bool)).mean())
    assert min(shares) < 0.03
    assert max(shares) > 0.7
    assert not random_rectangles(rng, 16, 3, np.zeros((16, 16), bool)).any()
    first, again = (random_rectangles(np.random.default_rng(5), 16, 4, np.ones((16, 16), bool)) for _ in range(2))
    np.testing.assert_array_equal(first, again)
    with pytest.raises(ShapeError, match="foreground"):
        random_rectangles(rng, 8, 1, thin)


def scene(noise: float, size: tuple[int, int] = (180, 240)) -> tuple[npt.NDArray[np.uint8], Mask]:
    """A ring-free disc of two dull and bright halves on a background whose light falls off from left to right."""
    rng = np.random.default_rng(0)
    y, x = np.mgrid[0 : size[0], 0 : size[1]]
    disc = np.hypot(x - size[1] * 0.5, y - size[0] * 0.5) < size[0] * 0.3
    canvas = np.repeat((150 - 50 * x / size[1])[..., None], 3, axis=2)
    canvas[disc & (x < size[1] // 2)] = (190, 180, 150)
    canvas[disc & (x >= size[1] // 2)] = (250, 20, 30)
    # A hole with the colour of the background belongs to the object.
    canvas[np.hypot(x - size[1] * 0.5, y - size[0] * 0.5) < size[0] * 0.06] = 125
    return np.clip(canvas + rng.normal(0, noise, canvas.shape), 0, 255).astype(np.uint8), disc


@pytest.mark.parametrize("size", [(180, 240), (450, 600)])
@pytest.mark.parametrize("noise", [0, 4])
def test_foreground_finds_the_object_whole(noise: float, size: tuple[int, int]) -> None:
    image, disc = scene(noise, size)
    found = foreground(image, "object")
    assert found.shape == disc.shape
    assert (found & disc).sum() / (found | disc).sum() > 0.93


def test_foreground_is_everything_where_there_is_no_object() -> None:
    rng = np.random.default_rng(0)
    image, _ = scene(2)
    assert foreground(image, "texture").all()
    assert foreground(np.full((40, 40, 3), 90, np.uint8), "object").all()
    assert foreground(rng.integers(0, 256, (90, 90, 3), dtype=np.uint8), "object").all()
    speck = np.full((100, 100, 3), 90, np.uint8)
    speck[50:55, 50:55] = 255
    assert foreground(speck, "object").all()
    assert foreground(np.zeros((1, 3, 3), np.uint8), "object").shape == (1, 3)


def flood(mask: Mask, diagonal: bool) -> npt.NDArray[np.int32]:
    """Slow labelling, one pixel at a time, in reading order."""
    labels = np.zeros(mask.shape, np.int32)
    steps = [(dy, dx) for dy in (-1, 0, 1) for dx in (-1, 0, 1) if (dy or dx) and (diagonal or not (dy and dx))]
    number = 0
    for start in map(tuple, np.argwhere(mask)):
        if labels[start]:
            continue
        number += 1
        stack = [start]
        while stack:
            y, x = stack.pop()
            if not (0 <= y < mask.shape[0] and 0 <= x < mask.shape[1]) or not mask[y, x] or labels[y, x]:
                continue
            labels[y, x] = number
            stack += [(y + dy, x + dx) for dy, dx in steps]
    return labels


@pytest.mark.parametrize("diagonal", [True, False])
@pytest.mark.parametrize("density", [0.0, 0.2, 0.4, 0.6, 0.8, 1.0])
def test_labels_equal_a_flood_fill(density: float, diagonal: bool) -> None:
    rng = np.random.default_rng(int(density * 10))
    for shape in ((17, 23), (1, 9), (9, 1)):
        mask = rng.random(shape) < density
        labels, number = label_regions(mask, diagonal)
        expected = flood(mask, diagonal)
        np.testing.assert_array_equal(labels, expected)
        assert number == expected.max()


def test_a_corner_joins_only_with_diagonals() -> None:
    corner = plane("#..#", ".#..", "#..#")
    assert label_regions(corner)[1] == 3
    assert label_regions(corner, diagonal=False)[1] == 5


def test_growing_shrinking_and_filling() -> None:
    ring = plane(".....", ".###.", ".#.#.", ".###.", ".....")
    solid = plane(".....", ".###.", ".###.", ".###.", ".....")
    np.testing.assert_array_equal(fill_holes(ring), solid)
    np.testing.assert_array_equal(erode(solid, 1), plane(".....", ".....", "..#..", ".....", "....."))
    np.testing.assert_array_equal(dilate(erode(solid, 1), 1), solid)
    # A gap at a corner is a hole still: the background is joined by edges only.
    gap = plane("##.", "#.#", ".##")
    np.testing.assert_array_equal(fill_holes(gap), plane("##.", "###", ".##"))
    np.testing.assert_array_equal(dilate(ring, 0), ring)
