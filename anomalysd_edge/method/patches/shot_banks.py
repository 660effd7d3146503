"""A memory bank kept shot by shot: leaving one out then costs nothing, and every shot has its say.

Each shot gives as many prototypes as any other. They stand in the order of a greedy k-centre choice, so the first n are
themselves such a choice: a smaller share of a larger bank needs no new one. The distance to the bank of some shots is
the least of the distances to theirs, which gives the scores of every shot under the bank of all others, of synthetic
anomalies under the same banks, and of banks of fewer shots, from one pass over each photo.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from anomalysd_edge.core.types import F32
from anomalysd_edge.errors import SettingsError
from anomalysd_edge.method.patches.memory_bank import MemoryBank, build_memory_bank

CANDIDATES = 12_288
"""Patches of a shot among which its prototypes are chosen; of more, every n-th: choosing takes time with each."""
LEAST_OF_A_SHOT = 128
"""Prototypes that a shot keeps however many shots there are: fewer do not cover a photo."""


@dataclass(frozen=True)
class ShotBanks:
    """Prototypes of one class at one size of its photos."""

    banks: tuple[MemoryBank, ...]
    """Of each shot, in order; (n,D) unit vectors, the first of them covering the shot best."""

    @classmethod
    def of(cls, views: Sequence[F32], size: int) -> ShotBanks:
        """`views[i]` are (V,D,f,f) unit features of shot i and its turned copies; `size` prototypes in all.

        Every shot gets the same share, at least LEAST_OF_A_SHOT. Raises SettingsError without a shot.
        """
        if not views:
            raise SettingsError("a memory bank needs at least one good photo")
        share = max(LEAST_OF_A_SHOT, size // len(views))
        return cls(tuple(build_memory_bank(_thinned(mine), share) for mine in views))

    @classmethod
    def joined_of(cls, parts: Sequence[ShotBanks], size: int) -> ShotBanks:
        """The banks of several, each cut to what `of` would give it of `size` prototypes.

        So it is where every shot had more patches than prototypes: then they are in the order of the choice.
        """
        banks = [bank for part in parts for bank in part.banks]
        share = max(LEAST_OF_A_SHOT, size // len(banks))
        return cls(tuple(MemoryBank(bank.vectors[:share]) for bank in banks))

    def distances(self, features: F32) -> F32:
        """(D,f,f) unit features of a photo -> (K,f,f) float32: 1 - cosine to the nearest prototype of each shot."""
        return np.stack([bank.distance(features) for bank in self.banks])

    def joined(self, without: int | None = None) -> MemoryBank:
        """The prototypes of all shots, or of all but one, as one bank: its distance is the least over `distances`.

        Raises SettingsError where no shot would be left.
        """
        kept = [bank.vectors for number, bank in enumerate(self.banks) if number != without]
        if not kept:
            raise SettingsError("the bank of a single shot cannot be asked without it")
        return MemoryBank(np.concatenate(kept))


def _thinned(views: F32) -> F32:
    """(V,D,f,f) -> (1,D,1,n) of the same patches, evenly thinned to at most about CANDIDATES."""
    patches = views.transpose(1, 0, 2, 3).reshape(views.shape[1], -1)
    return np.ascontiguousarray(patches[:, :: -(-patches.shape[1] // CANDIDATES)])[None, :, None]
