"""The learned correction: bounded, the same in numpy and torch, and kept by its file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from anomalysd_edge.core.types import F32
from anomalysd_edge.errors import BundleError
from anomalysd_edge.method.patches.distance_correction import (
    CHANNELS,
    FIELDS,
    DistanceCorrection,
    correction_inputs,
    shipped_correction,
)

torch = pytest.importorskip("torch")
known_classes = pytest.importorskip("anomalysd_edge.training.threshold_prior.known_classes")
KnownRun, Seen = known_classes.KnownRun, known_classes.Seen
recipe = pytest.importorskip("anomalysd_edge.training.threshold_prior.recipe")


def some_inputs(seed: int = 0, side: int = 20) -> F32:
    return np.random.default_rng(seed).normal(0, 1, (CHANNELS, side, side)).astype(np.float32)


def some_members(count: int = 2, strength: float = 1.0) -> list[Any]:
    members = []
    for seed in range(count):
        torch.manual_seed(seed)
        member = recipe.Correction(hidden=8)
        torch.nn.init.normal_(member.last.weight, std=strength)
        members.append(member.eval())
    return members


def test_numpy_gives_what_torch_gives() -> None:
    members, x = some_members(), some_inputs()
    with torch.inference_mode():
        maps = [m(torch.from_numpy(x)[None])[0].numpy() for m in members]
    distance = np.exp(x[CHANNELS - FIELDS] - 2)
    found = np.log(distance * recipe.joined(members).factor(x))
    assert np.allclose(found, np.mean(maps, axis=0), atol=1e-4)


def test_untaught_correction_changes_nothing() -> None:
    assert np.array_equal(recipe.joined([recipe.Correction()]).factor(some_inputs()), np.ones((20, 20), np.float32))


def test_factor_stays_within_its_bound() -> None:
    factor = recipe.joined(some_members(strength=100.0)).factor(some_inputs() * 50)
    assert factor.min() >= np.exp(-1) - 1e-5
    assert factor.max() <= np.exp(1) + 1e-5
    assert factor.max() / factor.min() > 2


def test_tensors_survive() -> None:
    made, x = recipe.joined(some_members()), some_inputs()
    kept = DistanceCorrection.of_tensors(made.tensors(), Path("bundle"))
    assert kept is not None
    assert np.array_equal(kept.factor(x), made.factor(x))
    assert DistanceCorrection.of_tensors({}, Path("bundle")) is None


@pytest.mark.parametrize("name", ["correction/last", "correction/1/kernel", "correction/bound"])
def test_missing_and_misshapen_parts_are_refused(name: str) -> None:
    tensors = recipe.joined(some_members()).tensors()
    without = {key: value for key, value in tensors.items() if key != name}
    with pytest.raises(BundleError, match="export the bundle again"):
        DistanceCorrection.of_tensors(without, Path("bundle"))
    if name != "correction/bound":
        with pytest.raises(BundleError, match="another shape"):
            DistanceCorrection.of_tensors({**tensors, name: tensors[name][..., :1, :0]}, Path("bundle"))


def test_inputs_follow_the_distances() -> None:
    rng = np.random.default_rng(1)
    large, large_own, small = (
        rng.uniform(0.01, 0.5, shape).astype(np.float32) for shape in ((14, 14), (2, 14, 14), (8, 8))
    )
    layers, own = (rng.uniform(0.01, 0.5, (n, 8, 8)).astype(np.float32) for n in (3, 6))
    odds = np.full((2, 8, 8), 4.0, np.float32)
    x = correction_inputs(large, large_own, small, layers, own, odds)
    assert x.shape == (CHANNELS, 14, 14)
    assert np.allclose(np.median(x[:FIELDS], axis=(1, 2)), 0, atol=1e-5)
    assert np.allclose(x[FIELDS : FIELDS + 2], 1, atol=1e-5)
    assert np.allclose(np.exp(x[FIELDS + 2] - 2), large, atol=1e-5)
    zeros = correction_inputs(np.zeros((14, 14), np.float32), large_own, small, layers, own, odds)
    assert np.isfinite(zeros).all()


def test_teaching_learns_what_the_distance_hides() -> None:
    """The distance says nothing; another channel does: after a few steps defective photos rank above good ones."""
    rng = np.random.default_rng(2)
    runs = []
    for number in range(6):
        inputs = rng.normal(0, 0.3, (12, CHANNELS, 12, 12)).astype(np.float32)
        shares = np.zeros((6, 12, 12), np.float32)
        shares[:, 4:8, 4:8] = 1
        inputs[6:, 1] += shares
        distances = np.exp(inputs[:, CHANNELS - FIELDS] - 2)
        parts = {"good": slice(0, 6), "defective": slice(6, 12)}
        seen = {role: Seen(distances[at], distances[at], inputs[at], distances[at] > 0) for role, at in parts.items()}
        runs.append(KnownRun(f"class {number}", "thing", number, 1, 1.2, seen, shares))
    before = np.mean([recipe.ranking(run, None) for run in runs], axis=0)
    taught = recipe.joined([recipe.teach(runs[:4], 60)])
    after = np.mean([recipe.ranking(run, taught) for run in runs[4:]], axis=0)
    assert before.max() < 0.8
    assert after[0] > 0.9


def test_shipped_correction_has_finite_factors() -> None:
    correction = shipped_correction("efficientnet_lite2")
    assert correction is not None
    assert shipped_correction("dinov2") is None
    rng = np.random.default_rng(0)
    large, large_own, small = (
        rng.uniform(0.1, 0.12, shape).astype(np.float32) for shape in ((20, 20), (2, 20, 20), (12, 12))
    )
    layers, own = (rng.uniform(0.1, 0.12, (n, 12, 12)).astype(np.float32) for n in (3, 6))
    odds = np.full((2, 12, 12), -4, np.float32)
    factor = correction.factor(correction_inputs(large, large_own, small, layers, own, odds))
    assert factor.shape == (20, 20)
    assert np.isfinite(factor).all()
    assert 0.36 < factor.min() <= factor.max() < 2.72
