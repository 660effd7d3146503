"""The learned reading of prototype distances: against torch, against hand-worked cases, and what it is good for."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from anomalysd_edge.errors import BundleError
from anomalysd_edge.method.class_model import ClassModel
from anomalysd_edge.method.patches.distance_correction import shipped_correction
from anomalysd_edge.method.patches.memory_bank import MemoryBank, prototype_distance, self_distances
from anomalysd_edge.method.patches.patch_scorer import (
    SHIPPED,
    PatchScorer,
    convolve,
    layer_distances,
    scorer_inputs,
    shipped_patch_scorer,
)
from anomalysd_edge.method.settings import EDGE, PAPER
from anomalysd_edge.training.models.features import LAYERS
from anomalysd_edge.training.patch_scorer.cases import draw_case, noise_surface
from anomalysd_edge.training.patch_scorer.recipe import Convolution, figures, teach


def unit_features(seed: int, layers: tuple[int, ...], side: int) -> np.ndarray:
    """(D,side,side): layers of unit length, joined to unit length."""
    rng = np.random.default_rng(seed)
    parts = [rng.standard_normal((depth, side, side)) for depth in layers]
    ensemble = np.concatenate([p / np.linalg.norm(p, axis=0) for p in parts])
    return np.asarray(ensemble / np.linalg.norm(ensemble, axis=0), np.float32)


def bank_of(features: np.ndarray) -> MemoryBank:
    return MemoryBank(np.ascontiguousarray(features.reshape(len(features), -1).T))


@pytest.mark.parametrize(("kernel", "dilation"), [(1, 1), (3, 1), (3, 2)])
def test_a_convolution_is_torchs(kernel: int, dilation: int) -> None:
    rng = np.random.default_rng(0)
    x = rng.standard_normal((5, 9, 11)).astype(np.float32)
    weights = rng.standard_normal((4, 5, kernel, kernel)).astype(np.float32)
    reach = dilation * (kernel // 2)
    padded = torch.nn.functional.pad(torch.from_numpy(x)[None], (reach,) * 4, mode="reflect") if reach else x[None]
    wanted = torch.nn.functional.conv2d(torch.as_tensor(padded), torch.from_numpy(weights), dilation=dilation)[0]
    np.testing.assert_allclose(convolve(x[None], weights[None], dilation)[0], wanted.numpy(), atol=1e-4)
    # Two networks over one field, and each over its own.
    doubled = np.stack([weights, -2 * weights])
    np.testing.assert_allclose(convolve(x[None], doubled, dilation)[1], -2 * wanted.numpy(), atol=2e-4)
    np.testing.assert_allclose(convolve(np.stack([x, 3 * x]), doubled, dilation)[1], -6 * wanted.numpy(), atol=6e-4)


def test_a_field_narrower_than_the_reach_is_read_all_the_same() -> None:
    x = np.ones((1, 1, 2, 2), np.float32)
    np.testing.assert_allclose(convolve(x, np.ones((1, 1, 1, 3, 3), np.float32), 2), 9.0)


def test_the_numpy_reading_is_the_taught_network() -> None:
    torch.manual_seed(0)
    features, seen = unit_features(1, LAYERS, 8), unit_features(2, LAYERS, 8)
    model = Convolution(19).eval()
    patch_scorer = model.patch_scorer()
    distances = layer_distances(bank_of(seen), features, LAYERS)
    with torch.inference_mode():
        defect_odds = np.log1p(
            np.exp(model(torch.from_numpy(scorer_inputs(distances, textured=True))[None])[0].numpy())
        )
    np.testing.assert_allclose(patch_scorer.defect_odds(distances, True), defect_odds, atol=1e-4)
    wanted = np.cbrt(defect_odds * distances[::3].mean(axis=0) * distances[1::3].mean(axis=0))
    np.testing.assert_allclose(patch_scorer.score(distances, True), wanted, atol=1e-4)
    part = np.cbrt(patch_scorer.defect_odds(distances, False) * distances[::3].mean(axis=0) ** 2)
    np.testing.assert_allclose(patch_scorer.score(distances, False), part, atol=1e-4)


def test_several_convolutions_average_their_log_odds() -> None:
    torch.manual_seed(1)
    distances = np.random.default_rng(0).uniform(0.05, 0.4, (9, 8, 8)).astype(np.float32)
    alone = [Convolution(19).eval().patch_scorer() for _ in range(3)]
    together = PatchScorer.ensemble(alone)
    assert (together.members, together.layers) == (3, LAYERS)
    log_odds = [np.log(np.expm1(patch_scorer.defect_odds(distances, True))) for patch_scorer in alone]
    assert np.abs(log_odds[0] - log_odds[1]).max() > 0.01
    np.testing.assert_allclose(
        np.log(np.expm1(together.defect_odds(distances, True))), np.mean(log_odds, axis=0), atol=1e-4
    )


def test_distances_are_each_layers_own() -> None:
    layers = (3, 4)
    features, seen = unit_features(1, layers, 6), unit_features(2, layers, 6)
    found = layer_distances(bank_of(seen), features, layers)
    assert found.shape == (6, 6, 6)
    for row, part in ((0, slice(0, 3)), (3, slice(3, 7))):
        q, b = features[part].reshape(part.stop - part.start, -1), seen[part].reshape(part.stop - part.start, -1)
        cosine = (q / np.linalg.norm(q, axis=0)).T @ (b / np.linalg.norm(b, axis=0))
        np.testing.assert_allclose(found[row].ravel(), 1 - cosine.max(axis=1), atol=1e-5)


def test_several_shares_at_once_are_those_one_by_one() -> None:
    features = unit_features(3, (8,), 12)
    both = self_distances(features, (0.1, 0.02), 64)
    for share, together in zip((0.1, 0.02), both, strict=True):
        np.testing.assert_array_equal(self_distances(features, (share,), 64)[0], together)


def test_the_light_of_a_whole_photo_is_told_apart_from_one_patch() -> None:
    """All distances doubled move the photo's own median with them; half of the inputs do not see it."""
    distances = np.random.default_rng(0).uniform(0.05, 0.4, (9, 8, 8)).astype(np.float32)
    mean_layer_distance, doubled = scorer_inputs(distances, True), scorer_inputs(2 * distances, True)
    np.testing.assert_allclose(mean_layer_distance[:9], doubled[:9], atol=1e-5)
    np.testing.assert_allclose(mean_layer_distance[9:18] + np.log(2), doubled[9:18], atol=1e-5)
    assert mean_layer_distance[18].max() == 0
    assert scorer_inputs(distances, False)[18].min() == 1


def test_what_ships_reads_efficientnet_lite2() -> None:
    patch_scorer = shipped_patch_scorer("efficientnet_lite2")
    assert patch_scorer is not None
    assert patch_scorer.layers == LAYERS
    assert SHIPPED["efficientnet_lite2"].stat().st_size < 500_000
    assert shipped_patch_scorer("dinov2") is None, "other features keep the plain distance"


def test_a_foreign_patch_is_read_higher_than_its_surroundings() -> None:
    patch_scorer = shipped_patch_scorer("efficientnet_lite2")
    assert patch_scorer is not None
    rng = np.random.default_rng(0)
    base = unit_features(1, LAYERS, 1)
    grain = 0.15 * rng.standard_normal((sum(LAYERS), 32, 32)).astype(np.float32)
    features = base + grain * np.abs(base).mean()
    features[:, 10:14, 18:22] = unit_features(9, LAYERS, 1)
    features /= np.linalg.norm(features, axis=0)
    normal = base + 0.15 * rng.standard_normal((sum(LAYERS), 32, 32)).astype(np.float32) * np.abs(base).mean()
    bank = bank_of(normal / np.linalg.norm(normal, axis=0))
    found = patch_scorer.score(layer_distances(bank, features.astype(np.float32), LAYERS), True)
    assert found[11:13, 19:21].min() > 5 * np.median(found)


def test_tensors_there_and_back(tmp_path: Path) -> None:
    patch_scorer = Convolution(19).patch_scorer()
    again = PatchScorer.of_tensors(patch_scorer.tensors(), tmp_path)
    assert again is not None
    assert (again.layers, again.dilations) == (patch_scorer.layers, patch_scorer.dilations)
    assert all(np.array_equal(a, b) for a, b in zip(again.kernels, patch_scorer.kernels, strict=True))
    assert PatchScorer.of_tensors({}, tmp_path) is None
    broken = patch_scorer.tensors()
    del broken["reading/1/bias"]
    with pytest.raises(BundleError, match="reading/1/bias"):
        PatchScorer.of_tensors(broken, tmp_path)
    single = {
        key: value[0] if key.endswith(("kernel", "bias")) else value for key, value in patch_scorer.tensors().items()
    }
    of_old = PatchScorer.of_tensors(single, tmp_path)
    assert of_old is not None
    assert of_old.members == 1, "the first releases wrote one convolution without an axis for it"
    assert np.array_equal(of_old.kernels[0], patch_scorer.kernels[0])
    bent = patch_scorer.tensors()
    bent["reading/0/kernel"] = bent["reading/0/kernel"][:, :, :7]
    with pytest.raises(BundleError, match="reading/0/kernel"):
        PatchScorer.of_tensors(bent, tmp_path)


def test_a_preset_says_how_prototypes_judge() -> None:
    features, seen = unit_features(1, LAYERS, 8), unit_features(2, LAYERS, 8)
    bank = bank_of(seen)
    scorer, correction = shipped_patch_scorer("efficientnet_lite2"), shipped_correction("efficientnet_lite2")
    known = ClassModel({}, kind="texture", tiles=2, banks=(bank, bank), patch_scorer=scorer, correction=correction)
    reading = replace(EDGE, prototype_map="reading")
    assert [known.map_kind(preset) for preset in (EDGE, PAPER, reading)] == ["corrected", "distance", "reading"]
    assert [known.windows(preset) for preset in (EDGE, PAPER)] == [(1, 2), (2,)]
    np.testing.assert_array_equal(known.by_prototypes([features], PAPER)[0], prototype_distance(bank, features))
    corrected, median = known.by_prototypes([features, features], EDGE)
    assert corrected.shape == (8, 8)
    assert median is not None
    factor = corrected / prototype_distance(bank, features)
    assert np.exp(-0.51) < factor.min() < factor.max() < np.exp(0.51), "half of a correction that is bounded by 1"
    bare = ClassModel({}, kind="texture", banks=(bank,))
    assert bare.map_kind(EDGE) == "distance"
    np.testing.assert_array_equal(bare.by_prototypes([features], EDGE)[0], prototype_distance(bank, features))
    own = replace(PAPER, self_share=0.1)
    assert bare.map_kind(own) == "own"
    np.testing.assert_array_equal(bare.by_prototypes([features], own)[0], prototype_distance(bank, features, 0.1))


def test_cases_are_seeded_and_their_masks_say_what_changed() -> None:
    first, again = draw_case(5, 0, 64), draw_case(5, 0, 64)
    np.testing.assert_array_equal(first.photos[-1], again.photos[-1])
    assert not np.array_equal(draw_case(5, 1, 64).shot, first.shot)
    kinds = set()
    for number in range(12):
        case = draw_case(5, number, 64)
        kinds.add(case.textured)
        assert case.shot.shape == (64, 64, 3)
        for i, mask in enumerate(case.masks):
            if mask.any():  # a changed photo follows the good one that it was made from
                apart = np.abs(case.photos[i].astype(int) - case.photos[i - 1]).max(axis=2)
                assert apart[mask].mean() > 3 * apart[~mask].mean() if (~mask).any() else True
    assert kinds == {True, False}


def test_noise_surfaces_lie_in_range() -> None:
    surface = noise_surface(np.random.default_rng(0), 96)
    assert surface.shape == (96, 96, 3)
    assert 0 < surface.mean() < 1.2
    assert surface.std() > 0.01


@pytest.mark.slow
def test_teaching_finds_what_is_there() -> None:
    """Changed patches that are far in one input alone: a few steps suffice."""
    rng = np.random.default_rng(0)
    x = rng.standard_normal((64, 5, 8, 8)).astype(np.float32)
    changed = np.zeros((64, 8, 8), np.float32)
    changed[::2, 2:4, 2:4] = 1
    x[:, 3] += 3 * changed
    model = teach(torch.from_numpy(x), torch.from_numpy(changed), epochs=40)
    with torch.inference_mode():
        image, pixel = figures(model(torch.from_numpy(x)).numpy(), changed)
    assert pixel > 0.95
    assert image > 0.8
