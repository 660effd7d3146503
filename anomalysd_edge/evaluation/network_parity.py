"""How far the networks of two backends lie apart on the same inputs, network by network, during real inspections."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from anomalysd_edge.core.types import F32
from anomalysd_edge.method.networks import ForwardingNetworks, InpaintJob, Networks, denoise, single_pass


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


class ComparedNetworks(ForwardingNetworks):
    """The networks `right`, with those of `other` run on the same inputs and compared; both stay the caller's.

    The UNet is compared pass by pass on the reference's own latents: differences do not add up over the steps.
    """

    def __init__(self, right: Networks, other: Networks) -> None:
        super().__init__(right)
        self.other = other
        self.max_batch = min(right.max_batch, other.max_batch)
        self.batch_sizes = right.batch_sizes or other.batch_sizes
        self.found: dict[str, Difference] = {}

    def call(self, network: str, job: Callable[[Networks], F32]) -> F32:
        right, other = job(self.networks), job(self.other)
        self.found.setdefault(network, Difference()).see(right, other)
        return right

    def inpaint(self, job: InpaintJob) -> F32:
        def compared(latents: F32, number: int) -> F32:
            single = single_pass(job, latents, number)
            return self.call("unet", lambda networks: networks.inpaint(single))

        return denoise(job, compared)

    def close(self) -> None:
        """Nothing: both belong to the caller."""
