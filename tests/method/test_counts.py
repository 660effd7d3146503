"""What does not drift: how often each plan asks each network, and how many bytes go through the door, per photo.

A change here is a change of speed on every machine. Whoever raises a figure says why in the changelog.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from anomalysd_edge.method.anomaly_map import MapScale
from anomalysd_edge.method.class_model import Calibration, ClassModel
from anomalysd_edge.method.detector import Detector
from anomalysd_edge.method.patches.memory_bank import MemoryBank
from anomalysd_edge.method.settings import EDGE, PAPER, InspectSettings
from anomalysd_edge.profiling.network_meter import MeteredNetworks
from tests.support.detectors import SCHEDULE, STATES, photo
from tests.support.fake_networks import FakeNetworks

SCALES = {name: MapScale(0.02, 0.05) for name in ("prototypes", "multiscale", "guided")}


def known(networks: FakeNetworks, clear: float | None = None) -> ClassModel:
    """A class whose every patch is suspect: the most that a photo can ask for."""
    vectors = np.zeros((1, 7), np.float32)
    vectors[0, 0] = -1
    return ClassModel(
        prompts={"whole": STATES},
        banks=(MemoryBank(vectors),),
        guided=dict.fromkeys(("distance", "own", "reading"), 0.0),
        calibration=Calibration(3.0, scales=SCALES, clear=clear),
    )


def counted(
    settings: InspectSettings, photos: int = 1, max_batch: int = 16
) -> tuple[dict[str, float], MeteredNetworks]:
    """Samples a photo of each network, at nano's sizes: 128 px, latents of 32 x 32, features at 256 px."""
    networks = FakeNetworks(size_px=128, factor=4, features_px=256, max_batch=max_batch)
    metered = MeteredNetworks(networks)
    detector = Detector(metered, SCHEDULE, {"part": known(networks)}, settings, group=photos)
    detector.inspect([photo(seed) for seed in range(photos)], "part")
    return {name: tally.samples / photos for name, tally in metered.meter.jobs.items()}, metered


def test_the_paper_plan() -> None:
    """85 masks and the prototype-guided one: 15 passes each, an encode and a decode each; the photo encoded once."""
    samples, metered = counted(PAPER)
    assert samples == {"features": 1, "encode": 87, "unet": 1290, "decode": 86, "distance": 86}
    assert metered.meter.bytes == 64_294_112


def test_the_edge_plan() -> None:
    """Eight packed slots and the guided one, one pass; a decode a scale, one of the guided mask, and the round trip;
    features of the photo, of the round trip and of each decode."""
    samples, metered = counted(EDGE)
    assert samples == {"features": 5, "encode": 10, "unet": 9, "decode": 4, "distance": 0}
    assert metered.meter.bytes == 7_800_016


@pytest.mark.parametrize(
    ("changes", "unet", "encodes", "decodes"),
    [
        ({"cells": "none"}, 0, 0, 0),
        ({"scales": (4,), "draws": 2}, 10, 6, 3),
        ({"passes": 4, "sampler": "dpm2m"}, 36, 10, 4),
        ({"plan": "paper", "cells": "suspect"}, 64 + 256 + 1, 322, 4),
        ({"guidance_scale": 2.0}, 18, 10, 4),
    ],
)
def test_what_a_setting_costs(changes: dict[str, Any], unet: int, encodes: int, decodes: int) -> None:
    settings = replace(EDGE, **changes)
    networks = FakeNetworks(size_px=128, factor=4, features_px=256)
    metered = MeteredNetworks(networks)
    Detector(metered, SCHEDULE, {"part": known(networks)}, settings, STATES).inspect([photo()], "part")
    found = {name: tally.samples for name, tally in metered.meter.jobs.items()}
    assert (found["unet"], found["encode"], found["decode"]) == (unet, encodes, decodes)


def test_a_clear_normal_costs_its_features() -> None:
    networks = FakeNetworks(size_px=128, factor=4, features_px=256)
    metered = MeteredNetworks(networks)
    clear = Detector(metered, SCHEDULE, {"part": known(networks, 1e9)}, replace(EDGE, cascade=True))
    clear.inspect([photo()], "part")
    assert {name: tally.samples for name, tally in metered.meter.jobs.items()} == {
        "features": 1, "encode": 0, "unet": 0, "decode": 0, "distance": 0
    }  # fmt: skip


@pytest.mark.parametrize("settings", [PAPER, EDGE], ids=["paper", "edge"])
def test_company_costs_nothing(settings: InspectSettings) -> None:
    """Photos together ask for as much as photos alone, in fewer calls."""
    small = replace(settings, scales=(2, 4))
    alone, one = counted(small)
    together, four = counted(small, photos=4)
    assert alone == together
    assert four.meter.jobs["unet"].calls < 4 * one.meter.jobs["unet"].calls


def test_the_unet_is_asked_in_full_batches() -> None:
    networks = FakeNetworks(max_batch=16)
    Detector(networks, SCHEDULE, {"part": known(networks)}, PAPER).inspect([photo()], "part")
    assert networks.batches == [14, 15, 14, 14, 15, 14]
