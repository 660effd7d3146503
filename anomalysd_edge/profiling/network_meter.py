"""What an inspection asks of the networks: jobs, samples, bytes through the door, and the seconds behind it."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from types import TracebackType

import numpy as np

from anomalysd_edge.core.types import F32, I64
from anomalysd_edge.method.networks import InpaintJob, Networks, NetworkSizes

JOBS = ("features", "encode", "unet", "decode", "distance")
"""The networks behind the door, in the order in which a photo meets them."""


@dataclass
class Tally:
    """One network's share."""

    calls: int = 0
    """Jobs."""
    samples: int = 0
    """Photos, latents or pairs; for the UNet passes of one slot (a guided pass is two)."""
    bytes: int = 0
    """Of the arrays that went in and came out, as numpy holds them."""
    seconds: float = 0.0
    """Behind the door."""


@dataclass
class Meter:
    """The tallies of all networks."""

    jobs: dict[str, Tally] = field(default_factory=lambda: {name: Tally() for name in JOBS})

    @property
    def seconds(self) -> float:
        """Behind the door, all networks together."""
        return sum(tally.seconds for tally in self.jobs.values())

    @property
    def bytes(self) -> int:
        """Through the door."""
        return sum(tally.bytes for tally in self.jobs.values())

    def to_json(self) -> dict[str, dict[str, float]]:
        """Plain values."""
        return {name: asdict(tally) for name, tally in self.jobs.items()}


class MeteredNetworks:
    """Networks (see networks.py) that count; everything else is the wrapped ones'."""

    def __init__(self, networks: Networks) -> None:
        self.networks = networks
        self.sizes: NetworkSizes = networks.sizes
        self.max_batch = networks.max_batch
        self.batch_sizes: tuple[int, ...] = getattr(networks, "batch_sizes", ())
        self.meter = Meter()

    @property
    def backend(self) -> str:
        """The wrapped networks', which may change when one falls back to float32."""
        return self.networks.backend

    @backend.setter
    def backend(self, value: str) -> None:
        self.networks.backend = value

    def encode(self, images: F32) -> F32:
        return self._count("encode", len(images), (images,), lambda: self.networks.encode(images))

    def inpaint(self, job: InpaintJob) -> F32:
        passes = len(job.timesteps) * (2 if job.guidance_scale > 1 else 1)
        arrays = (job.start_latents, job.masks, job.masked_latents, job.prompt_states)
        return self._count("unet", len(job.start_latents) * passes, arrays, lambda: self.networks.inpaint(job))

    def decode(self, latents: F32) -> F32:
        return self._count("decode", len(latents), (latents,), lambda: self.networks.decode(latents))

    def distance(self, references: F32, repaints: F32, reference_of: I64) -> F32:
        return self._count(
            "distance",
            len(repaints),
            (references, repaints),
            lambda: self.networks.distance(references, repaints, reference_of),
        )

    def features(self, images: F32) -> F32:
        return self._count("features", len(images), (images,), lambda: self.networks.features(images))

    def close(self) -> None:
        self.networks.close()

    def __enter__(self) -> MeteredNetworks:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _count(self, name: str, samples: int, arrays: tuple[F32, ...], work: Callable[[], F32]) -> F32:
        began = time.perf_counter()
        result = work()
        tally = self.meter.jobs[name]
        tally.seconds += time.perf_counter() - began
        tally.calls += 1
        tally.samples += samples
        tally.bytes += sum(int(np.asarray(array).nbytes) for array in arrays) + int(result.nbytes)
        return result
