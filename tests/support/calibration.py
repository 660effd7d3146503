"""Settings of a calibration over FakeNetworks that takes a fraction of a second."""

from __future__ import annotations

from dataclasses import replace

from anomalysd_edge.calibration.calibrate import CalibrationSettings
from anomalysd_edge.method.settings import EDGE

SETTINGS = CalibrationSettings(bank_size=300, negatives=4)
INSPECT = replace(EDGE, scales=(1, 2), passes=2)
