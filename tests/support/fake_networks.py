"""Networks in a few lines of numpy, for tests of the algorithm: fast, deterministic, and honest about batches."""

from __future__ import annotations

from types import TracebackType

import numpy as np

from anomalysd_edge.core.types import F32, I64
from anomalysd_edge.method.networks import InpaintJob, NetworkSizes


class FakeNetworks:
    """Latents are block means; "repainting" pulls masked cells to the mean of the known ones; distance is |a-b|."""

    backend = "fake"

    def __init__(self, size_px: int = 32, factor: int = 4, features_px: int = 32, max_batch: int = 16) -> None:
        self.sizes = NetworkSizes(size_px, 3, factor, features_px)
        self.max_batch = max_batch
        self.samples = 0
        self.batches: list[int] = []
        self.encodes = 0
        self.decodes = 0

    def encode(self, images: F32) -> F32:
        self.encodes += len(images)
        n, c, h, w = images.shape
        f = self.sizes.latent_factor
        return np.asarray(images.reshape(n, c, h // f, f, w // f, f).mean(axis=(3, 5)), dtype=np.float32)

    def inpaint(self, job: InpaintJob) -> F32:
        assert len(job.start_latents) <= self.max_batch
        self.batches.append(len(job.start_latents))
        z = job.start_latents
        known = 1 - job.masks
        share = np.maximum(known.sum(axis=(2, 3), keepdims=True), 1)
        mean = (job.masked_latents * known).sum(axis=(2, 3), keepdims=True) / share
        hint = job.prompt_states[job.prompt_of].mean(axis=(1, 2))[:, None, None, None]
        history = np.zeros((len(job.timesteps), 3), np.float32) if job.history is None else job.history
        before = np.zeros_like(z)
        for t, (c0, c1), (h0, h1, h2) in zip(job.timesteps, job.coefficients, history, strict=True):
            self.samples += len(z)
            out = (z - mean - hint) * np.float32(t / 1000)
            z, before = c0 * z + c1 * out + h0 * before, h1 * z + h2 * out
        return np.asarray(np.where(job.masks > 0, 0.1 * z + 0.9 * (mean + hint), job.masked_latents), dtype=np.float32)

    def decode(self, latents: F32) -> F32:
        self.decodes += len(latents)
        f = self.sizes.latent_factor
        return np.clip(latents.repeat(f, axis=2).repeat(f, axis=3), -1, 1)

    def distance(self, references: F32, repaints: F32, reference_of: I64) -> F32:
        return np.asarray(np.abs(references[reference_of] - repaints).mean(axis=1), dtype=np.float32)

    def features(self, images: F32) -> F32:
        n, c, h, w = images.shape
        pooled = images.reshape(n, c, h // 4, 4, w // 4, 4)
        dense = np.concatenate(
            [pooled.mean(axis=(3, 5)), pooled.std(axis=(3, 5)), np.ones((n, 1, h // 4, w // 4))], axis=1
        )
        return np.asarray(dense / np.linalg.norm(dense, axis=1, keepdims=True), dtype=np.float32)

    def close(self) -> None:
        pass

    def __enter__(self) -> FakeNetworks:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
