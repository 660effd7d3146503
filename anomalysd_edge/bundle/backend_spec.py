"""Names of backends: what runs the networks, and in which precision. 'cpu', 'cuda:fp16', 'rtx:int8'."""

from __future__ import annotations

from dataclasses import dataclass

from anomalysd_edge.bundle.engine_records import PRECISIONS, QUANTISED, PrecisionRecord
from anomalysd_edge.errors import BackendError

ONNX_RUNTIME = {
    "cpu": "CPUExecutionProvider",
    "cuda": "CUDAExecutionProvider",
    "ort-tensorrt": "TensorrtExecutionProvider",
    "ort-rtx": "NvTensorRTRTXExecutionProvider",
    "openvino": "OpenVINOExecutionProvider",
    "webgpu": "WebGpuExecutionProvider",
}
"""Kinds that ONNX Runtime serves, with the provider that must be running."""
PROVIDER_PACKAGES = {
    "ort-rtx": "onnxruntime_ep_nv_tensorrt_rtx",
    "openvino": "onnxruntime_ep_openvino",
    "webgpu": "onnxruntime_ep_webgpu",
}
"""Modules of providers that come as packages, by kind; the extra has the kind's name."""
ENGINES = {"rtx": "tensorrt_rtx", "tensorrt": "tensorrt"}
"""Kinds that run engines built beforehand, with the library's module."""
KINDS = (*ONNX_RUNTIME, *ENGINES)


@dataclass(frozen=True)
class BackendChoice:
    """One backend, as it was asked for."""

    kind: str
    """One of ONNX_RUNTIME, or rtx or tensorrt (engines)."""
    precision: str = "fp32"
    """fp32, fp16, bf16, int8 or fp8."""

    def __str__(self) -> str:
        return self.kind if self.precision == "fp32" else f"{self.kind}:{self.precision}"


def backend_choice(text: str) -> BackendChoice:
    """'KIND' or 'KIND:PRECISION'. Raises BackendError naming what there is."""
    kind, _, precision = text.strip().partition(":")
    if kind not in KINDS:
        raise BackendError(
            f"the backend {kind!r} is unknown, expected one of {', '.join(KINDS)}, with a precision as in 'cpu:fp16'"
        )
    if (precision or "fp32") not in PRECISIONS:
        raise BackendError(f"the precision {precision!r} is unknown, expected one of {', '.join(PRECISIONS)}")
    return BackendChoice(kind, precision or "fp32")


def check_served(choice: BackendChoice, record: PrecisionRecord | None, where: str) -> None:
    """Raise BackendError where the gate refused this precision, or where it needs a gate and never saw one.

    `record` is the manifest's, None for the exported float32 graphs. Verdicts of one kind of backend do not speak for
    another, but a refusal anywhere is a refusal until this very backend has passed.
    """
    if choice.precision == "fp32" or record is None:
        return
    own = record.gates.get(choice.kind)
    refused = own is not None and not own.passed
    if own is None:
        refused = any(not gate.passed for gate in record.gates.values())
    again = f"'sd-edge verify {where} --backend cpu,{choice} --photos DIR --labels'"
    if refused:
        raise BackendError(
            f"the gate refused {choice.precision} in {where} (see its manifest): use another precision, judge it again "
            f"with {again}, or serve it nevertheless with --force"
        )
    if choice.precision in QUANTISED and not any(gate.passed for gate in record.gates.values()):
        raise BackendError(
            f"{choice.precision} in {where} has not passed the gate yet, and quantised graphs are served only then: "
            f"run {again}, or serve it nevertheless with --force"
        )
