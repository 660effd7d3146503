"""Fits a threshold prior to classes whose good and defective photos are known, and checks it on classes left out.

The classes are none of the user's: surfaces and parts with known good photos and synthetic anomalies of other
generators than those that calibration paints (training/threshold_prior).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from anomalysd_edge.calibration.threshold_model import (
    LEAST_LOG_SD,
    Regression,
    ThresholdPrior,
    anchor_of,
    features_of,
    level_of,
    logs,
    relative_to,
)
from anomalysd_edge.core.types import F64
from anomalysd_edge.errors import SettingsError
from anomalysd_edge.method.score_model import ScoreEvidence

RIDGE = 3.0
"""Weight of the squared coefficients beside the classes' squared errors, for standardised features. From 3 to 40 the
balanced error on left-out classes changes by less than a point."""
LEAST_CLASSES = 8
"""A regression on fewer classes than this would say more than it knows."""


@dataclass(frozen=True)
class KnownClass:
    """One class with a number of shots, and what its further photos scored under the bank of those shots."""

    name: str
    """Classes of one name are left out together: one surface with other numbers of shots, for instance."""
    evidence: ScoreEvidence
    """Measured on the shots alone."""
    good: tuple[float, ...]
    """Image scores of further good photos."""
    defective: tuple[float, ...]
    """Of defective ones; empty for a class that tells of good photos alone."""

    def targets(self) -> F64:
        """(4,) float64 threshold_model.TARGETS of this class; NaN for what it does not tell."""
        return np.array([*_median_and_spread(self.good, 0), *_median_and_spread(self.defective, 1)])


def _median_and_spread(scores: Sequence[float], side: int) -> tuple[float, float]:
    if not scores:
        return float("nan"), float("nan")
    found = logs(scores)
    return float(np.median(found)), max(float(np.log(max(found.std(), 1e-9))), LEAST_LOG_SD[side])


def fit(classes: Sequence[KnownClass], ridge: float = RIDGE, relative: bool = False) -> ThresholdPrior:
    """A prior with one regression for each number of shots that the classes were measured with.

    With `relative`, of the ratios of their scores alone. Raises SettingsError where a number of shots has fewer than
    LEAST_CLASSES classes.
    """
    by_shots: dict[int, list[KnownClass]] = {}
    for known in map(_relative, classes) if relative else classes:
        by_shots.setdefault(known.evidence.shots, []).append(known)
    return ThresholdPrior({shots: _regression(mine, ridge) for shots, mine in sorted(by_shots.items())}, relative)


def _relative(known: KnownClass) -> KnownClass:
    level = level_of(known.evidence)
    good, defective = (tuple(np.exp(logs(scores) - level).tolist()) for scores in (known.good, known.defective))
    return KnownClass(known.name, relative_to(known.evidence, level), good, defective)


@dataclass(frozen=True)
class LeftOut:
    """What a prior that never saw a class said of its photos."""

    name: str
    shots: int
    threshold: float
    """Image score."""
    balanced_error: float
    """Half the sum of false-alarm rate and miss rate at the threshold."""
    best_error: float
    """The least that any threshold would have given on the same photos."""
    probabilities: F64
    """(N,) probability of a defect of each photo, good ones first."""
    labels: F64
    """(N,) 0 good, 1 defective."""


def leave_one_class_out(classes: Sequence[KnownClass], ridge: float = RIDGE, relative: bool = False) -> list[LeftOut]:
    """Each class that has defective photos judged by a prior fitted to the others."""
    found = []
    for known in (one for one in classes if one.defective):
        prior = fit([other for other in classes if other.name != known.name], ridge, relative)
        model = prior.score_model(known.evidence)
        threshold = model.threshold()
        good, bad = np.array(known.good), np.array(known.defective)
        scores = np.concatenate([good, bad])
        every = np.append(scores, np.inf)
        errors = [((good >= at).mean() + (bad < at).mean()) / 2 for at in (threshold, *every)]
        found.append(
            LeftOut(
                known.name,
                known.evidence.shots,
                threshold,
                float(errors[0]),
                float(min(errors[1:])),
                np.array([model.probability(float(score)) for score in scores]),
                np.concatenate([np.zeros(len(good)), np.ones(len(bad))]),
            )
        )
    return found


@dataclass(frozen=True)
class ReliabilityBin:
    """Photos whose stated probability of a defect lies in one range."""

    stated: float
    """Mean stated probability."""
    observed: float
    """Share that is defective, good and defective photos counted as if there were as many of each."""
    count: int
    """Photos."""


def reliability(judged: Sequence[LeftOut], bins: int = 10) -> list[ReliabilityBin]:
    """The reliability diagram (DeGroot and Fienberg 1983): stated against observed, in `bins` equal ranges of [0,1].

    Empty ranges are left out. Each class weighs alike, and in it good photos as much as defective ones.
    """
    stated = np.concatenate([one.probabilities for one in judged])
    labels = np.concatenate([one.labels for one in judged])
    weights = np.concatenate(
        [
            np.where(one.labels > 0, 0.5 / one.labels.mean(), 0.5 / (1 - one.labels.mean())) / len(one.labels)
            for one in judged
        ]
    )
    place = np.minimum((stated * bins).astype(np.int64), bins - 1)
    return [
        ReliabilityBin(
            float(np.average(stated[here], weights=weights[here])),
            float(np.average(labels[here], weights=weights[here])),
            int(here.sum()),
        )
        for number in range(bins)
        for here in [place == number]
        if here.any()
    ]


def _regression(classes: Sequence[KnownClass], ridge: float) -> Regression:
    """Ridge regression of the targets less the anchor, each over the classes that tell of it; residuals by leave one
    out, from the hat matrix."""
    seen = np.stack([features_of(known.evidence) for known in classes])
    wanted = np.stack([known.targets() - anchor_of(known.evidence) for known in classes])
    centre, scale = seen.mean(axis=0), np.maximum(seen.std(axis=0), 1e-6)
    columns = [_column((seen - centre) / scale, target, ridge) for target in wanted.T]
    offset, weights, residual = (np.stack(part, axis=-1) for part in zip(*columns, strict=True))
    return Regression(centre, scale, offset, weights, residual)


def _column(standard: F64, wanted: F64, ridge: float) -> tuple[F64, F64, F64]:
    """(N,3) features and (N,) one target, NaN where a class does not tell -> offset, (3,) weights, residual."""
    told = np.isfinite(wanted)
    if told.sum() < LEAST_CLASSES:
        raise SettingsError(f"a threshold prior from {int(told.sum())} classes; it needs {LEAST_CLASSES} or more")
    standard, wanted = standard[told], wanted[told]
    middle, offset = standard.mean(axis=0), wanted.mean()
    solved = np.linalg.solve(
        (standard - middle).T @ (standard - middle) + ridge * np.eye(standard.shape[1]), (standard - middle).T
    )
    weights = solved @ (wanted - offset)
    # The mean was fitted, too: one part in N of each class's own target is in the offset.
    leverage = np.einsum("nf,fn->n", standard - middle, solved) + 1 / len(wanted)
    errors = (wanted - offset - (standard - middle) @ weights) / (1 - np.minimum(leverage, 0.9))
    return np.asarray(offset - middle @ weights), weights, np.sqrt(np.square(errors).mean())
