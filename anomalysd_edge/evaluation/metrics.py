"""AUROC, AUPRO, average precision and F1-max by the published protocols, exact at every threshold.

Scores and maps are higher where something is more anomalous. Where the labels hold one class only a figure does not
exist: it is NaN, never 0 or 1. Maps are used at the size of their masks: resize before, as the protocol asks.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from anomalysd_edge.core.types import Mask
from anomalysd_edge.errors import NumericError, ShapeError
from anomalysd_edge.vision.morphology import label_regions

Floats = npt.NDArray[np.floating[Any]]


def image_auroc(labels: npt.ArrayLike, scores: npt.ArrayLike) -> float:
    """(N,) labels in {0,1} and (N,) scores -> area under the ROC curve in [0,1]; NaN with one class only.

    It is the chance that a bad image scores above a good one, ties counting half (Hanley & McNeil 1982).
    """
    bad, values = _checked(labels, scores)
    return _auroc(values[~bad], values[bad])


def pixel_auroc(masks: Sequence[Mask], maps: Sequence[Floats]) -> float:
    """N (H,W) bool masks and N (H,W) maps, sizes free per pair -> area under the ROC curve over all their pixels."""
    _check_maps(masks, maps)
    return _auroc(_pixels(masks, maps, False), _pixels(masks, maps, True))


def average_precision(labels: npt.ArrayLike, scores: npt.ArrayLike) -> float:
    """(N,) labels and scores -> sum over thresholds of (recall step) * precision; NaN with one class only."""
    bad, values = _checked(labels, scores)
    if bad.all() or not bad.any():
        return float("nan")
    _, true, false = _counts(bad, values)
    recall_steps = np.diff(true, prepend=0) / bad.sum()
    return float(np.sum(recall_steps * true / (true + false)))


def f1_max(labels: npt.ArrayLike, scores: npt.ArrayLike) -> tuple[float, float]:
    """(N,) labels and scores -> (largest F1, the threshold that gives it); (NaN, NaN) with one class only.

    An image counts as called bad where score >= threshold; of equal F1 the highest threshold is given.
    """
    bad, values = _checked(labels, scores)
    if bad.all() or not bad.any():
        return float("nan"), float("nan")
    thresholds, true, false = _counts(bad, values)
    f1 = 2 * true / (true + false + bad.sum())
    best = int(np.argmax(f1))
    return float(f1[best]), float(thresholds[best])


def balanced_error(labels: npt.ArrayLike, predictions: npt.ArrayLike) -> float:
    """(N,) labels and verdicts in {0,1} -> mean of false-alarm rate and miss rate; 0.5 is a coin's. NaN with one class.

    One minus the balanced accuracy (Brodersen et al., ICPR 2010).
    """
    bad, called = _checked(labels, predictions)
    if bad.all() or not bad.any():
        return float("nan")
    alarm = called >= 1
    return float((alarm[~bad].mean() + (~alarm[bad]).mean()) / 2)


def best_balanced_error(labels: npt.ArrayLike, scores: npt.ArrayLike) -> tuple[float, float]:
    """(N,) labels and scores -> (least balanced error, the threshold that gives it); NaN with one class only.

    What a threshold chosen with these very labels would reach: the ranking's own limit, never a result of a method.
    """
    bad, values = _checked(labels, scores)
    if bad.all() or not bad.any():
        return float("nan"), float("nan")
    thresholds, true, false = _counts(bad, values)
    error = (false / (~bad).sum() + 1 - true / bad.sum()) / 2
    best = int(np.argmin(error))
    if error[best] >= 0.5:  # no alarm at all is as good
        return 0.5, float("inf")
    return float(error[best]), float(thresholds[best])


def f1(labels: npt.ArrayLike, predictions: npt.ArrayLike) -> float:
    """(N,) labels and verdicts in {0,1} -> F1 of the anomalous ones; NaN without an anomalous label."""
    bad, called = _checked(labels, predictions)
    alarm = called >= 1
    return float(2 * (alarm & bad).sum() / (alarm.sum() + bad.sum())) if bad.any() else float("nan")


def segmentation_f1(masks: Sequence[Mask], predictions: Sequence[Mask]) -> float:
    """SegF1: F1 over the pixels of all photos together, at the threshold that made `predictions`; NaN without a defect.

    As the VAND challenge counts it at one fixed threshold. Both are (H,W) bool, one a photo.
    """
    hits = sum(int((m & p).sum()) for m, p in zip(masks, predictions, strict=True))
    total = sum(int(m.sum()) + int(p.sum()) for m, p in zip(masks, predictions, strict=True))
    return 2 * hits / total if any(m.any() for m in masks) else float("nan")


def aupro(masks: Sequence[Mask], maps: Sequence[Floats], fpr_limit: float = 0.3) -> float:
    """N (H,W) bool masks and N (H,W) maps -> normalised area under the per-region-overlap curve up to `fpr_limit`.

    Bergmann et al., "The MVTec Anomaly Detection Dataset", IJCV 129 (2021): at each threshold PRO is the mean, over all
    8-connected defect regions of all images, of the region's share that is called bad; FPR is the share of all
    defect-free pixels, those of good images included, that is called bad. The area under PRO over FPR in
    [0, fpr_limit], trapezoids, the last one cut at the limit, is divided by the limit. NaN without regions or
    without defect-free pixels.

    PRO as a function of FPR jumps only where a defect-free pixel's score is passed, so only the defect-free pixels
    above the limit's threshold are sorted: exact, and about 2 floats of memory a pixel.
    """
    _check_maps(masks, maps)
    if not 0 < fpr_limit <= 1:
        raise ShapeError(f"the FPR limit is {fpr_limit}; expected above 0 and at most 1")
    normal, (bad, weight) = _pixels(masks, maps, False), _weighted_regions(masks, maps)
    if len(normal) == 0 or len(bad) == 0:
        return float("nan")
    thresholds, rates = _false_positive_rates(normal, fpr_limit)

    order = np.argsort(bad)
    ascending = bad[order]
    # tail[i]: mean region share at or above the i-th smallest defect score.
    tail = np.append(np.cumsum(weight[order][::-1])[::-1], 0.0)
    above = tail[np.searchsorted(ascending, thresholds, side="right")]
    at_or_above = tail[np.searchsorted(ascending, thresholds, side="left")]
    left = np.append(0.0, rates[:-1])
    width = np.minimum(rates, fpr_limit) - left
    # Height at the right end of each trapezoid; the last one is cut at the limit along its own slope.
    end = above + (at_or_above - above) * (width / (rates - left))
    return float(np.sum(width * (above + end) / 2) / fpr_limit)


def _false_positive_rates(normal: Floats, limit: float) -> tuple[Floats, npt.NDArray[np.float64]]:
    """Falling distinct scores of defect-free pixels and the FPR at each, up to the first whose FPR reaches `limit`."""
    total = len(normal)
    keep = min(total, int(np.ceil(limit * total)) + 1)
    lowest = np.partition(normal, total - keep)[total - keep]
    top = np.sort(normal[normal >= lowest])[::-1]
    last_of_ties = np.append(np.flatnonzero(top[1:] != top[:-1]), len(top) - 1)
    rates = (last_of_ties + 1) / total
    stop = int(np.searchsorted(rates, limit, side="left")) + 1
    return top[last_of_ties][:stop], rates[:stop]


def _weighted_regions(masks: Sequence[Mask], maps: Sequence[Floats]) -> tuple[Floats, npt.NDArray[np.float64]]:
    """The scores of all defect pixels, and each one's weight 1 / (its region's area * number of regions)."""
    scores: list[Floats] = []
    weights: list[npt.NDArray[np.float64]] = []
    regions = 0
    for mask, values in zip(masks, maps, strict=True):
        labels, number = label_regions(mask)
        inside = labels[mask] - 1
        scores.append(values[mask])
        weights.append(1.0 / np.bincount(inside, minlength=number)[inside])
        regions += number
    if regions == 0:
        return np.empty(0, np.float32), np.empty(0)
    return np.concatenate(scores), np.concatenate(weights) / regions


def _auroc(good: Floats, bad: Floats) -> float:
    if len(good) == 0 or len(bad) == 0:
        return float("nan")
    good, bad = np.sort(good), np.sort(bad)
    below = int(np.searchsorted(good, bad, side="left").sum())
    up_to = int(np.searchsorted(good, bad, side="right").sum())
    return (below + up_to) / (2 * len(good) * len(bad))


def _counts(bad: Mask, values: Floats) -> tuple[Floats, npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Falling distinct thresholds, and how many bad and good images score at or above each."""
    order = np.argsort(-values, kind="stable")
    falling, hits = values[order], bad[order]
    last_of_ties = np.append(np.flatnonzero(falling[1:] != falling[:-1]), len(falling) - 1)
    true = np.cumsum(hits)[last_of_ties]
    return falling[last_of_ties], true, last_of_ties + 1 - true


def _pixels(masks: Sequence[Mask], maps: Sequence[Floats], inside: bool) -> Floats:
    if not masks:
        return np.empty(0, np.float32)
    return np.concatenate([values[mask == inside] for mask, values in zip(masks, maps, strict=True)])


def _checked(labels: npt.ArrayLike, scores: npt.ArrayLike) -> tuple[Mask, Floats]:
    marks, values = np.asarray(labels), np.asarray(scores, dtype=np.float64)
    if marks.ndim != 1 or marks.shape != values.shape:
        raise ShapeError(f"found labels of shape {marks.shape} and scores of shape {values.shape}; expected (N,) twice")
    if not np.isin(marks, (0, 1)).all():
        raise ShapeError("labels hold other values than 0 (good) and 1 (bad)")
    if not np.isfinite(values).all():
        raise NumericError("scores hold NaN or infinity: no figure is made of them")
    return marks.astype(bool), values


def _check_maps(masks: Sequence[Mask], maps: Sequence[Floats]) -> None:
    if len(masks) != len(maps):
        raise ShapeError(f"found {len(masks)} masks and {len(maps)} maps; expected as many of each")
    for number, (mask, values) in enumerate(zip(masks, maps, strict=True)):
        if mask.dtype != np.bool_ or mask.ndim != 2 or mask.shape != values.shape:
            raise ShapeError(
                f"pair {number}: mask {mask.dtype} {mask.shape}, map {values.shape}; expected bool (H,W) and (H,W)"
            )
        if not np.isfinite(values).all():
            raise NumericError(f"map {number} holds NaN or infinity: no figure is made of it")
