"""Calibrating one class in tests."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from anomalysd_edge.calibration.calibrate import CalibrationTask, calibrate
from anomalysd_edge.calibration.settings import CalibrationSettings
from anomalysd_edge.core.types import F32, U8
from anomalysd_edge.data.classes import ClassSpec
from anomalysd_edge.method.class_model import ClassConstants
from anomalysd_edge.method.inpainting.schedule import NoiseSchedule
from anomalysd_edge.method.networks import Networks
from anomalysd_edge.method.patches.patch_scorer import Reading
from anomalysd_edge.method.settings import InspectSettings

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
    reading: Reading | None = None,
    states: F32 = STATES,
) -> ClassConstants:
    """The constants of `spec` as its good photos give them; its prompt's states are `states`."""
    name, prompts = spec.name, {spec.name: {"whole": states}}
    task = CalibrationTask(
        networks, SCHEDULE, {name: spec}, prompts, {name: photos}, inspect, settings, reading=reading
    )
    return calibrate(task).classes[name]
