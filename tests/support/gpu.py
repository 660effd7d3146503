"""What tests marked `gpu` need of an NVIDIA GPU, and of one that breaks."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from anomalysd_edge.core.types import U8
from anomalysd_edge.errors import BackendError
from anomalysd_edge.method.detector import Detector
from anomalysd_edge.method.result import Inspection
from anomalysd_runtime.server.inference.worker import open_bundle
from anomalysd_runtime.server.settings import EngineSettings
from tests.support.serving import NAN

STORES_AT_16 = b""".version 7.0
.target sm_75
.address_size 64
.visible .entry bad() {
  .reg .b64 %place;
  .reg .b32 %value;
  mov.u64 %place, 16;
  mov.u32 %value, 1;
  st.global.u32 [%place], %value;
  ret;
}
\0"""
"""A kernel in PTX, which the driver compiles: it writes where nothing was ever allocated."""


def need_cuda() -> None:
    """Skip where ONNX Runtime runs nothing on a GPU, with its own reason."""
    from anomalysd_runtime.onnx.sessions import trouble

    why = trouble("cuda")
    if why is not None:
        pytest.skip(f"no CUDA here, so this was not run: {why}")


def need_cuda_bindings() -> None:
    """Skip where there is no GPU, or no package to call CUDA with."""
    from anomalysd_runtime.tensorrt.cuda_device import gpu

    try:
        gpu()
    except BackendError as error:
        pytest.skip(f"no NVIDIA GPU here, so this was not run: {error}")


def break_the_context() -> None:
    """An illegal access: from here on every CUDA call of this process fails."""
    from cuda.bindings import driver, runtime

    runtime.cudaFree(0)  # makes the context that everyone of this process shares
    code, module = driver.cuModuleLoadData(STORES_AT_16)
    assert int(code) == 0, code
    code, kernel = driver.cuModuleGetFunction(module, b"bad")
    assert int(code) == 0, code
    driver.cuLaunchKernel(kernel, 1, 1, 1, 1, 1, 1, 0, 0, 0, 0)
    (code,) = driver.cuCtxSynchronize()
    assert int(code) != 0, "the illegal access was not noticed"


class Breaking(Detector):
    """A detector that breaks its GPU on photos whose first pixel is NAN."""

    def inspect(self, photos: Sequence[U8], *rest: Any, **named: Any) -> list[Inspection]:
        if any(tuple(int(v) for v in photo[0, 0]) == NAN for photo in photos):
            break_the_context()
        return super().inspect(photos, *rest, **named)


def open_breaking(path: Path, settings: EngineSettings, backend: str) -> Detector:
    """As open_bundle."""
    detector = open_bundle(path, settings, backend)
    detector.__class__ = Breaking
    return detector
