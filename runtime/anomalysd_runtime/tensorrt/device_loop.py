"""The denoising loop on the device: UNet, DDIM step, UNet, ... in one stream, captured once and replayed.

Latents change between two buffers, the step writes the UNet's next input where the UNet reads it, and timesteps and
coefficients lie in a table on the device: between the upload of a chunk and the download of its result nothing crosses.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

import numpy as np

from anomalysd_edge.core.types import F32
from anomalysd_edge.errors import BackendError, SettingsError
from anomalysd_edge.method.networks import InpaintJob
from anomalysd_runtime.static_batches import padded

if TYPE_CHECKING:
    from anomalysd_runtime.tensorrt.protocols import Device, StaticEngine

LOG = logging.getLogger("anomalysd_runtime")
ALIGNMENT = 256
"""Bytes: where TensorRT takes an input or output. A table's rows begin at multiples of it."""
FIRST_STEPS = 16
"""Rows of the table to begin with; a longer loop gets a larger one."""


class DeviceLoop:
    """Buffers, tables and captured graphs of the loop. `steps`: the DDIM update's engine, by whether it guides."""

    def __init__(self, unet: StaticEngine, steps: Mapping[bool, StaticEngine], device: Device) -> None:
        self._unet, self._steps, self._device = unet, dict(steps), device
        self._graphs: dict[tuple[int, bool, int], Callable[[], None]] = {}
        self.uncaptured: dict[tuple[int, bool, int], str] = {}
        """(slots, guided, steps) of the loops that run node by node, and why they could not be captured."""
        largest = max(unet.sizes)
        self._buffers = {
            name: self._buffer(unet, name, largest) for name in ("sample", "encoder_hidden_states", "out_sample")
        }
        shape = unet.shape("sample", largest)
        latent_bytes = 4 * largest * int(np.prod(unet.shape("out_sample", largest)[1:]))
        condition_bytes = 4 * largest * (shape[1] - unet.shape("out_sample", largest)[1]) * int(np.prod(shape[2:]))
        self._latents = (device.allocate(latent_bytes), device.allocate(latent_bytes))
        self._condition = device.allocate(condition_bytes)
        self._guidance = device.allocate(ALIGNMENT)
        self._make_tables(FIRST_STEPS)

    def costs(self, guided: bool, unet_costs: Mapping[int, float], max_batch: int) -> dict[int, float]:
        """Cost of a run by its number of slots. Raises SettingsError where no profile serves guidance."""
        if not guided:
            within = {size: cost for size, cost in unet_costs.items() if size <= max_batch}
            return within or {min(unet_costs): unet_costs[min(unet_costs)]}
        halves = {size // 2: cost for size, cost in unet_costs.items() if size % 2 == 0 and size <= max(2, max_batch)}
        if True not in self._steps or not halves:
            raise SettingsError(
                f"guidance needs an engine of the guided step and an even batch size, the engines have the batches "
                f"{', '.join(map(str, self._unet.sizes))}: build with --batch 2 or more for a preset that guides"
            )
        return halves

    def run(self, job: InpaintJob, part: slice, size: int) -> F32:
        """(n,C,h,w) float32 latents at t = 0 of the slots `part`, at the static size of `size` slots."""
        guided, steps, device = job.guidance_scale > 1, len(job.timesteps), self._device
        count = part.stop - part.start
        if steps > self._rows:
            self._make_tables(steps)
        passes = self._fill(job, part, size, guided)
        key = (size, guided, steps)
        if key in self._graphs:
            self._graphs[key]()
        else:
            # The first run is not captured: contexts and kernels are made ready on the way.
            self._enqueue(size, passes, guided, steps)
            device.synchronize()
        result = device.download(self._latents[steps % 2], (size, *job.start_latents.shape[1:]), np.float32)[:count]
        if key not in self._graphs and key not in self.uncaptured:
            self._capture(key, passes)
        return np.asarray(result)

    def warm_up(self) -> dict[int, float]:
        """Milliseconds of a UNet pass by size: the second of two."""
        times: dict[int, float] = {}
        for size in self._unet.sizes:
            for _ in range(2):
                self._device.synchronize()
                began = time.perf_counter()
                self._unet.enqueue(size, {**self._buffers, "timestep": self._timesteps})
                self._device.synchronize()
                times[size] = (time.perf_counter() - began) * 1e3
        return times

    def _fill(self, job: InpaintJob, part: slice, size: int, guided: bool) -> int:
        """Upload a chunk; the number of UNet passes a step."""
        device = self._device
        start = padded(job.start_latents[part], size)
        condition = padded(np.concatenate([job.masks[part], job.masked_latents[part]], axis=1), size)
        sample = np.concatenate([start, condition], axis=1)
        states = padded(job.prompt_states[job.prompt_of[part]], size)
        if guided:
            assert job.negative_states is not None  # check_job
            sample = np.concatenate([sample, sample])
            states = np.concatenate([np.broadcast_to(job.negative_states, states.shape), states])
            device.upload(self._guidance, np.array([job.guidance_scale], np.float32))
        device.upload(self._latents[0], start)
        device.upload(self._condition, condition)
        device.upload(self._buffers["sample"], sample)
        device.upload(self._buffers["encoder_hidden_states"], states)
        times = np.zeros((len(job.timesteps), self._row_bytes // 8), np.int64)
        times[:] = job.timesteps[:, None]
        device.upload(self._timesteps, times)
        scalars = np.zeros((len(job.timesteps), 2, ALIGNMENT // 4), np.float32)
        scalars[:, :, 0] = job.coefficients
        device.upload(self._coefficients, scalars)
        return len(sample)

    def _enqueue(self, size: int, passes: int, guided: bool, steps: int) -> None:
        """The whole loop into the stream. Addresses alone differ between steps, so it can be captured."""
        for number in range(steps):
            self._unet.enqueue(passes, {**self._buffers, "timestep": self._timesteps + number * self._row_bytes})
            row = self._coefficients + number * 2 * ALIGNMENT
            addresses = {
                "latents": self._latents[number % 2],
                "out_sample": self._buffers["out_sample"],
                "condition": self._condition,
                "c0": row,
                "c1": row + ALIGNMENT,
                "next_latents": self._latents[(number + 1) % 2],
                "sample": self._buffers["sample"],
            }
            if guided:
                addresses["guidance"] = self._guidance
            self._steps[guided].enqueue(size, addresses)

    def _capture(self, key: tuple[int, bool, int], passes: int) -> None:
        """Capture the loop that has just run; where that is refused, say so once and keep on without."""
        size, guided, steps = key
        engines = ((self._unet, passes), (self._steps[guided], size))
        refusing = [f"the engine {engine.name!r} at batch {n}" for engine, n in engines if not engine.capturable(n)]
        try:
            if refusing:
                raise BackendError(f"{refusing[0]} says that it cannot be captured; build it again")
            self._graphs[key] = self._device.capture(lambda: self._enqueue(size, passes, guided, steps))
        except BackendError as error:
            # The photo at hand has its result: a refusal costs speed, never a photo.
            self.uncaptured[key] = str(error)
            LOG.warning("the loop of %d slots and %d steps runs without a CUDA graph, slower: %s", size, steps, error)

    def _make_tables(self, rows: int) -> None:
        """Room for the timesteps and coefficients of `rows` steps. Graphs hold the older addresses: they go."""
        self._graphs.clear()
        self.uncaptured.clear()
        self._rows = rows
        self._row_bytes = -(-max(self._unet.sizes) * 8 // ALIGNMENT) * ALIGNMENT
        self._timesteps = self._device.allocate(rows * self._row_bytes)
        self._coefficients = self._device.allocate(rows * 2 * ALIGNMENT)
        self._device.upload(self._timesteps, np.zeros((rows, self._row_bytes // 8), np.int64))

    def _buffer(self, engine: StaticEngine, name: str, size: int) -> int:
        shape, dtype = engine.shape(name, size), engine.dtype(name)
        address = self._device.allocate(int(np.prod(shape)) * dtype.itemsize)
        self._device.upload(address, np.zeros(shape, dtype))
        return address
