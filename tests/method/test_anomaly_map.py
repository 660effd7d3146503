"""Score maps by hand, and against scipy where it has the same operation."""

from __future__ import annotations

import numpy as np
import pytest

from anomalysd_edge.errors import NumericError, SettingsError
from anomalysd_edge.method import anomaly_map
from anomalysd_edge.method.anomaly_map import MapScale


def test_harmonic_mean_by_hand() -> None:
    maps = [np.array([[1.0, 4.0]], np.float32), np.array([[3.0, 4.0]], np.float32)]
    np.testing.assert_allclose(anomaly_map.harmonic_mean(maps), [[1.5, 4.0]], rtol=1e-6)


def test_harmonic_mean_of_a_zero_stays_finite_and_near_zero() -> None:
    result = anomaly_map.harmonic_mean([np.zeros((1, 1), np.float32), np.ones((1, 1), np.float32)])
    assert 0 <= float(result[0, 0]) < 1e-6


def test_covered_takes_each_pixel_from_the_slot_that_repainted_it() -> None:
    masks = np.array([[[True, False]], [[False, True]]])
    distances = np.array([[[1.0, 9.0]], [[9.0, 2.0]]], np.float32)
    np.testing.assert_array_equal(anomaly_map.covered(distances, masks), [[1.0, 2.0]])


@pytest.mark.parametrize("sigma", [0.4, 2.0, 7.0])  # narrow: windows; wide: products; wider than the map
def test_smoothing_equals_scipy(sigma: float) -> None:
    ndimage = pytest.importorskip("scipy.ndimage")
    field = np.random.default_rng(0).random((40, 56)).astype(np.float32)
    expected = ndimage.gaussian_filter(field, sigma, mode="reflect", radius=max(1, round(4 * sigma)))
    np.testing.assert_allclose(anomaly_map.smooth(field, sigma), expected, atol=1e-5)


def test_paper_fusion_by_hand() -> None:
    a, b = np.full((2, 2), 2.0, np.float32), np.full((2, 2), 4.0, np.float32)
    np.testing.assert_allclose(anomaly_map.fuse_paper(a, b, 0.25), 2.5)


def test_scaled_fusion_brings_maps_to_one_scale_and_leaves_out_unknown_ones() -> None:
    maps = {
        "a": np.full((1, 1), 3.0, np.float32),
        "b": np.full((1, 1), 20.0, np.float32),
        "c": np.full((1, 1), 9e9, np.float32),
    }
    scales = {"a": MapScale(1.0, 2.0), "b": MapScale(10.0, 5.0)}
    fused = anomaly_map.fuse_scaled(maps, scales, {"a": 1.0, "b": 3.0, "c": 1.0})
    np.testing.assert_allclose(fused, (1 * 1 + 3 * 2) / 4)
    with pytest.raises(SettingsError):
        anomaly_map.fuse_scaled(maps, {}, {"a": 1.0})


def test_image_score_is_the_mean_of_the_top_share_or_the_maximum() -> None:
    field = np.arange(200, dtype=np.float32).reshape(10, 20)
    assert anomaly_map.image_score(field, 0.01) == pytest.approx(198.5)
    assert anomaly_map.image_score(field, 0.0) == 199.0
    assert anomaly_map.image_score(field, 1.0) == pytest.approx(float(field.mean()))


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_a_score_is_never_made_of_nan_or_inf(bad: float) -> None:
    field = np.zeros((4, 4), np.float32)
    field[1, 2] = bad
    with pytest.raises(NumericError):
        anomaly_map.image_score(field, 0.01)


def test_a_capped_map_cannot_outvote_the_others() -> None:
    scales = {"a": MapScale(0.0, 1.0), "b": MapScale(1.0, 2.0)}
    maps = {"a": np.array([[0.5, 0.5]], np.float32), "b": np.array([[3.0, 41.0]], np.float32)}
    free = anomaly_map.fuse_scaled(maps, scales, {"a": 1.0, "b": 1.0})
    capped = anomaly_map.fuse_scaled(maps, scales, {"a": 1.0, "b": 1.0}, {"b": 2.0})
    np.testing.assert_allclose(free, [[0.75, 10.25]])
    np.testing.assert_allclose(capped, [[0.75, 1.25]])
