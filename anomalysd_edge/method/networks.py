"""The interface between the algorithm and whatever runs the networks: torch, ONNX Runtime, TensorRT or Triton.

A call is a whole job. What happens between two denoising steps stays on the device, so a backend may keep latents
there, capture a CUDA graph, or fuse the DDIM update into its graph: callers cannot tell.
Arguments and results are C-contiguous numpy arrays; images are float32 in [-1, 1], channels first.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from types import TracebackType
from typing import Protocol, TypeVar

import numpy as np

from anomalysd_edge.core.types import F32, I64

Self = TypeVar("Self", bound="Networks")
"""typing.Self is Python 3.11's."""


@dataclass(frozen=True)
class NetworkSizes:
    """The sizes of the networks' inputs and outputs that the algorithm depends on."""

    size_px: int
    """Side of the square photo that is encoded and repainted."""
    latent_channels: int
    """Channels of a latent: 4 for Stable Diffusion."""
    latent_factor: int
    """Pixels per latent cell along one side: 8 for Stable Diffusion, 4 for nano."""
    features_px: int
    """Side of the square photo that the feature network sees; 0 where a bundle has no feature network."""

    @property
    def latent_side(self) -> int:
        """Side of the square latent, in cells."""
        return self.size_px // self.latent_factor


@dataclass(frozen=True)
class InpaintJob:
    """N slots to repaint: the whole truncated DDIM loop, from lambda*T down to 0."""

    start_latents: F32
    """(N,C,h,w) latents already noised to the first timestep."""
    masks: F32
    """(N,1,h,w) in {0,1}; 1 = repaint."""
    masked_latents: F32
    """(N,C,h,w) scaled latents of (1-m)*x."""
    prompt_states: F32
    """(P,77,D) text encoder states, one row per distinct prompt."""
    prompt_of: I64
    """(N,) the prompt row of each slot."""
    timesteps: I64
    """(S,) falling training timesteps."""
    coefficients: F32
    """(S,2): a step is z <- c[0]*z + c[1]*unet_output. Epsilon and v-prediction differ in c alone (schedule.py)."""
    guidance_scale: float = 1.0
    """1 = one pass a step; above 1 a second pass with `negative_states` steers away from it."""
    negative_states: F32 | None = None
    """(77,D) states of the negative prompt; needed when guidance_scale > 1."""
    history: F32 | None = None
    """(S,3) of a sampler that looks one pass back, h: z <- c[0]*z + c[1]*out + h[0]*p, then p <- h[1]*z + h[2]*out of
    the z before the step; p starts at 0. None: no second term."""


class Networks(Protocol):
    """Five networks on one device; a context manager, and the base class of every implementation.

    Methods raise ShapeError for wrong inputs and NumericError for NaN or Inf outputs.
    """

    sizes: NetworkSizes
    backend: str
    """For reports: for instance 'torch cpu' or 'onnxruntime CPUExecutionProvider'."""
    max_batch: int
    """Largest number of slots in one call; the planner splits by it."""
    batch_sizes: tuple[int, ...] = ()
    """Static batch sizes of the UNet, where it runs at these only; empty where it runs at any."""

    def encode(self, images: F32) -> F32:
        """(N,3,H,W) -> (N,C,h,w) scaled latents: the posterior's mode, so that no noise enters here."""
        ...

    def inpaint(self, job: InpaintJob) -> F32:
        """Run the whole loop of `job`; (N,C,h,w) scaled latents at t = 0."""
        ...

    def decode(self, latents: F32) -> F32:
        """(N,C,h,w) scaled latents -> (N,3,H,W), clipped to [-1,1]."""
        ...

    def distance(self, references: F32, repaints: F32, reference_of: I64) -> F32:
        """LPIPS without the spatial mean: (M,3,H,W), (N,3,H,W), (N,) -> (N,H,W), >= 0.

        Repaint n is compared with references[reference_of[n]], whose features are computed once.
        """
        ...

    def features(self, images: F32) -> F32:
        """(N,3,F,F) at sizes.features_px -> (N,D,f,f) dense features, unit length along D."""
        ...

    def probe(self) -> None:
        """Do a little work on the device. Raises DeviceLost where it does none any more.

        A GPU's fault (an illegal access, say) stays with the process: every later call fails too, whatever its photo.
        """
        return  # not a stub: a CPU cannot be lost

    def close(self) -> None:
        """Give the device memory back; nothing where the networks hold none of their own."""
        return  # not a stub: mypy takes an empty body in a protocol for an abstract method

    def __enter__(self: Self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class ForwardingNetworks(Networks):
    """Networks that pass every attribute and every call on to other ones: the base of those that count or compare.

    A subclass overrides `call` for what it does around every network, or single methods.
    """

    backend_note = ""
    """Appended to the wrapped networks' `backend`."""

    def __init__(self, networks: Networks) -> None:
        self.networks = networks
        self.sizes, self.max_batch, self.batch_sizes = networks.sizes, networks.max_batch, networks.batch_sizes

    @property
    def backend(self) -> str:
        """The wrapped networks', read anew each time: it changes where one falls back to float32."""
        return self.networks.backend + self.backend_note

    @backend.setter
    def backend(self, value: str) -> None:
        self.networks.backend = value

    def call(self, network: str, job: Callable[[Networks], F32]) -> F32:  # noqa: ARG002 - for subclasses
        """The result of `job`, one call of `network` (as the bundle names it), on the wrapped networks."""
        return job(self.networks)

    def encode(self, images: F32) -> F32:
        return self.call("vae_encoder", lambda networks: networks.encode(images))

    def inpaint(self, job: InpaintJob) -> F32:
        return self.call("unet", lambda networks: networks.inpaint(job))

    def decode(self, latents: F32) -> F32:
        return self.call("vae_decoder", lambda networks: networks.decode(latents))

    def distance(self, references: F32, repaints: F32, reference_of: I64) -> F32:
        return self.call("perceptual", lambda networks: networks.distance(references, repaints, reference_of))

    def features(self, images: F32) -> F32:
        return self.call("features", lambda networks: networks.features(images))

    def probe(self) -> None:
        self.networks.probe()

    def close(self) -> None:
        self.networks.close()


def denoise(job: InpaintJob, unet: Callable[[F32, int], F32]) -> F32:
    """The loop of `job` in numpy, (N,C,h,w) at t = 0. `unet` takes (N,C,h,w) latents and the step's number, 0 first."""
    latents, before = job.start_latents, np.zeros_like(job.start_latents)
    for number, (c0, c1) in enumerate(job.coefficients):
        out = unet(latents, number)
        following = c0 * latents + c1 * out
        if job.history is not None:
            h0, h1, h2 = job.history[number]
            following, before = following + h0 * before, h1 * latents + h2 * out
        latents = following
    return latents


def single_pass(job: InpaintJob, latents: F32, number: int) -> InpaintJob:
    """A job of one UNet pass, step `number` of `job` on `latents`, whose result is the (guided) UNet output itself."""
    output = np.array([[0, 1]], np.float32)  # z <- 0*z + 1*out
    timesteps = job.timesteps[number : number + 1]
    return replace(job, start_latents=latents, timesteps=timesteps, coefficients=output, history=None)
