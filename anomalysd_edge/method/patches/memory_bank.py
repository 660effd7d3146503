"""Prototypes: what the patches of a class's normal photos look like in feature space, one bank per class."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from anomalysd_edge.core.threads import map_threads
from anomalysd_edge.core.types import F32

_AT_ONCE = 524_288
"""Similarities in one product, 2 MiB; products of one photo run in threads."""
_CANDIDATES = 24_576
"""Patches among which prototypes are chosen, unless the views themselves are more: choosing takes time with each."""


@dataclass(frozen=True)
class MemoryBank:
    """The prototypes of one class."""

    vectors: F32
    """(B,D) unit vectors."""
    _by_layers: dict[tuple[int, ...], tuple[MemoryBank, ...]] = field(default_factory=dict, repr=False, compare=False)

    def by_layer(self, layers: tuple[int, ...]) -> tuple[MemoryBank, ...]:
        """A bank for each part of `layers` channels, of unit vectors again; made once."""
        if layers not in self._by_layers:
            ends = np.cumsum(layers)
            parts = [self.vectors[:, end - depth : end] for end, depth in zip(ends, layers, strict=True)]
            self._by_layers[layers] = tuple(MemoryBank(unit(np.ascontiguousarray(part), axis=1)) for part in parts)
        return self._by_layers[layers]

    def distance(self, features: F32) -> F32:
        """(D,f,f) unit features -> (f,f) float32 distance in [0,2]: 1 - cosine to the nearest prototype."""
        depth, height, width = features.shape
        query = np.ascontiguousarray(features.reshape(depth, height * width))
        # Part of the bank at a time: all similarities of a large photo's windows would not fit a small box.
        rows = max(64, _AT_ONCE // (height * width))
        parts = [self.vectors[start : start + rows] for start in range(0, len(self.vectors), rows)]
        nearest = np.maximum.reduce(map_threads(lambda part: (part @ query).max(axis=0), parts))
        return np.asarray(1 - nearest, dtype=np.float32).reshape(height, width)


def unit(values: F32, axis: int) -> F32:
    """The same of length 1 along `axis`; what is shorter than 1e-6 stays shorter."""
    norms = np.sqrt(np.square(values).sum(axis=axis, keepdims=True))
    return np.asarray(values / np.maximum(norms, 1e-6), dtype=np.float32)


def self_distance(features: F32, share: float, most: int = 1024) -> F32:
    """(D,f,f) unit features -> (f,f) float32: distance of each patch to the `share` of its own photo most like it.

    1 - cosine to the patch at that quantile. A texture repeats itself, so a patch with few likes is suspect even where
    the light or the batch is new to the bank (Aota et al., "Zero-shot versus many-shot", WACV 2023). Above `most`
    patches only every n-th is compared with: the answer is a quantile.
    """
    return self_distances(features, (share,), most)[0]


def self_distances(features: F32, shares: Sequence[float], most: int) -> list[F32]:
    """The same for several shares at once: the products and their order are made once."""
    depth, height, width = features.shape
    query = np.ascontiguousarray(features.reshape(depth, height * width).T)
    others = query[:: -(-len(query) // most)]
    # Rank 0 is the patch itself.
    ranks = [min(len(others) - 1, max(1, int(share * len(others)))) for share in shares]

    def ranked(part: F32) -> F32:
        alike = part @ others.T
        # Sorted whole, in place: numpy sorts rows with vector instructions, and partitions at several places without.
        alike.sort(axis=1)
        return np.asarray(1 - alike[:, [len(others) - 1 - rank for rank in ranks]])

    rows = max(64, _AT_ONCE // 4 // len(others))
    found = np.concatenate(map_threads(ranked, [query[start : start + rows] for start in range(0, len(query), rows)]))
    return [np.ascontiguousarray(column, dtype=np.float32).reshape(height, width) for column in found.T]


_SIMILAR_SHARE, _SIMILAR_PATCHES, _SIMILAR_TOP = 0.0125, 256, 0.01


def self_similarity(features: F32) -> float:
    """(D,f,f) -> mean of the largest hundredth of `self_distance` to the nearest part in eighty of its own patches."""
    distances = np.sort(self_distance(features, _SIMILAR_SHARE, _SIMILAR_PATCHES), axis=None)
    return float(distances[-max(1, round(_SIMILAR_TOP * distances.size)) :].mean())


def prototype_distance(bank: MemoryBank, features: F32, self_share_of: float = 0.0) -> F32:
    """(D,f,f) unit features -> (f,f) distance to the bank; with `own_share` its geometric mean with `self_distance`."""
    distance = bank.distance(features)
    if not self_share_of:
        return distance
    own = self_distance(features, self_share_of)
    return np.asarray(np.sqrt(np.maximum(distance, 0) * np.maximum(own, 0)), dtype=np.float32)


def build_memory_bank(features: F32, size: int, more: F32 | None = None) -> MemoryBank:
    """(N,D,f,f) unit features of normal views -> a bank of at most `size` vectors.

    Where there are more patches than `size`, a greedy k-centre choice keeps the ones that cover the rest best
    (PatchCore's coreset; Roth et al. 2022, alg. 1), on a fixed random projection to save time. `more` are (M,D,f,f) of
    views that matter less, copies in another light: they are thinned evenly where all would be too many. Deterministic.
    """
    patches = _rows(features)
    if more is not None and len(more):
        others = _rows(more)
        room = max(_CANDIDATES - len(patches), len(patches) // 4)
        patches = np.concatenate([patches, others[:: -(-len(others) // room)]])
    chosen = patches if len(patches) <= size else patches[_k_centres(patches, size)]
    # Rounded as a bundle stores them, so that a threshold fitted before it is written holds after it is read.
    return MemoryBank(chosen.astype(np.float16).astype(np.float32))


def _rows(features: F32) -> F32:
    """(N,D,f,f) -> (N*f*f,D)."""
    return np.ascontiguousarray(features.transpose(0, 2, 3, 1).reshape(-1, features.shape[1]), dtype=np.float32)


def _k_centres(patches: F32, size: int, projected: int = 32) -> npt.NDArray[np.int64]:
    rng = np.random.default_rng(0)
    low = patches @ (rng.standard_normal((patches.shape[1], projected)).astype(np.float32) / np.sqrt(projected))
    norms = np.einsum("nd,nd->n", low, low)
    chosen = np.empty(size, np.int64)
    chosen[0] = 0
    gap = norms + norms[0] - 2 * (low @ low[0])
    for i in range(1, size):
        far = int(np.argmax(gap))
        chosen[i] = far
        np.minimum(gap, norms + norms[far] - 2 * (low @ low[far]), out=gap)
    return chosen
