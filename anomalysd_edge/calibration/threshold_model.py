"""What a class's own photos say of the scores that further photos will get: evidence in, score model out.

Both sides are asked. Good photos: each shot judged by a bank of the others (leave one out), or perturbed copies where
there is a single shot. Defects: synthetic anomalies painted on the shots and scored alike. How such evidence relates to
the scores of further photos is a property of the scorer rather than of the class, so it is learned over many classes
whose good and defective photos are known, none of them the user's (training/threshold_prior): a ridge regression per
number of shots, whose leave-one-out residuals are the doubt that stays. This is empirical Bayes; with more shots than
the regressions were fitted for, the class's own scores take over.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from anomalysd_edge.core.types import F64
from anomalysd_edge.errors import InputError, SettingsError
from anomalysd_edge.method.score_model import SMALLEST, ScoreEvidence, ScoreModel

_ASSETS = Path(__file__).parents[1] / "assets/threshold_prior"
SHIPPED = {"efficientnet_lite2": _ASSETS / "efficientnet_lite2.json"}
"""By kind of feature network: the prior for the image scores of its corrected distances at two sizes."""
ANY_FEATURES = _ASSETS / "any_features.json"
"""For all others: of plain distances, and of nothing but how scores relate to each other."""
TARGETS = ("good mean", "log of good sd", "defect mean", "log of defect sd")
"""What is predicted of a class's natural log scores, in this order. Means are medians: one odd photo moves none."""
MOST_LOG_SD = math.log(3.0)
"""Ceiling of both: copies among the photos score next to nothing, from which a regression may conclude anything."""
LEAST_LOG_SD = math.log(0.04), math.log(0.08)
"""Floors of the two log standard deviations: a handful of alike photos does not prove that all are alike."""


def features_of(evidence: ScoreEvidence) -> F64:
    """(3,) float64: what the regression of this number of shots sees.

    One shot: median log score of its copies, of its synthetic anomalies, log self-similarity. More: mean log left-out
    score, median log score of the synthetic anomalies, standard deviation of the log left-out scores.
    """
    defects = float(np.median(logs(evidence.synthetic)))
    if not evidence.left_out:
        return np.array([np.median(logs(evidence.copies)), defects, math.log(max(evidence.self_similarity, SMALLEST))])
    good = logs(evidence.left_out)
    return np.array([good.mean(), defects, good.std()])


def anchor_of(evidence: ScoreEvidence) -> F64:
    """(4,) float64: what TARGETS would be if the evidence were taken as it stands; zeros for a single shot."""
    if not evidence.left_out:
        return np.zeros(4)
    seen = features_of(evidence)
    return np.array([seen[0], 0.0, seen[1], 0.0])


def level_of(evidence: ScoreEvidence) -> float:
    """Mean log score of the good photos of the evidence: of the left-out shots, or else of the copies."""
    return float(logs(evidence.left_out or evidence.copies).mean())


def relative_to(evidence: ScoreEvidence, level: float) -> ScoreEvidence:
    """The same with every score divided by exp(level)."""

    def divided(scores: Sequence[float]) -> tuple[float, ...]:
        return tuple(np.exp(logs(scores) - level).tolist())

    own = divided([evidence.self_similarity])[0]
    return ScoreEvidence(divided(evidence.left_out), divided(evidence.copies), divided(evidence.synthetic), own)


@dataclass(frozen=True)
class Regression:
    """TARGETS less the anchor, as a linear function of the standardised features; for one number of shots."""

    centre: F64
    """(3,) mean of the features over the classes."""
    scale: F64
    """(3,) their standard deviation, > 0."""
    offset: F64
    """(4,) mean of the targets less the anchor."""
    weights: F64
    """(3,4)."""
    residual: F64
    """(4,) root mean square of the leave-one-out residuals."""

    def predict(self, evidence: ScoreEvidence) -> F64:
        """(4,) TARGETS."""
        standard = (features_of(evidence) - self.centre) / self.scale
        return np.asarray(anchor_of(evidence) + self.offset + standard @ self.weights)


@dataclass(frozen=True)
class ScoreBelief:
    """A normal distribution over TARGETS of one class, its components independent: over the classes that the shipped
    prior was fitted to, their residuals correlate by 0.2 at most."""

    expected: F64
    """(4,) TARGETS."""
    doubt: F64
    """(4,) standard deviation of each; >= 0."""

    def shifted(self, log_shift: float) -> ScoreBelief:
        """The same of scores that are exp(log_shift) times as large."""
        return ScoreBelief(self.expected + log_shift * np.array([1.0, 0, 1, 0]), self.doubt)

    def predictive(self, cap: float | None = None) -> ScoreModel:
        """What follows for further photos: spread between photos and doubt about their mean together."""
        good, good_log_sd, defect, defect_log_sd = self.expected.tolist()
        return ScoreModel(
            good_mean=good,
            good_sd=_total(good_log_sd, float(self.doubt[0]) ** 2),
            defect_mean=defect,
            defect_sd=_total(defect_log_sd, float(self.doubt[2]) ** 2),
            cap=cap,
        )


@dataclass(frozen=True)
class ThresholdPrior:
    """What many other classes tell, by number of shots."""

    regressions: Mapping[int, Regression]
    """Keys are numbers of shots; 1 and at least one larger."""
    relative: bool = False
    """Whether it knows ratios of scores alone: then it serves scores of any unit."""
    batch: tuple[float, float] = (0.0, 0.0)
    """How much higher later good photos score than leaving shots out says, since shots are of one batch: mean and
    standard deviation of the log scores' difference. A single shot has no such optimism: its copies are no photos."""

    def __post_init__(self) -> None:
        if 1 not in self.regressions or len(self.regressions) < 2:
            raise SettingsError(f"a threshold prior for {sorted(self.regressions)} shots; expected 1 and a larger one")

    def score_model(self, evidence: ScoreEvidence) -> ScoreModel:
        """The predictive score model of a class: what `belief` expects of its further photos."""
        return self.belief(evidence).predictive(float(np.exp(logs(evidence.synthetic).max())))

    def belief(self, evidence: ScoreEvidence) -> ScoreBelief:
        """What is believed of a class's two distributions, and how firmly.

        Between two fitted numbers of shots the regression of the smaller one holds. Beyond the largest, M, the share
        M/K of what it adds to the class's own left-out scores remains, and M/K of its residual variance: the mean
        of K scores is that much better known.
        """
        if self.relative:
            level = level_of(evidence)
            return replace(self, relative=False).belief(relative_to(evidence, level)).shifted(level)
        known = max(k for k in self.regressions if k <= evidence.shots)
        regression = self.regressions[known]
        found, doubt = regression.predict(evidence), np.square(regression.residual)
        if evidence.left_out and evidence.shots > known == max(self.regressions):
            left = known / evidence.shots
            own = features_of(evidence)
            found[0] = own[0] + left * (found[0] - own[0])
            found[1] = left * found[1] + (1 - left) * math.log(max(own[2], math.exp(LEAST_LOG_SD[0])))
            doubt[:2] *= left
        if evidence.left_out:
            found[0] += self.batch[0]
            doubt[0] += self.batch[1] ** 2
        found[[1, 3]] = np.clip(found[[1, 3]], LEAST_LOG_SD, MOST_LOG_SD)
        found[2] = max(found[2], found[0])
        return ScoreBelief(found, np.sqrt(doubt))

    def to_json(self) -> dict[str, Any]:
        """Plain values, to be read by :meth:`of_json`."""
        regressions = {
            str(shots): {name: np.asarray(value).tolist() for name, value in vars(regression).items()}
            for shots, regression in sorted(self.regressions.items())
        }
        return {"relative": self.relative, "batch": list(self.batch), "regressions": regressions}

    @classmethod
    def of_json(cls, value: Mapping[str, Any]) -> ThresholdPrior:
        """The inverse of :meth:`to_json`. Raises InputError where a part is missing or of another shape."""
        values, relative, batch = value["regressions"], value.get("relative", False), value.get("batch", (0, 0))
        shapes = {"centre": (3,), "scale": (3,), "offset": (4,), "weights": (3, 4), "residual": (4,)}
        found: dict[int, Regression] = {}
        try:
            for shots, part in values.items():
                arrays = {name: np.array(part[name], np.float64) for name in shapes}
                if any(arrays[name].shape != shape for name, shape in shapes.items()) or not all(
                    np.isfinite(a).all() for a in arrays.values()
                ):
                    raise InputError(f"the threshold prior for {shots} shots has a part of another shape, or no number")
                found[int(shots)] = Regression(**arrays)
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise InputError(f"this is no threshold prior: {error!r} is missing or unreadable") from error
        if len(batch) != 2 or not all(math.isfinite(part) for part in batch):
            raise InputError(f"the threshold prior's batch is {batch!r}, expected two numbers")
        return cls(found, bool(relative), (float(batch[0]), float(batch[1])))


def load_prior(path: Path) -> ThresholdPrior:
    """Read a prior's JSON file; raises InputError, naming the file, where it cannot be read.

    Beside what :meth:`ThresholdPrior.to_json` gives stands `made_from`: what it was fitted to.
    """
    try:
        return ThresholdPrior.of_json(json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(f"{path} cannot be read as a threshold prior ({error})") from error


def shipped_prior(features_kind: str) -> ThresholdPrior:
    """The prior for a kind of feature network: its own, or the one for any features."""
    return load_prior(SHIPPED.get(features_kind, ANY_FEATURES))


def logs(scores: Sequence[float] | F64) -> F64:
    """(N,) natural logarithms; scores below SMALLEST count as it."""
    return np.log(np.maximum(np.asarray(scores, np.float64), SMALLEST))


def _total(log_sd: float, mean_doubt: float) -> float:
    """Standard deviation of the predictive distribution: the spread between photos and the doubt about their mean."""
    return math.sqrt(math.exp(2 * log_sd) + mean_doubt)
