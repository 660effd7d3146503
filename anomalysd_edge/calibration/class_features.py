"""Features of a class's photos, at each size that its inspections see."""

from __future__ import annotations

from dataclasses import dataclass

from anomalysd_edge.calibration.evidence import View
from anomalysd_edge.core.types import F32, U8
from anomalysd_edge.data.classes import apply_view
from anomalysd_edge.method.networks import Networks
from anomalysd_edge.method.patches.feature_windows import dense_features, tiled_side
from anomalysd_edge.vision.letterbox import Letterbox


@dataclass(frozen=True)
class ClassFeatures:
    """As evidence.Describe takes it."""

    networks: Networks
    aspect: float | None
    """Width / height of the class's photos."""
    windows: tuple[int, ...]
    """Along a side, at each size from the smallest."""

    def frame(self, photo: U8) -> Letterbox:
        """Where (H,W,3) lies in the networks' square."""
        return Letterbox.of((photo.shape[0], photo.shape[1]), self.aspect)

    def __call__(self, photo: U8, view: View = (0, False)) -> tuple[F32, ...]:
        """(H,W,3) -> (D,f,f) unit features of a view of its square at each size; nothing without a feature network."""
        side = self.networks.sizes.features_px
        if not side:
            return ()
        squares = self.frame(photo).squares(photo, tuple(tiled_side(side, n) for n in self.windows))
        return tuple(
            dense_features(self.networks, [apply_view(square, view)], n)[0]
            for square, n in zip(squares, self.windows, strict=True)
        )
