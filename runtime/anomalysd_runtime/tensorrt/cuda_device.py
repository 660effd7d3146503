"""One NVIDIA GPU through cuda-bindings: memory, one stream, captured graphs. No torch, no CUDA toolkit."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from types import TracebackType
from typing import Any

import numpy as np

from anomalysd_edge.core.types import Array
from anomalysd_edge.errors import BackendError, MissingExtra, missing_extra


@dataclass(frozen=True)
class Gpu:
    """What the driver says of a device."""

    name: str
    """Its product name."""
    capability: tuple[int, int]
    """Compute capability: (8, 6) is sm86."""
    memory_bytes: int
    """All of its memory; on a Jetson it is the machine's own."""


def _runtime() -> Any:
    try:
        from cuda.bindings import runtime
    except ModuleNotFoundError as error:
        raise MissingExtra(f"{missing_extra('cuda-bindings', 'rtx')}, on a Jetson [jetson6] or [jetson7]") from error
    except (ImportError, OSError, RuntimeError) as error:
        raise BackendError(f"cuda-bindings is installed but does not load ({error}): reinstall it") from error
    return runtime


def _checked(answer: Any, what: str) -> Any:
    """The value of a CUDA call's (error, value...) tuple. Raises BackendError with CUDA's own name of the error."""
    code, *values = answer
    if int(code) != 0:
        raise BackendError(f"CUDA failed to {what}: {getattr(code, 'name', code)}")
    return values[0] if len(values) == 1 else (values or None)


def gpu(index: int = 0) -> Gpu:
    """The GPU of that number. Raises BackendError without a driver or a GPU, MissingExtra without cuda-bindings."""
    runtime = _runtime()
    try:
        code, count = runtime.cudaGetDeviceCount()
    except RuntimeError as error:  # cuda-bindings' own word for a driver that is not there
        raise BackendError(f"no NVIDIA driver: {str(error).splitlines()[0]}; engines need a GPU to run") from error
    if int(code) != 0:
        name = getattr(code, "name", str(code))
        raise BackendError(
            f"no usable NVIDIA driver ({name}): engines need a GPU and its driver to run; use --backend cpu, or "
            "install the driver"
        )
    if not count or index >= count:
        raise BackendError(f"GPU {index} was asked for and the driver sees {count}: use --backend cpu")
    found = _checked(runtime.cudaGetDeviceProperties(index), "describe the GPU")
    name = found.name.decode() if isinstance(found.name, bytes) else str(found.name)
    return Gpu(name.rstrip("\0"), (int(found.major), int(found.minor)), int(found.totalGlobalMem))


class CudaDevice:
    """One GPU's memory and one stream of work on it; a context manager. Everything it gave out ends with close()."""

    def __init__(self, index: int = 0) -> None:
        self.gpu = gpu(index)
        self._cuda = _runtime()
        self._do(self._cuda.cudaSetDevice(index), "choose the GPU")
        # Not blocking: a plain stream waits for the legacy default stream, and another thread's work there (ONNX
        # Runtime's, say) would void a capture.
        flags = self._cuda.cudaStreamNonBlocking
        self.stream = int(self._do(self._cuda.cudaStreamCreateWithFlags(flags), "create a stream"))
        self.allocated_bytes = 0
        self._allocations: dict[int, int] = {}
        self._graphs: list[Any] = []
        self._index = index

    def enter_thread(self) -> None:
        """Make this GPU the calling thread's: CUDA keeps that choice by thread."""
        self._do(self._cuda.cudaSetDevice(self._index), "choose the GPU")

    def allocate(self, length: int) -> int:
        """The address of `length` bytes on the GPU (aligned to 256). Raises BackendError where memory runs out."""
        code, address = self._cuda.cudaMalloc(max(length, 1))
        if int(code) != 0:
            free, total = self._do(self._cuda.cudaMemGetInfo(), "ask for the free memory")
            raise BackendError(
                f"the GPU has no room for {length / 2**20:.0f} MiB more ({free / 2**20:.0f} of {total / 2**20:.0f} MiB "
                "free): build with a smaller --memory-budget or --batch, or end other programs on it"
            )
        self._allocations[int(address)] = length
        self.allocated_bytes += length
        return int(address)

    def upload(self, address: int, array: Array) -> None:
        """Copy a C-contiguous `array` to the GPU, in the stream's order; it may be changed once this returns."""
        host = np.ascontiguousarray(array)
        kind = self._cuda.cudaMemcpyKind.cudaMemcpyHostToDevice
        self._do(
            self._cuda.cudaMemcpyAsync(address, host.ctypes.data, host.nbytes, kind, self.stream), "copy to the GPU"
        )
        self.synchronize()

    def download(self, address: int, shape: tuple[int, ...], dtype: Any) -> Array:
        """Copy an array back, when the stream's work so far is done."""
        host = np.empty(shape, dtype)
        kind = self._cuda.cudaMemcpyKind.cudaMemcpyDeviceToHost
        self._do(
            self._cuda.cudaMemcpyAsync(host.ctypes.data, address, host.nbytes, kind, self.stream), "copy from the GPU"
        )
        self.synchronize()
        return host

    def synchronize(self) -> None:
        """Wait for the stream. Raises BackendError where work on the GPU failed."""
        self._do(self._cuda.cudaStreamSynchronize(self.stream), "finish its work")

    def capture(self, work: Callable[[], None]) -> Callable[[], None]:
        """What `work` puts into the stream as one CUDA graph; calling the answer replays it.

        Only this thread's calls are captured, so that another worker may allocate meanwhile. Raises BackendError.
        """
        cuda = self._cuda
        self.synchronize()
        mode = cuda.cudaStreamCaptureMode.cudaStreamCaptureModeThreadLocal
        self._do(cuda.cudaStreamBeginCapture(self.stream, mode), "begin a capture")
        try:
            work()
        except BaseException:
            with suppress(BackendError):  # the work's own error is the one to tell
                self._do(cuda.cudaStreamEndCapture(self.stream), "end a capture")
            raise
        graph = self._do(cuda.cudaStreamEndCapture(self.stream), "end a capture")
        executable = self._do(cuda.cudaGraphInstantiate(graph, 0), "instantiate a graph")
        self._do(cuda.cudaGraphDestroy(graph), "free a graph")
        self._graphs.append(executable)
        return lambda: self._do(cuda.cudaGraphLaunch(executable, self.stream), "launch a graph")

    def used_bytes(self) -> int:
        """Memory in use on the GPU, by everyone."""
        free, total = self._do(self._cuda.cudaMemGetInfo(), "ask for the free memory")
        return int(total) - int(free)

    def close(self) -> None:
        """Free the graphs, the memory and the stream."""
        for graph in self._graphs:
            self._do(self._cuda.cudaGraphExecDestroy(graph), "free a graph")
        for address in self._allocations:
            self._do(self._cuda.cudaFree(address), "free memory")
        if self.stream:
            self._do(self._cuda.cudaStreamDestroy(self.stream), "free a stream")
        self._graphs.clear()
        self._allocations.clear()
        self.stream, self.allocated_bytes = 0, 0

    def __enter__(self) -> CudaDevice:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _do(self, answer: Any, what: str) -> Any:
        return _checked(answer, what)
