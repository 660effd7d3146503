"""Synthetic anomalies: where they may be, that they show, that they suit the photo."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest

from anomalysd_edge.calibration.synthetic_anomalies import KINDS, synthetic_anomaly
from anomalysd_edge.core.types import U8


def surface(seed: int, colour: tuple[int, int, int], shape: tuple[int, int] = (96, 128)) -> U8:
    rng = np.random.default_rng(seed)
    pixels: U8 = np.clip(rng.normal(0, 20, (*shape, 1)) + np.array(colour), 0, 255).astype(np.uint8)
    return pixels


def made(count: int, photo: U8, inside: npt.NDArray[np.bool_]) -> list[tuple[U8, npt.NDArray[np.bool_], str]]:
    rng, other = np.random.default_rng(0), surface(9, (60, 90, 150), photo.shape[:2])
    found = [synthetic_anomaly(photo, inside, other, rng) for _ in range(count)]
    return [(s.photo, s.mask, s.kind) for s in found if s is not None]


def test_every_kind_turns_up_and_shows_within_its_mask_and_the_foreground() -> None:
    photo = surface(1, (150, 110, 80))
    inside = np.zeros((96, 128), np.bool_)
    inside[20:80, 30:110] = True
    results = made(60, photo, inside)
    assert len(results) == 60
    assert {kind for _, _, kind in results} == set(KINDS)
    for changed, mask, _ in results:
        assert changed.shape == photo.shape
        assert changed.dtype == np.uint8
        assert not (mask & ~inside).any()
        apart = np.abs(changed.astype(int) - photo).max(axis=2)
        assert (apart[mask] > 12).mean() >= 0.4
        near = np.zeros_like(mask)
        rows, columns = np.nonzero(mask)
        near[max(0, rows.min() - 6) : rows.max() + 7, max(0, columns.min() - 6) : columns.max() + 7] = True
        assert not apart[~near].any(), "nothing changes away from the mask"


def test_a_grey_photo_gets_grey_anomalies_unless_they_are_cut_from_a_coloured_one() -> None:
    grey = surface(2, (120, 120, 120))
    for changed, _, kind in made(40, grey, np.ones((96, 128), np.bool_)):
        if kind != "patch":
            assert int((changed.max(axis=2).astype(int) - changed.min(axis=2)).max()) <= 2


@pytest.mark.parametrize("shape", [(64, 200), (200, 64)])
def test_photos_of_any_shape_take_them(shape: tuple[int, int]) -> None:
    assert len(made(20, surface(3, (90, 140, 90), shape), np.ones(shape, np.bool_))) == 20


def test_the_same_generator_gives_the_same_bytes() -> None:
    photo, inside = surface(4, (100, 100, 140)), np.ones((96, 128), np.bool_)
    first, second = made(5, photo, inside), made(5, photo, inside)
    for a, b in zip(first, second, strict=True):
        np.testing.assert_array_equal(a[0], b[0])
        np.testing.assert_array_equal(a[1], b[1])


def test_no_foreground_gives_none_rather_than_an_endless_search() -> None:
    photo = surface(5, (100, 100, 140))
    assert synthetic_anomaly(photo, np.zeros((96, 128), np.bool_), photo, np.random.default_rng(0)) is None
    one = np.zeros((96, 128), np.bool_)
    one[4, 4] = True
    assert synthetic_anomaly(photo, one, photo, np.random.default_rng(0)) is None
