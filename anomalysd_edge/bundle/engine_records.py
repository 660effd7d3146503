"""What a manifest says of precisions and engines, and the fingerprint that an engine must match before it is read."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass, field
from typing import Any

PRECISIONS = ("fp32", "fp16", "bf16", "int8", "fp8")
"""fp32 are the exported graphs themselves; the others are graphs made from them, with float32 inputs and outputs."""
QUANTISED = ("int8", "fp8")
"""Served only after the gate accepted them."""


@dataclass(frozen=True)
class VariantRecord:
    """One network's graph in one precision."""

    file: str
    """Path inside the bundle, with slashes."""
    sha256: str
    """Over the graph and its external weights: what an engine's fingerprint holds."""
    float32_nodes: int = 0
    """Computing nodes that stay in float32 (islands)."""
    quantised_nodes: int = 0
    """Convolutions and matrix products whose inputs are quantised."""
    max_abs: float | None = None
    """Largest difference of an output value from the float32 graph, on example inputs; fp16 only."""


@dataclass(frozen=True)
class GateRecord:
    """What `verify` found when it held a precision against the exported graphs."""

    reference: str
    """The backend that was taken for right."""
    backend: str
    """The backend that ran this precision."""
    photos: int
    """Photos judged by both."""
    flips: int
    """Verdicts that differed."""
    score_difference: float
    """Largest difference of an image score."""
    auroc_drop: float | None
    """How far the mean image or pixel AUROC fell, whichever fell more, in [0,1]; absent without labels."""
    allowed_flips: int
    """The gate's setting."""
    allowed_auroc_drop: float
    """The gate's setting."""
    passed: bool
    """Whether this precision may be served on this backend."""
    created: str = ""
    """UTC, ISO 8601."""


@dataclass(frozen=True)
class PrecisionRecord:
    """The graphs of one precision, and whether they may be served."""

    networks: dict[str, VariantRecord]
    """By network name."""
    calibration: dict[str, Any] = field(default_factory=dict)
    """How the ranges of quantised tensors were found; empty for fp16 and bf16."""
    gates: dict[str, GateRecord] = field(default_factory=dict)
    """By kind of backend (cpu, cuda, rtx, tensorrt): the last verdict of `verify`."""


@dataclass(frozen=True)
class Fingerprint:
    """Everything that decides whether an engine may be loaded here. Field by field, so that a mismatch has a name."""

    network: str
    """unet, vae_encoder, ..., or step (the DDIM update)."""
    onnx_sha256: str
    """Of the graph that it was built from, with its external weights."""
    library: str
    """tensorrt or tensorrt_rtx."""
    library_version: str
    """Its full version: engines of one release do not load in another."""
    gpu: tuple[str, ...]
    """Architectures that it runs on, for instance sm86; 'portable' for every one of TensorRT for RTX from Ampere on."""
    precision: str
    """fp32, fp16, bf16, int8 or fp8."""
    batches: tuple[int, ...]
    """Batch sizes, one static profile each."""
    recipe: int = 1
    """Version of the builder's settings (tensorrt/library.py): other settings, other kernels and numbers."""

    @property
    def digest(self) -> str:
        """16 hexadecimal digits over all fields: the engine's folder."""
        text = json.dumps(asdict(self), sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:16]


@dataclass(frozen=True)
class EngineRecord:
    """One engine of the bundle."""

    fingerprint: Fingerprint
    """What it was built from and for."""
    file: str
    """Path inside the bundle, with slashes."""
    bytes: int
    """Its length."""
    sha256: str
    """Its digest: a truncated engine is refused before the library sees it."""
    predicted_peak_bytes: int = 0
    """Device memory that the profiles were chosen for: weights and the largest activations, without fusion."""
    build_seconds: float = 0.0
    """Time of the building process."""
    build_cpu_seconds: float = 0.0
    """CPU time of the building process: what a busy machine does not stretch."""
    build_peak_bytes: int = 0
    """Largest resident memory of the building process."""
