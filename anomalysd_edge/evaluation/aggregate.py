"""Mean and spread over seeds: what several measurements of the same number of shots say together.

The mean over classes is taken within each seed, then over seeds, so that its spread is the spread of whole results.
The spread is the sample standard deviation (n - 1); with one seed there is none.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from anomalysd_edge.evaluation.evaluate import FIGURES, VERDICT_FIGURES, ClassResult, mean_figure
from anomalysd_edge.method.result import MAPS

MEAN = "mean"
VERDICTS = (*VERDICT_FIGURES, "false_alarm_rate", "miss_rate")
NAMES = {
    "balanced_error": "balanced error",
    "best_balanced_error": "at best threshold",
    "f1": "F1",
    "seg_f1": "SegF1",
    "false_alarm_rate": "false alarms",
    "miss_rate": "missed",
    "image_auroc": "I-AUROC",
    "pixel_auroc": "P-AUROC",
    "aupro": "AUPRO",
    "f1_max": "F1-max",
    "average_precision": "AP",
}
"""What tables call the figures; the verdicts' first."""
COLUMNS = ("class", *NAMES.values())
MAP_NAMES = {"prototypes": "prototypes alone", "multiscale": "S_ms alone", "guided": "S_pg alone", "fused": "fused"}
"""What tables call the maps."""


@dataclass(frozen=True)
class Spread:
    """One figure over seeds."""

    values: tuple[float, ...]
    """One a seed, in [0,1]; NaN where it was not defined."""

    @property
    def mean(self) -> float:
        """Over the seeds where it is defined; NaN where there is none."""
        defined = self._defined()
        return float(np.mean(defined)) if defined else math.nan

    @property
    def spread(self) -> float:
        """Sample standard deviation; NaN below two values."""
        defined = self._defined()
        return float(np.std(defined, ddof=1)) if len(defined) > 1 else math.nan

    def _defined(self) -> list[float]:
        return [v for v in self.values if not math.isnan(v)]

    def __str__(self) -> str:
        """In percent, as '93.1 ± 0.4'; '-' where there is no figure."""
        if math.isnan(self.mean):
            return "-"
        apart = "" if math.isnan(self.spread) else f" ± {100 * self.spread:.1f}"
        return f"{100 * self.mean:.1f}{apart}"


Seeds = Sequence[Sequence[ClassResult]]
"""The results of every seed, each a list of classes."""


def class_names(seeds: Seeds) -> list[str]:
    """Classes that any seed measured, in order."""
    return list(dict.fromkeys(r.class_name for results in seeds for r in results))


def figure(seeds: Seeds, name: str, kind: str, what: str) -> Spread:
    """One figure of a class, or of the mean over classes (`name` = "mean"), under one map, over seeds."""
    if name == MEAN:
        return Spread(tuple(mean_figure(results, kind, what) for results in seeds))
    return Spread(
        tuple(r.figures.get(kind, {}).get(what, math.nan) for results in seeds for r in results if r.class_name == name)
    )


def verdict_rate(seeds: Seeds, name: str, what: str) -> Spread:
    """One of VERDICTS of a class, or of the mean over classes, over seeds; NaN where there is no threshold."""

    def rate(r: ClassResult) -> float:
        if what in VERDICT_FIGURES:
            return r.verdicts.get(what, math.nan)
        count, of = (r.false_alarms, r.good) if what == "false_alarm_rate" else (r.missed, r.bad)
        return math.nan if count is None or not of else count / of

    if name != MEAN:
        return Spread(tuple(rate(r) for results in seeds for r in results if r.class_name == name))
    per_seed = ([v for r in results if not math.isnan(v := rate(r))] for results in seeds)
    return Spread(tuple(float(np.mean(rates)) if rates else math.nan for rates in per_seed))


def rows(seeds: Seeds, kind: str = "fused") -> list[tuple[str, ...]]:
    """Rows under COLUMNS in percent: every class, then the mean. Verdicts belong to the fused map alone."""
    found = []
    for name in [*class_names(seeds), MEAN]:
        verdicts = [str(verdict_rate(seeds, name, what)) if kind == "fused" else "-" for what in VERDICTS]
        found.append((name, *verdicts, *(str(figure(seeds, name, kind, what)) for what in FIGURES)))
    return found


def map_rows(seeds: Seeds) -> list[tuple[str, ...]]:
    """Rows of class and each map's 'image / pixel' AUROC in percent, the mean last; under `map_columns`."""
    return [
        (
            name,
            *(f"{figure(seeds, name, k, 'image_auroc')} / {figure(seeds, name, k, 'pixel_auroc')}" for k in MAPS),
        )
        for name in [*class_names(seeds), MEAN]
    ]


def map_columns() -> tuple[str, ...]:
    """Headings of `map_rows`."""
    return ("class", *(MAP_NAMES[kind] for kind in MAPS))


def to_json(by_shots: Mapping[int, Seeds]) -> dict[str, Any]:
    """By number of shots, class (and "mean"), map, figure: mean, spread and the values over seeds; in [0,1]."""

    def plain(found: Spread) -> dict[str, Any]:
        return {"mean": found.mean, "spread": found.spread, "values": list(found.values)}

    def of_class(seeds: Seeds, name: str) -> dict[str, Any]:
        kinds = [k for k in MAPS if any(k in r.figures for results in seeds for r in results)]
        maps = {k: {what: plain(figure(seeds, name, k, what)) for what in FIGURES} for k in kinds}
        return {**maps, "verdicts": {what: plain(verdict_rate(seeds, name, what)) for what in VERDICTS}}

    return {
        str(shots): {name: of_class(seeds, name) for name in [*class_names(seeds), MEAN]}
        for shots, seeds in by_shots.items()
    }
