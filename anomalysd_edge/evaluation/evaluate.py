"""Measuring a detector on labelled photos: the same figures for each of its maps, side by side."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields
from itertools import chain, islice
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from anomalysd_edge.core.types import Mask, Progress
from anomalysd_edge.data.datasets import Dataset, Sample
from anomalysd_edge.evaluation import metrics
from anomalysd_edge.method.detector import Detector
from anomalysd_edge.method.result import MAPS, Inspection
from anomalysd_edge.vision import images

METRIC_PX = 256
"""Maps and masks are brought to this side before pixels are compared, whatever size the model works at."""

FIGURES = ("image_auroc", "pixel_auroc", "aupro", "f1_max", "average_precision")
"""How well a map ranks, whatever the threshold."""
VERDICT_FIGURES = ("balanced_error", "best_balanced_error", "f1", "seg_f1")
"""How good the verdicts at the shipped thresholds are; beside them what the best threshold would have reached."""

Watch = Callable[[Sample, npt.NDArray[np.uint8], Inspection], None]
Judged = tuple[Sample, npt.NDArray[np.uint8], Inspection]
"""A test photo, its pixels and its inspection."""


@dataclass(frozen=True)
class ClassResult:
    """What was measured on one class."""

    class_name: str
    """The class."""
    good: int
    """Good photos."""
    bad: int
    """Photos with a defect."""
    figures: dict[str, dict[str, float]]
    """By map (prototypes, multiscale, guided, fused), then by figure, in [0,1]; NaN where it is not defined."""
    false_alarms: int | None
    """Good photos with verdict 1; None where the class has no threshold."""
    missed: int | None
    """Bad photos with verdict 0."""
    ms_per_photo: float
    """Mean time inside the detector."""
    verdicts: dict[str, float] = field(default_factory=dict)
    """VERDICT_FIGURES in [0,1]; NaN where the class has no threshold, or photos of one kind only."""


def evaluate(
    detector: Detector, data: Dataset, progress: Progress | None = None, watch: Watch | None = None
) -> list[ClassResult]:
    """Inspect every test photo of `data`, class by class; `watch` sees each photo with its inspection."""
    parts = (_inspections(detector, name, found.test) for name, found in data.classes.items())
    return measure(chain.from_iterable(parts), data, progress, watch)


def measure(
    judged: Iterator[Judged], data: Dataset, progress: Progress | None = None, watch: Watch | None = None
) -> list[ClassResult]:
    """The figures of inspections that come in the order of `data`, wherever they were made.

    Memory holds one class's maps at a time.
    """
    total = sum(len(found.test) for found in data.classes.values())
    done, results = 0, []
    for name, found in data.classes.items():
        labels: list[int] = []
        scores: dict[str, list[float]] = {}
        maps: dict[str, list[npt.NDArray[np.float32]]] = {}
        masks: list[npt.NDArray[np.bool_] | None] = []
        verdicts: list[int | None] = []
        called: list[Mask | None] = []
        spent = 0.0
        for sample, photo, answer in islice(judged, len(found.test)):
            labels.append(sample.label)
            verdicts.append(answer.pred_label)
            called.append(None if answer.pred_mask is None else _at_metric_size(answer.pred_mask))
            spent += sum(answer.timings_ms.values())
            for kind, score_map in answer.maps.items():
                scores.setdefault(kind, []).append(answer.scores[kind])
                maps.setdefault(kind, []).append(images.resize_map(score_map, (METRIC_PX, METRIC_PX)))
            masks.append(truth_mask(sample, (photo.shape[0], photo.shape[1])))
            done += 1
            if watch:
                watch(sample, photo, answer)
            if progress:
                progress("inspect", done, total, name)
        if labels:
            results.append(_result(name, labels, scores, maps, masks, verdicts, called, spent))
    return results


def _inspections(detector: Detector, name: str, samples: Sequence[Sample]) -> Iterator[Judged]:
    for start in range(0, len(samples), detector.group):
        part = samples[start : start + detector.group]
        photos = [images.load_rgb(sample.path) for sample in part]
        yield from zip(part, photos, detector.inspect(photos, name), strict=True)


def truth_mask(sample: Sample, photo_hw: tuple[int, int]) -> npt.NDArray[np.bool_] | None:
    """(METRIC_PX, METRIC_PX) bool; None where a bad photo has no mask, so that its pixels are not counted as good."""
    if sample.label == 0:
        return np.zeros((METRIC_PX, METRIC_PX), np.bool_)
    if sample.mask_path is None:
        return None
    mask = images.load_mask(sample.mask_path, photo_hw)
    return _at_metric_size(mask)


def _at_metric_size(mask: Mask) -> Mask:
    """(H,W) bool -> (METRIC_PX, METRIC_PX) bool, nearest neighbour."""
    return np.asarray(Image.fromarray(mask).resize((METRIC_PX, METRIC_PX), Image.Resampling.NEAREST), dtype=np.bool_)


def _verdict_figures(
    labels: Sequence[int],
    scores: Sequence[float],
    verdicts: Sequence[int | None],
    masks: Sequence[Mask | None],
    called: Sequence[Mask | None],
) -> dict[str, float]:
    """VERDICT_FIGURES of a class; photos without a mask, or whose class has no pixel threshold, stay out of seg_f1."""
    known = [verdict for verdict in verdicts if verdict is not None]
    judged = len(known) == len(verdicts)
    drawn = [(mask, found) for mask, found in zip(masks, called, strict=True) if mask is not None and found is not None]
    return {
        "balanced_error": metrics.balanced_error(labels, known) if judged else math.nan,
        "best_balanced_error": metrics.best_balanced_error(labels, scores)[0],
        "f1": metrics.f1(labels, known) if judged else math.nan,
        "seg_f1": metrics.segmentation_f1([m for m, _ in drawn], [p for _, p in drawn]),
    }


def _result(
    name: str,
    labels: list[int],
    scores: dict[str, list[float]],
    maps: dict[str, list[npt.NDArray[np.float32]]],
    masks: list[npt.NDArray[np.bool_] | None],
    verdicts: list[int | None],
    called: list[Mask | None],
    spent: float,
) -> ClassResult:
    figures: dict[str, dict[str, float]] = {}
    for kind in MAPS:
        # A map that some photos lack (no bank, say) has no figure that could be compared.
        if len(scores.get(kind, ())) == len(labels):
            figures[kind] = class_figures(labels, scores[kind], maps[kind], masks)
    judged = None not in verdicts
    return ClassResult(
        class_name=name,
        good=labels.count(0),
        bad=labels.count(1),
        figures=figures,
        false_alarms=sum(v == 1 and y == 0 for v, y in zip(verdicts, labels, strict=True)) if judged else None,
        missed=sum(v == 0 and y == 1 for v, y in zip(verdicts, labels, strict=True)) if judged else None,
        ms_per_photo=spent / len(labels),
        verdicts=_verdict_figures(labels, scores.get("fused", []), verdicts, masks, called),
    )


def class_figures(
    labels: Sequence[int],
    scores: Sequence[float],
    maps: Sequence[npt.NDArray[np.float32]],
    masks: Sequence[npt.NDArray[np.bool_] | None],
) -> dict[str, float]:
    """FIGURES of one map on one class, in [0,1]: (N,) labels and scores, N maps and masks of METRIC_PX a side.

    Photos whose mask is None count for the image figures alone.
    """
    truth = [mask for mask in masks if mask is not None]
    chosen = [m for m, mask in zip(maps, masks, strict=True) if mask is not None]
    return {
        "image_auroc": metrics.image_auroc(labels, scores),
        "pixel_auroc": metrics.pixel_auroc(truth, chosen),
        "aupro": metrics.aupro(truth, chosen),
        "f1_max": metrics.f1_max(labels, scores)[0],
        "average_precision": metrics.average_precision(labels, scores),
    }


def mean_figure(results: Sequence[ClassResult], kind: str, figure: str) -> float:
    """Mean of one of FIGURES over the classes for which it is defined; NaN where there is none."""
    return _mean(r.figures[kind][figure] for r in results if kind in r.figures)


def mean_verdict(results: Sequence[ClassResult], figure: str) -> float:
    """The same of one of VERDICT_FIGURES."""
    return _mean(r.verdicts.get(figure, math.nan) for r in results)


def _mean(values: Iterable[float]) -> float:
    defined = [v for v in values if not math.isnan(v)]
    return sum(defined) / len(defined) if defined else math.nan


COLUMNS = (
    "class",
    "good/bad",
    "bal. error",
    "at best",
    "F1",
    "SegF1",
    "false alarms",
    "missed",
    *(f"{kind} I/P" for kind in MAPS),
    "AUPRO",
    "F1-max",
    "AP",
    "ms",
)


def table_rows(results: Sequence[ClassResult]) -> list[tuple[str, ...]]:
    """Rows under COLUMNS, in percent, the mean last.

    Verdicts first: the balanced error at the shipped threshold, what the best threshold would reach, F1, pixel F1. Then
    image/pixel AUROC per map and the fused map's other figures.
    """

    def pair(image: float, pixel: float) -> str:
        return "/".join(map(_percent, (image, pixel)))

    rows = []
    for r in results:
        fused = r.figures.get("fused", {})
        rows.append(
            (
                r.class_name,
                f"{r.good}/{r.bad}",
                *(_percent(r.verdicts.get(figure, math.nan)) for figure in VERDICT_FIGURES),
                "-" if r.false_alarms is None else f"{r.false_alarms}/{r.good}",
                "-" if r.missed is None else f"{r.missed}/{r.bad}",
                *(
                    pair(f.get("image_auroc", math.nan), f.get("pixel_auroc", math.nan))
                    for f in (r.figures.get(kind, {}) for kind in MAPS)
                ),
                *(_percent(fused.get(figure, math.nan)) for figure in FIGURES[2:]),
                f"{r.ms_per_photo:.0f}",
            )
        )
    if len(results) > 1:
        verdicts = [_percent(mean_verdict(results, figure)) for figure in VERDICT_FIGURES]
        means = [pair(mean_figure(results, k, "image_auroc"), mean_figure(results, k, "pixel_auroc")) for k in MAPS]
        others = [_percent(mean_figure(results, "fused", figure)) for figure in FIGURES[2:]]
        ms = f"{sum(r.ms_per_photo for r in results) / len(results):.0f}"
        rows.append(("mean", "", *verdicts, "", "", *means, *others, ms))
    return rows


def _percent(value: float) -> str:
    return "-" if math.isnan(value) else f"{100 * value:.1f}"


def to_json(results: Sequence[ClassResult]) -> dict[str, Any]:
    """Per class and mean, figures in [0,1]."""
    kinds = [kind for kind in MAPS if any(kind in r.figures for r in results)]
    return {
        "classes": {r.class_name: {k: v for k, v in vars(r).items() if k != "class_name"} for r in results},
        "mean": {
            **{kind: {figure: mean_figure(results, kind, figure) for figure in FIGURES} for kind in kinds},
            "verdicts": {figure: mean_verdict(results, figure) for figure in VERDICT_FIGURES},
        },
    }


def result_of(values: Mapping[str, Any]) -> ClassResult:
    """The inverse of files.json_ready: null becomes NaN again."""

    def floats(some: Mapping[str, Any]) -> dict[str, float]:
        return {what: math.nan if v is None else float(v) for what, v in some.items()}

    plain = {f.name: values[f.name] for f in fields(ClassResult) if f.name in values}
    figures = {kind: floats(some) for kind, some in values["figures"].items()}
    return ClassResult(**{**plain, "figures": figures, "verdicts": floats(values.get("verdicts", {}))})
