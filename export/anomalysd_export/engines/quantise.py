"""Static QDQ: convolutions and matrix products whose inputs pass through int8 or fp8, the rest in float16.

Ranges are found by ONNX Runtime's own calibrator and quantizer. The scheme is the one that TensorRT's builders take:
symmetric, one scale a tensor for activations and one a channel for weights, no quantised biases, no quantised outputs.
"""

from __future__ import annotations

import logging
import tempfile
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import onnx
from onnx import TensorProto, numpy_helper, version_converter

from anomalysd_edge.core.types import Array
from anomalysd_edge.errors import BundleError, SettingsError, missing_extra
from anomalysd_export.engines.lowering import lower

Feeds = Sequence[Mapping[str, Array]]

KINDS = ("Conv", "Gemm", "MatMul")
"""What is quantised, where one side is a weight: products of two activations (attention) keep their precision."""
FP8_MAX, INT8_MAX = 448.0, 127.0
QDQ_OPSET = 19
"""The first whose QuantizeLinear knows float16 scales and float8."""
SMALLEST_SCALE = 6e-8
"""float16's smallest number: a scale that were 0 could not be divided by."""


@dataclass(frozen=True)
class Quantised:
    """What became of a graph."""

    model: onnx.ModelProto
    """QDQ graph, float16 outside the quantised nodes."""
    nodes: tuple[str, ...]
    """Names of the quantised nodes."""
    islands: tuple[str, ...]
    """Nodes that compute in float32."""


def quantise(file: Path, network: str, precision: str, feeds: Feeds) -> Quantised:
    """The float32 graph `file` in int8 or fp8, its ranges from `feeds` (inputs by name, one entry a run).

    Raises SettingsError without feeds or for another precision, BundleError where nothing can be quantised.
    """
    if precision not in ("int8", "fp8"):
        raise SettingsError(f"{precision!r} is no quantised precision; expected int8 or fp8")
    if not feeds:
        raise SettingsError(
            f"{precision} of the network {network!r} needs good photos to find its ranges; give them with --photos"
        )
    model = onnx.load(str(file))
    _name_nodes(model)
    chosen = quantisable(model)
    if not chosen:
        raise BundleError(f"{file} has no convolution or matrix product to quantise; use fp16 for {network!r}")
    originals = {entry.name: entry for entry in model.graph.initializer}
    weights = {name: numpy_helper.to_array(entry) for name, entry in originals.items() if len(entry.dims) >= 2}
    quantised = _with_onnxruntime(version_converter.convert_version(model, QDQ_OPSET), chosen, feeds)
    if precision == "fp8":
        _to_float8(quantised, weights)
    types = onnx.shape_inference.infer_shapes(quantised)
    lowered = lower(types, network, "fp16")
    _keep_scales_above_zero(lowered.model)
    return Quantised(lowered.model, tuple(chosen), tuple(lowered.islands))


def quantisable(model: onnx.ModelProto) -> list[str]:
    """Names of the nodes to quantise: all of KINDS with a weight, but the first and last convolution.

    The first sees latents, mask and masked latents of unlike ranges in one tensor; the last writes the result itself.
    """
    weights = {entry.name for entry in model.graph.initializer}
    found = [node for node in model.graph.node if node.op_type in KINDS and node.input[1] in weights]
    convolutions = [node.name for node in found if node.op_type == "Conv"]
    ends = {convolutions[0], convolutions[-1]} if len(convolutions) > 2 else set()
    return [node.name for node in found if node.name not in ends]


def _name_nodes(model: onnx.ModelProto) -> None:
    for number, node in enumerate(model.graph.node):
        node.name = node.name or f"{node.op_type}_{number}"


def _with_onnxruntime(model: onnx.ModelProto, chosen: list[str], feeds: Feeds) -> onnx.ModelProto:
    try:
        from onnxruntime import quantization
    except ModuleNotFoundError as error:
        raise missing_extra("onnxruntime", "cpu") from error

    class Reader(quantization.CalibrationDataReader):  # type: ignore[misc]
        def __init__(self) -> None:
            self.left: Iterator[Mapping[str, Array]] = iter(feeds)

        def get_next(self) -> Any:
            following = next(self.left, None)
            return None if following is None else dict(following)

    with tempfile.TemporaryDirectory() as folder, _quiet():
        out = Path(folder) / "quantised.onnx"
        quantization.quantize_static(
            model,
            str(out),
            Reader(),
            quant_format=quantization.QuantFormat.QDQ,
            op_types_to_quantize=list(KINDS),
            nodes_to_quantize=chosen,
            per_channel=True,
            activation_type=quantization.QuantType.QInt8,
            weight_type=quantization.QuantType.QInt8,
            calibrate_method=quantization.CalibrationMethod.MinMax,
            extra_options={
                "ActivationSymmetric": True,
                "WeightSymmetric": True,
                "QuantizeBias": False,
                "OpTypesToExcludeOutputQuantization": list(KINDS),
                "MatMulConstBOnly": True,
                "QDQKeepRemovableActivations": True,
            },
        )
        return onnx.load(str(out))


def _to_float8(model: onnx.ModelProto, weights: Mapping[str, Array]) -> None:
    """Re-encode an int8 QDQ graph as float8 e4m3: the same ranges, the weights anew from `weights`."""
    graph = model.graph
    constants = {entry.name: entry for entry in graph.initializer}
    zero = numpy_helper.from_array(np.zeros((), ml_dtypes.float8_e4m3fn), "zero_float8")
    scales: dict[str, Array] = {}
    for node in graph.node:
        if node.op_type not in ("QuantizeLinear", "DequantizeLinear"):
            continue
        scale = numpy_helper.to_array(constants[node.input[1]]) * (INT8_MAX / FP8_MAX)
        scales[node.input[1]] = scale
        stored = constants.get(node.input[0])
        if node.op_type == "DequantizeLinear" and stored is not None and stored.data_type == TensorProto.INT8:
            original = weights[stored.name.removesuffix("_quantized")]
            axis = next((entry.i for entry in node.attribute if entry.name == "axis"), 0)
            shape = [-1 if i == axis and scale.size > 1 else 1 for i in range(original.ndim)]
            eighth = (original / np.maximum(scale, SMALLEST_SCALE).reshape(shape)).clip(-FP8_MAX, FP8_MAX)
            stored.CopyFrom(numpy_helper.from_array(eighth.astype(ml_dtypes.float8_e4m3fn), stored.name))
        channels = np.zeros(scale.shape, ml_dtypes.float8_e4m3fn)
        if scale.size > 1:
            name = f"{node.input[1]}_zero_float8"
            if name not in constants:
                constants[name] = numpy_helper.from_array(channels, name)
                graph.initializer.append(constants[name])
            node.input[2] = name
        else:
            node.input[2] = zero.name
    for name, scale in scales.items():
        constants[name].CopyFrom(numpy_helper.from_array(np.asarray(scale, np.float32), name))
    graph.initializer.append(zero)


def _keep_scales_above_zero(model: onnx.ModelProto) -> None:
    used = {n.input[1] for n in model.graph.node if n.op_type in ("QuantizeLinear", "DequantizeLinear")}
    for entry in model.graph.initializer:
        if entry.name in used:
            values = numpy_helper.to_array(entry)
            if not (values > 0).all():
                lifted = np.maximum(values, np.asarray(SMALLEST_SCALE, values.dtype))
                entry.CopyFrom(numpy_helper.from_array(lifted, entry.name))


@contextmanager
def _quiet() -> Iterator[None]:
    """The quantizer logs advice (to preprocess, about opsets) for graphs that it then handles."""
    logger = logging.getLogger()
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)
            yield
    finally:
        logger.setLevel(level)
