"""The five networks as engines with static batch sizes: buffers allocated once, the whole loop on the device.

TensorRT and TensorRT for RTX alike. One object is one worker: its stream, its contexts, its memory, and a lock.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Mapping
from contextlib import ExitStack

import numpy as np

from anomalysd_edge.bundle.backend_spec import BackendChoice
from anomalysd_edge.bundle.reader import Bundle
from anomalysd_edge.core.types import F32, I64, Array
from anomalysd_edge.errors import BackendError, BundleError, DeviceLost, SettingsError
from anomalysd_edge.method.networks import InpaintJob, NetworkSizes
from anomalysd_runtime.static_batches import (
    assumed_costs,
    cover,
    padded,
    profile_for,
    references_of,
    within_references,
)
from anomalysd_runtime.tensorrt.device_loop import DeviceLoop
from anomalysd_runtime.tensorrt.protocols import Device, StaticEngine
from anomalysd_runtime.validation import CheckedNetworks, Feeds, check_array, check_index, check_job, finite


class TensorrtNetworks(CheckedNetworks):
    """Networks over engines; a context manager.

    `max_batch` bounds a UNet pass and may exceed the largest profile: more samples are cut into several runs. Calls
    from several threads queue up; for work side by side open one object a thread.
    """

    def __init__(
        self,
        engines: Mapping[str, StaticEngine],
        sizes: NetworkSizes,
        device: Device,
        backend: str,
        max_batch: int = 16,
    ) -> None:
        """`engines` by name: the networks, 'step' and, to guide, 'step_guided'. Raises BundleError, SettingsError."""
        if max_batch < 1:
            raise SettingsError(f"max_batch is {max_batch}, expected at least 1")
        for name in ("unet", "vae_encoder", "vae_decoder", "step"):
            if name not in engines:
                raise BundleError(f"there is no engine of {name!r}, only {', '.join(engines)}: run 'sd-edge build'")
        self.sizes, self.max_batch = sizes, max_batch
        self._label = backend
        self.warm_up_ms: dict[str, dict[int, float]] = {}
        self._engines, self._device = dict(engines), device
        self._lock = threading.Lock()
        workspace = max(engine.workspace_bytes for engine in engines.values())
        address = device.allocate(workspace)
        for engine in engines.values():
            engine.use_workspace(address)
        self._buffers = {name: _buffers(engine, device) for name, engine in engines.items() if name in _BUFFERED}
        self._costs = {name: assumed_costs(engine.sizes) for name, engine in engines.items()}
        unet = engines["unet"]
        self.batch_sizes = unet.sizes
        self._prompt_width = unet.shape("encoder_hidden_states", unet.sizes[0])[2]
        steps = {guided: engines[name] for name, guided in (("step", False), ("step_guided", True)) if name in engines}
        self._loop = DeviceLoop(unet, steps, device)

    @property
    def backend(self) -> str:
        """Library, version, GPU and precision; and how many loops run without a CUDA graph, where any does."""
        refused = len(self._loop.uncaptured)
        return f"{self._label} ({refused} loops not captured)" if refused else self._label

    @backend.setter
    def backend(self, value: str) -> None:
        self._label = value

    @classmethod
    def of_bundle(cls, bundle: Bundle, choice: BackendChoice, max_batch: int = 16, index: int = 0) -> TensorrtNetworks:
        """Open the engines of a bundle that fit this GPU, and run each once, so that the first photo waits for nothing.

        Raises BackendError (no driver, no GPU, no memory), EngineMismatch (fingerprints), BundleError (a broken file).
        """
        from anomalysd_runtime.tensorrt.cuda_device import CudaDevice
        from anomalysd_runtime.tensorrt.engine import TensorrtEngine
        from anomalysd_runtime.tensorrt.engine_files import engine_networks, find_engine, read_engine
        from anomalysd_runtime.tensorrt.kernel_cache import KernelCache
        from anomalysd_runtime.tensorrt.library import load_library

        library = load_library(choice.kind)
        with ExitStack() as undo:
            device = CudaDevice(index)
            undo.callback(device.close)
            found = {
                name: find_engine(bundle, name, choice, library, device.gpu.capability)
                for name in engine_networks(bundle)
            }
            kernels = KernelCache(bundle.path / "engines" / f"kernels-{library.version}.cache")
            engines: dict[str, StaticEngine] = {}
            for name, record in found.items():
                data = read_engine(bundle, record)
                engine = TensorrtEngine(library, data, name, record.fingerprint.batches, device, kernels)
                undo.callback(engine.close)
                engines[name] = engine
            label = f"{library.name} {library.version} {device.gpu.name}"
            if choice.precision != "fp32":
                label += f" {choice.precision}"
            opened = cls(engines, bundle.manifest.sizes, device, label, max_batch)
            opened.warm_up()
            kernels.save()
            undo.pop_all()
        return opened

    def warm_up(self) -> None:
        """Run every network at every size twice and time the second: what `cover` then chooses by."""
        for name, buffers in self._buffers.items():
            engine = self._engines[name]
            times: dict[int, float] = {}
            for size in engine.sizes:
                for _ in range(2):
                    self._device.synchronize()
                    began = time.perf_counter()
                    engine.enqueue(size, buffers)
                    self._device.synchronize()
                    times[size] = (time.perf_counter() - began) * 1e3
            self.warm_up_ms[name] = times
            self._costs[name] = dict(times)
        self.warm_up_ms["unet"] = self._loop.warm_up()
        self._costs["unet"] = dict(self.warm_up_ms["unet"])

    def distance(self, references: F32, repaints: F32, reference_of: I64) -> F32:
        """(M,3,H,W), (N,3,H,W) float32 and (N,) int64 -> (N,H,W) float32."""
        size = self.sizes.size_px
        check_array("references", references, (None, 3, size, size))
        check_array("repaints", repaints, (None, 3, size, size))
        check_index("reference_of", reference_of, len(references), len(repaints))
        engine = self._engine("perceptual")
        parts = []
        with self._lock:
            for part in within_references(reference_of, engine.sizes):
                used, index = np.unique(reference_of[part], return_inverse=True)
                count = part.stop - part.start
                batch = profile_for(count, len(used), engine.sizes)
                feeds = {
                    "references": padded(references[used], references_of(batch)),
                    "repaints": padded(repaints[part], batch),
                    "reference_of": padded(index.astype(np.int64), batch),
                }
                parts.append(self._run("perceptual", batch, feeds)[:count])
        return finite(np.concatenate(parts), "perceptual", self.backend)

    def inpaint(self, job: InpaintJob) -> F32:
        """Run the loop of `job` on the device: (N,C,h,w) float32 scaled latents at t = 0; one copy down a chunk."""
        check_job(job, self.sizes, self._prompt_width)
        if job.history is not None:
            raise SettingsError(
                "the engines' step does not look back, as the sampler dpm2m must: use sampler ddim, or ONNX Runtime"
            )
        guided = job.guidance_scale > 1
        costs = self._loop.costs(guided, self._costs["unet"], self.max_batch)
        result = np.empty_like(job.start_latents)
        with self._lock:
            self._device.enter_thread()
            for run in cover(len(result), costs):
                part = slice(run.start, run.stop)
                result[part] = self._loop.run(job, part, run.size)
        return finite(result, "unet", self.backend)

    def probe(self) -> None:
        with self._lock:
            try:
                self._device.enter_thread()
                address = self._buffers["vae_encoder"]["sample"]
                self._device.upload(address, np.zeros(1, np.float32))
                self._device.download(address, (1,), np.float32)
            except BackendError as error:
                raise DeviceLost(f"the GPU is lost to this process: {error}") from error

    def close(self) -> None:
        """Give the device memory back; the object cannot be used afterwards."""
        with self._lock:
            for engine in self._engines.values():
                engine.close()
            self._engines.clear()
            self._device.close()

    def _engine(self, name: str) -> StaticEngine:
        if not self._engines:
            raise BackendError(f"the network {name!r} was called after close(): open the bundle again")
        if name not in self._engines:
            raise BundleError(f"there is no engine of {name!r}, only {', '.join(self._engines)}: build it")
        return self._engines[name]

    def require(self, network: str) -> None:
        self._engine(network)

    def run_batched(self, network: str, count: int, side: int, feeds: Feeds) -> F32:  # noqa: ARG002 - sizes are static
        self._engine(network)
        parts = []
        with self._lock:
            for run in cover(count, self._costs[network]):
                part = {key: padded(value, run.size) for key, value in feeds(slice(run.start, run.stop)).items()}
                parts.append(self._run(network, run.size, part)[: run.stop - run.start])
        return finite(parts[0] if len(parts) == 1 else np.concatenate(parts), network, self.backend)

    def _run(self, name: str, size: int, feeds: Mapping[str, Array]) -> F32:
        engine, buffers = self._engine(name), self._buffers[name]
        self._device.enter_thread()
        for key, value in feeds.items():
            self._device.upload(buffers[key], value)
        engine.enqueue(size, buffers)
        (output,) = engine.outputs
        return np.asarray(self._device.download(buffers[output], engine.shape(output, size), np.float32))


_BUFFERED = ("vae_encoder", "vae_decoder", "perceptual", "features")


def _buffers(engine: StaticEngine, device: Device) -> dict[str, int]:
    """Room for every input and output at the engine's largest size, zero to begin with."""
    found = {}
    for name in (*engine.inputs, *engine.outputs):
        shape, dtype = engine.shape(name, max(engine.sizes)), engine.dtype(name)
        found[name] = device.allocate(int(np.prod(shape)) * dtype.itemsize)
        device.upload(found[name], np.zeros(shape, dtype))
    return found
