"""ONNX Runtime's execution providers, by name: those built into it, and those that come as packages of their own.

One is opened or there is an error; ONNX Runtime itself would go on with the CPU and say so on stderr at most.
"""

from __future__ import annotations

import contextlib
import importlib
import importlib.metadata
import io
import json
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

from anomalysd_edge.bundle.backend_spec import ONNX_RUNTIME, PROVIDER_PACKAGES
from anomalysd_edge.errors import BackendError, missing_extra

try:
    import onnxruntime as ort
except ModuleNotFoundError as error:
    raise missing_extra("onnxruntime", "cpu") from error

PROVIDERS: dict[str, str] = ONNX_RUNTIME
ON_CUDA = ("cuda", "ort-tensorrt")
"""Kinds whose tensors live in CUDA's memory. The others' are the CPU's, and a provider copies what it needs."""
TENSORRT_BUILDS = ("ort-tensorrt", "ort-rtx")
"""Kinds that build engines when a session is opened."""
ROUNDS_ITSELF = {"openvino": ("bf16",)}
"""Precisions that a kind makes of the exported float32 graphs while it runs: the bundle holds no graphs for them."""
RIVALS = ("onnxruntime", "onnxruntime-gpu", "onnxruntime-directml", "onnxruntime-openvino")
"""Distributions that write the same files: installed together, one lies half over the other."""


@dataclass(frozen=True)
class EngineHints:
    """What TENSORRT_BUILDS, and ROUNDS_ITSELF, want to know before they open a graph."""

    cache: Path | None = None
    """Folder for what they built; without it, every start builds anew."""
    types: tuple[str, ...] = ()
    """Number types beside float32 that the graph computes in (fp16, bf16, int8): the builder must be allowed to, and
    OpenVINO rounds to bf16 where it is among them."""
    shapes: Mapping[str, Sequence[tuple[int, int]]] = field(default_factory=dict)
    """(smallest, largest) length of every axis, by input; empty = found out as shapes come, with a build for each."""


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


def built_in() -> list[str]:
    """The execution providers that this build of ONNX Runtime has."""
    return list(ort.get_available_providers())


def check_device(device: str, available: Iterable[str] | None = None) -> None:
    """Raise BackendError unless `device` is a kind whose provider is built in, or there as a package."""
    if device not in PROVIDERS:
        raise BackendError(f"the device {device!r} is unknown here, expected one of {', '.join(PROVIDERS)}")
    offered = built_in() if available is None else list(available)
    if PROVIDERS[device] in offered or _registered(device):
        return
    module = PROVIDER_PACKAGES.get(device)
    if module is not None:
        _register(device, module)
        return
    remedy = (
        "reinstall it"
        if device == "cpu"
        else f"pip uninstall -y onnxruntime, then pip install 'anomalysd-edge[{'gpu' if device == 'cuda' else device}]'"
    )
    raise BackendError(
        f"{PROVIDERS[device]} was asked for and this onnxruntime {ort.__version__} has only {', '.join(offered)}: "
        f"{remedy}, or ask for another device"
    )


def add_provider(options: Any, device: str, name: str, hints: EngineHints) -> list[Any]:
    """Ready `options` (SessionOptions) for `device`; the answer is InferenceSession's `providers`, maybe empty.

    `name` is the network's, for files of its own. Raises BackendError, MissingExtra.
    """
    check_device(device)
    if device == "cpu":
        return [PROVIDERS["cpu"]]
    if device in ON_CUDA:
        load_cuda_libraries(tensorrt=device == "ort-tensorrt")
    if device in TENSORRT_BUILDS:
        # Neither has an option for TF32, which keeps 10 bits of the mantissa: NVIDIA's libraries read this.
        os.environ.setdefault("NVIDIA_TF32_OVERRIDE", "0")
    own = _options(device, name, hints)
    devices = _registered(device)
    if (
        devices
    ):  # a package's provider; once registered it is among the available ones, and by its name it does not start
        options.add_provider_for_devices(devices[:1], own)
        return []
    providers: list[Any] = [(PROVIDERS[device], own)]
    if device == "ort-tensorrt":  # what it cannot take runs on CUDA, as ONNX Runtime splits graphs
        providers.append((PROVIDERS["cuda"], _options("cuda", name, hints)))
    # The CPU comes last for the few shape computations that ONNX Runtime places there on purpose.
    return [*providers, PROVIDERS["cpu"]]


@cache
def load_cuda_libraries(tensorrt: bool = False) -> str:
    """Load CUDA and cuDNN (and TensorRT) from pip's packages, where they are; what ONNX Runtime said to it.

    The loader does not look there by itself, so without this a machine with only a driver gets no CUDA provider.
    """
    said = io.StringIO()
    if hasattr(ort, "preload_dlls"):
        with contextlib.redirect_stdout(said):  # it prints what it cannot load
            ort.preload_dlls()
    if tensorrt:
        try:
            importlib.import_module("tensorrt")  # loads libnvinfer; a Jetson's or a distribution's is found without
        except (ImportError, OSError, RuntimeError) as error:
            said.write(f"TensorRT was not loaded from pip's packages: {error}\n")
    return said.getvalue()


def _options(device: str, name: str, hints: EngineHints) -> dict[str, str]:
    """The provider's own options; their values are strings."""
    if device == "cuda":
        return {
            "device_id": "0",
            "use_tf32": "0",  # TF32 keeps 10 bits of the mantissa: the scores would leave the tolerance
            "cudnn_conv_algo_search": "HEURISTIC",  # EXHAUSTIVE times them: other runs, other choices, other bits
            "arena_extend_strategy": "kSameAsRequested",
        }
    if device == "openvino":  # on processors with bfloat16 it would round every float32 to it unasked
        rounded = "bf16" if "bf16" in hints.types else "f32"
        return {"load_config": json.dumps({"CPU": {"INFERENCE_PRECISION_HINT": rounded}})}
    if device not in TENSORRT_BUILDS:
        return {}
    prefix = "trt" if device == "ort-tensorrt" else "nv"
    found = {}
    for which, pick in (("min", 0), ("opt", 1), ("max", 1)):
        if hints.shapes:
            shapes = (f"{key}:{'x'.join(str(axis[pick]) for axis in axes)}" for key, axes in hints.shapes.items())
            found[f"{prefix}_profile_{which}_shapes"] = ",".join(shapes)
    if device == "ort-tensorrt":
        found |= {"device_id": "0", **{f"trt_{kind}_enable": "1" for kind in hints.types}}
    if hints.cache is not None and device == "ort-tensorrt":
        found |= {
            "trt_engine_cache_enable": "1", "trt_engine_cache_path": str(hints.cache), "trt_engine_cache_prefix": name,
            "trt_timing_cache_enable": "1", "trt_timing_cache_path": str(hints.cache),
        }  # fmt: skip
    elif hints.cache is not None:
        found["nv_runtime_cache_path"] = str(hints.cache)
    return found


def _register(device: str, module: str) -> None:
    """Load the package of a provider into ONNX Runtime. Raises MissingExtra, BackendError."""
    try:
        package = importlib.import_module(module)
        ort.register_execution_provider_library(package.get_ep_name(), package.get_library_path())
    except ModuleNotFoundError as error:
        raise missing_extra(module.replace("_", "-"), device) from error
    except Exception as error:  # onnxruntime's classes share no base of their own
        reason = str(error).strip().splitlines()[0]
        raise BackendError(
            f"{PROVIDERS[device]} was asked for and onnxruntime {ort.__version__} cannot load its package {module}: "
            f"{reason}; install the driver that it needs, or ask for another device"
        ) from error
    if not _registered(device):
        seen = sorted({str(entry.ep_name) for entry in ort.get_ep_devices()})
        raise BackendError(
            f"{PROVIDERS[device]} was asked for and its package {module} finds no device here (there are "
            f"{', '.join(seen)}): ask for another device"
        )


def _registered(device: str) -> list[Any]:
    """The devices of a provider that was registered; empty where ONNX Runtime has no such providers (before 1.23)."""
    if not hasattr(ort, "get_ep_devices"):
        return []
    return [entry for entry in ort.get_ep_devices() if entry.ep_name == PROVIDERS[device]]
