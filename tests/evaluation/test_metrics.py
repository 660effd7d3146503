"""Metrics against scikit-learn, AUPRO against a slow reading of its definition and a case worked by hand."""

from __future__ import annotations

import math
import time

import numpy as np
import numpy.typing as npt
import pytest
from sklearn.metrics import (
    auc,
    average_precision_score,
    balanced_accuracy_score,
    f1_score,
    precision_recall_curve,
    roc_auc_score,
)

from anomalysd_edge.core.types import F32, Mask
from anomalysd_edge.errors import NumericError, ShapeError
from anomalysd_edge.evaluation import metrics
from anomalysd_edge.evaluation.metrics import aupro, average_precision, f1_max, image_auroc, pixel_auroc


def scored(seed: int, levels: int | None) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.float64]]:
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, 2, 60)
    scores = rng.normal(size=60) + 0.8 * labels
    return labels, np.round(scores * levels) / levels if levels else scores


@pytest.mark.parametrize("levels", [None, 1, 3])
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_image_figures_equal_scikit_learn(seed: int, levels: int | None) -> None:
    labels, scores = scored(seed, levels)
    assert image_auroc(labels, scores) == pytest.approx(roc_auc_score(labels, scores), abs=1e-12)
    assert average_precision(labels, scores) == pytest.approx(average_precision_score(labels, scores), abs=1e-12)
    precision, recall, thresholds = precision_recall_curve(labels, scores)
    f1 = 2 * precision * recall / np.maximum(precision + recall, 1e-12)
    best, threshold = f1_max(labels, scores)
    assert best == pytest.approx(f1.max(), abs=1e-12)
    assert threshold == pytest.approx(thresholds[np.flatnonzero(np.isclose(f1, f1.max()))[-1]])


def test_pixel_auroc_equals_scikit_learn_over_photos_of_several_sizes() -> None:
    rng = np.random.default_rng(0)
    masks = [rng.random(shape) < 0.2 for shape in ((9, 7), (4, 12), (5, 5))]
    masks[2][:] = False
    maps = [np.round(rng.random(m.shape) + 0.3 * m, 1).astype(np.float32) for m in masks]
    expected = roc_auc_score(np.concatenate([m.ravel() for m in masks]), np.concatenate([m.ravel() for m in maps]))
    assert pixel_auroc(masks, maps) == pytest.approx(expected, abs=1e-12)


def test_aupro_worked_by_hand() -> None:
    # Regions A (1 px: 0.9) and B (2 px: 0.8, 0.2); ten good pixels: 0.85, 0.5 and eight of 0.1.
    # threshold  0.9   0.85  0.8   0.5   0.2   0.1
    # PRO        0.5   0.5   0.75  0.75  1     1
    # FPR        0     0.1   0.1   0.2   0.2   1
    # Area up to 0.3: 0.1 * 0.5 + 0.1 * 0.75 + 0.1 * 1 = 0.225.
    mask = np.array([[1, 0, 1, 1] + [0] * 9], dtype=bool)
    values = np.array([[0.9, 0.85, 0.8, 0.2, 0.5] + [0.1] * 8], dtype=np.float32)
    assert aupro([mask], [values]) == pytest.approx(0.225 / 0.3, abs=1e-12)
    assert aupro([mask], [values], fpr_limit=0.1) == pytest.approx(0.5, abs=1e-12)
    assert aupro([mask], [values], fpr_limit=0.15) == pytest.approx((0.05 + 0.05 * 0.75) / 0.15, abs=1e-12)
    # A map that says nothing is the diagonal: half of the limit.
    assert aupro([mask], [values * 0]) == pytest.approx(0.15, abs=1e-12)
    assert aupro([mask], [mask.astype(np.float32)]) == pytest.approx(1, abs=1e-12)


def regions_of(mask: Mask) -> list[set[tuple[int, int]]]:
    """8-connected regions by merging sets of pixels."""
    found: list[set[tuple[int, int]]] = []
    for y, x in np.argwhere(mask).tolist():
        near = {(y + dy, x + dx) for dy in (-1, 0, 1) for dx in (-1, 0, 1)}
        touching = [region for region in found if region & near]
        found = [region for region in found if not region & near] + [set.union({(y, x)}, *touching)]
    return found


def slow_aupro(masks: list[Mask], maps: list[F32], limit: float) -> float:
    """The definition word for word: every threshold, every region, every photo."""
    regions = [(values, region) for mask, values in zip(masks, maps, strict=True) for region in regions_of(mask)]
    good = np.concatenate([values[~mask] for mask, values in zip(masks, maps, strict=True)])
    rates, overlaps = [0.0], [0.0]
    for threshold in np.unique(np.concatenate([values.ravel() for values in maps]))[::-1]:
        rates.append(float((good >= threshold).mean()))
        shares = [np.mean([values[at] >= threshold for at in region]) for values, region in regions]
        overlaps.append(float(np.mean(shares)))
    last = next(i for i, rate in enumerate(rates) if rate >= limit)
    slope = (overlaps[last] - overlaps[last - 1]) / (rates[last] - rates[last - 1])
    cut = overlaps[last - 1] + slope * (limit - rates[last - 1])
    return float(auc([*rates[:last], limit], [*overlaps[:last], cut]) / limit)


@pytest.mark.parametrize("limit", [0.05, 0.3, 1.0])
@pytest.mark.parametrize("levels", [4, 20, 10_000])
def test_aupro_equals_its_definition_at_all_thresholds(levels: int, limit: float) -> None:
    rng = np.random.default_rng(levels)
    masks = [rng.random((12, 10)) < density for density in (0.0, 0.1, 0.3)]
    maps = [(np.round((rng.random(m.shape) + 0.4 * m) * levels) / levels).astype(np.float32) for m in masks]
    assert aupro(masks, maps, limit) == pytest.approx(slow_aupro(masks, maps, limit), abs=1e-9)


def test_aupro_is_fast_enough() -> None:
    rng = np.random.default_rng(0)
    masks = [np.zeros((128, 128), bool) for _ in range(150)]
    for number, mask in enumerate(masks):
        for _ in range(number % 5):
            y, x, size = rng.integers(0, 100, 3)
            mask[y : y + 2 + size // 4, x : x + 2 + size // 5] = True
    maps = [(rng.random(m.shape, dtype=np.float32) + 0.5 * m).astype(np.float32) for m in masks]
    start = time.process_time()
    assert 0.5 < aupro(masks, maps) < 1
    assert time.process_time() - start < 2


def test_one_class_only_gives_nan() -> None:
    ones, mask, values = [1, 1], np.ones((2, 2), bool), np.zeros((2, 2), np.float32)
    assert math.isnan(image_auroc(ones, [0.1, 0.2]))
    assert math.isnan(average_precision([0, 0], [0.1, 0.2]))
    assert all(map(math.isnan, f1_max(ones, [0.1, 0.2])))
    for figure in (pixel_auroc, aupro):
        assert math.isnan(figure([mask], [values]))
        assert math.isnan(figure([~mask], [values]))
        assert math.isnan(figure([], []))


def test_nothing_is_computed_from_nan_or_mismatched_shapes() -> None:
    mask, values = np.eye(2, dtype=bool), np.full((2, 2), np.nan, np.float32)
    with pytest.raises(NumericError):
        image_auroc([0, 1], [0.1, math.nan])
    for figure in (pixel_auroc, aupro):
        with pytest.raises(NumericError, match="map 0"):
            figure([mask], [values])
        with pytest.raises(ShapeError, match="pair 0"):
            figure([mask], [np.zeros((3, 3), np.float32)])
        with pytest.raises(ShapeError, match="1 masks and 0 maps"):
            figure([mask], [])
    with pytest.raises(ShapeError, match="labels"):
        f1_max([0, 2], [0.1, 0.2])
    with pytest.raises(ShapeError, match="shape"):
        image_auroc([0, 1, 1], [0.1, 0.2])


@pytest.mark.parametrize("seed", range(4))
def test_balanced_error_and_f1_against_scikit_learn(seed: int) -> None:
    rng = np.random.default_rng(seed)
    labels, verdicts = rng.integers(0, 2, 40), rng.integers(0, 2, 40)
    expected = 1 - balanced_accuracy_score(labels, verdicts)
    assert metrics.balanced_error(labels, verdicts) == pytest.approx(expected)
    assert metrics.f1(labels, verdicts) == pytest.approx(f1_score(labels, verdicts))


@pytest.mark.parametrize("seed", range(4))
def test_no_threshold_beats_the_best_balanced_error(seed: int) -> None:
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, 2, 30)
    scores = rng.normal(size=30).round(1) + 0.5 * labels
    error, threshold = metrics.best_balanced_error(labels, scores)
    every = [metrics.balanced_error(labels, scores >= t) for t in [*scores, np.inf]]
    assert error == pytest.approx(min(every))
    assert metrics.balanced_error(labels, scores >= threshold) == pytest.approx(error)


def test_a_ranking_turned_round_is_no_better_than_a_coin() -> None:
    assert metrics.best_balanced_error([1, 1, 0, 0], [0.1, 0.2, 0.8, 0.9]) == (0.5, float("inf"))


def test_figures_of_verdicts_need_both_kinds() -> None:
    assert np.isnan(metrics.balanced_error([1, 1], [1, 0]))
    assert np.isnan(metrics.best_balanced_error([0, 0], [1.0, 0.0])[0])
    assert np.isnan(metrics.f1([0, 0], [1, 0]))


def test_segmentation_f1_counts_the_pixels_of_all_photos_together() -> None:
    mask, none = np.zeros((4, 4), np.bool_), np.zeros((4, 4), np.bool_)
    mask[:2, :2] = True  # four defective pixels
    half = np.zeros((4, 4), np.bool_)
    half[:1, :2] = True  # two of them found
    wrong = np.zeros((4, 4), np.bool_)
    wrong[3, :2] = True  # two false ones on a good photo
    assert metrics.segmentation_f1([mask, none], [half, wrong]) == pytest.approx(2 * 2 / (4 + 4))
    assert np.isnan(metrics.segmentation_f1([none], [wrong]))
