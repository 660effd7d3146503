"""The five networks as models of a Triton server, called from a Python model of the same server (BLS)."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import TracebackType

import numpy as np

from anomalysd_edge.core.types import F32, I64, Array
from anomalysd_edge.method.inpainting.mask_plan import batches
from anomalysd_edge.method.networks import InpaintJob, NetworkSizes
from anomalysd_runtime.static_batches import PIXELS_A_CALL
from anomalysd_runtime.validation import check_array, check_index, check_job, finite

Call = Callable[[str, Mapping[str, Array], str], Array]
"""(network, inputs, name of the output) -> the output. Raises BackendError with the server's words."""


class TritonNetworks:
    """Networks (see anomalysd_edge.networks) behind `call`. The server batches calls of several inspections."""

    def __init__(self, call: Call, sizes: NetworkSizes, prompt_width: int, max_batch: int, backend: str) -> None:
        self.sizes, self.max_batch, self.backend = sizes, max_batch, f"triton {backend}"
        self._call, self._prompt_width = call, prompt_width

    def encode(self, images: F32) -> F32:
        """(N,3,H,W) -> (N,C,h,w) scaled latents."""
        check_array("images", images, (None, 3, self.sizes.size_px, self.sizes.size_px))
        return self._batched("vae_encoder", "latent_sample", len(images), lambda part: {"sample": images[part]})

    def decode(self, latents: F32) -> F32:
        """(N,C,h,w) -> (N,3,H,W) in [-1,1]."""
        side = self.sizes.latent_side
        check_array("latents", latents, (None, self.sizes.latent_channels, side, side))
        return self._batched("vae_decoder", "sample", len(latents), lambda part: {"latent_sample": latents[part]})

    def features(self, images: F32) -> F32:
        """(N,3,F,F) -> (N,D,f,f), unit length along D."""
        side = self.sizes.features_px
        check_array("images", images, (None, 3, side, side))
        return self._batched("features", "features", len(images), lambda part: {"image": images[part]}, side)

    def distance(self, references: F32, repaints: F32, reference_of: I64) -> F32:
        """(M,3,H,W), (N,3,H,W), (N,) -> (N,H,W)."""
        size = self.sizes.size_px
        check_array("references", references, (None, 3, size, size))
        check_array("repaints", repaints, (None, 3, size, size))
        check_index("reference_of", reference_of, len(references), len(repaints))

        def inputs(part: slice) -> dict[str, Array]:
            used, index = np.unique(reference_of[part], return_inverse=True)
            return {"references": references[used], "repaints": repaints[part], "reference_of": index.astype(np.int64)}

        return self._batched("perceptual", "distance", len(repaints), inputs)

    def inpaint(self, job: InpaintJob) -> F32:
        """The whole loop of `job`; a UNet pass is a call, and the update between two of them is numpy's."""
        check_job(job, self.sizes, self._prompt_width)
        guided = job.guidance_scale > 1
        result = np.empty_like(job.start_latents)
        for part in batches(len(result), max(1, self.max_batch // 2) if guided else self.max_batch):
            result[part] = self._loop(job, part, guided)
        return finite(result, "unet", self.backend)

    def close(self) -> None:
        """The models are the server's: nothing to give back."""

    def __enter__(self) -> TritonNetworks:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _batched(
        self, network: str, output: str, n: int, inputs: Callable[[slice], dict[str, Array]], side: int | None = None
    ) -> F32:
        largest = max(1, min(self.max_batch, PIXELS_A_CALL // (side or self.sizes.size_px) ** 2))
        parts = [
            self._call(network, {key: np.ascontiguousarray(value) for key, value in inputs(part).items()}, output)
            for part in batches(n, largest)
        ]
        return finite(np.concatenate(parts), network, self.backend)

    def _loop(self, job: InpaintJob, part: slice, guided: bool) -> F32:
        latents = job.start_latents[part]
        condition = np.concatenate([job.masks[part], job.masked_latents[part]], axis=1)
        states = job.prompt_states[job.prompt_of[part]]
        if guided:
            assert job.negative_states is not None  # check_job
            states = np.concatenate([np.broadcast_to(job.negative_states, states.shape), states])
        scale = np.float32(job.guidance_scale)
        before = np.zeros_like(latents)
        for number, (timestep, (c0, c1)) in enumerate(zip(job.timesteps, job.coefficients, strict=True)):
            sample = np.concatenate([latents, condition], axis=1)
            sample = np.concatenate([sample, sample]) if guided else sample
            times = np.full((len(sample), 1), timestep, np.int64)  # a row a sample: config.pbtxt takes the axis away
            inputs = {"sample": sample, "timestep": times, "encoder_hidden_states": np.ascontiguousarray(states)}
            out: F32 = self._call("unet", inputs, "out_sample")
            if guided:
                negative, positive = np.split(out, 2)
                out = negative + scale * (positive - negative)
            step = c0 * latents + c1 * out
            if job.history is not None:
                h0, h1, h2 = job.history[number]
                step, before = step + h0 * before, h1 * latents + h2 * out
            latents = step
        return latents
