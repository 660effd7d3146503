"""Photos drawn in a line of numpy, the constants of a class of them, and detectors over FakeNetworks."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from anomalysd_edge.core.types import U8
from anomalysd_edge.method.anomaly_map import MapScale
from anomalysd_edge.method.class_model import Calibration, ClassModel
from anomalysd_edge.method.detector import Detector
from anomalysd_edge.method.inpainting.schedule import NoiseSchedule
from anomalysd_edge.method.patches.memory_bank import build_memory_bank
from anomalysd_edge.method.settings import EDGE, InspectSettings
from anomalysd_edge.vision import images
from tests.support.fake_networks import FakeNetworks

SCHEDULE = NoiseSchedule.from_config({"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012})
STATES = np.zeros((77, 4), np.float32)
"""States of a prompt: (tokens, D)."""
MODULATED = replace(EDGE, scales=(1, 2, 4), passes=3)
"""The edge preset over the grids that fit FakeNetworks' 8 x 8 latents."""
SMALL = replace(MODULATED, fusion="scaled", multiscale_weight=0.5, prototype_map="distance")
"""The same with the fusion of the first releases, whose threshold is in units of what normals hardly reach."""


def photo(seed: int = 0, defect: bool = False) -> U8:
    """(40,40,3) of grey noise; a defect is a red spot of 6 x 6 px at y = 8, x = 24."""
    rng = np.random.default_rng(seed)
    image = np.clip(rng.normal(120, 6, (40, 40, 3)), 0, 255).astype(np.uint8)
    if defect:
        image[8:14, 24:30] = (250, 20, 20)
    return image


def constants(networks: FakeNetworks, threshold: float | None = 3.0) -> ClassModel:
    """Constants from `photo(0)` to `photo(2)`."""
    views = np.concatenate([images.to_array(images.resize(photo(s), networks.sizes.features_px)) for s in range(3)])
    scale = MapScale(0.02, 0.05)
    return ClassModel(
        prompts={"whole": STATES},
        banks=(build_memory_bank(networks.features(views), 500),),
        guided=dict.fromkeys(("distance", "own", "reading"), 0.02),
        calibration=Calibration(threshold, threshold, dict.fromkeys(("prototypes", "multiscale", "guided"), scale)),
    )


def detector(networks: FakeNetworks | None = None, settings: InspectSettings = SMALL, group: int = 4) -> Detector:
    """A detector of the class "part"."""
    networks = networks or FakeNetworks()
    return Detector(networks, SCHEDULE, {"part": constants(networks)}, settings, group=group)
