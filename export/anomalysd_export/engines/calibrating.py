"""What the networks really see: inputs recorded while good photos are inspected, for the ranges of int8 and fp8."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from types import TracebackType
from typing import Any

import numpy as np

from anomalysd_edge.core.types import F32, I64, U8, Array
from anomalysd_edge.method.detector import Detector
from anomalysd_edge.method.networks import InpaintJob, Networks, NetworkSizes

SAMPLES = 96
"""Samples kept of each network, spread evenly over all that passed."""
SAMPLES_A_RUN = 4
"""Samples in one run of the calibrator: it holds every range's tensor of a run in memory."""


class Recorder:
    """Networks that pass every call on and keep its inputs. The door's protocol; see anomalysd_edge.method.networks."""

    def __init__(self, networks: Networks) -> None:
        self.networks = networks
        self.sizes: NetworkSizes = networks.sizes
        self.backend = networks.backend
        self.max_batch = networks.max_batch
        self.seen: dict[str, list[dict[str, Array]]] = {}

    def encode(self, images: F32) -> F32:
        self._keep("vae_encoder", len(images), lambda n: {"sample": images[n]})
        return self.networks.encode(images)

    def decode(self, latents: F32) -> F32:
        self._keep("vae_decoder", len(latents), lambda n: {"latent_sample": latents[n]})
        return self.networks.decode(latents)

    def features(self, images: F32) -> F32:
        self._keep("features", len(images), lambda n: {"image": images[n]})
        return self.networks.features(images)

    def distance(self, references: F32, repaints: F32, reference_of: I64) -> F32:
        self._keep(
            "perceptual",
            len(repaints),
            lambda n: {"references": references[reference_of[n]], "repaints": repaints[n]},
        )
        return self.networks.distance(references, repaints, reference_of)

    def inpaint(self, job: InpaintJob) -> F32:
        """Step by step, so that the latents before every UNet pass are seen at their own timestep."""
        latents = job.start_latents
        for step, timestep in enumerate(job.timesteps):
            states = job.prompt_states[job.prompt_of]
            sample = np.concatenate([latents, job.masks, job.masked_latents], axis=1)
            feeds = {"sample": sample, "timestep": np.full(len(sample), timestep), "encoder_hidden_states": states}
            self._keep("unet", len(sample), lambda n, feeds=feeds: {key: value[n] for key, value in feeds.items()})
            if job.guidance_scale > 1 and job.negative_states is not None:
                negative = {**feeds, "encoder_hidden_states": np.broadcast_to(job.negative_states, states.shape)}
                self._keep("unet", len(sample), lambda n, feeds=negative: {k: v[n] for k, v in feeds.items()})
            one = slice(step, step + 1)
            latents = self.networks.inpaint(
                replace(job, start_latents=latents, timesteps=job.timesteps[one], coefficients=job.coefficients[one])
            )
        return latents

    def close(self) -> None:
        """Nothing: the recorded networks belong to the caller."""

    def __enter__(self) -> Recorder:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _keep(self, name: str, count: int, take: Any) -> None:
        self.seen.setdefault(name, []).extend(
            {key: np.array(value) for key, value in take(n).items()} for n in range(count)
        )


def recorded_feeds(
    detector: Detector, photos: Sequence[tuple[str, U8]], samples: int = SAMPLES
) -> dict[str, list[dict[str, Array]]]:
    """Feeds of every network while `detector` inspects the good `photos` (class name, (H,W,3) uint8).

    By network, a list of runs of SAMPLES_A_RUN samples. The noised latents, their masks and their timesteps are those
    of the detector's own preset. Photos are judged one by one: memory holds the inputs of all, at most.
    """
    recorder = Recorder(detector.networks)
    recording = detector.over(recorder)
    for class_name, photo in photos:
        recording.inspect([photo], class_name)
    return {name: _runs(name, _spread(seen, samples)) for name, seen in recorder.seen.items()}


def _spread(seen: list[dict[str, Array]], samples: int) -> list[dict[str, Array]]:
    if len(seen) <= samples:
        return seen
    return [seen[i] for i in np.linspace(0, len(seen) - 1, samples).round().astype(int)]


def _runs(name: str, seen: list[dict[str, Array]]) -> list[dict[str, Array]]:
    runs = []
    for start in range(0, len(seen), SAMPLES_A_RUN):
        part = seen[start : start + SAMPLES_A_RUN]
        run = {key: np.ascontiguousarray(np.stack([entry[key] for entry in part])) for key in part[0]}
        if name == "perceptual":
            run["reference_of"] = np.arange(len(part), dtype=np.int64)
        runs.append(run)
    return runs
