"""Distances between repaints and photos: each term by its definition, and their geometric mean."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from anomalysd_edge.core.timing import StageTimer
from anomalysd_edge.errors import SettingsError
from anomalysd_edge.method.class_model import ClassConstants
from anomalysd_edge.method.detector import Detector
from anomalysd_edge.method.inpainting.masks import to_pixels
from anomalysd_edge.method.inpainting.reconstruction_error import Differences, Measured, Repaint
from anomalysd_edge.method.networks import NetworkSizes
from anomalysd_edge.method.settings import EDGE, InspectSettings
from tests.method.test_detector import SCHEDULE, STATES
from tests.support.fake_networks import FakeNetworks

NONE = replace(EDGE, perceptual_weight=0.0, latent_weight=0.0, features_weight=1.0)


def measured(settings: InspectSettings) -> tuple[FakeNetworks, np.ndarray, np.ndarray, Repaint, Measured]:
    networks = FakeNetworks()
    rng = np.random.default_rng(0)
    side, cells = networks.sizes.size_px, networks.sizes.latent_side
    pixels = rng.uniform(-1, 1, (2, 3, side, side)).astype(np.float32)
    latents = networks.encode(pixels)
    mask = np.zeros((cells, cells), np.bool_)
    mask[:2, 1:4] = True
    moved = np.where(mask, latents[1] + rng.normal(0, 0.3, latents[1].shape).astype(np.float32), latents[1])
    repaint = Repaint(photo=1, scale=4, mask=mask, latents=moved)
    found = list(Differences(networks, settings, pixels, latents, StageTimer()).measure([repaint]))
    assert len(found) == 1
    return networks, pixels, latents, repaint, found[0]


def test_the_latent_term_is_the_mean_absolute_change_and_nothing_outside_the_mask() -> None:
    networks, _, latents, repaint, found = measured(replace(EDGE, latent_weight=1.0, features_weight=0.0))
    apart = np.abs(repaint.latents - latents[1]).mean(axis=0)
    from anomalysd_edge.vision.images import resize_map

    side = networks.sizes.size_px
    np.testing.assert_allclose(found.distance, np.maximum(resize_map(apart, (side, side)), 1e-4), rtol=1e-4)
    far = ~to_pixels(repaint.mask, networks.sizes.latent_factor)
    far[: 4 * networks.sizes.latent_factor, : 6 * networks.sizes.latent_factor] = False
    assert float(found.distance[far].max()) <= 2e-4


@pytest.mark.parametrize("reference", ["photo", "round_trip"])
def test_the_perceptual_term_is_the_networks_own(reference: str) -> None:
    settings = replace(EDGE, perceptual_weight=1.0, latent_weight=0.0, features_weight=0.0, reference=reference)
    networks, pixels, latents, repaint, found = measured(settings)
    against = (pixels if reference == "photo" else networks.decode(latents))[1:]
    inside = to_pixels(repaint.mask, networks.sizes.latent_factor)
    kept = np.where(inside, networks.decode(repaint.latents[None]), against)
    expected = networks.distance(against, kept, np.zeros(1, np.int64))[0]
    np.testing.assert_allclose(found.distance, np.maximum(expected, 1e-4), rtol=1e-4)
    np.testing.assert_allclose(found.pixels, kept[0], atol=1e-6)


def test_weights_make_a_geometric_mean() -> None:
    latent, features, both = (
        measured(replace(EDGE, latent_weight=a, features_weight=b))[4].distance for a, b in ((1, 0), (0, 1), (3, 1))
    )
    np.testing.assert_allclose(both, np.exp((3 * np.log(latent) + np.log(features)) / 4), rtol=1e-3)


def test_both_references_count_alike() -> None:
    photo, trip, both = (
        measured(replace(NONE, reference=reference))[4].distance for reference in ("photo", "round_trip", "both")
    )
    np.testing.assert_allclose(both, np.sqrt(photo * trip), rtol=1e-3)


def test_weights_that_cannot_be_are_refused() -> None:
    for wrong in ({"latent_weight": -1.0}, {"latent_weight": 0.0, "features_weight": 0.0}):
        with pytest.raises(SettingsError, match="weights"):
            InspectSettings.from_json({**EDGE.to_json(), **wrong})


def test_features_are_not_asked_of_networks_without_them() -> None:
    networks = FakeNetworks()
    networks.sizes = replace(networks.sizes, features_px=0)
    assert isinstance(networks.sizes, NetworkSizes)
    with pytest.raises(SettingsError, match="feature network"):
        Detector(networks, SCHEDULE, {"part": ClassConstants({"whole": STATES})}, EDGE)
