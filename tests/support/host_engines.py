"""A device and engines on the host: raw addresses, static batches, deferred graphs, real networks in ONNX Runtime.

What TensorrtNetworks asks of a GPU, on this machine's memory, so that its loop, buffers and padding run in every test.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from anomalysd_edge.core.types import Array
from anomalysd_edge.errors import BackendError
from anomalysd_runtime.onnx.sessions import open_session
from anomalysd_runtime.onnx.step_graph import step_graph
from anomalysd_runtime.static_batches import references_of
from anomalysd_runtime.tensorrt.networks import TensorrtNetworks
from anomalysd_runtime.tensorrt.protocols import StaticEngine
from tests.support.small_graphs import SIZES, write_graph

_TYPES = {"tensor(float)": np.float32, "tensor(int64)": np.int64}


class HostDevice:
    """Memory by address, and a stream that either runs work at once or records it."""

    def __init__(self) -> None:
        self.rooms: list[Array] = []
        self.recording: list[Callable[[], None]] | None = None
        self.uploads = self.downloads = self.replays = 0
        self.closed = False
        self.capture_fails: str | None = None

    def allocate(self, length: int) -> int:
        room = np.full(length + 256, 0xFF, np.uint8)  # NaN as float32: what is read before it is written shows
        self.rooms.append(room)
        return -(-room.ctypes.data // 256) * 256

    def upload(self, address: int, array: Array) -> None:
        assert self.recording is None, "a copy from the host was captured"
        self.uploads += 1
        host = np.ascontiguousarray(array)
        ctypes.memmove(address, host.ctypes.data, host.nbytes)

    def download(self, address: int, shape: tuple[int, ...], dtype: Any) -> Array:
        assert self.recording is None, "a copy to the host was captured"
        self.downloads += 1
        return self.view(address, shape, np.dtype(dtype)).copy()

    def view(self, address: int, shape: tuple[int, ...], dtype: np.dtype[Any]) -> Array:
        length = int(np.prod(shape)) * dtype.itemsize
        inside = [room for room in self.rooms if room.ctypes.data <= address < room.ctypes.data + room.nbytes]
        assert len(inside) == 1, "an address that was never given out"
        assert address + length <= inside[0].ctypes.data + inside[0].nbytes, "past the end of a buffer"
        assert address % 256 == 0, "TensorRT wants 256-byte alignment"
        buffer = (ctypes.c_byte * length).from_address(address)
        return np.ndarray(shape, dtype, buffer=memoryview(buffer).cast("B"))

    def submit(self, work: Callable[[], None]) -> None:
        if self.recording is None:
            work()
        else:
            self.recording.append(work)

    def synchronize(self) -> None:
        assert self.recording is None

    def enter_thread(self) -> None:
        assert not self.closed

    def capture(self, work: Callable[[], None]) -> Callable[[], None]:
        if self.capture_fails is not None:
            raise BackendError(self.capture_fails)
        recorded: list[Callable[[], None]] = []
        self.recording = recorded
        try:
            work()
        finally:
            self.recording = None

        def replay() -> None:
            self.replays += 1
            for one in recorded:
                one()

        return replay

    def close(self) -> None:
        self.closed = True


class HostEngine:
    """An ONNX graph that may only be run at its static sizes."""

    workspace_bytes = 64

    def __init__(
        self, graph: Path | bytes, name: str, sizes: tuple[int, ...], device: HostDevice, axes: Mapping[str, int | str]
    ) -> None:
        self.session = open_session(graph, "cpu", 1, name)
        self.name, self.sizes, self.device, self.axes = name, sizes, device, axes
        self.refuses_capture = False
        self.entries = {e.name: e for e in (*self.session.get_inputs(), *self.session.get_outputs())}
        self.inputs = tuple(e.name for e in self.session.get_inputs())
        self.outputs = tuple(e.name for e in self.session.get_outputs())
        self.runs: list[int] = []

    def use_workspace(self, address: int) -> None:
        assert address % 256 == 0

    def dtype(self, name: str) -> np.dtype[Any]:
        return np.dtype(_TYPES[self.entries[name].type])

    def shape(self, name: str, size: int) -> tuple[int, ...]:
        lengths = {"batch": size, "references": references_of(size), "passes": 2 * size}

        def length(axis: int | str) -> int:
            if isinstance(axis, int):
                return axis
            meaning = self.axes.get(axis, "batch")
            return meaning if isinstance(meaning, int) else lengths[meaning]

        return tuple(length(axis) for axis in self.entries[name].shape)

    def enqueue(self, size: int, addresses: Mapping[str, int]) -> None:
        assert size in self.sizes, "no such profile"

        def work() -> None:
            self.runs.append(size)
            feeds = {n: self.device.view(addresses[n], self.shape(n, size), self.dtype(n)) for n in self.inputs}
            results = self.session.run(None, {name: value.copy() for name, value in feeds.items()})
            for name, result in zip(self.outputs, results, strict=True):
                self.device.view(addresses[name], self.shape(name, size), self.dtype(name))[...] = result

        self.device.submit(work)

    def capturable(self, size: int) -> bool:
        return not self.refuses_capture

    def close(self) -> None:
        self.session = None


def host_networks(
    files: Mapping[str, Path], sizes: tuple[int, ...] = (1, 4), guided: bool = True, max_batch: int = 16
) -> TensorrtNetworks:
    """TensorrtNetworks over the small graphs, on the host."""
    device = HostDevice()
    engines: dict[str, StaticEngine] = {
        name: HostEngine(file, name, sizes, device, {"references": "references"}) for name, file in files.items()
    }
    latent: dict[str, int | str] = {"channels": 4, "m": 5, "h": 4, "w": 4, "all": 9}
    engines["step"] = HostEngine(step_graph(False), "step", sizes, device, {**latent, "passes": "batch"})
    halves = tuple(size // 2 for size in sizes if size % 2 == 0)
    if guided and halves:
        engines["step_guided"] = HostEngine(step_graph(True), "step", halves, device, {**latent, "passes": "passes"})
    return TensorrtNetworks(engines, SIZES, device, "host", max_batch)


def written(folder: Path) -> dict[str, Path]:
    """The small graphs in `folder`, by name."""
    names = ("unet", "vae_encoder", "vae_decoder", "perceptual", "features")
    return {name: write_graph(name, folder / f"{name}.onnx") for name in names}
