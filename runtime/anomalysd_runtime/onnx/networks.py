"""The five networks in ONNX Runtime, on the CPU or on an NVIDIA GPU."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from anomalysd_edge.bundle.reader import Bundle
from anomalysd_edge.core.threads import cores
from anomalysd_edge.core.types import F32
from anomalysd_edge.errors import BackendError, BundleError, SettingsError
from anomalysd_edge.method.inpainting.mask_plan import batches
from anomalysd_edge.method.networks import InpaintJob, NetworkSizes
from anomalysd_runtime.onnx.sessions import (
    PROVIDERS,
    check_device,
    check_one_onnxruntime,
    empty_on,
    open_session,
    run,
    run_bound,
    to_device,
)
from anomalysd_runtime.onnx.step_graph import step_graph
from anomalysd_runtime.validation import PROMPT_TOKENS, CheckedNetworks, Feeds, check_job, finite, largest_batch

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
    ) -> None:
        """Open the graphs of `files` (network name -> ONNX file; perceptual and features may be absent).

        `threads`: CPU threads of a pass, by default the cores of this process. `max_batch`: samples in one UNet pass
        (a guided slot is two). Raises BackendError when `device` cannot be had, BundleError for an unusable graph.
        """
        if max_batch < 1 or (threads is not None and threads < 1):
            raise SettingsError(f"max_batch is {max_batch} and threads {threads}, expected at least 1")
        check_one_onnxruntime()
        check_device(device)
        self.sizes = sizes
        self.max_batch = max_batch
        self.backend = f"onnxruntime {PROVIDERS[device]}"
        self._device = device
        self._sessions: dict[str, Any] = {}
        count = threads or cores()
        for name, file in files.items():
            self._sessions[name] = _checked(open_session(file, device, count, name), name, file)
        for name in ("unet", "vae_encoder", "vae_decoder"):
            self._session(name)
        self._prompt_width = int(self._session("unet").get_inputs()[2].shape[2])
        kinds = [(guided, back) for guided in (False, True) for back in (False, True)]
        self._steps = {kind: open_session(step_graph(*kind), device, 1, "step") for kind in kinds}

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
        files = {name: bundle.network_file(name, precision) for name in bundle.manifest.networks}
        opened = cls(files, bundle.manifest.sizes, device, threads, max_batch)
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
        for part in batches(len(result), chunk):
            result[part] = self._inpaint_chunk(job, part, guided)
        return finite(result, "unet", self.backend)

    def close(self) -> None:
        """Close the sessions, which gives their memory back; the object cannot be used afterwards."""
        self._sessions.clear()
        self._steps.clear()

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
        for part in batches(count, largest_batch(self.max_batch, side)):
            arrays = {key: np.ascontiguousarray(value) for key, value in feeds(part).items()}
            parts.append(run(session, arrays, network))
        return finite(parts[0] if len(parts) == 1 else np.concatenate(parts), network, self.backend)

    def _inpaint_chunk(self, job: InpaintJob, part: slice, guided: bool) -> F32:
        """The loop over one chunk. Buffers live on the device; between UNet passes only two scalars travel there."""
        looks_back = job.history is not None
        unet, step, device = self._session("unet"), self._steps[guided, looks_back], self._device
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
        for number, (timestep, (c0, c1)) in enumerate(zip(job.timesteps, job.coefficients, strict=True)):
            times = to_device(device, np.full(passes, timestep, np.int64))
            run_bound(unet, {"sample": samples, "timestep": times, **fixed}, {"out_sample": out}, "unet")
            inputs = {
                "latents": latents,
                "out_sample": out,
                "c0": to_device(device, c0[None]),
                "c1": to_device(device, c1[None]),
                **known,
            }
            outputs = {"next_latents": following, "sample": samples}
            if job.history is not None:
                factors = {f"h{i}": to_device(device, job.history[number, i : i + 1]) for i in range(3)}
                inputs |= {"previous": before, **factors}
                outputs["next_previous"] = after
            run_bound(step, inputs, outputs, "step")
            latents, following = following, latents
            before, after = after, before
        return np.array(latents.numpy())


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
