"""How a bundle is opened: the options that the command line, the box, Ray, Triton and the benchmarks share."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from anomalysd_edge.bundle.backend_spec import backend_choice
from anomalysd_edge.errors import SettingsError

_BATCH_ON_CPU, _BATCH = 3, 16
"""On a CPU three samples at a time take as long as sixteen; four take 60 MiB more, sixteen twice as much in all."""
ON_MISMATCH = ("error", "rebuild", "onnxruntime")
"""Where no TensorRT engine fits this machine: raise, build one, or run ONNX Runtime and report it."""


@dataclass(frozen=True, kw_only=True)
class OpenOptions:
    """How a bundle is opened. Raises SettingsError for values that no bundle could be opened with."""

    preset: str = "edge"
    """Inspection preset of the bundle: edge or paper."""
    backend: str = "cpu"
    """KIND or KIND:PRECISION, as cuda:fp16; see backend_spec."""
    threads: int | None = None
    """CPU threads of the networks and of numpy; all cores of this process if None."""
    max_batch: int | None = None
    """Most samples in a UNet pass: changes memory and speed, never a verdict. None: see `largest_batch`."""
    force: bool = False
    """Run a precision that `sd-edge verify` refused."""
    public_key: Path | None = None
    """Public key (ed25519, PEM) that must have signed the bundle; None asks for no signature."""
    on_mismatch: str = "error"
    """One of ON_MISMATCH."""

    def __post_init__(self) -> None:
        if self.on_mismatch not in ON_MISMATCH:
            raise SettingsError(f"on_mismatch is {self.on_mismatch!r}, expected one of {', '.join(ON_MISMATCH)}")
        if self.max_batch is not None and self.max_batch < 1:
            raise SettingsError(f"max_batch is {self.max_batch}; it must be above 0")

    @property
    def largest_batch(self) -> int:
        """`max_batch`, or the smallest that is as fast as any: 3 on a CPU, 16 elsewhere."""
        if self.max_batch is not None:
            return self.max_batch
        return _BATCH_ON_CPU if backend_choice(self.backend).kind in ("cpu", "openvino") else _BATCH
