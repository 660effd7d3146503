"""The five networks as models of a Triton server, called from a Python model of the same server (BLS)."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace

import numpy as np

from anomalysd_edge.core.types import F32, Array
from anomalysd_edge.method.inpainting.mask_plan import batches
from anomalysd_edge.method.networks import InpaintJob, NetworkSizes, denoise
from anomalysd_runtime.validation import CheckedNetworks, Feeds, check_job, finite, largest_batch

Call = Callable[[str, Mapping[str, Array], str], Array]
"""(network, inputs, name of the output) -> the output. Raises BackendError with the server's words."""
OUTPUTS = {
    "vae_encoder": "latent_sample", "vae_decoder": "sample", "features": "features", "perceptual": "distance",
}  # fmt: skip


class TritonNetworks(CheckedNetworks):
    """Networks behind `call`. The server batches calls of several inspections."""

    def __init__(self, call: Call, sizes: NetworkSizes, prompt_width: int, max_batch: int, backend: str) -> None:
        self.sizes, self.max_batch, self.backend = sizes, max_batch, f"triton {backend}"
        self._call, self._prompt_width = call, prompt_width

    def inpaint(self, job: InpaintJob) -> F32:
        """The whole loop of `job`; a UNet pass is a call, and the update between two of them is numpy's."""
        check_job(job, self.sizes, self._prompt_width)
        guided = job.guidance_scale > 1
        result = np.empty_like(job.start_latents)
        for part in batches(len(result), max(1, self.max_batch // 2) if guided else self.max_batch):
            result[part] = self._loop(job, part, guided)
        return finite(result, "unet", self.backend)

    def run_batched(self, network: str, count: int, side: int, feeds: Feeds) -> F32:
        parts = [
            self._call(
                network, {key: np.ascontiguousarray(value) for key, value in feeds(part).items()}, OUTPUTS[network]
            )
            for part in batches(count, largest_batch(self.max_batch, side))
        ]
        return finite(np.concatenate(parts), network, self.backend)

    def _loop(self, job: InpaintJob, part: slice, guided: bool) -> F32:
        condition = np.concatenate([job.masks[part], job.masked_latents[part]], axis=1)
        states = job.prompt_states[job.prompt_of[part]]
        if guided:
            assert job.negative_states is not None  # check_job
            states = np.concatenate([np.broadcast_to(job.negative_states, states.shape), states])
        states, scale = np.ascontiguousarray(states), np.float32(job.guidance_scale)

        def unet(latents: F32, number: int) -> F32:
            sample = np.concatenate([latents, condition], axis=1)
            sample = np.concatenate([sample, sample]) if guided else sample
            # A row a sample: config.pbtxt takes the axis away.
            times = np.full((len(sample), 1), job.timesteps[number], np.int64)
            inputs = {"sample": sample, "timestep": times, "encoder_hidden_states": states}
            out: F32 = self._call("unet", inputs, "out_sample")
            if guided:
                negative, positive = np.split(out, 2)
                out = negative + scale * (positive - negative)
            return out

        return denoise(replace(job, start_latents=job.start_latents[part]), unet)
