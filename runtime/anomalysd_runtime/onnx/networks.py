"""The five networks in ONNX Runtime, on the CPU or on an NVIDIA GPU."""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from anomalysd_edge.bundle.manifest import NetworkRecord
from anomalysd_edge.bundle.reader import Bundle
from anomalysd_edge.core.threads import cores
from anomalysd_edge.core.types import F32
from anomalysd_edge.errors import BackendError, BundleError, DeviceLost, SettingsError
from anomalysd_edge.method.inpainting.mask_plan import batches
from anomalysd_edge.method.networks import InpaintJob, NetworkSizes
from anomalysd_runtime.onnx.providers import (
    ON_CUDA,
    PROVIDERS,
    ROUNDS_ITSELF,
    TENSORRT_BUILDS,
    EngineHints,
    check_device,
    check_one_onnxruntime,
)
from anomalysd_runtime.onnx.sessions import (
    Rows,
    empty_on,
    open_session,
    probe,
    rows_on,
    run,
    run_bound,
    to_device,
)
from anomalysd_runtime.onnx.step_graph import step_graph
from anomalysd_runtime.static_batches import PIXELS_A_CALL, PIXELS_ON_CPU
from anomalysd_runtime.validation import PROMPT_TOKENS, CheckedNetworks, Feeds, check_job, finite, largest_batch

LOG = logging.getLogger("anomalysd_runtime")
INPUTS: dict[str, tuple[str, ...]] = {
    "unet": ("sample", "timestep", "encoder_hidden_states"),
    "vae_encoder": ("sample",),
    "vae_decoder": ("latent_sample",),
    "perceptual": ("references", "repaints", "reference_of"),
    "features": ("image",),
}
"""The names that every bundle's graphs use."""


class OnnxNetworks(CheckedNetworks):
    """Networks from ONNX files; a context manager.

    Results do not depend on `max_batch` beyond float rounding. Methods may be called from several threads: every call
    has its own buffers; on one GPU the calls queue up. close() must not run while another thread is in a call.
    """

    def __init__(
        self,
        files: Mapping[str, Path],
        sizes: NetworkSizes,
        device: str = "cpu",
        threads: int | None = None,
        max_batch: int = 16,
        hints: Mapping[str, EngineHints] | None = None,
    ) -> None:
        """Open the graphs of `files` (network name -> ONNX file; perceptual and features may be absent).

        `threads`: CPU threads of a pass, by default the cores of this process. `max_batch`: samples in one UNet pass
        (a guided slot is two). `hints`: by network, for providers that build engines. Raises BackendError when `device`
        cannot be had, BundleError for an unusable graph.
        """
        if max_batch < 1 or (threads is not None and threads < 1):
            raise SettingsError(f"max_batch is {max_batch} and threads {threads}, expected at least 1")
        check_one_onnxruntime()
        check_device(device)
        self.sizes = sizes
        self.max_batch = max_batch
        self.backend = f"onnxruntime {PROVIDERS[device]}"
        self._device = device
        self._pixels_a_call = PIXELS_ON_CPU if device in ("cpu", "openvino") else PIXELS_A_CALL
        self._sessions: dict[str, Any] = {}
        count = threads or cores()
        for name, file in files.items():
            opened = open_session(file, device, count, name, (hints or {}).get(name, EngineHints()))
            self._sessions[name] = _checked(opened, name, file)
        for name in ("unet", "vae_encoder", "vae_decoder"):
            self._session(name)
        self._prompt_width = int(self._session("unet").get_inputs()[2].shape[2])
        self._steps: dict[tuple[bool, bool], Any] = {}

    @classmethod
    def of_bundle(
        cls,
        bundle: Bundle,
        device: str = "cpu",
        threads: int | None = None,
        max_batch: int = 16,
        precision: str = "fp32",
    ) -> OnnxNetworks:
        """The networks of a bundle that was read, in one of its precisions. Arguments and errors as for the class."""
        stored = "fp32" if precision in ROUNDS_ITSELF.get(device, ()) else precision
        files = {name: bundle.network_file(name, stored) for name in bundle.manifest.networks}
        hints = dict.fromkeys(files, EngineHints(types=_BUILDER_TYPES[precision]))
        if device in TENSORRT_BUILDS:
            hints = _hints(bundle, max_batch, precision)
        opened = cls(files, bundle.manifest.sizes, device, threads, max_batch, hints)
        if precision != "fp32":
            opened.backend += f" {precision}"
        return opened

    def inpaint(self, job: InpaintJob) -> F32:
        """Run the loop of `job`: (N,C,h,w) float32 scaled latents at t = 0.

        Guidance as in diffusers: prediction = neg + scale * (pos - neg), both passes in one batch.
        """
        check_job(job, self.sizes, self._prompt_width)
        guided = job.guidance_scale > 1
        chunk = max(1, self.max_batch // 2) if guided else self.max_batch
        result = np.empty_like(job.start_latents)
        table = self._table(job)
        for part in batches(len(result), chunk):
            result[part] = self._inpaint_chunk(job, part, guided, table)
        return finite(result, "unet", self.backend)

    def probe(self) -> None:
        if self._device not in ON_CUDA or not self._sessions:
            return
        try:
            probe(self._step(False, False), self._device)
        except (BackendError, BundleError) as error:
            raise DeviceLost(f"the GPU is lost to this process: {error}") from error

    def close(self) -> None:
        """Close the sessions, which gives their memory back; the object cannot be used afterwards."""
        self._sessions.clear()
        self._steps.clear()

    def _step(self, guided: bool, looks_back: bool) -> Any:
        """The session of one kind of step, opened when it is first needed: on CUDA each has a stream and an arena."""
        kind = (guided, looks_back)
        if kind not in self._steps:
            # Where the latents are: providers of packages take theirs from the CPU's memory.
            place = self._device if self._device in ON_CUDA else "cpu"
            self._steps[kind] = open_session(step_graph(*kind), place, 1, "step")
        return self._steps[kind]

    def _table(self, job: InpaintJob) -> dict[str, Rows]:
        """A job's numbers a step, sent to the device once: no pass waits for the host to send its own."""
        columns = {"c0": job.coefficients[:, :1], "c1": job.coefficients[:, 1:]}
        if job.history is not None:
            columns |= {f"h{i}": job.history[:, i : i + 1] for i in range(3)}
        return {name: rows_on(self._device, column) for name, column in columns.items()}

    def _session(self, name: str) -> Any:
        if name not in self._sessions:
            if not self._sessions:
                raise BackendError(f"the network {name!r} was called after close(): open the bundle again")
            raise BundleError(
                f"the network {name!r} is not among those opened ({', '.join(self._sessions)}): export it"
            )
        return self._sessions[name]

    def require(self, network: str) -> None:
        self._session(network)

    def run_batched(self, network: str, count: int, side: int, feeds: Feeds) -> F32:
        session = self._session(network)
        parts = []
        for part in batches(count, largest_batch(self.max_batch, side, self._pixels_a_call)):
            arrays = {key: np.ascontiguousarray(value) for key, value in feeds(part).items()}
            parts.append(run(session, arrays, network))
        return finite(parts[0] if len(parts) == 1 else np.concatenate(parts), network, self.backend)

    def _inpaint_chunk(self, job: InpaintJob, part: slice, guided: bool, table: Mapping[str, Rows]) -> F32:
        """The loop over one chunk. Buffers live on the device; between UNet passes nothing travels there."""
        looks_back = job.history is not None
        unet, step, device = self._session("unet"), self._step(guided, looks_back), self._device
        start = job.start_latents[part].copy()  # a CPU OrtValue is the array itself, and the loop writes to it
        condition = np.concatenate([job.masks[part], job.masked_latents[part]], axis=1)
        sample = np.concatenate([start, condition], axis=1)
        states = job.prompt_states[job.prompt_of[part]]
        if guided:
            assert job.negative_states is not None  # check_job
            sample = np.concatenate([sample, sample])
            states = np.concatenate([np.broadcast_to(job.negative_states, states.shape), states])
        passes = len(sample)
        latents, following = to_device(device, start), empty_on(device, start.shape)
        samples, out = to_device(device, sample), empty_on(device, (passes, *start.shape[1:]))
        fixed = {"encoder_hidden_states": to_device(device, states)}
        known = {"condition": to_device(device, condition)}
        if guided:
            known["guidance"] = to_device(device, np.array([job.guidance_scale], np.float32))
        before, after = (
            (to_device(device, np.zeros_like(start)), empty_on(device, start.shape)) if looks_back else (None, None)
        )
        times = rows_on(device, np.repeat(job.timesteps[:, None], passes, axis=1).astype(np.int64))
        for number in range(len(job.timesteps)):
            run_bound(
                unet, {"sample": samples, **fixed}, {"out_sample": out}, "unet", {"timestep": times}, number, device
            )
            inputs = {"latents": latents, "out_sample": out, **known}
            outputs = {"next_latents": following, "sample": samples}
            if looks_back:
                inputs["previous"] = before
                outputs["next_previous"] = after
            run_bound(step, inputs, outputs, "step", table, number, device)
            latents, following = following, latents
            before, after = after, before
        return np.array(latents.numpy())


_BUILDER_TYPES = {"fp32": (), "fp16": ("fp16",), "bf16": ("bf16",), "int8": ("fp16", "int8"), "fp8": ("fp16",)}


def _hints(bundle: Bundle, max_batch: int, precision: str) -> dict[str, EngineHints]:
    """What builders of engines want to know of each network: what the manifest says of its inputs, and a folder."""
    cache = bundle.path / "engines" / "onnxruntime"
    try:
        cache.mkdir(parents=True, exist_ok=True)
        writable = os.access(cache, os.W_OK)
    except OSError:
        writable = False
    if not writable:
        LOG.warning("%s cannot be written: engines are built anew at every start; let this user write there", cache)
    sizes = bundle.manifest.sizes

    def shapes(name: str, record: NetworkRecord) -> dict[str, list[tuple[int, int]]]:
        side = sizes.features_px if name == "features" else sizes.size_px
        most = max_batch if name == "unet" else largest_batch(max_batch, side)
        return {
            entry.name: [(axis, axis) if isinstance(axis, int) else (1, most) for axis in entry.shape]
            for entry in record.inputs
        }

    return {
        name: EngineHints(cache if writable else None, _BUILDER_TYPES[precision], shapes(name, record))
        for name, record in bundle.manifest.networks.items()
    }


def _checked(session: Any, name: str, file: Path) -> Any:
    """`session`, if its inputs carry the names that this runtime feeds."""
    if name not in INPUTS:
        raise BundleError(f"{file} is for the network {name!r}, expected one of {', '.join(INPUTS)}")
    found = tuple(entry.name for entry in session.get_inputs())
    if found != INPUTS[name]:
        raise BundleError(f"{file} takes the inputs {found}, expected {INPUTS[name]}: export the bundle again")
    shape = session.get_inputs()[-1].shape
    if name == "unet" and not (len(shape) == 3 and shape[1] == PROMPT_TOKENS and isinstance(shape[2], int)):
        raise BundleError(
            f"{file} takes prompt states {shape}, expected [batch, {PROMPT_TOKENS}, a number]: export again"
        )
    return session
