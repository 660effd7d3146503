"""The torch backend: the trained networks themselves, the reference against which every exported backend is checked."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import Any

import numpy as np
import torch
from torch import Tensor

from anomalysd_edge.core.types import F32, I64
from anomalysd_edge.errors import BackendError, NumericError, ShapeError
from anomalysd_edge.method.networks import InpaintJob, Networks, NetworkSizes
from anomalysd_edge.training.devices import plain_float32
from anomalysd_edge.training.models.base import decode, encode_mode, latent_factor
from anomalysd_edge.training.models.features import FEATURES_PX


class TorchNetworks(Networks):
    """The five networks of :class:`anomalysd_edge.method.networks.Networks` in torch: float32, eager, one device.

    Calls with more than `max_batch` rows are split into batches of that size; results agree up to rounding.
    """

    def __init__(
        self,
        unet: Any,
        vae: Any,
        perceptual: torch.nn.Module,
        features: torch.nn.Module | None,
        *,
        size_px: int | None = None,
        features_px: int = FEATURES_PX,
        max_batch: int = 16,
        device: str = "cpu",
        threads: int | None = None,
    ) -> None:
        """`size_px` defaults to the UNet's training size; `features` may be None if no memory bank is used.
        `threads`: torch's CPU threads in the whole process, until `close`; so is float32 on a GPU without TF32.

        Raises BackendError if the device is missing and ShapeError if `size_px` is not a multiple of a latent cell.
        """
        if device.startswith("cuda") and not torch.cuda.is_available():
            raise BackendError(f"the device {device!r} was asked for, but torch {torch.__version__} sees none; use cpu")
        factor = latent_factor(vae)
        side = size_px or int(unet.config.sample_size) * factor
        if side % factor:
            raise ShapeError(f"size_px is {side}; expected a multiple of the latent factor {factor}")
        self.sizes = NetworkSizes(
            size_px=side,
            latent_channels=int(vae.config.latent_channels),
            latent_factor=factor,
            features_px=features_px if features is not None else 0,
        )
        self.backend = f"torch {device}"
        self.max_batch = max_batch
        self._device = torch.device(device)
        self._threads_before = torch.get_num_threads()
        self._until_close = ExitStack()
        self._until_close.enter_context(plain_float32(device))
        if threads:
            torch.set_num_threads(threads)
        networks = [network for network in (unet, vae, perceptual, features) if network is not None]
        for network in networks:
            network.to(self._device).eval().requires_grad_(False)
        self._unet, self._vae = unet, vae
        self._perceptual: Any = perceptual
        self._features: Any = features

    def encode(self, images: F32) -> F32:
        """(N,3,H,W) in [-1,1] -> (N,C,h,w) scaled latents: the posterior's mode."""
        self._check("images", images, (3, self.sizes.size_px, self.sizes.size_px))
        return self._rows("VAE encoder", lambda x: encode_mode(self._vae, x), images)

    def inpaint(self, job: InpaintJob) -> F32:
        """The truncated DDIM loop of `job` -> (N,C,h,w) scaled latents at t = 0."""
        channels, side = self.sizes.latent_channels, self.sizes.latent_side
        self._check("start_latents", job.start_latents, (channels, side, side))
        self._check("masks", job.masks, (1, side, side))
        self._check("masked_latents", job.masked_latents, (channels, side, side))
        count = len(job.start_latents)
        if not len(job.masks) == len(job.masked_latents) == len(job.prompt_of) == count:
            raise ShapeError(
                f"an inpaint job brings {count} start latents, {len(job.masks)} masks, {len(job.masked_latents)} "
                f"masked latents and {len(job.prompt_of)} prompt numbers; expected as many of each"
            )
        if job.coefficients.shape != (len(job.timesteps), 2):
            raise ShapeError(f"coefficients are {job.coefficients.shape}; expected ({len(job.timesteps)}, 2)")
        if job.guidance_scale > 1 and job.negative_states is None:
            raise ShapeError("guidance_scale is above 1 but negative_states is None; give the negative prompt's states")
        states = self._tensor(job.prompt_states)
        negative = None if job.negative_states is None else self._tensor(job.negative_states)
        prompt_of = torch.from_numpy(np.ascontiguousarray(job.prompt_of)).to(self._device)

        def loop(rows: slice) -> Tensor:
            z = self._tensor(job.start_latents[rows])
            context = torch.cat([self._tensor(job.masks[rows]), self._tensor(job.masked_latents[rows])], dim=1)
            prompts = states[prompt_of[rows]]
            history = [None] * len(job.timesteps) if job.history is None else job.history.tolist()
            before = torch.zeros_like(z)
            for t, (keep, add), back in zip(job.timesteps.tolist(), job.coefficients.tolist(), history, strict=True):
                if job.guidance_scale > 1 and negative is not None:
                    both = torch.cat([torch.cat([z, context], dim=1)] * 2)
                    steered = torch.cat([negative.expand_as(prompts), prompts])
                    away, toward = self._unet(both, t, encoder_hidden_states=steered).sample.chunk(2)
                    out = away + job.guidance_scale * (toward - away)
                else:
                    out = self._unet(torch.cat([z, context], dim=1), t, encoder_hidden_states=prompts).sample
                step = keep * z + add * out
                if back is not None:
                    step, before = step + back[0] * before, back[1] * z + back[2] * out
                z = step
            return z

        with torch.no_grad():
            pieces = [loop(rows) for rows in self._pieces(count)]
        return self._finite("UNet", pieces)

    def decode(self, latents: F32) -> F32:
        """(N,C,h,w) scaled latents -> (N,3,H,W), clipped to [-1,1]."""
        self._check("latents", latents, (self.sizes.latent_channels, self.sizes.latent_side, self.sizes.latent_side))
        # Checked before the clip, which would turn an infinity into white.
        decoded = self._rows("VAE decoder", lambda z: decode(self._vae, z), latents)
        return np.clip(decoded, -1.0, 1.0)

    def distance(self, references: F32, repaints: F32, reference_of: I64) -> F32:
        """LPIPS without the mean over space: (M,3,H,W), (N,3,H,W), (N,) -> (N,H,W), >= 0."""
        side = self.sizes.size_px
        self._check("references", references, (3, side, side))
        self._check("repaints", repaints, (3, side, side))
        numbers = np.ascontiguousarray(reference_of, dtype=np.int64)
        if numbers.shape != (len(repaints),) or not ((numbers >= 0) & (numbers < len(references))).all():
            raise ShapeError(
                f"reference_of is {numbers.tolist()}; expected {len(repaints)} numbers below {len(references)}"
            )
        pieces = []
        with torch.no_grad():
            for rows in self._pieces(len(repaints)):
                used, local = np.unique(numbers[rows], return_inverse=True)
                pieces.append(
                    self._perceptual(
                        self._tensor(references[used]),
                        self._tensor(repaints[rows]),
                        torch.from_numpy(local.astype(np.int64)).to(self._device),
                    )
                )
        return self._finite("perceptual network", pieces)

    def features(self, images: F32) -> F32:
        """(N,3,F,F) at sizes.features_px -> (N,D,f,f) dense features, unit length along D."""
        if self._features is None:
            raise BackendError("features were asked of networks that were made without a feature network")
        self._check("images", images, (3, self.sizes.features_px, self.sizes.features_px))
        return self._rows("feature network", self._features, images)

    def close(self) -> None:
        """Release the networks and restore torch's number of threads."""
        self._unet = self._vae = self._perceptual = self._features = None
        torch.set_num_threads(self._threads_before)
        self._until_close.close()
        if self._device.type == "cuda":
            torch.cuda.empty_cache()

    def _rows(self, name: str, network: Callable[[Tensor], Tensor], array: F32) -> F32:
        with torch.no_grad():
            pieces = [network(self._tensor(array[rows])) for rows in self._pieces(len(array))]
        return self._finite(name, pieces)

    def _pieces(self, count: int) -> Iterator[slice]:
        return (slice(start, min(start + self.max_batch, count)) for start in range(0, count, self.max_batch))

    def _tensor(self, array: F32) -> Tensor:
        return torch.from_numpy(np.ascontiguousarray(array, dtype=np.float32)).to(self._device)

    def _finite(self, name: str, pieces: list[Tensor]) -> F32:
        joined: F32 = np.ascontiguousarray(torch.cat(pieces).float().cpu().numpy())
        if not np.isfinite(joined).all():
            raise NumericError(f"the {name} gave NaN or Inf on {self.backend}; no score is made of it: train again")
        return joined

    @staticmethod
    def _check(name: str, array: F32, shape: tuple[int, ...]) -> None:
        if array.ndim != 1 + len(shape) or array.shape[1:] != shape or array.shape[0] < 1 or array.dtype != np.float32:
            raise ShapeError(
                f"{name} came as {array.dtype} {array.shape}; expected float32 (N >= 1, {', '.join(map(str, shape))})"
            )
