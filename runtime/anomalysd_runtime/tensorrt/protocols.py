"""What the networks need of a device and of an engine: the real ones need a GPU, tests run both on host memory."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Protocol

import numpy as np

from anomalysd_edge.core.types import Array


class Device(Protocol):
    """Memory and one stream of work; see cuda_device.CudaDevice."""

    def allocate(self, length: int) -> int: ...

    def upload(self, address: int, array: Array) -> None: ...

    def download(self, address: int, shape: tuple[int, ...], dtype: Any) -> Array: ...

    def synchronize(self) -> None: ...

    def capture(self, work: Callable[[], None]) -> Callable[[], None]: ...

    def enter_thread(self) -> None: ...

    def close(self) -> None: ...


class StaticEngine(Protocol):
    """A network at a few static batch sizes; see engine.TensorrtEngine."""

    name: str
    sizes: tuple[int, ...]
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]

    @property
    def workspace_bytes(self) -> int: ...

    def use_workspace(self, address: int) -> None: ...

    def dtype(self, name: str) -> np.dtype[Any]: ...

    def shape(self, name: str, size: int) -> tuple[int, ...]: ...

    def enqueue(self, size: int, addresses: Mapping[str, int]) -> None: ...

    def capturable(self, size: int) -> bool: ...

    def close(self) -> None: ...
