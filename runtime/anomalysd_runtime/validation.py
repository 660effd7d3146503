"""Checks of every backend here: shapes and dtypes of the inputs, finite numbers in the outputs."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt

from anomalysd_edge.core.types import F32, I64, Array
from anomalysd_edge.errors import NumericError, ShapeError
from anomalysd_edge.method.networks import InpaintJob, Networks, NetworkSizes
from anomalysd_runtime.static_batches import PIXELS_A_CALL

Feeds = Callable[[slice], dict[str, Array]]
"""The inputs of a network by name, for a slice of the samples."""
PROMPT_TOKENS = 77
"""CLIP's context length."""


def check_array(what: str, array: npt.NDArray[Any], shape: tuple[int | None, ...], dtype: type = np.float32) -> None:
    """Raise ShapeError unless `array` has this dtype and shape; None stands for any length of at least 1."""
    fits = array.ndim == len(shape) and all(
        n > 0 if wanted is None else n == wanted for n, wanted in zip(array.shape, shape, strict=True)
    )
    if not fits or array.dtype != dtype:
        expected = ", ".join("N" if n is None else str(n) for n in shape)
        raise ShapeError(f"{what} is {array.dtype} {array.shape}, expected {np.dtype(dtype).name} ({expected})")


def check_index(what: str, index: I64, rows: int, length: int) -> None:
    """Raise ShapeError unless `index` is (length,) int64 within [0, rows)."""
    check_array(what, index, (length,), np.int64)
    if index.min() < 0 or index.max() >= rows:
        raise ShapeError(f"{what} runs from {index.min()} to {index.max()}, expected rows 0 to {rows - 1}")


def check_job(job: InpaintJob, sizes: NetworkSizes, prompt_width: int) -> None:
    """Raise ShapeError unless every array of `job` fits the networks and the other arrays."""
    n, side, channels = len(job.start_latents), sizes.latent_side, sizes.latent_channels
    check_array("start_latents", job.start_latents, (None, channels, side, side))
    check_array("masks", job.masks, (n, 1, side, side))
    if not np.isin(job.masks, (0, 1)).all():
        raise ShapeError("masks hold values other than 0 and 1; expected 1 where to repaint and 0 elsewhere")
    check_array("masked_latents", job.masked_latents, (n, channels, side, side))
    check_array("prompt_states", job.prompt_states, (None, PROMPT_TOKENS, prompt_width))
    check_index("prompt_of", job.prompt_of, len(job.prompt_states), n)
    check_array("timesteps", job.timesteps, (None,), np.int64)
    check_array("coefficients", job.coefficients, (len(job.timesteps), 2))
    if job.history is not None:
        check_array("history", job.history, (len(job.timesteps), 3))
    if job.guidance_scale > 1:
        if job.negative_states is None:
            raise ShapeError(f"guidance scale {job.guidance_scale} came without negative_states (77, {prompt_width})")
        check_array("negative_states", job.negative_states, (PROMPT_TOKENS, prompt_width))


def finite(array: F32, network: str, backend: str) -> F32:
    """`array` itself. Raises NumericError if it holds NaN or Inf."""
    if not np.isfinite(array).all():
        bad = int(array.size - np.isfinite(array).sum())
        raise NumericError(
            f"{bad} of {array.size} values from the network {network!r} on {backend} are NaN or Inf, so no score is "
            "made of them: run 'sd-edge verify' on the bundle, and export it in float32 if it is in half precision"
        )
    return array


class CheckedNetworks(Networks):
    """Networks that check the inputs of all but the UNet; `run_batched` of a subclass runs them."""

    @abstractmethod
    def run_batched(self, network: str, count: int, side: int, feeds: Feeds) -> F32:
        """Run `network` on `count` samples made from images of `side` pixels, as many at once as fit; finite values."""

    def require(self, network: str) -> None:
        """Raise BundleError where `network` was not opened; the features are optional in a bundle."""

    def encode(self, images: F32) -> F32:
        """(N,3,H,W) float32 in [-1,1] -> (N,C,h,w) float32 scaled latents."""
        size = self.sizes.size_px
        check_array("images", images, (None, 3, size, size))
        return self.run_batched("vae_encoder", len(images), size, lambda part: {"sample": images[part]})

    def decode(self, latents: F32) -> F32:
        """(N,C,h,w) float32 scaled latents -> (N,3,H,W) float32 in [-1,1]."""
        side, size = self.sizes.latent_side, self.sizes.size_px
        check_array("latents", latents, (None, self.sizes.latent_channels, side, side))
        return self.run_batched("vae_decoder", len(latents), size, lambda part: {"latent_sample": latents[part]})

    def features(self, images: F32) -> F32:
        """(N,3,F,F) float32 in [-1,1] -> (N,D,f,f) float32, unit length along D."""
        self.require("features")
        side = self.sizes.features_px
        check_array("images", images, (None, 3, side, side))
        return self.run_batched("features", len(images), side, lambda part: {"image": images[part]})

    def distance(self, references: F32, repaints: F32, reference_of: I64) -> F32:
        """(M,3,H,W), (N,3,H,W) float32 and (N,) int64 -> (N,H,W) float32.

        A reference's features are computed once in every batch of repaints that is compared with it.
        """
        size = self.sizes.size_px
        check_array("references", references, (None, 3, size, size))
        check_array("repaints", repaints, (None, 3, size, size))
        check_index("reference_of", reference_of, len(references), len(repaints))

        def feeds(part: slice) -> dict[str, Array]:
            used, index = np.unique(reference_of[part], return_inverse=True)
            return {"references": references[used], "repaints": repaints[part], "reference_of": index.astype(np.int64)}

        return self.run_batched("perceptual", len(repaints), size, feeds)


def largest_batch(max_batch: int, side: int, pixels: int = PIXELS_A_CALL) -> int:
    """Images of `side` pixels in one call: at most `max_batch`, and `pixels` pixels."""
    return max(1, min(max_batch, pixels // side**2))
