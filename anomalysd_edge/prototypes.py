"""Prototypes: what the patches of a class's normal photos look like in feature space, one bank per class."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

F32 = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Bank:
    """The prototypes of one class."""

    vectors: F32
    """(B,D) unit vectors."""

    def distance(self, features: F32, floor_rows: int = 1024) -> F32:
        """(D,f,f) unit features -> (f,f) float32 distance in [0,2]: 1 - cosine to the nearest prototype."""
        depth, height, width = features.shape
        query = features.reshape(depth, height * width).T
        nearest = np.full(len(query), -1.0, np.float32)
        # Bank rows in pieces: the full similarity matrix of a 512 px photo would not fit a small box.
        for start in range(0, len(self.vectors), floor_rows):
            np.maximum(nearest, (query @ self.vectors[start : start + floor_rows].T).max(axis=1), out=nearest)
        return np.asarray(1 - nearest, dtype=np.float32).reshape(height, width)


def build_bank(features: F32, size: int) -> Bank:
    """(N,D,f,f) unit features of normal views -> a bank of at most `size` vectors.

    Where there are more patches than `size`, a greedy k-centre choice keeps the ones that cover the rest best
    (PatchCore's coreset; Roth et al. 2022, alg. 1), on a fixed random projection to save time. Deterministic.
    """
    depth = features.shape[1]
    patches = np.ascontiguousarray(features.transpose(0, 2, 3, 1).reshape(-1, depth), dtype=np.float32)
    chosen = patches if len(patches) <= size else patches[_k_centres(patches, size)]
    # Rounded as a bundle stores them, so that a threshold fitted before it is written holds after it is read.
    return Bank(chosen.astype(np.float16).astype(np.float32))


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
