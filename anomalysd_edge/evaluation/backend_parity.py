"""The proof before a precision or backend is trusted: verdicts, maps and AUROC against a reference on real photos."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from anomalysd_edge.core.types import F32, Progress
from anomalysd_edge.data.datasets import ClassData, Dataset, Sample
from anomalysd_edge.errors import DatasetError, InputError
from anomalysd_edge.evaluation import evaluate
from anomalysd_edge.evaluation.agreement import PhotoAgreement
from anomalysd_edge.evaluation.network_parity import Difference, SideBySide
from anomalysd_edge.method.detector import Detector
from anomalysd_edge.method.result import Inspection
from anomalysd_edge.vision import images

FIGURES = ("image_auroc", "pixel_auroc", "aupro")
GATED = FIGURES[:2]


@dataclass(frozen=True)
class GateSettings:
    """What a backend may cost."""

    flips: int = 0
    """Verdicts that may differ from the reference's."""
    auroc_drop: float = 0.002
    """How far the mean image AUROC or the mean pixel AUROC of the fused map may fall; judged where there are labels."""
    probes: int = 5
    """Photos on which the networks are compared one by one."""


@dataclass(frozen=True)
class Judgement:
    """What the gate found."""

    backends: tuple[str, str]
    """The reference and the backend that was judged, as their networks call themselves."""
    photos: tuple[PhotoAgreement, ...]
    """Every photo."""
    networks: dict[str, Difference]
    """Per network, on `settings.probes` photos."""
    figures: tuple[dict[str, float], dict[str, float]] | None
    """Mean image AUROC, pixel AUROC and AUPRO of both in [0,1]; None without labels."""
    settings: GateSettings
    """What was allowed."""
    worst_path: Path
    """The photo with a flip or, without one, the largest score difference."""
    worst: tuple[Inspection, Inspection] = field(repr=False)
    """Its two inspections, made once more for their pictures."""

    @property
    def flips(self) -> int:
        """Photos whose verdict differs."""
        return sum(photo.flip for photo in self.photos)

    @property
    def score_difference(self) -> float:
        """Largest over the photos."""
        return max(photo.score_difference for photo in self.photos)

    @property
    def map_error(self) -> float:
        """Largest over the photos."""
        return max(photo.map_error for photo in self.photos)

    @property
    def auroc_drop(self) -> float | None:
        """The larger fall of the gated means; negative where the backend is better; None without labels."""
        if self.figures is None:
            return None
        right, other = self.figures
        drops = [right[name] - other[name] for name in GATED if not math.isnan(right[name] - other[name])]
        return max(drops) if drops else None

    @property
    def passed(self) -> bool:
        """Whether the gate opens."""
        drop = self.auroc_drop
        return self.flips <= self.settings.flips and (drop is None or drop <= self.settings.auroc_drop)

    def sentence(self) -> str:
        """The result in one sentence."""
        drop = self.auroc_drop
        labelled = "no labels, so AUROC was not compared" if drop is None else (
            f"AUROC drop {drop:+.4f} (allowed {self.settings.auroc_drop})"
        )  # fmt: skip
        return (
            f"{'verified' if self.passed else 'REFUSED'}: {self.backends[1]} against {self.backends[0]} on "
            f"{len(self.photos)} photos: verdict flips {self.flips} (allowed {self.settings.flips}), {labelled}, "
            f"largest score difference {self.score_difference:.1e}, largest map error {self.map_error:.1e}, "
            f"worst photo {self.worst_photo.name}"
        )

    @property
    def worst_photo(self) -> PhotoAgreement:
        """A flipped photo before any other, then the largest score difference."""
        return max(self.photos, key=lambda photo: (photo.flip, photo.score_difference))

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return {
            "backends": list(self.backends),
            "passed": self.passed,
            "settings": vars(self.settings),
            "flips": self.flips,
            "auroc_drop": self.auroc_drop,
            "largest_score_difference": self.score_difference,
            "largest_map_error": self.map_error,
            "worst_photo": self.worst_photo.name,
            "networks": {name: vars(found) for name, found in self.networks.items()},
            "figures": None if self.figures is None else dict(zip(self.backends, self.figures, strict=True)),
            "photos": [{**vars(photo), "score_difference": photo.score_difference} for photo in self.photos],
        }


def judge(
    right: Detector,
    other: Detector,
    samples: Sequence[Sample],
    settings: GateSettings | None = None,
    labels: bool = False,
    progress: Progress | None = None,
) -> Judgement:
    """Judge `samples` with both detectors; with `labels`, compare AUROC and AUPRO too.

    Raises InputError without photos and DatasetError where `labels` are asked for and no class has good and bad ones.
    """
    settings = settings or GateSettings()
    if not samples:
        raise InputError("no photos to compare on; give a folder with photos of the bundle's classes")
    data = _dataset(samples)
    if labels and not any({0, 1} <= {s.label for s in part.test} for part in data.classes.values()):
        raise DatasetError("labels were asked for, and no class has both good and bad test photos; leave out --labels")
    answers: tuple[dict[Path, _Answer], dict[Path, _Answer]] = ({}, {})
    figures = []
    for detector, kept in zip((right, other), answers, strict=True):
        figures.append(_figures(detector, data, kept, labels, progress))
    photos = tuple(_agreement(sample, *(kept[sample.path] for kept in answers)) for sample in samples)
    worst = max(range(len(photos)), key=lambda i: (photos[i].flip, photos[i].score_difference))
    path, class_name = samples[worst].path, samples[worst].class_name
    again = tuple(d.inspect([images.load_rgb(path)], class_name)[0] for d in (right, other))
    return Judgement(
        backends=(right.networks.backend, other.networks.backend),
        photos=photos,
        networks=_differences(right, other, samples, settings.probes),
        figures=(figures[0], figures[1]) if labels else None,
        settings=settings,
        worst_path=path,
        worst=(again[0], again[1]),
    )


@dataclass(frozen=True)
class _Answer:
    """What is kept of an inspection: a thousand whole ones would fill the memory."""

    score: float
    label: int | None
    map: F32

    @classmethod
    def of(cls, answer: Inspection) -> _Answer:
        return cls(answer.pred_score, answer.pred_label, answer.anomaly_map)


def _dataset(samples: Sequence[Sample]) -> Dataset:
    classes: dict[str, list[Sample]] = {}
    for sample in samples:
        classes.setdefault(sample.class_name, []).append(sample)
    parts = {name: ClassData(name, (), tuple(found)) for name, found in classes.items()}
    return Dataset(samples[0].path.parent, "folder", parts)


def _figures(
    detector: Detector, data: Dataset, kept: dict[Path, _Answer], labels: bool, progress: Progress | None
) -> dict[str, float]:
    """Inspect every photo into `kept`; with `labels`, the means of FIGURES for the fused map."""
    if labels:

        def keep(sample: Sample, _photo: Any, answer: Inspection) -> None:
            kept[sample.path] = _Answer.of(answer)

        results = evaluate.evaluate(detector, data, progress, keep)
        return {name: evaluate.mean_figure(results, "fused", name) for name in FIGURES}
    samples = [sample for part in data.classes.values() for sample in part.test]
    for number, sample in enumerate(samples):
        (answer,) = detector.inspect([images.load_rgb(sample.path)], sample.class_name)
        kept[sample.path] = _Answer.of(answer)
        if progress:
            progress("inspect", number + 1, len(samples), sample.class_name)
    return {}


def _agreement(sample: Sample, first: _Answer, second: _Answer) -> PhotoAgreement:
    return PhotoAgreement(
        name=f"{sample.class_name}/{sample.defect}/{sample.path.name}",
        class_name=sample.class_name,
        score_a=first.score,
        score_b=second.score,
        map_error=float(np.abs(first.map - second.map).max()),
        flip=first.label != second.label,
    )


def _differences(right: Detector, other: Detector, samples: Sequence[Sample], probes: int) -> dict[str, Difference]:
    both = SideBySide(right.networks, other.networks)
    detector = right.over(both)
    for index in np.linspace(0, len(samples) - 1, min(probes, len(samples))).round().astype(int):
        sample = samples[index]
        detector.inspect([images.load_rgb(sample.path)], sample.class_name)
    return both.found
