"""Calibrating one class over FakeNetworks in a fraction of a second."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from anomalysd_edge.calibration.calibrate import CalibrationTask, calibrate
from anomalysd_edge.calibration.settings import CalibrationSettings
from anomalysd_edge.calibration.threshold_model import ThresholdPrior
from anomalysd_edge.core.types import F32, U8
from anomalysd_edge.data.classes import ClassSpec
from anomalysd_edge.method.class_model import ClassModel
from anomalysd_edge.method.inpainting.schedule import NoiseSchedule
from anomalysd_edge.method.networks import Networks
from anomalysd_edge.method.patches.patch_scorer import PatchScorer
from anomalysd_edge.method.settings import EDGE, InspectSettings

SETTINGS = CalibrationSettings(bank_size=300, negatives=4)
INSPECT = replace(EDGE, scales=(1, 2), passes=2)
SCHEDULE = NoiseSchedule.from_config(
    {"num_train_timesteps": 1000, "beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
)
STATES: F32 = np.zeros((77, 8), np.float32)


def calibrated(
    networks: Networks,
    spec: ClassSpec,
    photos: Sequence[U8],
    inspect: InspectSettings,
    settings: CalibrationSettings,
    patch_scorer: PatchScorer | None = None,
    states: F32 = STATES,
    threshold_prior: ThresholdPrior | None = None,
) -> ClassModel:
    """The constants of `spec` as its good photos give them; its prompt's states are `states`."""
    name, prompts = spec.name, {spec.name: {"whole": states}}
    task = CalibrationTask(
        networks,
        SCHEDULE,
        {name: spec},
        prompts,
        {name: photos},
        inspect,
        settings,
        patch_scorer=patch_scorer,
        threshold_prior=threshold_prior,
    )
    return calibrate(task).classes[name]
