"""Writing the repository: a model a network, and the inspection as a Python model that calls them.

    DIR/NAME_unet/config.pbtxt, 1/model.onnx       and so for vae_encoder, vae_decoder, perceptual, features
    DIR/NAME/config.pbtxt, 1/model.py, bundle/     the bundle's manifest and constants

Triton batches what several inspections ask of a network at the same time; `instances` of the inspection are what lets
them ask at the same time. The graphs are the bundle's own, and the Detector is the runtime's: anomalysd-edge has to be
installed in Triton's Python.
"""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from anomalysd_edge.bundle.backend_spec import ENGINES, PROVIDER_PACKAGES, BackendChoice, backend_choice, check_served
from anomalysd_edge.bundle.detector_factory import preset_settings
from anomalysd_edge.bundle.manifest import NetworkRecord, TensorRecord
from anomalysd_edge.bundle.open_options import OpenOptions
from anomalysd_edge.bundle.reader import CONSTANTS, MANIFEST, Bundle
from anomalysd_edge.bundle.signing import SIGNATURE
from anomalysd_edge.core.files import folder_aside
from anomalysd_edge.errors import BundleError, SettingsError
from anomalysd_export.triton.pbtxt import Text, message
from anomalysd_runtime.static_batches import PIXELS_A_CALL

TYPES = {"float32": "TYPE_FP32", "int64": "TYPE_INT64"}
CONFIG = "config.pbtxt"
QUEUE_US = 2000
"""How long a network waits for others to join a batch; a UNet pass takes longer on every device."""
MODEL = '''"""The inspection as Triton's Python backend loads it; all of it is in the package."""

from anomalysd_runtime.distributed.triton_model import TritonPythonModel

__all__ = ["TritonPythonModel"]
'''


@dataclass(frozen=True, kw_only=True)
class TritonSettings:
    """How the repository is laid out."""

    name: str
    """Of the inspection; the networks' names begin with it."""
    options: OpenOptions = field(default_factory=lambda: OpenOptions(backend="cuda"))
    """Preset, largest batch of a network, and backend: cpu, cuda or ort-tensorrt; threads are Triton's own."""
    group: int = 4
    """Photos that the inspection takes at once."""
    instances: int = 2
    """Copies of the inspection model, each with a group of photos at a time."""

    def __post_init__(self) -> None:
        if min(self.group, self.instances) < 1:
            raise SettingsError("group and instances must be at least 1")
        kind = backend_choice(self.options.backend).kind
        if kind in PROVIDER_PACKAGES:
            raise SettingsError(
                f"{kind} is a package for ONNX Runtime in Python, which Triton's has no place for: use cpu, cuda or "
                "ort-tensorrt"
            )
        if kind in ENGINES:
            raise SettingsError(
                f"{self.options.backend} has engines of fixed batch sizes, which Triton's batching does not meet; use "
                "ort-tensorrt, which lets Triton's ONNX Runtime build TensorRT engines from the same graphs"
            )


def write_repository(bundle: Bundle, out: Path, settings: TritonSettings) -> list[str]:
    """Write the models into `out`, each whole or not at all, the inspection last; their names.

    Other models of `out` stay as they are. Raises BundleError and BackendError.
    """
    choice = backend_choice(settings.options.backend)
    preset_settings(bundle, settings.options.preset)
    if not settings.options.force:
        check_served(choice, bundle.manifest.precisions.get(choice.precision), str(bundle.path))
    names = []
    for network, record in bundle.manifest.networks.items():
        name = f"{settings.name}_{network}"
        file = bundle.network_file(network, choice.precision)
        config = network_config(name, network, record, file.name, choice, settings)
        with folder_aside(out / name, marker=CONFIG) as folder:
            (folder / "1").mkdir()
            for part in (file, file.with_name(file.name + ".data")):  # a graph names its weights by their file's name
                if part.is_file():
                    shutil.copyfile(part, folder / "1" / part.name)
            (folder / CONFIG).write_text(message(config), encoding="ascii")
        names.append(name)
    with folder_aside(out / settings.name, marker=CONFIG) as folder:
        (folder / "1").mkdir()
        (folder / "1/model.py").write_text(MODEL, encoding="ascii")
        (folder / "bundle").mkdir()
        for member in (MANIFEST, CONSTANTS, SIGNATURE):
            if (bundle.path / member).is_file():
                shutil.copyfile(bundle.path / member, folder / "bundle" / member)
        (folder / CONFIG).write_text(message(inspection_config(settings, choice)), encoding="ascii")
    return [*names, settings.name]


def network_config(
    name: str, network: str, record: NetworkRecord, file: str, choice: BackendChoice, settings: TritonSettings
) -> Text:
    """config.pbtxt of a network. Raises BundleError where the manifest does not say what the graph takes."""
    if not record.inputs or not record.outputs:
        raise BundleError(f"the manifest does not say what {network} takes and gives: export the bundle again")
    # All of a network's tensors have to share their first axis for Triton to batch; references and repaints do not.
    batched = len({tensor.shape[0] for tensor in (*record.inputs, *record.outputs)}) == 1
    config: Text = {
        "name": name,
        "backend": "onnxruntime",
        "default_model_filename": file,
        "max_batch_size": _most(record, settings.options.largest_batch) if batched else 0,
        "input": [_tensor(tensor, batched) for tensor in record.inputs],
        "output": [_tensor(tensor, batched) for tensor in record.outputs],
        "instance_group": [_instances(1, choice)],
    }
    if batched:
        config["dynamic_batching"] = {"max_queue_delay_microseconds": QUEUE_US}
    accelerators = [*_tensorrt(name, choice), *_cuda()] if choice.kind != "cpu" else []
    if accelerators:
        config["optimization"] = {"execution_accelerators": {"gpu_execution_accelerator": accelerators}}
    return config


def _tensorrt(name: str, choice: BackendChoice) -> list[Text]:
    """TensorRT's accelerator, where it is asked for: the graph's own precision, engines kept from start to start.

    TF32 has no parameter here: Triton has to be started with NVIDIA_TF32_OVERRIDE=0 (docs/fleet.md).
    """
    if choice.kind != "ort-tensorrt":
        return []
    cache = f"/var/cache/{name}"  # on Triton's machine; ONNX Runtime makes the folder, not those above it
    return [_accelerator("tensorrt", {
        "precision_mode": "FP32" if choice.precision == "fp32" else "FP16",
        "trt_engine_cache_enable": "1", "trt_engine_cache_path": cache,
        "trt_timing_cache_enable": "1", "trt_timing_cache_path": cache,
    })]  # fmt: skip


def _cuda() -> list[Text]:
    """CUDA's, also for what TensorRT cannot take. Triton's defaults would round float32 to TF32, and time every
    convolution's algorithms anew for every shape that batching makes.
    """
    return [_accelerator("cuda", {
        "use_tf32": "0", "cudnn_conv_algo_search": "HEURISTIC", "arena_extend_strategy": "kSameAsRequested",
    })]  # fmt: skip


def _accelerator(name: str, parameters: dict[str, str]) -> Text:
    return {"name": name, "parameters": [{"key": key, "value": value} for key, value in parameters.items()]}


def _most(record: NetworkRecord, max_batch: int) -> int:
    """The largest batch of a network: pictures are bounded by their pixels, which fill the memory."""
    sides = [axes[-1] for tensor in (*record.inputs, *record.outputs) if len(axes := tensor.shape) == 4]
    pictures = any(tensor.shape[1] == 3 for tensor in (*record.inputs, *record.outputs) if len(tensor.shape) == 4)
    largest = max((side for side in sides if isinstance(side, int)), default=1)
    return min(max_batch, max(1, PIXELS_A_CALL // largest**2)) if pictures else max_batch


def inspection_config(settings: TritonSettings, choice: BackendChoice) -> Text:
    """config.pbtxt of the inspection: a photo (an image file) and its class in, the verdict out."""

    def tensor(name: str, kind: str, dims: Sequence[int], **more: object) -> Text:
        return {"name": name, "data_type": f"!{kind}", "dims": list(dims), **more}

    parameters = {
        "preset": settings.options.preset, "networks": settings.name, "max_batch": settings.options.largest_batch,
        "backend": str(choice),
    }  # fmt: skip
    return {
        "name": settings.name,
        "backend": "python",
        "max_batch_size": settings.group,
        "input": [tensor("photo", "TYPE_STRING", [1]), tensor("class", "TYPE_STRING", [1], optional=True)],
        "output": [
            tensor("pred_score", "TYPE_FP32", [1]),
            tensor("pred_label", "TYPE_INT32", [1]),
            tensor("threshold", "TYPE_FP32", [1]),
            tensor("verdict", "TYPE_STRING", [1]),
            tensor("pred_probability", "TYPE_FP32", [1]),
            tensor("limits", "TYPE_FP32", [2]),
            tensor("anomaly_map", "TYPE_FP32", [-1, -1]),
            tensor("pred_mask", "TYPE_BOOL", [-1, -1]),
        ],
        # The Detector itself is numpy: it stays on the CPU wherever the networks are.
        "instance_group": [_instances(settings.instances, BackendChoice("cpu"))],
        "dynamic_batching": {"max_queue_delay_microseconds": 2 * QUEUE_US},
        "parameters": [{"key": key, "value": {"string_value": str(value)}} for key, value in parameters.items()],
    }


def _tensor(tensor: TensorRecord, batched: bool) -> Text:
    if tensor.dtype not in TYPES:
        raise BundleError(f"{tensor.name} is {tensor.dtype}, expected one of {', '.join(TYPES)}: export again")
    dims = [axis if isinstance(axis, int) else -1 for axis in (tensor.shape[1:] if batched else tensor.shape)]
    found: Text = {"name": tensor.name, "data_type": f"!{TYPES[tensor.dtype]}", "dims": dims or [1]}
    if not dims:  # a number a sample: Triton knows no tensor without axes
        found["reshape"] = {"shape": []}
    return found


def _instances(count: int, choice: BackendChoice) -> Text:
    return {"count": count, "kind": "!KIND_CPU" if choice.kind == "cpu" else "!KIND_GPU"}
