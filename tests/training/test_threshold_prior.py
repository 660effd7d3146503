"""Classes made from one photo, painted defects, and the recipe's plain values."""

from __future__ import annotations

import numpy as np
import pytest

from anomalysd_edge.core.types import F32

variation = pytest.importorskip("anomalysd_edge.training.threshold_prior.variation")
defects = pytest.importorskip("anomalysd_edge.training.threshold_prior.defects")
recipe = pytest.importorskip("anomalysd_edge.training.threshold_prior.recipe")
KINDS = [kind for family in defects.FAMILIES for kind in family]


def some_photo(height: int = 300, width: int = 400) -> F32:
    rng = np.random.default_rng(0)
    grain = variation.field(rng, (height, width), 30)[..., None]
    return np.asarray(np.clip(0.5 + 0.1 * grain + np.zeros(3), 0, 1), np.float32)


@pytest.mark.parametrize("make", [variation.surface, variation.thing])
def test_a_class_differs_from_photo_to_photo_but_is_seeded(make: object) -> None:
    assert callable(make)
    taken = [[make(some_photo(), np.random.default_rng(4))(p) for p in ("shot", "test")] for _ in range(2)]
    assert taken[0][0].shape == (variation.SIDE, variation.SIDE, 3)
    assert all(photo.min() >= 0 and photo.max() <= 1 for photo in taken[0])
    assert np.array_equal(taken[0][0], taken[1][0])
    camera = make(some_photo(), np.random.default_rng(4))
    assert not np.array_equal(camera("test"), camera("test"))


def test_a_warp_that_does_nothing_does_nothing() -> None:
    photo = some_photo(64, 64)
    assert np.allclose(variation.Warp().apply(photo, np.random.default_rng(0), 64), photo, atol=1e-4)


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_defect_shows_where_its_mask_says(kind: str) -> None:
    rng, photo = np.random.default_rng(1), some_photo(448, 448)
    inside = np.zeros((448, 448), np.bool_)
    inside[60:400, 60:400] = True
    made = [defects.defect(photo, inside, kind, 1.0, some_photo()[::-1], rng) for _ in range(12)]
    found = [one for one in made if one is not None]
    assert found
    for changed, mask in found:
        apart = np.abs(changed - photo).max(axis=2)
        assert not mask[~inside].any()
        assert apart[mask].mean() > 3 * apart[~mask].mean()


def test_nothing_is_painted_where_there_is_no_room() -> None:
    photo = some_photo(448, 448)
    assert defects.defect(photo, np.zeros((448, 448), np.bool_), "stain", 1.0, photo, np.random.default_rng(0)) is None


def test_a_drawn_class_is_whole() -> None:
    made = recipe.photographed(3, 5, [])
    assert made.group == "drawn surface"
    assert len(made.shots) == max(recipe.SHOTS)
    assert len(made.defective) == len(made.masks)
    assert made.shots[0].dtype == np.uint8


def test_measured_values_become_known_classes() -> None:
    run = {
        "left_out": [0.1, 0.2],
        "copies": [],
        "synthetic": [0.4],
        "self_similarity": 0.3,
        "good": [0.1],
        "defective": [0.5],
    }
    (known,) = recipe.known_classes([{"name": "a", "group": "thing", "runs": [run]}])
    assert known.evidence.shots == 2
    assert known.evidence.self_similarity == 0.3
    assert known.defective == (0.5,)
