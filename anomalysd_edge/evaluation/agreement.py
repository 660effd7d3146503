"""Do two backends give the same verdicts? Compared where it matters: maps, scores, verdicts on photos."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from anomalysd_edge.core.types import Progress
from anomalysd_edge.data.datasets import Sample
from anomalysd_edge.errors import InputError
from anomalysd_edge.method.detector import Detector
from anomalysd_edge.vision import images


@dataclass(frozen=True)
class PhotoAgreement:
    """One photo, judged twice."""

    name: str
    """The photo."""
    class_name: str
    """Its class."""
    score_a: float
    """Image score of the first backend."""
    score_b: float
    """Image score of the second."""
    map_error: float
    """Largest absolute difference of the fused maps."""
    flip: bool
    """Whether the verdicts differ."""

    @property
    def score_difference(self) -> float:
        """|score_a - score_b|."""
        return abs(self.score_a - self.score_b)


@dataclass(frozen=True)
class Agreement:
    """The photos and what was allowed."""

    backends: tuple[str, str]
    """Names of the two."""
    photos: tuple[PhotoAgreement, ...]
    """Every photo."""
    tolerance: float
    """Largest score difference allowed; a flipped verdict is never allowed."""

    @property
    def flips(self) -> int:
        """Photos whose verdict differs."""
        return sum(p.flip for p in self.photos)

    @property
    def worst(self) -> PhotoAgreement:
        """The photo with the largest score difference."""
        return max(self.photos, key=lambda p: p.score_difference)

    @property
    def passed(self) -> bool:
        """Whether every score agrees and no verdict flips."""
        return self.flips == 0 and self.worst.score_difference <= self.tolerance

    def sentence(self) -> str:
        """The result in one sentence."""
        worst = self.worst
        return (
            f"{'verified' if self.passed else 'REFUSED'}: {self.backends[0]} against {self.backends[1]} on "
            f"{len(self.photos)} photos: largest score difference {worst.score_difference:.1e} ({worst.name}; allowed "
            f"{self.tolerance:.0e}), largest map error {max(p.map_error for p in self.photos):.1e}, "
            f"verdict flips {self.flips}"
        )

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return {
            "backends": list(self.backends),
            "passed": self.passed,
            "tolerance": self.tolerance,
            "flips": self.flips,
            "largest_score_difference": self.worst.score_difference,
            "largest_map_error": max(p.map_error for p in self.photos),
            "worst_photo": self.worst.name,
            "photos": [{**vars(p), "score_difference": p.score_difference} for p in self.photos],
        }


def compare(
    a: Detector, b: Detector, samples: Sequence[Sample], tolerance: float = 1e-4, progress: Progress | None = None
) -> Agreement:
    """Judge `samples` with both detectors. Raises InputError where there is no photo to judge."""
    if not samples:
        raise InputError("no photos to compare on; give a folder with photos of the bundle's classes")
    found = []
    for number, sample in enumerate(samples):
        photo = images.load_rgb(sample.path)
        first, second = (d.inspect([photo], sample.class_name)[0] for d in (a, b))
        found.append(
            PhotoAgreement(
                name=f"{sample.class_name}/{sample.defect}/{sample.path.name}",
                class_name=sample.class_name,
                score_a=first.pred_score,
                score_b=second.pred_score,
                map_error=float(np.abs(first.anomaly_map - second.anomaly_map).max()),
                flip=first.pred_label != second.pred_label,
            )
        )
        if progress:
            progress("verify", number + 1, len(samples), sample.class_name)
    return Agreement((a.networks.backend, b.networks.backend), tuple(found), tolerance)


def spread_over_classes(samples: Sequence[Sample], limit: int) -> list[Sample]:
    """At most `limit` samples, taken in turn from every class and kind of defect."""
    queues: dict[tuple[str, str], list[Sample]] = {}
    for sample in samples:
        queues.setdefault((sample.class_name, sample.defect), []).append(sample)
    chosen: list[Sample] = []
    depth = 0
    while len(chosen) < min(limit, len(samples)):
        for queue in queues.values():
            if depth < len(queue) and len(chosen) < limit:
                chosen.append(queue[depth])
        depth += 1
    return chosen
