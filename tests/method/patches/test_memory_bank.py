"""Banks: distances against a direct reading of the definition, and what the coreset must keep."""

from __future__ import annotations

import numpy as np
import pytest

from anomalysd_edge.method.patches import memory_bank
from anomalysd_edge.method.patches.memory_bank import Bank, build_bank, prototype_distance, self_distance


def unit(rng: np.random.Generator, *shape: int, axis: int) -> np.ndarray[tuple[int, ...], np.dtype[np.float32]]:
    raw = rng.standard_normal(shape).astype(np.float32)
    return np.asarray(raw / np.linalg.norm(raw, axis=axis, keepdims=True), dtype=np.float32)


@pytest.mark.parametrize("at_once", [1, 1000, 1 << 21])
def test_distance_is_one_minus_the_best_cosine(monkeypatch: pytest.MonkeyPatch, at_once: int) -> None:
    """However many similarities are made at a time, but no fewer than 64 rows of the bank."""
    monkeypatch.setattr(memory_bank, "_AT_ONCE", at_once)
    rng = np.random.default_rng(0)
    vectors, features = unit(rng, 150, 6, axis=1), unit(rng, 6, 3, 4, axis=0)
    expected = np.empty((3, 4))
    for y in range(3):
        for x in range(4):
            expected[y, x] = min(1 - float(v @ features[:, y, x]) for v in vectors)
    np.testing.assert_allclose(Bank(vectors).distance(features), expected, atol=1e-6)


def test_a_patch_of_the_bank_has_distance_zero() -> None:
    features = unit(np.random.default_rng(1), 2, 8, 5, 5, axis=1)
    bank = build_bank(features, size=1000)
    assert len(bank.vectors) == 50
    assert float(np.abs(bank.distance(features[1])).max()) < 1e-3


def test_the_coreset_keeps_a_rare_patch_that_a_random_choice_would_lose() -> None:
    rng = np.random.default_rng(2)
    common = np.zeros((400, 8), np.float32)
    common[:, 0] = 1
    common += 0.01 * rng.standard_normal(common.shape).astype(np.float32)
    common[123] = 0
    common[123, 5] = 1
    common /= np.linalg.norm(common, axis=1, keepdims=True)
    features = common.reshape(1, 20, 20, 8).transpose(0, 3, 1, 2)
    bank = build_bank(features, size=10)
    assert len(bank.vectors) == 10
    assert float((bank.vectors @ common[123]).max()) > 0.999


def test_building_twice_gives_the_same_bank() -> None:
    features = unit(np.random.default_rng(3), 1, 8, 20, 20, axis=1)
    np.testing.assert_array_equal(build_bank(features, 30).vectors, build_bank(features, 30).vectors)


def test_the_distance_to_its_own_photo_is_a_quantile_of_cosines() -> None:
    features = unit(np.random.default_rng(4), 6, 4, 5, axis=0)
    flat = features.reshape(6, 20)
    apart = np.sort(1 - flat.T @ flat, axis=1)
    np.testing.assert_allclose(self_distance(features, 0.25).ravel(), apart[:, 5], atol=1e-6)
    assert self_distance(features, 0.001).min() > 1e-3, "the patch itself is not its own like"


def test_a_patch_unlike_the_rest_of_its_texture_stands_out_under_a_light_that_the_bank_never_saw() -> None:
    rng = np.random.default_rng(5)
    base, light, defect = np.eye(8, dtype=np.float32)[:3]
    grain = 0.05 * rng.standard_normal((2, 8, 12, 12)).astype(np.float32)
    seen = base[:, None, None] + grain[0]
    new = (base + light)[:, None, None] + grain[1]
    new[:, 6, 6] = base + 0.3 * light + 0.35 * defect  # nearer to the bank than its neighbours are
    seen, new = (f / np.linalg.norm(f, axis=0) for f in (seen, new))
    bank = build_bank(seen[None], 1000)
    alone, both = prototype_distance(bank, new), prototype_distance(bank, new, own_share=0.1)
    assert alone.argmax() != 6 * 12 + 6
    assert both.argmax() == 6 * 12 + 6


def test_large_photos_are_compared_with_every_nth_patch() -> None:
    features = unit(np.random.default_rng(6), 8, 20, 20, axis=0)
    whole, part = self_distance(features, 0.2), self_distance(features, 0.2, most=100)
    assert whole.shape == part.shape == (20, 20)
    assert float(np.abs(whole - part).max()) < 0.25


def test_views_that_matter_less_are_thinned_never_the_others(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(4)

    monkeypatch.setattr(memory_bank, "_CANDIDATES", 70)
    views, more = unit(rng, 2, 6, 5, 5, axis=1), unit(rng, 4, 6, 5, 5, axis=1)
    bank = build_bank(views, size=1000, more=more)
    assert 50 < len(bank.vectors) <= 70
    for photo in views:
        assert bank.distance(photo).max() < 1e-3
    assert len(build_bank(unit(rng, 8, 6, 5, 5, axis=1), size=1000, more=more).vectors) == 200 + 50, (
        "never fewer than a fourth"
    )
    assert len(build_bank(views, size=1000, more=more[:0]).vectors) == 50
