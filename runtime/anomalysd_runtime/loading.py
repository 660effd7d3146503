"""From a bundle's path to a detector that can judge photos."""

from __future__ import annotations

from pathlib import Path

from anomalysd_edge.bundle import read_bundle
from anomalysd_edge.bundle_detector import detector_of
from anomalysd_edge.detector import Detector
from anomalysd_edge.errors import BackendError
from anomalysd_edge.networks import Networks

BACKENDS = ("cpu", "cuda")
"""What `backend` may be: ONNX Runtime on the CPU, or on an NVIDIA GPU."""


def open_detector(
    bundle_path: Path,
    preset: str = "edge",
    backend: str = "cpu",
    threads: int | None = None,
    max_batch: int = 16,
    verify: bool = True,
) -> Detector:
    """Read and check the bundle, open its networks on `backend` and build the detector of `preset`.

    `threads` are CPU threads, by default this process's cores; `max_batch` is the number of samples in a UNet pass;
    `verify=False` skips the digests of the files. `detector.networks.close()` gives the memory back.
    Raises BundleError, SettingsError (unknown preset), BackendError (the backend is not there) or MissingExtra.
    """
    if backend not in BACKENDS:
        raise BackendError(f"the backend {backend!r} is unknown, expected one of {', '.join(BACKENDS)}")
    bundle = read_bundle(bundle_path, verify)
    from anomalysd_runtime.onnx_networks import OnnxNetworks  # here, so that another backend does not need onnxruntime

    networks: Networks = OnnxNetworks.of_bundle(bundle, backend, threads, max_batch)
    try:
        return detector_of(bundle, networks, preset)
    except BaseException:
        networks.close()
        raise
