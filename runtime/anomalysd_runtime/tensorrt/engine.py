"""One engine with its static profiles: deserialised once, a context a profile, working memory given from outside."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from anomalysd_edge.errors import BackendError, BundleError
from anomalysd_runtime.tensorrt.cuda_device import CudaDevice
from anomalysd_runtime.tensorrt.kernel_cache import KernelCache
from anomalysd_runtime.tensorrt.library import Library


class TensorrtEngine:
    """A deserialised engine. Not thread-safe: one worker, one stream, one set of contexts.

    `sizes` are its static batch sizes, in the order of its profiles. It implements protocols.StaticEngine.
    """

    def __init__(
        self,
        library: Library,
        data: bytes,
        name: str,
        sizes: tuple[int, ...],
        device: CudaDevice,
        kernels: KernelCache | None = None,
    ) -> None:
        trt = library.module
        self.name, self.sizes = name, sizes
        self._library, self._device, self._kernels = library, device, kernels
        self._log = trt.Logger(trt.Logger.ERROR)
        self._runtime = trt.Runtime(self._log)
        self._engine = self._runtime.deserialize_cuda_engine(data)
        if self._engine is None:
            raise BackendError(
                f"{library.name} {library.version} cannot load the engine of {name!r} on {device.gpu.name}: build it "
                "again on this machine"
            )
        if self._engine.num_optimization_profiles != len(sizes):
            raise BundleError(
                f"the engine of {name!r} has {self._engine.num_optimization_profiles} profiles and the manifest says "
                f"{len(sizes)}: build it again"
            )
        names = [self._engine.get_tensor_name(i) for i in range(self._engine.num_io_tensors)]
        is_input = {key: self._engine.get_tensor_mode(key) == trt.TensorIOMode.INPUT for key in names}
        self.inputs = tuple(key for key in names if is_input[key])
        self.outputs = tuple(key for key in names if not is_input[key])
        self._contexts: dict[int, Any] = {}
        self._workspace = 0

    @property
    def workspace_bytes(self) -> int:
        """Device memory that the largest profile needs while it runs."""
        return int(self._engine.device_memory_size_v2)

    def use_workspace(self, address: int) -> None:
        """Work in the device memory at `address`, of at least `workspace_bytes`; shared with engines run in turn."""
        self._workspace = address

    def dtype(self, name: str) -> np.dtype[Any]:
        """numpy's type of an input or output."""
        found: np.dtype[Any] = np.dtype(self._library.module.nptype(self._engine.get_tensor_dtype(name)))
        return found

    def shape(self, name: str, size: int) -> tuple[int, ...]:
        """Shape of an input or output in the profile of batch size `size`."""
        context = self._context(size)
        return tuple(int(axis) for axis in context.get_tensor_shape(name))

    def enqueue(self, size: int, addresses: Mapping[str, int]) -> None:
        """Put one run at batch size `size` into the stream, from and to these addresses. Raises BackendError."""
        context = self._context(size)
        for name in (*self.inputs, *self.outputs):
            if not context.set_tensor_address(name, addresses[name]):
                raise BackendError(f"{self._library.name} refused the address of {name!r} of the engine {self.name!r}")
        if not context.execute_async_v3(self._device.stream):
            raise BackendError(f"{self._library.name} failed to run the engine {self.name!r} at batch {size}")

    def capturable(self, size: int) -> bool:
        """Whether a run at this size may go into a CUDA graph."""
        asks = getattr(self._context(size), "is_stream_capturable", None)
        return asks is None or bool(asks(self._device.stream))

    def close(self) -> None:
        """Give the engine's memory back."""
        self._contexts.clear()
        self._engine = None

    def _context(self, size: int) -> Any:
        if size in self._contexts:
            return self._contexts[size]
        number = self.sizes.index(size)
        context = self._library.execution_context(self._engine, self._kernels)
        if context is None:
            raise BackendError(f"{self._library.name} made no context for the engine {self.name!r} at batch {size}")
        if self._workspace:
            context.set_device_memory(self._workspace, self.workspace_bytes)
        if not context.set_optimization_profile_async(number, self._device.stream):
            raise BackendError(f"{self._library.name} has no profile {number} in the engine {self.name!r}")
        self._device.synchronize()
        for name in self.inputs:
            # A static profile: its smallest, best and largest shapes are one.
            shape = self._engine.get_tensor_profile_shape(name, number)[2]
            if not context.set_input_shape(name, shape):
                raise BackendError(f"{self._library.name} refused the shape of {name!r} of the engine {self.name!r}")
        self._contexts[size] = context
        return context
