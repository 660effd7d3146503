"""The object's patches by the first principal component of the shots' features."""

import numpy as np
import pytest

from anomalysd_edge.core.types import F32, Mask
from anomalysd_edge.method.class_model import ClassModel
from anomalysd_edge.method.patches.memory_bank import MemoryBank, unit
from anomalysd_edge.method.patches.patch_foreground import PatchForeground
from anomalysd_edge.method.settings import EDGE

SIDE = 16


def outline(top: int = 4, left: int = 5, side: int = 7) -> Mask:
    inside = np.zeros((SIDE, SIDE), np.bool_)
    inside[top : top + side, left : left + side] = True
    return inside


def features(inside: Mask, seed: int) -> F32:
    """(12,16,16) unit features: one direction of the object, one of the background, noise that is as strong."""
    rng = np.random.default_rng(seed)
    found = rng.standard_normal((12, SIDE, SIDE)).astype(np.float32) * 0.1
    found[0] += np.where(inside, 1.0, 0.0)
    found[1] += np.where(inside, 0.0, 1.0)
    return unit(found, axis=0)


def test_the_object_of_a_new_photo_is_marked_wherever_it_lies() -> None:
    found = PatchForeground.of([features(outline(), 0), features(outline(3, 3), 1)])
    assert found is not None
    moved = outline(7, 2)
    marked = found.of_photo(features(moved, 2))
    assert marked is not None
    assert marked[moved].all(), "the whole object counts"
    wider = np.zeros_like(moved)
    wider[6:15, 1:10] = True
    assert not marked[~wider].any(), "and no patch farther than one from it"


@pytest.mark.parametrize("inside", [np.zeros((SIDE, SIDE), np.bool_), np.arange(SIDE)[None] * np.ones((SIDE, 1)) < 8])
def test_no_plane_is_kept_where_it_shows_no_object_before_a_background(inside: Mask) -> None:
    """A surface, and a photo that is half one thing, half another: its border is marked as densely as the whole."""
    assert PatchForeground.of([features(np.asarray(inside), 0)]) is None


def test_one_shot_that_shows_no_object_settles_it() -> None:
    assert PatchForeground.of([features(outline(), 0), features(outline(0, 0, SIDE), 1)]) is None


def test_a_photo_without_the_object_counts_as_a_whole() -> None:
    found = PatchForeground.of([features(outline(), 0)])
    assert found is not None
    assert found.of_photo(features(np.zeros((SIDE, SIDE), np.bool_), 3)) is None


def test_it_survives_a_bundle() -> None:
    found = PatchForeground.of([features(outline(), 0)])
    assert found is not None
    (stored,) = found.tensors("name").values()
    again = PatchForeground.of_tensor(stored)
    np.testing.assert_array_equal(again.axis, found.axis)
    assert again.threshold == pytest.approx(found.threshold, abs=1e-7)


def test_a_strange_background_raises_no_alarm_and_a_strange_object_does() -> None:
    shots = [features(outline(), seed) for seed in range(3)]
    bank = MemoryBank(np.concatenate([shot.reshape(12, -1).T for shot in shots]))
    known = ClassModel({}, "object", banks=(bank,), patch_foreground=PatchForeground.of(shots))

    def distance(row: int, column: int) -> float:
        photo = features(outline(), 9)
        photo[:, row, column] = 0
        # On its own side of the plane, and like nothing of the bank.
        photo[1 if row < 2 else 0, row, column], photo[7, row, column] = 0.4, (1 - 0.4**2) ** 0.5
        found, _ = known.by_prototypes([photo], EDGE)
        return float(found[row, column] - np.median(found))

    assert distance(0, 0) <= 0 < distance(7, 8) - 0.2
