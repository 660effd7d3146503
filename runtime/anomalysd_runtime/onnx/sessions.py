"""ONNX Runtime sessions on the asked-for device, or a clear error: never quietly on another one."""

from __future__ import annotations

import importlib.metadata
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from anomalysd_edge.bundle.backend_spec import ONNX_RUNTIME
from anomalysd_edge.errors import BackendError, BundleError, missing_extra

try:
    import onnxruntime as ort
except ModuleNotFoundError as error:
    raise missing_extra("onnxruntime", "cpu") from error

T = TypeVar("T")

PROVIDERS: dict[str, str] = ONNX_RUNTIME
RIVALS = ("onnxruntime", "onnxruntime-gpu", "onnxruntime-directml", "onnxruntime-openvino")
"""Distributions that write the same files: installed together, one lies half over the other."""


def check_one_onnxruntime(installed: Iterable[str] | None = None) -> None:
    """Raise BackendError if more than one of RIVALS is installed (`installed`: distribution names, for tests)."""
    if installed is None:
        installed = (entry.metadata["Name"] or "" for entry in importlib.metadata.distributions())
    found = sorted({name.lower().replace("_", "-") for name in installed} & set(RIVALS))
    if len(found) > 1:
        raise BackendError(
            f"{' and '.join(found)} are installed together and overwrite each other's files, expected one of them: "
            f"pip uninstall -y {' '.join(found)}, then pip install 'anomalysd-edge[cpu]' or 'anomalysd-edge[gpu]'"
        )


def check_device(device: str, available: Iterable[str] | None = None) -> None:
    """Raise BackendError unless this build of ONNX Runtime has the provider of `device`."""
    if device not in PROVIDERS:
        raise BackendError(f"the device {device!r} is unknown here, expected one of {', '.join(PROVIDERS)}")
    offered = list(ort.get_available_providers() if available is None else available)
    if PROVIDERS[device] not in offered:
        remedy = (
            "pip uninstall -y onnxruntime, then pip install 'anomalysd-edge[gpu]'"
            if device != "cpu"
            else "reinstall it"
        )
        raise BackendError(
            f"{PROVIDERS[device]} was asked for and this onnxruntime {ort.__version__} has only {', '.join(offered)}: "
            f"{remedy}, or ask for another device"
        )


def available_providers() -> list[str]:
    """The execution providers that this build of ONNX Runtime has."""
    return list(ort.get_available_providers())


def open_session(model: Path | bytes, device: str, threads: int, name: str) -> Any:
    """An onnxruntime.InferenceSession on `device`. Raises BackendError or BundleError.

    Memory: ONNX Runtime keeps its arena, sized by the largest batch seen, until the session is closed; that is wanted
    here, since every photo brings the same batches. On CUDA the arena grows by what is asked, not in powers of two.
    """
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 3
    # Five sessions have five thread pools: threads that kept spinning after a run would slow the next network down.
    options.add_session_config_entry("session.force_spinning_stop", "1")
    if isinstance(model, bytes):
        # The step graph: rounding must be that of its own nodes, in their order.
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    try:
        session = ort.InferenceSession(
            model if isinstance(model, bytes) else str(model), sess_options=options, providers=_providers(device)
        )
    except Exception as error:  # onnxruntime's classes share no base of their own
        where = "built in" if isinstance(model, bytes) else str(model)
        raise BundleError(
            f"onnxruntime {ort.__version__} cannot open the network {name!r} ({where}): "
            f"{str(error).splitlines()[0]}; copy or export the bundle again, or update onnxruntime"
        ) from error
    running = session.get_providers()
    if PROVIDERS[device] not in running:
        raise BackendError(
            f"{PROVIDERS[device]} was asked for and onnxruntime started {', '.join(running)} instead, as it does when "
            "CUDA or cuDNN libraries do not load: install those that this onnxruntime release names, or ask for the CPU"
        )
    return session


def _providers(device: str) -> list[Any]:
    if device == "cpu":
        return [PROVIDERS["cpu"]]
    settings = {
        "device_id": 0,
        "use_tf32": 0,  # TF32 keeps 10 bits of the mantissa: the scores would leave the tolerance
        "cudnn_conv_algo_search": "HEURISTIC",  # EXHAUSTIVE times the algorithms: other runs, other choices, other bits
        "arena_extend_strategy": "kSameAsRequested",
    }
    if device == "ort-tensorrt":
        # It builds engines when it first sees a shape; what it cannot take runs on CUDA, as ONNX Runtime splits graphs.
        return [(PROVIDERS["ort-tensorrt"], {"device_id": 0}), (PROVIDERS["cuda"], settings), PROVIDERS["cpu"]]
    # The CPU comes second for the few shape computations that ONNX Runtime places there on purpose.
    return [(PROVIDERS["cuda"], settings), PROVIDERS["cpu"]]


def put(device: str, array: Any) -> Any:
    """A numpy array as an OrtValue on `device`."""
    return ort.OrtValue.ortvalue_from_numpy(np.ascontiguousarray(array), _place(device), 0)


def room(device: str, shape: tuple[int, ...]) -> Any:
    """An unfilled float32 OrtValue on `device`."""
    return ort.OrtValue.ortvalue_from_shape_and_type(list(shape), np.float32, _place(device), 0)


def _place(device: str) -> str:
    """Where tensors of a device live: both providers of an NVIDIA GPU use CUDA's memory."""
    return "cpu" if device == "cpu" else "cuda"


def run(session: Any, feeds: Mapping[str, Any], name: str) -> Any:
    """The first output, a numpy array, for numpy inputs. Raises BackendError with ONNX Runtime's own words."""
    return _guarded(lambda: session.run(None, dict(feeds))[0], name)


def run_bound(session: Any, inputs: Mapping[str, Any], outputs: Mapping[str, Any], name: str) -> None:
    """Run from and into OrtValues that stay where they are. Raises BackendError.

    run_with_iobinding waits for the session's stream before it returns, so another session may read the outputs.
    """
    binding = session.io_binding()
    for key, value in inputs.items():
        binding.bind_ortvalue_input(key, value)
    for key, value in outputs.items():
        binding.bind_ortvalue_output(key, value)
    _guarded(lambda: session.run_with_iobinding(binding), name)


def _guarded(call: Callable[[], T], name: str) -> T:
    try:
        return call()
    except Exception as error:  # onnxruntime's classes share no base of their own
        raise BackendError(
            f"onnxruntime {ort.__version__} failed in the network {name!r}: {str(error).splitlines()[0]}; "
            "if memory ran out, lower max_batch"
        ) from error
