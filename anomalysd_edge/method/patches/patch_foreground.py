"""An object before its background, told by the features themselves: for networks whose patches know what an object is.

The first principal component of DINOv2's patch tokens parts object from background (Oquab et al., arXiv 2304.07193),
and AnomalyDINO leaves patches of the background out by it (Damm et al., arXiv 2405.14529). There it is fitted to each
photo, with a threshold for tokens of their own length, and switched on by hand for some classes. Here it is fitted
once, to the shots, for tokens of unit length, and kept only where it marks an object on every one of them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from anomalysd_edge.core.types import F32, Mask
from anomalysd_edge.method.inpainting.masks import otsu_threshold
from anomalysd_edge.vision import morphology

_SHARES = 0.05, 0.95
"""Share of the patches that an object may cover, as for masks.foreground."""
_BORDER = 0.5
"""The border may be marked at most this much as densely as the whole photo."""


@dataclass(frozen=True)
class PatchForeground:
    """Patches on the far side of a plane are the object's."""

    axis: F32
    """(D,) unit vector from background to object."""
    threshold: float
    """Of features times `axis`; above it lies the object."""

    @classmethod
    def of(cls, shots: Sequence[F32]) -> PatchForeground | None:
        """From (D,f,f) unit features of a class's shots; None where no plane shows an object before a background."""
        depth = shots[0].shape[0]
        patches = np.concatenate([features.reshape(depth, -1) for features in shots], axis=1)
        centred = patches - patches.mean(axis=1, keepdims=True)
        axis = np.linalg.eigh(centred @ centred.T)[1][:, -1].astype(np.float32)
        for direction in (axis, -axis):
            along = direction @ patches
            low = along <= otsu_threshold(along)
            # Half-way between the two kinds: Otsu's threshold lies anywhere in the gap, and new photos scatter wider.
            found = cls(
                direction, float(along[low].mean() + along[~low].mean()) / 2 if low.any() and not low.all() else 0
            )
            if all(_shows_object(found._marked(features)) for features in shots):
                return found
        return None

    def of_photo(self, features: F32) -> Mask | None:
        """(D,f,f) unit features -> (f,f) bool: the object, its gaps closed, a patch wider all around.

        None where it covers next to nothing or everything: then every patch counts, since the part may be missing.
        """
        marked = self._marked(features)
        if not _SHARES[0] <= float(marked.mean()) <= _SHARES[1]:
            return None
        return morphology.dilate(morphology.erode(morphology.dilate(marked, 1), 1), 1)

    def _marked(self, features: F32) -> Mask:
        return np.asarray(np.tensordot(self.axis, features, axes=(0, 0)) > self.threshold)

    def tensors(self, name: str) -> dict[str, F32]:
        """For a bundle, as `name`: the axis and, after it, the threshold."""
        return {name: np.append(self.axis, np.float32(self.threshold)).astype(np.float32)}

    @classmethod
    def of_tensor(cls, stored: F32) -> PatchForeground:
        """The inverse of `tensors`."""
        return cls(np.asarray(stored[:-1], np.float32), float(stored[-1]))


def _shows_object(marked: Mask) -> bool:
    border = np.concatenate([marked[0], marked[-1], marked[1:-1, 0], marked[1:-1, -1]])
    share = float(marked.mean())
    return _SHARES[0] <= share <= _SHARES[1] and float(border.mean()) <= _BORDER * share
