"""A detector that does an illegal access on the GPU when it sees an all-black photo: what soak opens in the worker.

After such an access every call of CUDA in the process fails: the context is lost until the process ends. On the CPU the
process ends at once, which is how an illegal access shows there.
"""

from __future__ import annotations

import os
from pathlib import Path

from anomalysd_edge.core.types import F32
from anomalysd_edge.errors import BackendError
from anomalysd_edge.method.detector import Detector
from anomalysd_edge.method.networks import ForwardingNetworks, Networks
from anomalysd_runtime.server.inference.worker import open_bundle
from anomalysd_runtime.server.settings import EngineSettings

PTX = b"""
.version 7.0
.target sm_75
.address_size 64
.visible .entry spoil()
{
    .reg .b32 %r<2>;
    .reg .b64 %rd<2>;
    mov.u64 %rd1, 16;
    mov.u32 %r1, 1;
    st.global.u32 [%rd1], %r1;
    ret;
}
\0"""
"""A kernel that writes where no memory is; the driver compiles it for its GPU."""
ILLEGAL_ADDRESS = 700
"""CUDA_ERROR_ILLEGAL_ADDRESS."""


class FaultyNetworks(ForwardingNetworks):
    """The wrapped networks; a black photo among those whose features are asked for brings the fault."""

    def __init__(self, networks: Networks, device: str) -> None:
        super().__init__(networks)
        self._device = device

    def features(self, images: F32) -> F32:
        if any((image == -1).all() for image in images):
            spoil(self._device)
        return super().features(images)


def open_faulty(path: Path, settings: EngineSettings, backend: str) -> Detector:
    """worker.open_bundle, with the fault in waiting."""
    opened = open_bundle(path, settings, backend)
    return opened.over(FaultyNetworks(opened.networks, backend.partition(":")[0]))


def spoil(device: str) -> None:
    """Lose this process's CUDA context by an illegal access; on the CPU, end the process.

    Raises BackendError where the access was not made.
    """
    if device == "cpu":
        os._exit(1)
    from cuda.bindings import driver, runtime

    def done(what: str, *answer: object) -> tuple[object, ...]:
        code, *values = answer
        if int(code) != 0:  # type: ignore[call-overload]
            raise BackendError(f"the fault could not be brought about: CUDA failed to {what} ({code})")
        return tuple(values)

    done("choose the GPU", *runtime.cudaSetDevice(0))  # the driver's calls below then work in its primary context
    (module,) = done("load a kernel", *driver.cuModuleLoadData(PTX))
    (kernel,) = done("find the kernel", *driver.cuModuleGetFunction(module, b"spoil"))
    done("launch the kernel", *driver.cuLaunchKernel(kernel, 1, 1, 1, 1, 1, 1, 0, 0, 0, 0))
    (code,) = driver.cuCtxSynchronize()
    if int(code) != ILLEGAL_ADDRESS:
        raise BackendError(f"the fault could not be brought about: after the illegal access CUDA says {code}")
