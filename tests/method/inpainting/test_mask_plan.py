"""Slots: the counts of docs/method.md, cells that share a slot never touch, each cell is repainted once a scale."""

from __future__ import annotations

import numpy as np
import pytest

from anomalysd_edge.errors import SettingsError
from anomalysd_edge.method.inpainting.mask_plan import Slot, batches, make_plan, packed_plan, paper_plan


def test_the_paper_plan_has_85_masks_and_the_packed_one_13_slots() -> None:
    assert len(paper_plan(32, (1, 2, 4, 8)).slots) == 85
    assert len(packed_plan(32, (1, 2, 4, 8)).slots) == 13


@pytest.mark.parametrize("name", ["paper", "packed"])
@pytest.mark.parametrize("side", [8, 12, 30])
def test_the_slots_of_a_scale_tile_the_latent(name: str, side: int) -> None:
    plan = make_plan(name, side, (1, 2, 3, 4))
    for scale in plan.scales:
        covered = sum(slot.mask.astype(int) for slot in plan.slots if slot.scale == scale)
        np.testing.assert_array_equal(covered, 1)


def test_cells_that_share_a_slot_do_not_touch() -> None:
    side, k = 16, 4
    cell = side // k
    for slot in packed_plan(side, (k,)).slots:
        rows, columns = np.nonzero(slot.mask[::cell, ::cell])
        for a in range(len(rows)):
            for b in range(a):
                assert max(abs(rows[a] - rows[b]), abs(columns[a] - columns[b])) >= 2


def test_noise_depends_on_seed_and_slot_alone() -> None:
    mask = np.ones((4, 4), np.bool_)
    one, same = Slot(2, 1, mask).noise(7, (4, 4, 4)), Slot(2, 1, ~mask).noise(7, (4, 4, 4))
    np.testing.assert_array_equal(one, same)
    for other in (
        Slot(2, 2, mask).noise(7, (4, 4, 4)),
        Slot(4, 1, mask).noise(7, (4, 4, 4)),
        Slot(2, 1, mask).noise(8, (4, 4, 4)),
    ):
        assert not np.array_equal(one, other)


@pytest.mark.parametrize(("count", "largest"), [(13, 4), (85, 16), (3, 16), (1, 1), (0, 4)])
def test_batches_cover_everything_once_and_keep_the_limit(count: int, largest: int) -> None:
    parts = list(batches(count, largest))
    assert [i for part in parts for i in range(part.start, part.stop)] == list(range(count))
    assert all(0 < part.stop - part.start <= largest for part in parts)
    if parts:
        sizes = [part.stop - part.start for part in parts]
        assert max(sizes) - min(sizes) <= 1


@pytest.mark.parametrize("scales", [(), (0,), (64,)])
def test_scales_that_do_not_fit_are_refused(scales: tuple[int, ...]) -> None:
    with pytest.raises(SettingsError):
        packed_plan(32, scales)


def test_unknown_plans_are_refused() -> None:
    with pytest.raises(SettingsError, match="paper"):
        make_plan("quick", 32, (2,))
