"""What a class's score distributions are, given a prior belief and the scores of a line's photos, as posterior draws.

A mixture of two normal distributions of log scores, good photos and defective ones: its four parameters
(threshold_model.TARGETS) have the class's belief as their prior, the share of defective photos in the stream one of
its own. Where a photo's label is known its term is that of its component; else it is the sum of both. The posterior
has no closed form. It is drawn from by population Monte Carlo (Cappé et al. 2004): rounds of importance sampling, each
from a heavy-tailed fit of the one before, through powers of the likelihood that rise to 1.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from anomalysd_edge.calibration.threshold_model import LEAST_LOG_SD, ScoreBelief, logs
from anomalysd_edge.core.types import F64

DRAWS = 3000
"""Of every round, and of the posterior."""
_ROUNDS = 12
_FREEDOM = 6
"""Degrees of freedom of the multivariate t distribution that a round draws from."""
_WIDER = 1.3
"""By which its covariance exceeds the weighted one of the round before."""
_LEAST_EFFECTIVE = 0.1
"""Share of a round's draws that must stay effective: the power of the likelihood rises as far as this allows."""
_ENOUGH_EFFECTIVE = 0.3
"""Share from which the whole likelihood needs no further round."""
_LEAST_DOUBT = 1e-3
MOSTLY_GOOD = 1.0, 9.0
"""Parameters of the beta distribution of the share of defective photos in a stream that is as it should be."""
ANY_SHARE = 0.1
"""Prior probability that the stream is not: that any share is as likely as any other."""
_GRID = np.linspace(-8, 8, 8001)
_CDF = np.array([0.5 * math.erfc(-at / math.sqrt(2)) for at in _GRID.tolist()])


@dataclass(frozen=True)
class LineScores:
    """Image scores, all above 0, of photos that are no shots."""

    unlabelled: tuple[float, ...] = ()
    """Of the line's stream, nobody having said what they are."""
    good: tuple[float, ...] = ()
    """Of photos of the stream that a person called good."""
    defective: tuple[float, ...] = ()
    """Of photos of the stream that a person called defective."""
    known_bad: tuple[float, ...] = ()
    """Of defective photos from elsewhere: they say nothing of how many the stream holds."""


@dataclass(frozen=True)
class ScorePosterior:
    """Equally weighted draws."""

    targets: F64
    """(S,4) threshold_model.TARGETS."""
    share: F64
    """(S,) share of defective photos in the stream."""

    def defective(self, scores: tuple[float, ...]) -> F64:
        """(S,N) probability in each draw that a photo of the stream with this image score is defective.

        As in ScoreModel.probability, a photo that scores lower is never called more probably defective.
        """
        mean, log_sd, other_mean, other_log_sd = self.targets.T
        precision, other = np.exp(-2 * log_sd), np.exp(-2 * other_log_sd)
        weight = precision - other
        weight = np.where(np.abs(weight) < 1e-9, 1e-9, weight)
        vertex, at = ((mean * precision - other_mean * other) / weight)[:, None], logs(scores)
        good, bad = _log_densities(
            self.targets, np.where(weight[:, None] > 0, np.maximum(at, vertex), np.minimum(at, vertex))
        )
        odds = bad - good + (np.log(self.share) - np.log1p(-self.share))[:, None]
        return np.asarray(1 / (1 + np.exp(-np.clip(odds, -700, 700))))

    def belief(self) -> ScoreBelief:
        """Mean and standard deviation of each target."""
        return ScoreBelief(self.targets.mean(axis=0), self.targets.std(axis=0))


def posterior(belief: ScoreBelief, seen: LineScores, draws: int = DRAWS, seed: int = 0) -> ScorePosterior:
    """Draws from what is believed after `seen`; with nothing seen, from the prior. Deterministic for a seed."""
    rng = np.random.default_rng(seed)
    centre = np.append(belief.expected, 0.0)
    doubt = np.append(np.maximum(belief.doubt, _LEAST_DOUBT), 1.0)
    # The last component is the normal quantile of the share: it has no bounds, and a uniform share makes it normal.
    found = centre + doubt * rng.normal(size=(draws, 5))
    share = np.where(rng.random(draws) < ANY_SHARE, rng.random(draws), rng.beta(*MOSTLY_GOOD, draws))
    found[:, 4] = np.interp(share, _CDF, _GRID)
    density = _log_prior(found, centre, doubt)
    density[~np.isfinite(density)] = 0.0
    for number in range(_ROUNDS):
        prior, likelihood = _log_prior(found, centre, doubt), _log_likelihood(found, seen)
        power = _power(prior - density, likelihood)
        weights = _weights(prior - density + power * likelihood)
        if (power == 1 and 1 / np.square(weights).sum() >= _ENOUGH_EFFECTIVE * draws) or number == _ROUNDS - 1:
            break
        found, density = _proposed(found, weights, draws, rng)
    chosen = np.searchsorted(np.cumsum(weights), (rng.random() + np.arange(draws)) / draws)
    kept = found[np.minimum(chosen, draws - 1)]
    return ScorePosterior(kept[:, :4], _share(kept))


def _proposed(found: F64, weights: F64, draws: int, rng: np.random.Generator) -> tuple[F64, F64]:
    """(S,5) draws from a t distribution fitted to weighted ones, and (S,) their log density but for a constant."""
    middle = weights @ found
    away = found - middle
    covariance = _WIDER * (weights[:, None] * away).T @ away + 1e-9 * np.eye(5)
    root = np.linalg.cholesky(covariance)
    normal = rng.normal(size=(draws, 5))
    scale = np.sqrt(_FREEDOM / rng.chisquare(_FREEDOM, draws))
    far = np.square(normal).sum(axis=1) * scale**2
    density = -(_FREEDOM + 5) / 2 * np.log1p(far / _FREEDOM)
    return middle + scale[:, None] * (normal @ root.T), np.asarray(density)


def _power(base: F64, likelihood: F64) -> float:
    """The largest power of the likelihood, at most 1, under which enough draws stay effective."""

    def effective(power: float) -> float:
        return float(1 / np.square(_weights(base + power * likelihood)).sum())

    wanted = _LEAST_EFFECTIVE * len(base)
    if effective(1.0) >= wanted:
        return 1.0
    low, high = 0.0, 1.0
    for _ in range(20):
        middle = (low + high) / 2
        low, high = (middle, high) if effective(middle) >= wanted else (low, middle)
    return low


def _weights(logarithms: F64) -> F64:
    raised = np.exp(logarithms - logarithms.max())
    return np.asarray(raised / raised.sum())


def _normal(found: F64, centre: F64, doubt: F64) -> F64:
    return np.asarray(-np.square((found - centre) / doubt).sum(axis=1) / 2)


def _share(found: F64) -> F64:
    """(S,) the share in (0,1) of draws (S,5)."""
    return np.clip(normal_cdf(found[:, 4]), 1e-6, 1 - 1e-6)


def normal_cdf(at: F64) -> F64:
    """The standard normal distribution function, elementwise, to 1e-6; by linear interpolation, as numpy has none."""
    return np.asarray(np.interp(at, _GRID, _CDF))


def _log_prior(found: F64, centre: F64, doubt: F64) -> F64:
    """(S,) log density, but for a constant; defects never score lower than good photos on the mean."""
    share, (a, b) = _share(found), MOSTLY_GOOD
    scale = math.gamma(a + b) / math.gamma(a) / math.gamma(b)
    mostly = scale * share ** (a - 1) * (1 - share) ** (b - 1)
    density = _normal(found, centre, doubt) + np.log((1 - ANY_SHARE) * mostly + ANY_SHARE)
    possible = (found[:, 2] >= found[:, 0]) & (found[:, 1] > LEAST_LOG_SD[0] - 1) & (found[:, 3] > LEAST_LOG_SD[1] - 1)
    return np.where(possible, density, -np.inf)


def _log_likelihood(found: F64, seen: LineScores) -> F64:
    """(S,) of the draws (S,5)."""
    share = _share(found)
    on_line, off_line = np.log(share), np.log1p(-share)
    good, bad = _log_densities(found, logs(seen.unlabelled))
    total = np.logaddexp(good + off_line[:, None], bad + on_line[:, None]).sum(axis=1)
    total += _log_densities(found, logs(seen.good))[0].sum(axis=1) + len(seen.good) * off_line
    total += _log_densities(found, logs(seen.defective))[1].sum(axis=1) + len(seen.defective) * on_line
    return np.asarray(total + _log_densities(found, logs(seen.known_bad))[1].sum(axis=1))


def _log_densities(found: F64, at: F64) -> tuple[F64, F64]:
    """(S,N) each: log density of log scores (N,) among good and among defective photos, but for one constant."""
    good, bad = (-np.square((at - found[:, [i]]) * np.exp(-found[:, [i + 1]])) / 2 - found[:, [i + 1]] for i in (0, 2))
    return np.asarray(good), np.asarray(bad)
