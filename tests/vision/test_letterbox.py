"""Frames: the photo's place in its square, and the way back."""

from __future__ import annotations

import numpy as np
import pytest

from anomalysd_edge.vision import images
from anomalysd_edge.vision.letterbox import SMALLEST_SHARE, Frame, common_aspect


def gradient(height: int, width: int) -> np.ndarray[tuple[int, ...], np.dtype[np.uint8]]:
    y, x = np.mgrid[0:height, 0:width]
    return np.stack([y * 255 // height, x * 255 // width, np.full_like(x, 90)], axis=2).astype(np.uint8)


def test_photos_of_one_shape_give_their_aspect_and_mixed_ones_a_square() -> None:
    assert common_aspect([(100, 200), (101, 200)]) == pytest.approx(1.99, abs=0.01)
    assert common_aspect([(100, 200), (200, 100)]) == 1.0
    assert common_aspect([(100, 150), (100, 200)]) == 1.0
    assert common_aspect([]) is None


@pytest.mark.parametrize("aspect", [None, 2.0, 1.9, 2.1])
def test_a_photo_of_its_classs_shape_is_resized_as_ever(aspect: float | None) -> None:
    photo = gradient(60, 120)
    frame = Frame.of((60, 120), aspect)
    assert frame.fills
    np.testing.assert_array_equal(frame.resize(photo, 32), images.resize(photo, 32))
    plane = np.random.default_rng(0).random((32, 32), dtype=np.float32)
    np.testing.assert_array_equal(frame.cut(plane), plane)


@pytest.mark.parametrize(("shape", "share_y", "share_x"), [((100, 50), 1.0, 0.5), ((50, 100), 0.5, 1.0)])
def test_another_shape_keeps_the_scale_along_both_sides(shape: tuple[int, int], share_y: float, share_x: float) -> None:
    frame = Frame.of(shape, 1.0)
    assert (frame.share_y, frame.share_x) == (share_y, share_x)
    square = frame.resize(gradient(*shape), 64)
    assert square.shape == (64, 64, 3)
    # Half of the side shows the photo, and one step there covers as many of its pixels as along the other side.
    middle = square[:, 16:48, 1] if share_x < 1 else square[16:48, :, 0].T
    assert middle[:, 0].max() < 12
    assert middle[:, -1].min() > 240


def test_the_filling_is_the_photo_mirrored() -> None:
    square = Frame.of((100, 50), 1.0).resize(gradient(100, 50), 64)
    np.testing.assert_array_equal(square[:, :16], square[:, 16:32][:, ::-1])
    np.testing.assert_array_equal(square[:, 48:], square[:, 32:48][:, ::-1])


def test_a_map_is_cut_back_to_the_photo_where_the_photo_lay() -> None:
    frame = Frame.of((50, 100), 1.0)
    plane = np.zeros((64, 64), np.float32)
    plane[16:32] = 1  # the photo's upper half
    plane[:16] = plane[48:] = 9  # filling
    cut = frame.cut(plane)
    assert cut.shape == (64, 64)
    assert float(cut[:30].min()) == 1
    assert float(cut.max()) == 1
    assert float(cut[34:].max()) == 0
    mask = frame.cut_mask(plane == 1)
    assert mask[:32].all()
    assert not mask[32:].any()


def test_a_strip_is_squeezed_rather_than_drowned_in_its_own_mirror_image() -> None:
    frame = Frame.of((1000, 10), 1.0)
    assert frame.share_x == SMALLEST_SHARE
    assert frame.resize(gradient(1000, 10), 32).shape == (32, 32, 3)


@pytest.mark.parametrize("shape", [(100, 100), (100, 50), (37, 100), (100, 61)])
def test_a_pixel_of_the_photo_is_found_in_its_square_as_masks_are_cut(shape: tuple[int, int]) -> None:
    frame, side = Frame.of(shape, 1.0), 64
    for y, x in np.random.default_rng(0).integers(0, side, (40, 2)).tolist():
        mask = np.zeros((side, side), np.bool_)
        mask[frame.under(y, x, side)] = True
        assert frame.cut_mask(mask)[y, x]
