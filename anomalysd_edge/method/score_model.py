"""How the image scores of a class's good and defective photos are distributed, and the decisions that follow.

Two log-normal distributions, one of good photos and one of defective ones, are what calibration believes of a class
(calibration/threshold_model.py). They hold the spread between photos and the doubt about their own means. From them
follow the probability of a defect (Bayes' rule), the threshold of least expected cost, two limits between which a
photo is better looked at by a person, and the error rates to expect at each.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from statistics import NormalDist

from anomalysd_edge.errors import SettingsError

SMALLEST = 1e-6
"""Floor of a score inside the logarithm."""
_STEPS = 60
"""Bisections: the answer is exact to float rounding."""


@dataclass(frozen=True)
class Costs:
    """What a wrong answer costs, in false alarms."""

    missed: float = 1.0
    """A defective photo that is called good."""
    referral: float = 0.25
    """A photo that is handed to a person. At or above missed / (1 + missed) nobody is asked."""
    defect_rate: float = 0.5
    """Share of defective photos for which the expected cost is least; 0.5 minimises the balanced error."""

    def __post_init__(self) -> None:
        if not (math.isfinite(self.missed) and self.missed > 0):
            raise SettingsError(f"the cost of a missed defect is {self.missed}; expected a number above 0")
        if not 0 < self.referral < 1:
            raise SettingsError(f"the cost of a referral is {self.referral}; expected a number between 0 and 1")
        if not 0 < self.defect_rate < 1:
            raise SettingsError(f"the defect rate is {self.defect_rate}; expected a number between 0 and 1")


@dataclass(frozen=True)
class Limits:
    """Image scores between which the answer is `uncertain`; equal where nobody is to be asked."""

    good: float
    """Below it a photo is good."""
    anomalous: float
    """At or above it a photo is anomalous."""


@dataclass(frozen=True)
class ErrorRates:
    """What to expect of further photos, as shares in [0,1]."""

    false_alarms: float
    """Of the good photos."""
    missed: float
    """Of the defective photos."""

    @property
    def balanced(self) -> float:
        """Mean of both."""
        return (self.false_alarms + self.missed) / 2


@dataclass(frozen=True)
class ScoreEvidence:
    """Image scores measured on the shots of one class; all above 0, none of them a logarithm."""

    left_out: tuple[float, ...] = ()
    """Of each shot under the bank of the others; empty for a single shot."""
    copies: tuple[float, ...] = ()
    """Of disturbed copies of the shots under the bank of all: needed for a single shot."""
    synthetic: tuple[float, ...] = ()
    """Of synthetic anomalies on the shots, each under the bank that `left_out` uses for its shot; of a single shot,
    under its own."""
    self_similarity: float = 1.0
    """Of the shots' own patches: image score of the distance to the nearest part in eighty of the photo's own patches,
    mean over the shots (patches.memory_bank.self_distances). A surface that repeats itself has a low one."""

    def __post_init__(self) -> None:
        if not self.synthetic or not (self.left_out or self.copies):
            raise SettingsError("the evidence for a threshold lacks synthetic anomalies, or good photos of any kind")
        if len(self.left_out) == 1:
            raise SettingsError("one left-out score cannot be: a single shot has none, two shots have two")

    @property
    def shots(self) -> int:
        """Good photos that the bank was made from."""
        return max(1, len(self.left_out))


@dataclass(frozen=True)
class ScoreModel:
    """Predictive distributions of the natural logarithm of a class's image scores."""

    good_mean: float
    """Mean over good photos."""
    good_sd: float
    """Standard deviation: spread between good photos and doubt about their mean together; > 0."""
    defect_mean: float
    """Mean over defective photos; at least `good_mean`."""
    defect_sd: float
    """Standard deviation, likewise; > 0."""
    cap: float | None = None
    """Image score beyond which no threshold goes: what synthetic anomalies of the class score. None: no bound."""

    def __post_init__(self) -> None:
        numbers = (self.good_mean, self.good_sd, self.defect_mean, self.defect_sd)
        if not all(map(math.isfinite, numbers)) or min(self.good_sd, self.defect_sd) <= 0 or (self.cap or 1) <= 0:
            raise SettingsError(
                f"a score model holds {numbers}, cap {self.cap}; expected finite means, spreads above 0"
            )

    def shifted(self, log_shift: float) -> ScoreModel:
        """The same of scores that are exp(log_shift) times as large."""
        cap = None if self.cap is None else self.cap * math.exp(log_shift)
        return replace(self, good_mean=self.good_mean + log_shift, defect_mean=self.defect_mean + log_shift, cap=cap)

    def errors(self, threshold: float) -> ErrorRates:
        """Expected rates where a photo whose score is at or above `threshold` is called anomalous."""
        at = math.log(max(threshold, SMALLEST))
        good, defect = NormalDist(self.good_mean, self.good_sd), NormalDist(self.defect_mean, self.defect_sd)
        return ErrorRates(1 - good.cdf(at), defect.cdf(at))

    def probability(self, score: float, defect_rate: float = 0.5) -> float:
        """Probability in [0,1] that a photo of this image score is defective, where `defect_rate` of all are.

        Bayes' rule for two normal densities of log scores. The log odds are a parabola in the log score; beyond its
        vertex they would turn around, so a photo that scores higher is never called less probably defective.
        """
        at = self._monotone(math.log(max(score, SMALLEST)))
        odds = self._log_density_ratio(at) + math.log(defect_rate / (1 - defect_rate))
        return 1 / (1 + math.exp(-odds)) if odds > -700 else 0.0

    def threshold(self, costs: Costs | None = None) -> float:
        """Image score at and above which calling a photo anomalous costs least; never beyond `cap`.

        Where `probability` reaches 1 / (1 + missed): a photo more probably defective than that is called anomalous.
        """
        costs = costs or Costs()
        found = self.score_at(1 / (1 + costs.missed), costs.defect_rate)
        return found if self.cap is None else min(self.cap, found)

    def limits(self, costs: Costs | None = None) -> Limits:
        """Between these scores asking a person costs less than either answer (Chow 1970, "On optimum recognition
        error and reject tradeoff"): where missed * p > referral and 1 - p > referral, p the probability of a defect.

        They enclose the threshold.
        """
        costs = costs or Costs()
        threshold = self.threshold(costs)
        low, high = costs.referral / costs.missed, 1 - costs.referral
        if low >= high:
            return Limits(threshold, threshold)
        return Limits(
            min(threshold, self.score_at(low, costs.defect_rate)),
            max(threshold, self.score_at(high, costs.defect_rate)),
        )

    def score_at(self, probability: float, defect_rate: float = 0.5) -> float:
        """The lowest image score whose `probability` of a defect reaches this one, by bisection.

        Where none does, or all do, an end of the range that both distributions reach (eight standard deviations).
        """
        low = min(self.good_mean - 8 * self.good_sd, self.defect_mean - 8 * self.defect_sd)
        high = max(self.good_mean + 8 * self.good_sd, self.defect_mean + 8 * self.defect_sd)
        for _ in range(_STEPS):
            middle = (low + high) / 2
            if self.probability(math.exp(middle), defect_rate) >= probability:
                high = middle
            else:
                low = middle
        return math.exp(high)

    def _log_density_ratio(self, at: float) -> float:
        """log of (density among defective photos / density among good ones) at the log score `at`."""
        good, defect = (at - self.good_mean) / self.good_sd, (at - self.defect_mean) / self.defect_sd
        return (good * good - defect * defect) / 2 + math.log(self.good_sd / self.defect_sd)

    def _monotone(self, at: float) -> float:
        """`at`, or the vertex of the log odds where `at` lies on the branch that falls."""
        weight = 1 / self.good_sd**2 - 1 / self.defect_sd**2
        if abs(weight) < 1e-9:
            return at
        vertex = (self.good_mean / self.good_sd**2 - self.defect_mean / self.defect_sd**2) / weight
        return max(at, vertex) if weight > 0 else min(at, vertex)
