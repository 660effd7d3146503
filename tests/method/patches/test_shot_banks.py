"""A memory bank kept shot by shot, and the map over two sizes."""

from __future__ import annotations

import numpy as np
import pytest

from anomalysd_edge.core.types import F32
from anomalysd_edge.errors import SettingsError
from anomalysd_edge.method.patches.memory_bank import unit
from anomalysd_edge.method.patches.multisize import combined_distance
from anomalysd_edge.method.patches.shot_banks import LEAST_OF_A_SHOT, ShotBanks


def features(seed: int, views: int = 2, side: int = 12) -> F32:
    rng = np.random.default_rng(seed)
    return unit(rng.standard_normal((views, 16, side, side)).astype(np.float32), axis=1)


def test_joined_bank_is_the_least_over_shots() -> None:
    banks, photo = ShotBanks.of([features(n) for n in range(3)], 600), features(9, 1)[0]
    assert np.allclose(banks.joined().distance(photo), banks.distances(photo).min(axis=0), atol=1e-6)


def test_leaving_a_shot_out_is_a_bank_without_it() -> None:
    views = [features(n) for n in range(3)]
    banks, mine = ShotBanks.of(views, 3 * LEAST_OF_A_SHOT), views[1][0]
    without = ShotBanks.of([views[0], views[2]], 2 * LEAST_OF_A_SHOT)
    left_out = banks.joined(without=1).distance(mine)
    assert np.array_equal(left_out, without.joined().distance(mine))
    assert left_out.mean() > 1.5 * banks.joined().distance(mine).mean()


def test_every_shot_has_the_same_share() -> None:
    banks = ShotBanks.of([features(n) for n in range(2)], 400)
    assert [len(bank.vectors) for bank in banks.banks] == [200, 200]
    many = ShotBanks.of([features(n, 1) for n in range(5)], 10)
    assert {len(bank.vectors) for bank in many.banks} == {LEAST_OF_A_SHOT}


def test_no_shots_are_refused() -> None:
    with pytest.raises(SettingsError):
        ShotBanks.of([], 100)
    with pytest.raises(SettingsError, match="single shot"):
        ShotBanks.of([features(0)], 100).joined(without=0)


def test_the_larger_size_weighs_twice() -> None:
    small, large = np.full((4, 4), 1, np.float32), np.full((7, 7), 4, np.float32)
    assert np.allclose(combined_distance(small, large), 3, atol=1e-5)
    halved = combined_distance(small, large, np.full((7, 7), 0.25, np.float32))
    assert np.allclose(halved, 1.5, atol=1e-5), "a correction counts by its root"


def test_a_patch_that_is_far_at_the_larger_size_alone_is_seen() -> None:
    quiet = np.full((14, 14), 0.1, np.float32)
    loud = quiet.copy()
    loud[5, 6] = 1.0
    assert combined_distance(quiet[:8, :8], loud)[5, 6] == pytest.approx(0.7, abs=1e-5)
