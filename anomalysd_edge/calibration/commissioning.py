"""From a threshold that a few shots gave to one that the line itself confirms: its unlabelled photos, a few answers.

The class's score model is a belief (threshold_model.py). The scores of the line's stream, mostly of good photos, and
what a person says of some of them make a posterior of it (score_posterior.py), from which follow a new score model,
the error rates to expect at its threshold with their intervals, and the photos that are worth asking about. A stream
that is not mostly good is recognised by its share of defective photos, and then nothing is proposed.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from anomalysd_edge.calibration.score_posterior import DRAWS, LineScores, ScorePosterior, normal_cdf, posterior
from anomalysd_edge.calibration.threshold_model import ScoreBelief, ThresholdPrior, logs
from anomalysd_edge.core.types import F64
from anomalysd_edge.errors import SettingsError
from anomalysd_edge.method.class_model import Calibration
from anomalysd_edge.method.score_model import Costs, ScoreEvidence, ScoreModel

LEAST_STREAM = 8
"""Photos of the stream, labelled or not, below which it says nothing of its share of defective ones."""
_QUESTION_DRAWS = 1000
_THRESHOLDS = 241
"""Thresholds that a question is judged over."""


@dataclass(frozen=True)
class CommissioningSettings:
    """When a class is proposed, and when it is trusted."""

    costs: Costs = field(default_factory=Costs)
    """What wrong answers cost."""
    width: float = 0.2
    """Largest width of the interval of the balanced error, in [0,1], at which a class is trusted."""
    interval: float = 0.9
    """Probability in (0,1) that an interval holds."""
    most_defective: float = 0.3
    """Share of the stream, in (0,1), above which it is not believed to be the stream of a line that works. A stream
    of one defective photo in five is below it in most samples of twenty."""
    draws: int = DRAWS
    """Of the posterior."""
    seed: int = 0
    """Of the draws."""

    def __post_init__(self) -> None:
        if not (0 < self.width <= 1 and 0 < self.interval < 1 and 0 < self.most_defective < 1) or self.draws < 100:
            raise SettingsError("width, interval and most_defective must lie between 0 and 1, draws be 100 or more")


@dataclass(frozen=True)
class Estimate:
    """A share in [0,1] and the interval that holds it."""

    mean: float
    low: float
    high: float

    @classmethod
    def of(cls, draws: F64, interval: float) -> Estimate:
        """Of (S,) draws: mean and central interval."""
        low, high = np.quantile(draws, [(1 - interval) / 2, (1 + interval) / 2])
        return cls(float(draws.mean()), float(low), float(high))

    @property
    def width(self) -> float:
        """Of the interval."""
        return self.high - self.low

    def __str__(self) -> str:
        return f"{100 * self.mean:.0f} % ({100 * self.low:.0f} to {100 * self.high:.0f})"


@dataclass(frozen=True)
class ExpectedRates:
    """What to expect of further photos at one threshold."""

    threshold: float
    """Image score."""
    false_alarms: Estimate
    """Of the good photos."""
    missed: Estimate
    """Of the defective photos."""
    balanced: Estimate
    """Mean of both, draw by draw."""


@dataclass(frozen=True)
class Question:
    """A photo of the stream whose label is worth asking for."""

    number: int
    """Its place in LineScores.unlabelled."""
    score: float
    """Image score."""
    probability: float
    """That it is defective, in [0,1]."""
    gain: float
    """By how much its label lowers the expected cost of the best threshold, in false alarms a photo."""
    if_good: float
    """Threshold that follows if it is good."""
    if_defective: float
    """Threshold that follows if it is defective."""

    def why(self) -> str:
        """One sentence."""
        return (
            f"scores {self.score:.3g} and is defective with a probability of {100 * self.probability:.0f} %: "
            f"the threshold would become {self.if_good:.3g} if it is good, {self.if_defective:.3g} if it is not"
        )


@dataclass(frozen=True)
class Commissioned:
    """What the line's photos say of a class."""

    before: ExpectedRates
    """As believed without them, at the threshold of the class's own photos."""
    now: ExpectedRates
    """As believed with them, at the threshold in use."""
    after: ExpectedRates
    """As believed with them: at the new threshold, or where none is proposed at the old one."""
    share: Estimate
    """Of defective photos in the stream."""
    model: ScoreModel | None
    """The new score model; None where nothing is proposed."""
    trusted: bool
    """Whether the interval of the balanced error is as narrow as wanted."""
    reason: str
    """One sentence: what is proposed, or why nothing is."""
    questions: tuple[Question, ...]
    """What to ask next, the most valuable first; empty where nothing is left to ask."""


def commission(
    belief: ScoreBelief,
    seen: LineScores,
    settings: CommissioningSettings | None = None,
    cap: float | None = None,
    questions: int = 5,
    threshold: float | None = None,
) -> Commissioned:
    """What to believe of a class after `seen`. Deterministic for a seed.

    `cap` is ScoreModel.cap of the class, `threshold` the one in use; that of `belief` if None.
    Raises SettingsError where the stream has fewer than LEAST_STREAM photos.
    """
    settings = settings or CommissioningSettings()
    count = len(seen.unlabelled) + len(seen.good) + len(seen.defective)
    if count < LEAST_STREAM:
        raise SettingsError(f"{count} photos of the line say too little; give {LEAST_STREAM} or more of each class")
    prior = posterior(belief, LineScores(), settings.draws, settings.seed)
    found = posterior(belief, seen, settings.draws, settings.seed)
    old, model = belief.predictive(cap), found.belief().predictive(cap)
    before = expected_rates(prior, old.threshold(settings.costs), settings.interval)
    share = Estimate.of(found.share, settings.interval)
    asked = ask_next(found, seen.unlabelled, settings.costs, questions)
    now = expected_rates(found, before.threshold if threshold is None else threshold, settings.interval)
    if float(np.median(found.share)) > settings.most_defective:
        reason = (
            f"nothing is proposed: {share} of the line's {count} photos look defective, and more than "
            f"{100 * settings.most_defective:.0f} % is no stream of mostly good parts; sort them, or say what they are"
        )
        return Commissioned(before, now, now, share, None, False, reason, asked)
    after = expected_rates(found, model.threshold(settings.costs), settings.interval)
    trusted = after.balanced.width <= settings.width
    width = f"the balanced error's interval is {100 * after.balanced.width:.0f} points wide"
    wanted = f"{100 * settings.width:.0f} were asked for"
    reason = f"to be trusted: {width}, {wanted}" if trusted else f"still learning: {width}, {wanted}"
    return Commissioned(before, now, after, share, model, trusted, reason, asked)


def expected_rates(found: ScorePosterior, threshold: float, interval: float) -> ExpectedRates:
    """Error rates at an image score, and the intervals that hold them."""
    alarms, missed = _rates(found.targets, logs([threshold]))
    balanced = (alarms + missed) / 2
    each = [Estimate.of(part[:, 0], interval) for part in (alarms, missed, balanced)]
    return ExpectedRates(threshold, *each)


def ask_next(found: ScorePosterior, unlabelled: Sequence[float], costs: Costs, count: int) -> tuple[Question, ...]:
    """The photos whose label lowers the expected cost most: expected error reduction (Roy and McCallum 2001, "Toward
    optimal active learning through sampling estimation of error reduction").

    Either answer weighs the posterior's draws anew, and with them the threshold of least expected cost. What a photo
    is worth is the expected cost at the threshold of today less that after its answer, the mean over both answers.
    """
    if not unlabelled or count < 1:
        return ()
    kept = np.linspace(0, len(found.share) - 1, min(_QUESTION_DRAWS, len(found.share))).astype(int)
    draws = ScorePosterior(found.targets[kept], found.share[kept])
    # Open on both sides, or an answer that no draw expects would weigh none of them.
    defective = np.clip(draws.defective(tuple(unlabelled)), 1e-9, 1 - 1e-9)
    mean = draws.targets.mean(axis=0)
    reach = 3 * math.exp(max(mean[1], mean[3]))
    places = np.linspace(mean[0] - reach, mean[2] + reach, _THRESHOLDS)
    alarms, missed = _rates(draws.targets, places)
    cost = (1 - costs.defect_rate) * alarms + costs.defect_rate * costs.missed * missed
    today = float(cost.mean(axis=0).min())
    probability = defective.mean(axis=0)
    sums = [(weights.T @ cost) / len(kept) for weights in (1 - defective, defective)]
    gain = today - sum(each.min(axis=1) for each in sums)
    best = [places[each.argmin(axis=1)] for each in sums]
    # Equal gains (no label changes anything) are told apart by how open the answer is.
    order = np.lexsort((np.abs(probability - 0.5), -np.round(gain, 6)))[:count]
    return tuple(
        Question(
            int(i), float(unlabelled[i]), float(probability[i]), max(0.0, float(gain[i])),
            math.exp(best[0][i]), math.exp(best[1][i]),
        )
        for i in order
    )  # fmt: skip


def _rates(targets: F64, places: F64) -> tuple[F64, F64]:
    """(S,T) shares of false alarms and of missed defects in each draw, at log scores (T,)."""
    good, bad = (normal_cdf((places - targets[:, [i]]) * np.exp(-targets[:, [i + 1]])) for i in (0, 2))
    return 1 - good, bad


def repaint_of(calibration: Calibration, prior: ThresholdPrior) -> float | None:
    """What the repaint adds to the log scores of a class that was calibrated with `prior` and never commissioned; None
    for a class without evidence from both sides."""
    if calibration.evidence is None or calibration.score_model is None:
        return None
    return calibration.score_model.good_mean - prior.score_model(calibration.evidence).good_mean


def evidence_of_shots(
    evidence: ScoreEvidence, numbers: Sequence[int], shots: int
) -> tuple[ScoreEvidence, dict[int, float]]:
    """Of a class some of whose photos joined from the line: what its first `shots` photos say, and the left-out scores
    of the others by number.

    `numbers` are calibrate.left_out_numbers. Those that joined are photos of the line: their scores belong beside the
    stream's. Without them the stream would lack just those photos that were asked about, the highest good ones, and
    with them in the evidence each would count twice. Two left-out scores stay evidence at least, as it must be.
    """
    scores = sorted(zip(numbers, evidence.left_out, strict=True))
    kept = max(2, sum(number < shots for number, _ in scores))
    return replace(evidence, left_out=tuple(score for _, score in scores[:kept])), dict(scores[kept:])


def belief_of(calibration: Calibration, prior: ThresholdPrior, repaint: float | None = None) -> ScoreBelief | None:
    """What `prior` believes of a class that was calibrated with it, what the repaint adds counted in; None for a class
    without evidence from both sides. `repaint` is that of `repaint_of` unless given."""
    repaint = repaint_of(calibration, prior) if repaint is None else repaint
    return (
        None if repaint is None or calibration.evidence is None else prior.belief(calibration.evidence).shifted(repaint)
    )
