"""From distances to a verdict: S^(k) -> S_ms -> S_map -> image score (docs/method.md, inspection, step 4).

Every map here is (S,S) float32 at the size of the repainted photo; larger means more anomalous.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import numpy.typing as npt

from anomalysd_edge.core.types import F32
from anomalysd_edge.errors import NumericError, SettingsError

# Below this a distance is noise of the arithmetic; it keeps 1/S finite where repaint and photo agree to the last bit.
TINY = np.float32(1e-8)
_NARROW = 16
"""A Gaussian that reaches less than one part in this of the map's side is narrow: measured from 128 to 640 px."""


@dataclass(frozen=True)
class MapScale:
    """What normals give for one map: used to bring maps of different units to a common scale."""

    centre: float
    """Mean over the pixels of the normals' maps."""
    spread: float
    """How far above `centre` the normals' high pixels lie; > 0."""

    def apply(self, score_map: F32) -> F32:
        """(S,S) -> (S,S): 0 at the normals' centre, 1 at their high pixels."""
        return np.asarray((score_map - self.centre) / self.spread, dtype=np.float32)


def harmonic_mean(maps: Sequence[F32]) -> F32:
    """S_ms = (|K|^-1 * sum_k 1/S^(k))^-1: high only where every scale agrees."""
    if not maps:
        raise SettingsError("the harmonic mean needs the map of at least one scale")
    inverse = sum(1 / np.maximum(m, TINY) for m in maps)
    return np.asarray(len(maps) / inverse, dtype=np.float32)


def covered(distances: F32, masks: npt.NDArray[np.bool_]) -> F32:
    """S^(k): (n,S,S) distances of the slots of one scale, (n,S,S) their masks -> D of the repaint whose mask covers p.

    Cells of a grid tile the photo, so exactly one mask covers a pixel; where none does the result is 0.
    """
    return np.asarray(np.where(masks, distances, np.float32(0)).sum(axis=0), dtype=np.float32)


def smooth(score_map: F32, sigma_px: float) -> F32:
    """(h,w) -> (h,w): Gaussian smoothing, separable, mirrored at the border, cut at four sigma.

    A wide Gaussian is two matrix products, a narrow one two sums over windows: the same to float rounding.
    """
    if sigma_px <= 0:
        return score_map
    height, width = score_map.shape
    if max(1, round(4 * sigma_px)) * _NARROW >= max(height, width):
        rows, columns = _gaussian(height, sigma_px), _gaussian(width, sigma_px)
        return np.asarray(rows @ score_map @ columns.T, dtype=np.float32)
    return _windowed(_windowed(score_map, sigma_px, 0), sigma_px, 1)


def _windowed(values: F32, sigma_px: float, axis: int) -> F32:
    """(h,w) -> (h,w): smoothed along one axis."""
    reach = max(1, round(4 * sigma_px))
    taps = np.exp(-0.5 * (np.arange(-reach, reach + 1) / sigma_px) ** 2)
    taps = (taps / taps.sum()).astype(np.float32)
    pad = [(0, 0), (0, 0)]
    pad[axis] = (reach, reach)
    padded = np.pad(values, pad, mode="symmetric")
    windows = np.lib.stride_tricks.sliding_window_view(padded, len(taps), axis=axis)
    return np.ascontiguousarray(windows @ taps, dtype=np.float32)


@lru_cache(maxsize=16)
def _gaussian(side: int, sigma_px: float) -> F32:
    """(side,side): what each row takes of each, by what smoothing makes of unit vectors."""
    found = _windowed(np.eye(side, dtype=np.float32), sigma_px, 0)
    found.setflags(write=False)
    return found


def fuse_paper(multiscale: F32, guided: F32, alpha: float) -> F32:
    """S_map = (1-alpha) S_ms + alpha S_pg, the paper's own."""
    return np.asarray((1 - alpha) * multiscale + alpha * guided, dtype=np.float32)


def fuse_scaled(
    maps: Mapping[str, F32],
    scales: Mapping[str, MapScale],
    weights: Mapping[str, float],
    caps: Mapping[str, float] | None = None,
) -> F32:
    """Weighted mean of maps that were first brought to the normals' scale; maps without a scale or weight stay out.

    `caps` bounds a scaled map from above: one that says "far beyond any normal" then cannot outvote the others.
    """
    used = [name for name in maps if name in scales and weights.get(name, 0) > 0]
    if not used:
        raise SettingsError("no map can be fused: none has both a calibrated scale and a weight above 0")
    total = sum(weights[name] for name in used)
    most = caps or {}

    def part(name: str) -> F32:
        scaled = scales[name].apply(maps[name])
        return np.minimum(scaled, np.float32(most[name])) if most.get(name) else scaled

    return np.asarray(sum(weights[name] / total * part(name) for name in used), dtype=np.float32)


def fuse_modulated(
    maps: Mapping[str, F32], scales: Mapping[str, MapScale], weights: Mapping[str, float], cap: float
) -> F32:
    """maps["prototypes"] times 1 + the weighted sum of the other maps, each scaled and clipped to [0, cap].

    Bounded on both sides: a repaint can raise what prototypes see by at most a known factor, and never lower it.
    """
    factor = np.ones_like(maps["prototypes"])
    for name, weight in weights.items():
        if weight and name in maps and name in scales:
            factor += np.float32(weight) * np.clip(scales[name].apply(maps[name]), 0, np.float32(cap or np.inf))
    return np.asarray(maps["prototypes"] * factor, dtype=np.float32)


def image_score(score_map: F32, top_share: float) -> float:
    """Mean of the highest `top_share` of the pixels; 0 gives the maximum. Raises NumericError on NaN or Inf."""
    if not np.isfinite(score_map).all():
        raise NumericError("a score map holds NaN or Inf; no score is made of it")
    flat = score_map.ravel()
    count = max(1, round(top_share * flat.size))
    if count == 1:
        return float(flat.max())
    return float(np.partition(flat, flat.size - count)[flat.size - count :].mean())
