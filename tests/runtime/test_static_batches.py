"""Covering any number of samples with a few static sizes: every sample once, as cheaply as can be."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest

from anomalysd_edge.errors import SettingsError
from anomalysd_runtime.static_batches import (
    assumed_costs,
    cover,
    padded,
    profile_for,
    references_of,
    within_references,
)


@pytest.mark.parametrize("count", range(1, 40))
def test_every_sample_once(count: int) -> None:
    runs = cover(count, assumed_costs((1, 4, 16)))
    assert [i for run in runs for i in range(run.start, run.stop)] == list(range(count))
    assert all(1 <= run.stop - run.start <= run.size for run in runs)


@pytest.mark.parametrize("count", range(1, 12))
def test_the_cheapest_of_all_covers(count: int) -> None:
    costs = {1: 3.0, 3: 5.0, 4: 5.5}
    every = (
        sum(costs[size] for size in sizes)
        for length in range(1, count + 1)
        for sizes in product(costs, repeat=length)
        if sum(sizes) >= count
    )
    found = sum(costs[run.size] for run in cover(count, costs))
    assert found == pytest.approx(min(every))


def test_measured_times_decide() -> None:
    assert [run.size for run in cover(5, {1: 10.0, 4: 11.0, 8: 12.0})] == [8]
    assert sorted(run.size for run in cover(5, {1: 1.0, 4: 4.0, 8: 12.0})) == [1, 4]


def test_a_batch_larger_than_any_profile_is_cut() -> None:
    assert [run.size for run in cover(9, assumed_costs((4,)))] == [4, 4, 4]


def test_sizes_below_one_are_refused() -> None:
    for sizes in ({}, {0: 1.0}):
        with pytest.raises(SettingsError, match="static batch sizes"):
            cover(3, sizes)


def test_references_fit_their_profiles() -> None:
    sizes = (1, 4, 16)
    rng = np.random.default_rng(0)
    for _ in range(50):
        reference_of = rng.integers(0, 6, rng.integers(1, 40))
        slices = within_references(reference_of, sizes)
        assert [i for part in slices for i in range(part.start, part.stop)] == list(range(len(reference_of)))
        for part in slices:
            distinct = len(np.unique(reference_of[part]))
            size = profile_for(part.stop - part.start, distinct, sizes)
            assert references_of(size) >= distinct


def test_padding_repeats_a_real_sample() -> None:
    array = np.arange(6, dtype=np.float32).reshape(3, 2)
    full = padded(array, 5)
    np.testing.assert_array_equal(full[:3], array)
    np.testing.assert_array_equal(full[3:], array[[2, 2]])
    assert padded(array, 3).flags.c_contiguous
