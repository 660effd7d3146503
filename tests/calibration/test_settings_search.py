"""Choosing settings: a real lead is taken, a chance one is not."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from anomalysd_edge.calibration.settings_search import (
    COMPARE_PX,
    TrialScores,
    judged,
    lead,
    merit,
    rounds_for,
    search_settings,
    small_masks,
)
from anomalysd_edge.method.settings import EDGE


def world(photos: int = 40, seed: int = 0) -> tuple[np.ndarray[Any, np.dtype[np.bool_]], Callable[..., TrialScores]]:
    """Masks of half bad photos, and judge(strength): maps with noise in which the defect stands out by `strength`."""
    rng = np.random.default_rng(seed)
    masks = np.zeros((photos, COMPARE_PX, COMPARE_PX), np.bool_)
    for i in range(photos // 2, photos):
        y, x = rng.integers(0, COMPARE_PX - 4, 2)
        masks[i, y : y + 4, x : x + 4] = True
    noise = rng.normal(0, 1, masks.shape)

    def judge(strength: float, wobble: int = 0) -> TrialScores:
        extra = np.random.default_rng(wobble).normal(0, 0.3, masks.shape) if wobble else 0
        maps = (noise + extra + strength * masks).astype(np.float32)
        return TrialScores(maps, np.sort(maps.reshape(photos, -1), axis=1)[:, -10:].mean(axis=1))

    return masks, judge


def test_a_candidate_with_a_real_lead_is_taken_and_built_upon() -> None:
    masks, judge = world()

    def inspect(changes: Mapping[str, Any]) -> TrialScores:
        return judge(0.6 + changes.get("a", 0.0) + changes.get("b", 0.0))

    taken, trials = search_settings(inspect, masks, [[{"a": -0.3}, {"a": 1.0}], [{"b": 1.0}]])
    assert taken == {"a": 1.0, "b": 1.0}
    assert [t.taken for t in trials] == [True, False, True, True]
    assert trials[2].lead > 1.64 * trials[2].noise


def test_candidates_that_differ_by_luck_alone_seldom_replace_the_default() -> None:
    changed = 0
    for seed in range(12):
        masks, judge = world(photos=12, seed=seed)

        def inspect(changes: Mapping[str, Any], judge: Callable[..., TrialScores] = judge) -> TrialScores:
            return judge(0.8, 1 + changes.get("wobble", 0))

        taken, trials = search_settings(inspect, masks, [[{"wobble": i} for i in range(1, 4)]])
        assert len(trials) == 4
        changed += bool(taken)
    assert changed <= 2, "at 5 % per class, three of twelve would happen once in fifty runs"


def test_merit_is_the_two_aurocs() -> None:
    metrics = pytest.importorskip("sklearn.metrics")
    masks, judge = world()
    found = judge(1.0)
    labels = masks.any(axis=(1, 2))
    image, pixel = merit(found, masks)
    assert image == pytest.approx(metrics.roc_auc_score(labels, found.scores))
    assert pixel == pytest.approx(metrics.roc_auc_score(masks.ravel(), found.maps.ravel()), abs=1e-6)


def test_equal_judgements_have_no_lead() -> None:
    masks, judge = world()
    assert lead(judge(1.0), judge(1.0), masks) == (0.0, 0.0)


def test_a_hairline_survives_the_smaller_side() -> None:
    thin = np.zeros((512, 512), np.bool_)
    thin[100, 50:300] = True
    small = small_masks([thin, None])
    assert small[0].any()
    assert not small[1].any()


def test_judged_scores_the_whole_map_and_keeps_small_ones_for_pixels() -> None:
    maps = [np.full((128, 128), 0.5, np.float32), np.zeros((128, 128), np.float32)]
    maps[1][:13, :13] = 2  # about 1 %
    found = judged(maps, top_share=0.01)
    assert found.maps.shape == (2, COMPARE_PX, COMPARE_PX)
    assert found.scores.tolist() == pytest.approx([0.5, 2.0])


def test_larger_models_are_offered_the_papers_lambda_and_distance() -> None:
    nano, large = rounds_for(128, 32), rounds_for(512, 64)
    assert [len(candidates) for candidates in large] == [len(nano[0]) + 2, len(nano[1])]
    assert {"strength": 0.4, "passes": 4} in large[0]
    for candidate in (*large[0], *large[1]):
        replace(EDGE, **candidate)  # a setting that exists, in its range
    assert {"scales": (8, 16)} not in rounds_for(64, 8)[0]
