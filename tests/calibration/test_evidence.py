"""What a class's shots, their copies and synthetic anomalies score."""

from __future__ import annotations

import numpy as np
import pytest

from anomalysd_edge.calibration.evidence import measure
from anomalysd_edge.core.types import F32, U8
from anomalysd_edge.errors import SettingsError
from anomalysd_edge.method.patches.memory_bank import unit


def describe(photo: U8) -> tuple[F32, ...]:
    """Blocks of the photo as features, at two sizes: enough for anomalies to be far from good photos."""

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


def test_several_shots_judge_each_other() -> None:
    shots = photos(3)
    found = measure(describe, shots, [np.ones((64, 64), np.bool_)] * 3)
    assert len(found.evidence.left_out) == 3
    assert found.evidence.copies == ()
    assert len(found.evidence.synthetic) == 6
    assert np.median(found.evidence.synthetic) > max(found.evidence.left_out)
    # Under the bank of all, a shot itself scores less.
    assert found.score(describe(shots[0])) < 0.8 * found.evidence.left_out[0]


def test_a_single_shot_is_judged_by_its_copies() -> None:
    found = measure(describe, photos(1), [np.ones((64, 64), np.bool_)])
    assert found.evidence.left_out == ()
    assert len(found.evidence.copies) == 4
    assert len(found.evidence.synthetic) == 6


def test_the_same_seed_gives_the_same_evidence() -> None:
    shots, inside = photos(2), [np.ones((64, 64), np.bool_)] * 2
    assert measure(describe, shots, inside, seed=5).evidence == measure(describe, shots, inside, seed=5).evidence
    assert measure(describe, shots, inside, seed=5).evidence != measure(describe, shots, inside, seed=6).evidence


def test_no_shots_are_refused() -> None:
    with pytest.raises(SettingsError):
        measure(describe, [], [])
