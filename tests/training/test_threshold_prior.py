"""Classes made from one photo, painted defects, and the recipe's plain values."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

from anomalysd_edge.calibration.threshold_model import load_prior
from anomalysd_edge.core.types import F32
from anomalysd_edge.method.patches.distance_correction import DistanceCorrection

variation = pytest.importorskip("anomalysd_edge.training.threshold_prior.variation")
defects = pytest.importorskip("anomalysd_edge.training.threshold_prior.defects")
known = pytest.importorskip("anomalysd_edge.training.threshold_prior.known_classes")
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
    made = known.photographed(3, 5, [])
    assert made.group == "drawn surface"
    assert len(made.shots) == max(known.SHOTS)
    assert len(made.defective) == len(made.masks)
    assert made.shots[0].dtype == np.uint8


def some_run(number: int, shots: int) -> object:
    """Made-up distances of a class; defective ones are larger in a square."""
    rng = np.random.default_rng((number, shots))

    def seen(count: int, raised: float) -> object:
        large = rng.uniform(0.1, 0.2, (count, 14, 14)).astype(np.float32)
        large[:, 4:8, 4:8] += raised
        small = np.ascontiguousarray(large[:, ::2, ::2])
        inputs = np.zeros((count, recipe.CHANNELS, 14, 14), np.float32)
        inputs[:, recipe.CHANNELS - recipe.FIELDS :] = np.log(large[:, None]) + 2
        return known.Seen(small, large, inputs, np.ones((count, 64, 64), np.bool_))

    roles = {"synthetic": (4, 0.2), "good": (6, 0.0), "defective": (6, float(rng.uniform(0.1, 0.3)))}
    roles |= {"copies": (4, 0.0)} if shots == 1 else {"left_out": (shots, 0.0)}
    shares = np.zeros((6, 14, 14), np.float32)
    shares[:, 4:8, 4:8] = 1
    return known.KnownRun(
        f"class {number}", "thing", number, shots, 1.2, {k: seen(*v) for k, v in roles.items()}, shares
    )


def test_the_recipe_writes_a_correction_and_a_prior_that_open(tmp_path: Path) -> None:
    runs = [some_run(number, shots) for number in range(12) for shots in (1, 2)]
    recipe.fit_and_write(runs, 3, tmp_path, {"classes": 12})
    prior = load_prior(tmp_path / "prior.json")
    file = tmp_path / "correction.safetensors"
    correction = DistanceCorrection.of_tensors(load_file(file), file)
    assert correction is not None
    alike = recipe.self_similarities(runs)
    assert set(alike) == set(range(12))
    for run in runs[:2]:
        evidence = recipe.known_class(run, alike[0], correction).evidence
        assert evidence.shots == run.shots  # type: ignore[attr-defined]
        assert max(evidence.left_out or evidence.copies) < prior.score_model(evidence).threshold()


def test_no_class_is_judged_by_a_correction_that_saw_its_source_or_its_defects() -> None:
    runs = [some_run(number, 1) for number in range(40)]
    for run in runs:
        fold = recipe.fold_of(run)
        others = [o for o in runs if recipe.fold_of(o) // 2 != fold // 2 and o.family != fold % 2]  # type: ignore[attr-defined]
        assert run.name not in {o.name for o in others}  # type: ignore[attr-defined]
        assert run.family not in {o.family for o in others}  # type: ignore[attr-defined]
        assert len(others) > 4
