"""What a class's shots, their copies and synthetic anomalies score."""

from __future__ import annotations

import numpy as np
import pytest

from anomalysd_edge.calibration.evidence import Observed, View, banks_of, observe
from anomalysd_edge.core.types import F32, U8
from anomalysd_edge.data.classes import apply_view
from anomalysd_edge.errors import SettingsError
from anomalysd_edge.method.patches.memory_bank import MemoryBank, unit
from anomalysd_edge.method.patches.shot_banks import ShotBanks


def describe(photo: U8, view: View = (0, False)) -> tuple[F32, ...]:
    """Blocks of the photo as features, at two sizes: enough for anomalies to be far from good photos."""

    photo = apply_view(photo, view)

    def blocks(cells: int) -> F32:
        side = photo.shape[0] // cells
        cut = photo[: cells * side, : cells * side].astype(np.float32) - 128
        patches = cut.reshape(cells, side, cells, side, 3).transpose(0, 2, 1, 3, 4).reshape(cells, cells, -1)
        patches = patches[..., :: max(1, patches.shape[-1] // 24)][..., :24]
        return unit(np.ascontiguousarray(patches.transpose(2, 0, 1)) + np.float32(60), axis=0)

    return blocks(8), blocks(16)


def photos(count: int) -> list[U8]:
    rng = np.random.default_rng(3)
    return [np.clip(rng.normal(128, 3, (64, 64, 3)), 0, 255).astype(np.uint8) for _ in range(count)]


INSIDE = np.ones((64, 64), np.bool_)


def largest(_: U8, features: tuple[F32, ...], banks: list[MemoryBank]) -> float:
    """A simple image score."""
    return float(max(bank.distance(part).max() for bank, part in zip(banks, features, strict=True)))


def seen(shots: list[U8], seed: int = 0) -> Observed[float]:
    return observe(describe, shots, [INSIDE] * len(shots), banks_of(describe, shots), largest, seed)


def test_several_shots_judge_each_other() -> None:
    shots = photos(3)
    found = seen(shots)
    assert len(found.left_out) == 3
    assert found.copies == ()
    assert len(found.synthetic) == 6
    assert np.median(found.synthetic) > max(found.left_out)
    # Under the bank of all, a shot itself scores less.
    everything = [bank.joined() for bank in banks_of(describe, shots)]
    assert largest(shots[0], describe(shots[0]), everything) < 0.9 * found.left_out[0]


def test_a_single_shot_is_judged_by_its_copies() -> None:
    found = seen(photos(1))
    assert found.left_out == ()
    assert len(found.copies) == 4
    assert len(found.synthetic) == 6


def test_the_same_seed_gives_the_same_evidence() -> None:
    shots = photos(2)
    assert seen(shots, 5) == seen(shots, 5)
    assert seen(shots, 5) != seen(shots, 6)


def test_no_shots_are_refused() -> None:
    with pytest.raises(SettingsError):
        banks_of(describe, [])


def test_banks_of_more_shots_are_cut_from_those_of_each() -> None:
    shots = photos(3)
    apart = [banks_of(describe, [shot], 240) for shot in shots]
    for size, bank in enumerate(banks_of(describe, shots, 240)):
        cut = ShotBanks.joined_of([part[size] for part in apart], 240)
        np.testing.assert_array_equal(cut.joined().vectors, bank.joined().vectors)
