"""How far a repaint is from the photo: the paper's perceptual distance, and two that a small model repaints better for.

    perceptual  LPIPS in AlexNet's feature space, the paper's D
    latent      mean |z^ - z| over channels, where the repaint is made: keeps amplitude, which LPIPS' unit features
                divide away (a dark hairline in strong grain)
    features    1 - cosine in the prototypes' feature space, pooled over 3x3 patches: forgives grain that is repainted
                in another place

A settings object gives each a weight; the distance is their geometric mean, so none needs to know another's unit.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from anomalysd_edge.core.timing import StageTimer
from anomalysd_edge.core.types import F32, Mask
from anomalysd_edge.method.inpainting.mask_plan import batches
from anomalysd_edge.method.inpainting.masks import to_pixels
from anomalysd_edge.method.networks import Networks
from anomalysd_edge.method.settings import InspectSettings
from anomalysd_edge.vision import images

_TINY = np.float32(1e-4)
"""Smallest distance told apart from none: below it a logarithm would make rounding, which differs by backend, count."""
SMALLEST = np.float32(0.99e-4)
"""No distance that is measured here lies below it: a geometric mean of values of at least _TINY, and rounding."""


@dataclass(frozen=True)
class Repaint:
    """Latents to compare: one slot's, or a scale's merged ones."""

    photo: int
    """Whose."""
    scale: int
    """k of its grid, or plan.GUIDED."""
    mask: Mask
    """(h,w) latent cells that were repainted."""
    latents: F32
    """(C,h,w); the photo's own outside the mask."""


@dataclass(frozen=True)
class Measured:
    """A repaint, decoded and compared."""

    repaint: Repaint
    mask: Mask
    """(S,S) pixels that were repainted."""
    pixels: F32
    """(3,S,S) the repaint inside the mask, the last reference outside it."""
    distance: F32
    """(S,S) >= 0."""


class Differences:
    """Measures the repaints of one group of photos."""

    def __init__(
        self, networks: Networks, settings: InspectSettings, pixels: F32, latents: F32, timer: StageTimer
    ) -> None:
        """pixels (P,3,S,S) in [-1,1] and latents (P,C,h,w) of the photos."""
        self._networks, self._settings, self._clock = networks, settings, timer
        self._latents = latents
        self._references: list[F32] = []
        if settings.reference != "photo":
            with timer.stage("decode"):
                self._references.append(networks.decode(latents))
        if settings.reference != "round_trip":
            self._references.append(pixels)
        self._features: list[F32] = []
        if settings.features_weight:
            with timer.stage("features"):
                self._features = [self._dense(reference) for reference in self._references]

    def measure(self, repaints: Sequence[Repaint]) -> Iterator[Measured]:
        """In order, in batches that the networks take."""
        for part in batches(len(repaints), self._networks.max_batch):
            yield from self._batch(repaints[part])

    def _batch(self, part: Sequence[Repaint]) -> Iterator[Measured]:
        settings, networks = self._settings, self._networks
        of = np.array([repaint.photo for repaint in part], np.int64)
        masks = np.stack([to_pixels(repaint.mask, networks.sizes.latent_factor) for repaint in part])
        latents = np.stack([repaint.latents for repaint in part])
        with self._clock.stage("decode"):
            decoded = networks.decode(latents)
        # The reference's own pixels stay outside the mask.
        kept = [np.where(masks[:, None], decoded, reference[of]) for reference in self._references]
        logs = np.zeros((len(part), *masks.shape[1:]), np.float32)
        total = settings.perceptual_weight + settings.latent_weight + settings.features_weight
        share = 1 / (total * len(kept))
        if settings.latent_weight:
            with self._clock.stage("distance"):
                inside = np.stack([repaint.mask for repaint in part])
                apart = np.where(inside, np.abs(latents - self._latents[of]).mean(axis=1), np.float32(0))
                logs += settings.latent_weight / total * self._log(apart)
        for number, seen in enumerate(kept):
            if settings.perceptual_weight:
                with self._clock.stage("distance"):
                    used, reference_of = np.unique(of, return_inverse=True)
                    far = networks.distance(self._references[number][used], seen, reference_of.astype(np.int64))
                    logs += settings.perceptual_weight * share * self._log(far)
            if settings.features_weight:
                with self._clock.stage("features"):
                    # Pair by pair: references[of] would copy a photo's features for each of its repaints.
                    dense, references = self._dense(seen), self._features[number]
                    cosine = np.stack(
                        [np.einsum("cij,cij->ij", d, references[p]) for d, p in zip(dense, of, strict=True)]
                    )
                    logs += settings.features_weight * share * self._log(1 - cosine)
        for repaint, mask, pixels, log in zip(part, masks, kept[-1], logs, strict=True):
            yield Measured(repaint, mask, pixels, np.exp(log))

    def _dense(self, pixels: F32) -> F32:
        """(N,3,S,S) -> (N,D,f,f) features of the pixels at the size that the feature network takes."""
        side = self._networks.sizes.features_px
        return self._networks.features(images.resize_maps(pixels, (side, side)))

    def _log(self, maps: F32) -> F32:
        """(N,a,b) distances -> their logarithms at (N,S,S)."""
        side = self._networks.sizes.size_px
        maps = images.resize_maps(maps, (side, side))
        return np.asarray(np.log(np.maximum(maps, _TINY)), dtype=np.float32)
