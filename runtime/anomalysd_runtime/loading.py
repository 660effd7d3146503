"""From a bundle's folder to a detector that can inspect photos."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path

from anomalysd_edge.bundle.backend_spec import ENGINES, BackendChoice, backend_choice, check_served
from anomalysd_edge.bundle.detector_factory import detector_of
from anomalysd_edge.bundle.open_options import OpenOptions
from anomalysd_edge.bundle.reader import Bundle, read_bundle
from anomalysd_edge.core.threads import use_threads
from anomalysd_edge.errors import BackendError, EngineMismatch
from anomalysd_edge.method.detector import Detector
from anomalysd_edge.method.networks import Networks
from anomalysd_runtime.fallback import FallbackNetworks

LOG = logging.getLogger("anomalysd_runtime")
Rebuild = Callable[[Bundle, BackendChoice], Bundle]
"""Builds the engines of a bundle for this machine and reads the bundle again."""


def open_detector(
    bundle_path: Path | str,
    preset: str = "edge",
    backend: str = "cpu",
    threads: int | None = None,
    max_batch: int | None = None,
    verify: bool = True,
    *,
    force: bool = False,
    public_key: Path | None = None,
    on_mismatch: str = "error",
    rebuild: Rebuild | None = None,
) -> Detector:
    """Read and check the bundle, open its networks on `backend` and build the detector of `preset`.

    The parameters are the fields of OpenOptions, and `verify` and `rebuild` those of open_with, which raises the same.
    """
    options = OpenOptions(
        preset=preset, backend=backend, threads=threads, max_batch=max_batch, force=force, public_key=public_key,
        on_mismatch=on_mismatch,
    )  # fmt: skip
    return open_with(Path(bundle_path), options, verify=verify, rebuild=rebuild)


def open_with(
    source: Path | Bundle, options: OpenOptions, *, verify: bool = True, rebuild: Rebuild | None = None
) -> Detector:
    """The detector of a bundle: its folder, which is read and checked, or one that was read and checked already.

    `verify=False` skips the files' digests. `threads` also sets those of numpy's products in the whole process. Where
    no engine fits this machine and `options.on_mismatch` is 'rebuild', `rebuild` is called. The detector is a context
    manager; `detector.networks.close()` frees the memory as well.
    Raises BundleError, SettingsError (unknown preset), BackendError (the backend is missing, or its precision was
    refused by `sd-edge verify`), EngineMismatch (no engine for this machine) or MissingExtra.
    """
    choice = backend_choice(options.backend)
    bundle = source if isinstance(source, Bundle) else read_bundle(source, verify, options.public_key)
    if not options.force:
        check_served(choice, bundle.manifest.precisions.get(choice.precision), str(bundle.path))
    use_threads(options.threads)
    networks = _open(bundle, choice, options, rebuild)
    try:
        return detector_of(bundle, networks, options.preset)
    except BaseException:
        networks.close()
        raise


def _open(bundle: Bundle, choice: BackendChoice, options: OpenOptions, rebuild: Rebuild | None) -> Networks:
    max_batch = options.largest_batch

    def onnx(kind: str, precision: str) -> Networks:
        # Here, so that another backend does not need onnxruntime.
        from anomalysd_runtime.onnx.networks import OnnxNetworks

        return OnnxNetworks.of_bundle(bundle, kind, options.threads, max_batch, precision)

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
        if options.on_mismatch == "rebuild" and rebuild is not None and isinstance(mismatch, EngineMismatch):
            LOG.warning("%s; building engines for this machine", mismatch)
            built = rebuild(bundle, choice)
            return FallbackNetworks(TensorrtNetworks.of_bundle(built, choice, max_batch), float32)
        if options.on_mismatch == "onnxruntime":
            kind = _onnx_kind()
            LOG.warning("%s; ONNX Runtime (%s) serves in its place, as was asked for", mismatch, kind)
            return FallbackNetworks(onnx(kind, choice.precision), lambda: onnx(kind, "fp32"))
        raise


def _onnx_kind() -> str:
    """cuda where this ONNX Runtime has it and it runs, else cpu."""
    from anomalysd_runtime.onnx.providers import PROVIDERS, built_in
    from anomalysd_runtime.onnx.sessions import trouble

    if PROVIDERS["cuda"] not in built_in():
        return "cpu"
    why = trouble("cuda")
    if why is not None:
        LOG.warning("ONNX Runtime serves on the CPU: %s", why)
    return "cpu" if why else "cuda"
