"""Torch modules as engines: they work on raw addresses in a device's own stream, as TensorRT's do.

The runtime's loop, buffers and captures thereby run for real on a GPU that has torch and no TensorRT, and on a host
device (tests/support/host_engines.py) where there is no GPU.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from anomalysd_edge.core.types import Array
from anomalysd_runtime.tensorrt.protocols import Device

Forward = Callable[..., "tuple[Tensor, ...]"]
Shapes = Mapping[str, tuple[int | str, ...]]
"""Of inputs or outputs, by name; 'batch' stands for the static size, 'passes' for twice that."""


class Stream(Protocol):
    """Where an engine's tensors lie and how its work gets into the device's stream."""

    def tensor(self, address: int, shape: tuple[int, ...], dtype: np.dtype[Any]) -> Tensor: ...

    def submit(self, work: Callable[[], None]) -> None: ...

    def close(self) -> None: ...


class HostMemory(Protocol):
    """What a host device has beside Device; see tests/support/host_engines.py."""

    def view(self, address: int, shape: tuple[int, ...], dtype: np.dtype[Any]) -> Array: ...

    def submit(self, work: Callable[[], None]) -> None: ...


class HostStream:
    """Tensors over a host device's memory."""

    def __init__(self, device: HostMemory) -> None:
        self._device = device

    def tensor(self, address: int, shape: tuple[int, ...], dtype: np.dtype[Any]) -> Tensor:
        return torch.from_numpy(self._device.view(address, shape, dtype))

    def submit(self, work: Callable[[], None]) -> None:
        self._device.submit(work)

    def close(self) -> None:
        return  # the device owns the memory


@dataclass(frozen=True)
class _Mapped:
    """Device memory as the CUDA array interface describes it (version 3); torch takes it without a copy."""

    __cuda_array_interface__: dict[str, Any]


class CudaStream:
    """Tensors over GPU memory, and torch's kernels in a CudaDevice's stream.

    What a module needs in between comes from a pool of its own that lives as long as the stream: a captured graph
    replays with the addresses of its capture, and torch must not give these to anybody else meanwhile.
    """

    def __init__(self, stream: int) -> None:
        self._stream: Any = torch.cuda.ExternalStream(stream)  # type: ignore[no-untyped-call]
        self._pool = torch.cuda.MemPool()

    def tensor(self, address: int, shape: tuple[int, ...], dtype: np.dtype[Any]) -> Tensor:
        described = {"shape": shape, "typestr": dtype.str, "data": (address, False), "strides": None, "version": 3}
        found = torch.as_tensor(_Mapped(described), device="cuda")
        assert found.data_ptr() == address, "torch copied what it was to map"
        return found

    def submit(self, work: Callable[[], None]) -> None:
        with torch.cuda.stream(self._stream), torch.cuda.use_mem_pool(self._pool):
            work()

    def close(self) -> None:
        # cuBLAS keeps a workspace for every stream that it saw, and took it from the pool.
        torch._C._cuda_clearCublasWorkspaces()
        del self._pool
        torch.cuda.empty_cache()


@dataclass
class TorchEngine:
    """A function of tensors at a few static batch sizes; implements the runtime's StaticEngine."""

    forward: Forward
    """Takes the inputs by name and gives the outputs in their order."""
    input_shapes: Shapes
    output_shapes: Shapes
    sizes: tuple[int, ...]
    stream: Stream
    name: str
    types: Mapping[str, Any] = field(default_factory=dict)
    """Of tensors that are not float32, by name."""
    captures: bool = True
    """Whether it lets itself be captured."""
    before_work: Callable[[], None] = lambda: None
    """Called whenever work is put into the stream: where a test lets a capture fail."""
    workspace_bytes: int = 256
    """Of the memory that all engines share; torch brings its own."""

    def __post_init__(self) -> None:
        self.inputs, self.outputs = tuple(self.input_shapes), tuple(self.output_shapes)
        self._mapped: dict[tuple[int, tuple[int, ...], str], Tensor] = {}

    def use_workspace(self, address: int) -> None:
        """Nothing: torch allocates by itself."""
        assert address

    def dtype(self, name: str) -> np.dtype[Any]:
        """Of an input or output."""
        found: np.dtype[Any] = np.dtype(self.types.get(name, np.float32))
        return found

    def shape(self, name: str, size: int) -> tuple[int, ...]:
        """Of an input or output at batch size `size`."""
        lengths = {"batch": size, "passes": 2 * size, "references": max(1, size // 4)}
        axes = {**self.input_shapes, **self.output_shapes}[name]
        return tuple(axis if isinstance(axis, int) else lengths[axis] for axis in axes)

    def enqueue(self, size: int, addresses: Mapping[str, int]) -> None:
        """Put one run into the stream."""
        assert size in self.sizes, "no such profile"
        self.before_work()
        inputs = {name: self._at(name, size, addresses) for name in self.inputs}
        outputs = [self._at(name, size, addresses) for name in self.outputs]

        def work() -> None:
            with torch.no_grad():
                for place, value in zip(outputs, self.forward(**inputs), strict=True):
                    place.copy_(value)

        self.stream.submit(work)

    def capturable(self, size: int) -> bool:
        """Whether a run may go into a graph."""
        assert size in self.sizes
        return self.captures

    def close(self) -> None:
        """Let go of the device's memory; the device frees it."""
        self._mapped.clear()

    def _at(self, name: str, size: int, addresses: Mapping[str, int]) -> Tensor:
        """Mapped once: during a capture nothing but kernels may be asked for."""
        key = (addresses[name], self.shape(name, size), self.dtype(name).str)
        if key not in self._mapped:
            self._mapped[key] = self.stream.tensor(addresses[name], key[1], self.dtype(name))
        return self._mapped[key]


@dataclass
class WatchedDevice:
    """A device that notes, in order, what crosses between host and device and when a captured graph is replayed."""

    device: Device
    seen: list[str] = field(default_factory=list)
    capturing: bool = False

    def allocate(self, length: int) -> int:
        return self.device.allocate(length)

    def upload(self, address: int, array: Array) -> None:
        self.seen.append("upload")
        self.device.upload(address, array)

    def download(self, address: int, shape: tuple[int, ...], dtype: Any) -> Array:
        self.seen.append("download")
        return self.device.download(address, shape, dtype)

    def synchronize(self) -> None:
        self.device.synchronize()

    def capture(self, work: Callable[[], None]) -> Callable[[], None]:
        self.capturing = True
        try:
            launch = self.device.capture(work)
        finally:
            self.capturing = False

        def replay() -> None:
            self.seen.append("replay")
            launch()

        return replay

    def enter_thread(self) -> None:
        self.device.enter_thread()

    def close(self) -> None:
        self.device.close()

    def __getattr__(self, name: str) -> Any:
        return getattr(self.device, name)


def profiled(work: Callable[[], None]) -> dict[str, int] | None:
    """Copies from and to the host and kernels that the GPU did during `work`; None where nothing could be seen."""
    from torch.profiler import ProfilerActivity, profile

    with profile(activities=[ProfilerActivity.CUDA, ProfilerActivity.CPU]) as seen:
        work()
        torch.cuda.synchronize()
    names = [str(event.name) for event in seen.events() or () if event.device_type.name == "CUDA"]
    return copies_of(names) if names else None


def copies_of(names: Sequence[str]) -> dict[str, int]:
    """What the names of a profile's device events come to."""
    up = sum("Memcpy HtoD" in name for name in names)
    down = sum("Memcpy DtoH" in name for name in names)
    kernels = sum("Memcpy" not in name and "Memset" not in name for name in names)
    return {"uploads": up, "downloads": down, "kernels": kernels}
