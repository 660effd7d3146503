"""From a bundle's path to a detector that can judge photos."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path

from anomalysd_edge.bundle.backend_spec import ENGINES, KINDS, BackendChoice, backend_choice, check_served
from anomalysd_edge.bundle.detector_factory import detector_of
from anomalysd_edge.bundle.reader import Bundle, read_bundle
from anomalysd_edge.core.threads import use_threads
from anomalysd_edge.errors import BackendError, EngineMismatch, SettingsError
from anomalysd_edge.method.detector import Detector
from anomalysd_edge.method.networks import Networks
from anomalysd_runtime.fallback import FallbackNetworks

LOG = logging.getLogger("anomalysd_runtime")
BACKENDS = KINDS
"""What `backend` may start with; ':fp16' and the like choose another precision of the bundle."""
ON_MISMATCH = ("error", "rebuild", "onnxruntime")
"""What happens where no engine fits this machine: say so, build anew, or run ONNX Runtime and say so."""


def open_detector(
    bundle_path: Path | str,
    preset: str = "edge",
    backend: str = "cpu",
    threads: int | None = None,
    max_batch: int = 16,
    verify: bool = True,
    *,
    force: bool = False,
    public_key: Path | None = None,
    on_mismatch: str = "error",
    rebuild: Callable[[Bundle, BackendChoice], Bundle] | None = None,
) -> Detector:
    """Read and check the bundle, open its networks on `backend` and build the detector of `preset`.

    `backend` is cpu, cuda or ort-tensorrt (ONNX Runtime), rtx or tensorrt (engines that `sd-edge build` made), with a
    precision of the bundle behind a colon: 'cuda:fp16'. `threads` are CPU threads, by default this process's cores,
    of numpy's products in the whole process, too; `max_batch` is the number of samples in a UNet pass; `verify=False`
    skips the digests of the files; `force` serves a precision that the gate refused; `public_key` demands its
    signature. Where no engine runs here (another fingerprint, no GPU), `on_mismatch` decides; 'rebuild' calls
    `rebuild`, which the command line brings.
    `detector.networks.close()` gives the memory back.
    Raises BundleError, SettingsError (unknown preset), BackendError (the backend is not there, the gate refused),
    EngineMismatch (no engine for this machine) or MissingExtra.
    """
    choice = backend_choice(backend)
    if on_mismatch not in ON_MISMATCH:
        raise SettingsError(f"on_mismatch is {on_mismatch!r}, expected one of {', '.join(ON_MISMATCH)}")
    bundle = read_bundle(Path(bundle_path), verify, public_key)
    if not force:
        check_served(choice, bundle.manifest.precisions.get(choice.precision), str(bundle_path))
    use_threads(threads)
    networks = _open(bundle, choice, threads, max_batch, on_mismatch, rebuild)
    try:
        return detector_of(bundle, networks, preset)
    except BaseException:
        networks.close()
        raise


def _open(
    bundle: Bundle,
    choice: BackendChoice,
    threads: int | None,
    max_batch: int,
    on_mismatch: str,
    rebuild: Callable[[Bundle, BackendChoice], Bundle] | None,
) -> Networks:
    def onnx(kind: str, precision: str) -> Networks:
        # Here, so that another backend does not need onnxruntime.
        from anomalysd_runtime.onnx.networks import OnnxNetworks

        return OnnxNetworks.of_bundle(bundle, kind, threads, max_batch, precision)

    if choice.kind not in ENGINES:
        opened = onnx(choice.kind, choice.precision)
        if choice.precision == "fp32":
            return opened
        return FallbackNetworks(opened, lambda: onnx(choice.kind, "fp32"))
    from anomalysd_runtime.tensorrt.networks import TensorrtNetworks

    def float32() -> Networks:
        return onnx(_onnx_kind(), "fp32")

    try:
        return FallbackNetworks(TensorrtNetworks.of_bundle(bundle, choice, max_batch), float32)
    except BackendError as mismatch:
        if on_mismatch == "rebuild" and rebuild is not None and isinstance(mismatch, EngineMismatch):
            LOG.warning("%s; building engines for this machine", mismatch)
            built = rebuild(bundle, choice)
            return FallbackNetworks(TensorrtNetworks.of_bundle(built, choice, max_batch), float32)
        if on_mismatch == "onnxruntime":
            kind = _onnx_kind()
            LOG.warning("%s; ONNX Runtime (%s) serves in its place, as was asked for", mismatch, kind)
            return FallbackNetworks(onnx(kind, choice.precision), lambda: onnx(kind, "fp32"))
        raise


def _onnx_kind() -> str:
    """cuda where this ONNX Runtime has it, else cpu."""
    from anomalysd_runtime.onnx.sessions import PROVIDERS, available_providers

    return "cuda" if PROVIDERS["cuda"] in available_providers() else "cpu"
