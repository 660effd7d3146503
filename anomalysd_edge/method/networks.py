"""The door between the algorithm and whatever runs the networks: torch, ONNX Runtime or TensorRT.

The door speaks in whole jobs. What happens between two denoising steps stays on the device, so a backend may keep
latents there, capture a CUDA graph, or fuse the DDIM update into its graph: callers cannot tell.
Every array that crosses the door is a C-contiguous numpy array; images are float32 in [-1, 1], channels first.
"""

from __future__ import annotations

from dataclasses import dataclass
from types import TracebackType
from typing import Protocol

from anomalysd_edge.core.types import F32, I64


@dataclass(frozen=True)
class NetworkSizes:
    """What the algorithm must know of the networks behind the door."""

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
    """Five networks on one device. Raises ShapeError for wrong inputs and NumericError for NaN or Inf outputs."""

    sizes: NetworkSizes
    backend: str
    """For reports: for instance 'torch cpu' or 'onnxruntime CPUExecutionProvider'."""
    max_batch: int
    """Largest number of slots that one call may bring; the planner splits by it."""

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

    def close(self) -> None:
        """Give the device memory back."""
        ...

    def __enter__(self) -> Networks: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...
