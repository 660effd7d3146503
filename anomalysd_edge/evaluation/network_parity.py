"""How far the networks of two backends lie apart on the same inputs, network by network, during real inspections."""

from __future__ import annotations

from dataclasses import dataclass, replace
from types import TracebackType

import numpy as np

from anomalysd_edge.core.types import F32, I64
from anomalysd_edge.method.networks import InpaintJob, Networks, NetworkSizes


@dataclass
class Difference:
    """One network's largest difference so far."""

    max_abs: float = 0.0
    """Largest absolute difference of an output value."""
    largest: float = 0.0
    """Largest absolute output value of the reference: what max_abs is to be seen against."""
    samples: int = 0
    """Samples compared."""

    def see(self, right: F32, other: F32) -> None:
        """Count one pair of outputs."""
        self.max_abs = max(self.max_abs, float(np.abs(right - other).max()))
        self.largest = max(self.largest, float(np.abs(right).max()))
        self.samples += len(right)


class SideBySide:
    """Networks that answer with `right` and hold `other` against it. The door's protocol.

    The UNet is compared pass by pass on the reference's own latents: differences do not add up over the steps.
    """

    def __init__(self, right: Networks, other: Networks) -> None:
        self.right, self.other = right, other
        self.sizes: NetworkSizes = right.sizes
        self.backend = right.backend
        self.max_batch = min(right.max_batch, other.max_batch)
        self.found: dict[str, Difference] = {}

    def encode(self, images: F32) -> F32:
        return self._both("vae_encoder", self.right.encode(images), self.other.encode(images))

    def decode(self, latents: F32) -> F32:
        return self._both("vae_decoder", self.right.decode(latents), self.other.decode(latents))

    def features(self, images: F32) -> F32:
        return self._both("features", self.right.features(images), self.other.features(images))

    def distance(self, references: F32, repaints: F32, reference_of: I64) -> F32:
        right = self.right.distance(references, repaints, reference_of)
        return self._both("perceptual", right, self.other.distance(references, repaints, reference_of))

    def inpaint(self, job: InpaintJob) -> F32:
        latents = job.start_latents
        bare = np.array([[0, 1]], np.float32)  # z <- 0*z + 1*out: a loop of one step gives the UNet's output itself
        for timestep, (c0, c1) in zip(job.timesteps, job.coefficients, strict=True):
            single = replace(job, start_latents=latents, timesteps=np.array([timestep]), coefficients=bare)
            out = self._both("unet", self.right.inpaint(single), self.other.inpaint(single))
            latents = c0 * latents + c1 * out
        return latents

    def close(self) -> None:
        """Nothing: both belong to the caller."""

    def __enter__(self) -> SideBySide:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _both(self, name: str, right: F32, other: F32) -> F32:
        self.found.setdefault(name, Difference()).see(right, other)
        return right
