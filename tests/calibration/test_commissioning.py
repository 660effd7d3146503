"""A class's thresholds from the line's unlabelled photos and a few answers."""

from __future__ import annotations

import math
from dataclasses import replace
from statistics import NormalDist

import numpy as np
import pytest

from anomalysd_edge.calibration.bank_photos import split_photos
from anomalysd_edge.calibration.calibrate import left_out_numbers
from anomalysd_edge.calibration.commissioning import (
    LEAST_STREAM,
    Commissioned,
    CommissioningSettings,
    Estimate,
    ask_next,
    belief_of,
    commission,
    evidence_of_shots,
)
from anomalysd_edge.calibration.score_posterior import LineScores, ScorePosterior, normal_cdf, posterior
from anomalysd_edge.calibration.threshold_model import ScoreBelief, shipped_prior
from anomalysd_edge.core.types import F64
from anomalysd_edge.errors import SettingsError
from anomalysd_edge.method.class_model import Calibration
from anomalysd_edge.method.score_model import Costs, ScoreEvidence

BELIEF = ScoreBelief(np.array([-2.0, math.log(0.13), -1.3, math.log(0.3)]), np.array([0.25, 0.4, 0.28, 0.4]))


class Line:
    """A class drawn from BELIEF, as often as wanted, and its photos' scores."""

    def __init__(self, seed: int) -> None:
        self.rng = np.random.default_rng(seed)
        self.targets = BELIEF.expected + BELIEF.doubt * self.rng.normal(size=4)
        self.targets[2] = max(self.targets[2], self.targets[0] + 0.2)

    def good(self, count: int) -> tuple[float, ...]:
        return tuple(np.exp(self.rng.normal(self.targets[0], np.exp(self.targets[1]), count)).tolist())

    def bad(self, count: int) -> tuple[float, ...]:
        return tuple(np.exp(self.rng.normal(self.targets[2], np.exp(self.targets[3]), count)).tolist())

    def error(self, threshold: float) -> float:
        """The true balanced error."""
        at, (good, good_log_sd, bad, bad_log_sd) = math.log(threshold), self.targets.tolist()
        alarms = 1 - NormalDist(good, math.exp(good_log_sd)).cdf(at)
        return (alarms + NormalDist(bad, math.exp(bad_log_sd)).cdf(at)) / 2

    def best(self) -> float:
        """The least of any threshold."""
        return min(self.error(float(np.exp(at))) for at in np.linspace(-3.5, 0.5, 801))


def threshold_of(found: Commissioned) -> float:
    assert found.model is not None
    return found.model.threshold()


def test_the_distribution_function_is_that_of_statistics() -> None:
    at = np.array([-9, -3.3, -0.7001, 0, 0.25, 2.2, 9])
    expected = [NormalDist().cdf(value) for value in at.tolist()]
    np.testing.assert_allclose(normal_cdf(at), expected, atol=1e-6)


def test_labels_alone_give_the_conjugate_posterior_of_a_mean() -> None:
    """A normal mean with a known spread: precision and precision-weighted mean, by hand."""
    belief = ScoreBelief(np.array([-2.0, math.log(0.2), 0.0, math.log(0.3)]), np.array([0.3, 0, 0.3, 0]))
    logs = np.array([-1.7, -1.5, -1.6, -1.9])
    found = posterior(belief, LineScores(good=tuple(np.exp(logs).tolist())), draws=8000)
    precision = 1 / 0.3**2 + 4 / 0.2**2
    mean = (-2 / 0.3**2 + logs.sum() / 0.2**2) / precision
    assert found.targets[:, 0].mean() == pytest.approx(mean, abs=0.01)
    assert found.targets[:, 0].std() == pytest.approx(precision**-0.5, rel=0.06)
    assert found.targets[:, 2].mean() == pytest.approx(0, abs=0.02), "nothing was said of defects"


def test_the_share_follows_from_labels_as_by_quadrature() -> None:
    grid = (np.arange(20000) + 0.5) / 20000
    prior = 0.9 * 9 * (1 - grid) ** 8 + 0.1
    weights = prior * grid**2 * (1 - grid) ** 9
    expected = float((grid * weights).sum() / weights.sum())
    line = Line(1)
    found = posterior(BELIEF, LineScores(good=line.good(9), defective=line.bad(2)), draws=8000)
    assert found.share.mean() == pytest.approx(expected, abs=0.01)
    elsewhere = posterior(BELIEF, LineScores(good=line.good(9), known_bad=line.bad(4)), draws=8000)
    assert elsewhere.share.mean() < expected, "bad photos from elsewhere say nothing of the line"


def test_nothing_seen_gives_the_belief_back() -> None:
    found = posterior(BELIEF, LineScores(), draws=8000).belief()
    np.testing.assert_allclose(found.expected, BELIEF.expected, atol=0.05)
    np.testing.assert_allclose(found.doubt, BELIEF.doubt, rtol=0.1)


def test_a_stream_without_labels_brings_thresholds_near_the_best() -> None:
    before, after, best = [], [], []
    for seed in range(30):
        line = Line(seed)
        found = commission(BELIEF, LineScores(line.good(20) + line.bad(2)), CommissioningSettings(draws=1500))
        before.append(line.error(found.before.threshold))
        after.append(line.error(threshold_of(found)))
        best.append(line.best())
    assert np.mean(after) < 0.7 * np.mean(before)
    assert np.mean(after) < np.mean(best) + 0.025


@pytest.mark.parametrize("defects", [2, 5])
def test_a_few_defects_do_not_raise_the_limit(defects: int) -> None:
    """Up to one in five; a quantile of the stream would move by a standard deviation."""
    moved = []
    for seed in range(8):
        line = Line(seed)
        good = line.good(20)
        clean, soiled = commission(BELIEF, LineScores(good)), commission(BELIEF, LineScores(good + line.bad(defects)))
        moved.append(math.log(threshold_of(soiled) / threshold_of(clean)))
    assert abs(np.mean(moved)) < 0.05
    assert max(moved) < 0.25


def test_a_stream_that_is_half_defects_is_recognised_and_nothing_proposed() -> None:
    line = Line(3)
    line.targets = np.array([-2.0, math.log(0.12), -1.1, math.log(0.25)])
    found = commission(BELIEF, LineScores(line.good(11) + line.bad(11)))
    assert found.model is None
    assert not found.trusted
    assert found.after.threshold == found.before.threshold
    assert found.reason.startswith("nothing is proposed: ")
    assert found.reason.count(". ") == 0, "one sentence"
    assert found.share.low < 0.5 < found.share.high
    healthy = commission(BELIEF, LineScores(line.good(20) + line.bad(2)))
    assert healthy.model is not None


def test_answers_count_as_certain() -> None:
    line = Line(3)
    stream, doubtful = line.good(20), (0.19, 0.2, 0.21)
    good = commission(BELIEF, LineScores(stream, good=doubtful))
    bad = commission(BELIEF, LineScores(stream, defective=doubtful))
    assert threshold_of(bad) < threshold_of(good)
    known = commission(BELIEF, LineScores(stream, known_bad=doubtful))
    assert threshold_of(known) < threshold_of(commission(BELIEF, LineScores(stream)))
    assert known.share.mean < bad.share.mean


def test_intervals_hold_what_they_promise() -> None:
    held = []
    for seed in range(40):
        line = Line(seed)
        found = commission(BELIEF, LineScores(line.good(18) + line.bad(2)), CommissioningSettings(draws=1500))
        held.append(found.after.balanced.low <= line.error(found.after.threshold) <= found.after.balanced.high)
    assert np.mean(held) >= 0.8, "nine in ten are promised"


def test_a_seed_decides_and_another_hardly_matters() -> None:
    line = Line(5)
    seen = LineScores(line.good(20) + line.bad(2))
    once, again = commission(BELIEF, seen), commission(BELIEF, seen)
    assert once == again
    other = commission(BELIEF, seen, CommissioningSettings(seed=1))
    assert threshold_of(other) == pytest.approx(threshold_of(once), rel=0.02)
    assert other.after.balanced.high == pytest.approx(once.after.balanced.high, abs=0.04)


def test_a_stream_of_hundreds_narrows_what_is_known_of_good_photos() -> None:
    line = Line(6)
    line.targets = BELIEF.expected
    few, many = (commission(BELIEF, LineScores(line.good(count))) for count in (20, 400))
    assert many.after.false_alarms.width < 0.5 * few.after.false_alarms.width
    truth = NormalDist(line.targets[0], math.exp(line.targets[1]))
    assert many.model is not None
    assert many.model.good_mean == pytest.approx(truth.mean, abs=0.03)


def test_trusted_is_what_the_width_says() -> None:
    line = Line(7)
    seen = LineScores(line.good(20), known_bad=line.bad(4))
    width = commission(BELIEF, seen).after.balanced.width
    for wanted, trusted in ((width + 0.001, True), (width - 0.001, False)):
        found = commission(BELIEF, seen, CommissioningSettings(width=wanted))
        assert found.trusted is trusted
        assert ("still learning" in found.reason) is not trusted


def test_dear_misses_lower_the_threshold_and_a_cap_holds_it() -> None:
    line = Line(8)
    seen = LineScores(line.good(20) + line.bad(2))
    found = commission(BELIEF, seen)
    dear = commission(BELIEF, seen, CommissioningSettings(costs=Costs(missed=10)))
    assert dear.after.threshold < found.after.threshold
    cap = 0.9 * found.after.threshold
    assert commission(BELIEF, seen, cap=cap).after.threshold == cap


def _by_hand(found: ScorePosterior, score: float, places: F64) -> float:
    """Expected error reduction of one photo, draw by draw."""
    cost, probabilities = [], []
    for targets, share in zip(found.targets, found.share, strict=True):
        good = NormalDist(targets[0], math.exp(targets[1]))
        bad = NormalDist(targets[2], math.exp(targets[3]))
        cost.append([((1 - good.cdf(at)) + bad.cdf(at)) / 2 for at in places])
        density = share * bad.pdf(math.log(score)), (1 - share) * good.pdf(math.log(score))
        probabilities.append(density[0] / sum(density))
    costs, weights = np.array(cost), np.array(probabilities)
    after = sum(min(each @ costs) for each in (weights, 1 - weights)) / len(weights)
    return float(costs.mean(axis=0).min() - after)


def test_questions_are_ranked_by_expected_error_reduction() -> None:
    targets = np.array([[-2, math.log(0.15), -1.3, math.log(0.3)], [-1.8, math.log(0.1), -1.2, math.log(0.2)]])
    found = ScorePosterior(targets, np.array([0.1, 0.2]))
    scores = (0.14, 0.2, 0.23, 0.6)
    asked = ask_next(found, scores, Costs(), 4)
    assert len({one.number for one in asked}) == 4
    assert [one.gain for one in asked] == sorted((one.gain for one in asked), reverse=True)
    for one in asked:
        assert one.gain == pytest.approx(_by_hand(found, scores[one.number], np.linspace(-3, 0, 600)), abs=3e-4)
        assert one.probability in (pytest.approx(0), pytest.approx(1)) or one.if_good >= one.if_defective
    assert ask_next(found, (), Costs(), 4) == ()
    assert "probability" in asked[0].why()


def test_a_photo_that_scores_lower_is_never_more_probably_defective() -> None:
    found = posterior(BELIEF, LineScores(), draws=500)
    probabilities = found.defective((0.02, 0.08, 0.12, 0.2, 0.4, 2.0))
    assert (np.diff(probabilities, axis=1) >= -1e-12).all()


def test_too_small_a_stream_and_settings_out_of_range_are_refused() -> None:
    with pytest.raises(SettingsError, match=f"give {LEAST_STREAM} or more"):
        commission(BELIEF, LineScores((0.1,) * (LEAST_STREAM - 1), known_bad=(0.5,)))
    for wrong in ({"width": 0.0}, {"interval": 1.0}, {"most_defective": 0.0}, {"draws": 10}):
        with pytest.raises(SettingsError):
            CommissioningSettings(**wrong)


def test_the_belief_of_a_calibrated_class_counts_the_repaint_in() -> None:
    evidence = ScoreEvidence(left_out=(0.16, 0.18, 0.17, 0.2), synthetic=(0.25, 0.3, 0.4, 0.35))
    for kind in ("efficientnet_lite2", "others"):
        prior = shipped_prior(kind)
        model = prior.score_model(evidence)
        assert prior.belief(evidence).predictive(model.cap) == model
        shifted = belief_of(Calibration(score_model=model.shifted(0.1), evidence=evidence), prior)
        assert shifted is not None
        assert shifted.predictive(0.4 * math.exp(0.1)).threshold() == pytest.approx(
            model.shifted(0.1).threshold(), rel=1e-6
        )
        assert belief_of(Calibration(score_model=model), prior) is None


def test_photos_that_joined_are_photos_of_the_line_and_no_evidence_of_shots() -> None:
    evidence = ScoreEvidence(left_out=(0.3, 0.1, 0.2, 0.4), synthetic=(0.5,))
    apart, joined = evidence_of_shots(evidence, [2, 0, 1, 3], 2)
    assert (apart.left_out, joined) == ((0.1, 0.2), {2: 0.3, 3: 0.4})
    assert apart.synthetic == evidence.synthetic
    apart, joined = evidence_of_shots(evidence, [0, 1, 2, 3], 1)
    assert (apart.left_out, set(joined)) == ((0.3, 0.1), {2, 3}), "one left-out score alone is no evidence"


def test_left_out_scores_are_of_the_photos_that_are_named() -> None:
    photos = [np.full((32, 32, 3), 40 + number, np.uint8) for number in range(40)]
    assert left_out_numbers(photos[:1]) == []
    assert left_out_numbers(photos[:16]) == list(range(16))
    few = left_out_numbers(photos[:20])
    assert sorted(few) == list(range(20))
    assert {id(photos[n]) for n in few[-4:]} == {id(photo) for photo in split_photos(photos[:20])[1]}
    judged = left_out_numbers(photos)
    assert judged == sorted(judged)
    assert len(judged) == 20, "half of many photos is judged by banks of the other half"


def test_an_estimate_is_mean_and_central_interval() -> None:
    found = Estimate.of(np.arange(101) / 100, 0.9)
    assert (found.mean, found.low, found.high) == pytest.approx((0.5, 0.05, 0.95))
    assert found.width == pytest.approx(0.9)
    assert str(replace(found, mean=0.123)) == "12 % (5 to 95)"
