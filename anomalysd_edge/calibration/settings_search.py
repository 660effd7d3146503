"""Which settings suit a class, judged on its good photos and on synthetic anomalies painted on them.

Settings are tried in rounds, each starting from the best so far: how masks are repainted, how maps are fused. A
candidate replaces the default only where its lead is larger than chance: the lead's
standard error comes from a paired bootstrap over photos, so with a handful of them the global default mostly stays.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from statistics import NormalDist
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from anomalysd_edge.core.types import F32, Mask
from anomalysd_edge.evaluation.metrics import image_auroc, pixel_auroc
from anomalysd_edge.method.anomaly_map import image_score

COMPARE_PX = 32
"""Maps and masks are compared at this side: AUROC over pixels needs no more, and the bootstrap repeats it."""

REPAINTS: tuple[dict[str, Any], ...] = (
    {"strength": 0.08},
    {"strength": 0.25, "passes": 2},
    {"scales": (2, 4, 8)},
    {"scales": (4, 8, 16), "draws": 2},
)
"""Round 1: lambda and its passes, K. Each costs a repaint of every photo."""
REPAINTS_FROM_256_PX: tuple[dict[str, Any], ...] = (
    {"strength": 0.4, "passes": 4},
    {"perceptual_weight": 3.0, "latent_weight": 1.0},
)
"""Also in round 1 for models of at least 256 px, Stable Diffusion's: `edge` was chosen on one of 128 px. Such a model
repaints grain where it was, which is what the paper's lambda and its perceptual distance ask for."""
FUSIONS: tuple[dict[str, Any], ...] = (
    {"multiscale_weight": 0.0},
    {"multiscale_weight": 0.04},
    {"multiscale_weight": 0.25},
    {"guided_weight": 0.1},
)
"""Round 2: weights of the maps. The image score stays the mean of the top hundredth: thresholds are fitted for it."""


def rounds_for(size_px: int, latent_side: int) -> list[list[Mapping[str, Any]]]:
    """What is tried, in order, for a model of this size: grids finer than its latents are left out."""
    first = (*REPAINTS, *(REPAINTS_FROM_256_PX if size_px >= 256 else ()))
    return [[c for c in candidates if max(c.get("scales", (1,))) <= latent_side] for candidates in (first, FUSIONS)]


@dataclass(frozen=True)
class Trial:
    """What one candidate gave on one class."""

    changes: Mapping[str, Any]
    """Fields that differ from the settings that the class started with; empty for those themselves."""
    image_auroc: float
    pixel_auroc: float
    lead: float
    """Of its figure of merit, the mean of the two AUROCs, over the round's best so far."""
    noise: float
    """Standard error of that lead."""
    taken: bool
    """Whether it replaced what it was compared with."""


@dataclass(frozen=True)
class TrialScores:
    """Maps and image scores of the same photos in the same order, under one candidate."""

    maps: F32
    """(N,COMPARE_PX,COMPARE_PX)."""
    scores: F32
    """(N,)."""


def judged(fused: Sequence[F32], top_share: float) -> TrialScores:
    """Of (S,S) fused maps."""
    small = [Image.fromarray(m).resize((COMPARE_PX, COMPARE_PX), Image.Resampling.BOX) for m in fused]
    scores = np.array([image_score(m, top_share) for m in fused], np.float32)
    return TrialScores(np.stack([np.asarray(m, np.float32) for m in small]), scores)


def small_masks(masks: Sequence[Mask | None]) -> Mask:
    """(N,COMPARE_PX,COMPARE_PX): a cell counts as changed where any of its pixels is; None is a good photo."""
    cells = []
    for mask in masks:
        if mask is None:
            cells.append(np.zeros((COMPARE_PX, COMPARE_PX), np.bool_))
        else:
            grey = Image.fromarray(mask.astype(np.float32)).resize((COMPARE_PX, COMPARE_PX), Image.Resampling.BOX)
            cells.append(np.asarray(grey) > 0.25 if (np.asarray(grey) > 0.25).any() else np.asarray(grey) > 0)
    return np.stack(cells)


def merit(found: TrialScores, masks: Mask, photos: npt.NDArray[np.int64] | None = None) -> tuple[float, float]:
    """(image AUROC, pixel AUROC) on the photos of these numbers, all by default."""
    chosen = np.arange(len(masks)) if photos is None else photos
    labels = masks[chosen].any(axis=(1, 2))
    if labels.all() or not labels.any():
        return 0.5, 0.5
    return image_auroc(labels, found.scores[chosen]), pixel_auroc(list(masks[chosen]), list(found.maps[chosen]))


def lead(a: TrialScores, b: TrialScores, masks: Mask, draws: int = 60) -> tuple[float, float]:
    """How far `a` is ahead of `b` in the mean of both AUROCs, and the standard error of that (paired bootstrap)."""
    ahead = float(np.mean(merit(a, masks)) - np.mean(merit(b, masks)))
    rng = np.random.default_rng(0)
    good = np.flatnonzero(~masks.any(axis=(1, 2)))
    bad = np.flatnonzero(masks.any(axis=(1, 2)))
    spread = []
    for _ in range(draws):
        photos = np.concatenate([rng.choice(good, len(good)), rng.choice(bad, len(bad))])
        spread.append(np.mean(merit(a, masks, photos)) - np.mean(merit(b, masks, photos)))
    return ahead, float(np.std(spread))


def search_settings(
    inspect: Callable[[Mapping[str, Any]], TrialScores],
    masks: Mask,
    rounds: Sequence[Sequence[Mapping[str, Any]]],
    chance: float = 0.05,
) -> tuple[dict[str, Any], list[Trial]]:
    """The changes to take, and every trial. `inspect(changes)` judges the photos under the default plus `changes`.

    In each round the candidate with the largest lead is taken if luck would give one of them such a lead with a
    probability below `chance` (one-sided, Bonferroni over the round's candidates).
    """
    taken: dict[str, Any] = {}
    best = inspect(taken)
    trials = [Trial({}, *merit(best, masks), 0.0, 0.0, True)]
    for candidates in rounds:
        tried: list[tuple[float, float, dict[str, Any], TrialScores]] = []
        for candidate in candidates:
            changes = {**taken, **candidate}
            found = inspect(changes)
            tried.append((*lead(found, best, masks), changes, found))
        sureness = NormalDist().inv_cdf(1 - chance / max(1, len(tried)))
        winner = max(range(len(tried)), key=lambda i: tried[i][0], default=None)
        start = best
        for i, (ahead, noise, changes, found) in enumerate(tried):
            wins = i == winner and ahead > sureness * max(noise, 1e-6)
            trials.append(Trial(changes, *merit(found, masks), ahead, noise, wins))
            if wins:
                taken, start = changes, found
        best = start
    return taken, trials
