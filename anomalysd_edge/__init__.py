"""anomalysd-edge: few-shot anomaly detection by repainting with Stable Diffusion, for edge boxes.

The public names are those of `__all__`; docs/api.md describes them. Everything else may change between releases. They
are loaded when they are first used, so importing the package costs next to nothing and needs no extra:

    from anomalysd_edge import load_rgb, open_detector

    with open_detector("BUNDLE") as detector:
        (answer,) = detector.inspect([load_rgb("photo.png")], "bottle")
"""

from __future__ import annotations

import os

# Not typing's own: importing that module takes longer than everything else here.
TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from anomalysd_edge.bundle.reader import Bundle, read_bundle
    from anomalysd_edge.errors import (
        BackendError,
        BundleError,
        ClassError,
        DatasetError,
        DeviceLost,
        EngineMismatch,
        ImageError,
        InputError,
        MissingExtra,
        NumericError,
        ParityError,
        RegistryError,
        RunError,
        SDEdgeError,
        SettingsError,
        ShapeError,
    )
    from anomalysd_edge.method.detector import Detector
    from anomalysd_edge.method.result import Evidence, Inspection
    from anomalysd_edge.training.callbacks import TrainingCallback
    from anomalysd_edge.training.settings import TrainSettings
    from anomalysd_edge.training.train import train
    from anomalysd_edge.vision.images import load_rgb
    from anomalysd_runtime.loading import open_detector

__version__ = "0.2.0"

__all__ = [
    "BackendError",
    "Bundle",
    "BundleError",
    "ClassError",
    "DatasetError",
    "Detector",
    "DeviceLost",
    "EngineMismatch",
    "Evidence",
    "ImageError",
    "InputError",
    "Inspection",
    "MissingExtra",
    "NumericError",
    "ParityError",
    "RegistryError",
    "RunError",
    "SDEdgeError",
    "SettingsError",
    "ShapeError",
    "TrainSettings",
    "TrainingCallback",
    "__version__",
    "load_rgb",
    "open_detector",
    "read_bundle",
    "train",
]

_MODULES = {
    "Bundle": "anomalysd_edge.bundle.reader",
    "Detector": "anomalysd_edge.method.detector",
    "Evidence": "anomalysd_edge.method.result",
    "Inspection": "anomalysd_edge.method.result",
    "TrainSettings": "anomalysd_edge.training.settings",
    "TrainingCallback": "anomalysd_edge.training.callbacks",
    "load_rgb": "anomalysd_edge.vision.images",
    "open_detector": "anomalysd_runtime.loading",
    "read_bundle": "anomalysd_edge.bundle.reader",
    "train": "anomalysd_edge.training.train",
}
"""Where a public name is defined; the others are errors."""

# Read by numpy's OpenBLAS when it is loaded, so before any module below imports numpy. After a product its threads keep
# spinning and take the cores from the networks' threads: a photo took a quarter longer. Whoever set it is right.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

# Read by libgomp, on which PyTorch's threads run, when it is loaded: how long a thread that waits for the others spins
# before it sleeps. The default outlasts a scheduler's time slice: beside two busy processes on two cores a step of
# 25 ms took 240 to 2100 ms, and so it takes 97 to 190. On an idle machine training takes as long as before.
if "OMP_WAIT_POLICY" not in os.environ:
    os.environ.setdefault("GOMP_SPINCOUNT", "3000")


# What the dependencies would tell others by default, switched off before any of them is imported: onnxruntime 1.29 and
# newer writes a device id and reports to its vendor, Ray reports usage, the hub's client tells which library asks.
# Whoever set one of these is right.
for _name, _value in {
    "ORT_DISABLE_TELEMETRY": "1",
    "ORT_TELEMETRY_DISABLED": "1",  # another name that its sources have used
    "RAY_USAGE_STATS_ENABLED": "0",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "DISABLE_TELEMETRY": "1",
    "DO_NOT_TRACK": "1",
}.items():
    os.environ.setdefault(_name, _value)


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    import importlib

    found = getattr(importlib.import_module(_MODULES.get(name, "anomalysd_edge.errors")), name)
    globals()[name] = found
    return found


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
