"""Decisions that follow from two log-normal score distributions."""

from __future__ import annotations

import math

import numpy as np
import pytest

from anomalysd_edge.errors import SettingsError
from anomalysd_edge.method.score_model import Costs, ScoreModel

MODEL = ScoreModel(good_mean=-2.0, good_sd=0.15, defect_mean=-1.5, defect_sd=0.4)


def cost(model: ScoreModel, threshold: float, costs: Costs) -> float:
    errors = model.errors(threshold)
    return (1 - costs.defect_rate) * errors.false_alarms + costs.defect_rate * costs.missed * errors.missed


@pytest.mark.parametrize("costs", [Costs(), Costs(missed=5), Costs(missed=0.3), Costs(defect_rate=0.1)])
def test_threshold_costs_least(costs: Costs) -> None:
    threshold = MODEL.threshold(costs)
    # Below the good photos' usual scores the answer does not turn around: nobody calls a low score anomalous.
    tried = np.exp(np.linspace(MODEL.good_mean - MODEL.good_sd, 0, 4001))
    assert cost(MODEL, threshold, costs) <= min(cost(MODEL, float(t), costs) for t in tried) + 1e-6


def test_equal_spreads_meet_halfway() -> None:
    model = ScoreModel(-2.0, 0.2, -1.0, 0.2)
    assert model.threshold() == pytest.approx(math.exp(-1.5))
    assert model.probability(math.exp(-1.5)) == pytest.approx(0.5)


def test_dearer_misses_lower_the_threshold() -> None:
    assert MODEL.threshold(Costs(missed=10)) < MODEL.threshold() < MODEL.threshold(Costs(missed=0.1))


@pytest.mark.parametrize("spreads", [(0.15, 0.4), (0.4, 0.15), (0.2, 0.2)])
def test_probability_never_falls_as_scores_rise(spreads: tuple[float, float]) -> None:
    model = ScoreModel(-2.0, spreads[0], -1.5, spreads[1])
    found = [model.probability(float(score)) for score in np.exp(np.linspace(-12, 4, 400))]
    assert np.all(np.diff(found) >= 0)
    assert 0 <= found[0] < 0.5 < found[-1] <= 1


def test_errors_match_drawn_photos() -> None:
    rng = np.random.default_rng(0)
    good, bad = np.exp(rng.normal(-2, 0.15, 40_000)), np.exp(rng.normal(-1.5, 0.4, 40_000))
    threshold = MODEL.threshold()
    errors = MODEL.errors(threshold)
    assert errors.false_alarms == pytest.approx((good >= threshold).mean(), abs=0.01)
    assert errors.missed == pytest.approx((bad < threshold).mean(), abs=0.01)
    stated = np.array([MODEL.probability(float(s)) for s in np.concatenate([good, bad])[::40]])
    labels = np.repeat([0, 1], 40_000)[::40]
    near = (stated > 0.6) & (stated < 0.8)
    assert labels[near].mean() == pytest.approx(stated[near].mean(), abs=0.1)


def test_cap_bounds_the_threshold() -> None:
    capped = ScoreModel(-2.0, 0.15, -1.5, 0.4, cap=0.14)
    assert capped.threshold() == 0.14
    assert capped.limits().good <= 0.14 <= capped.limits().anomalous


def test_limits_enclose_the_threshold_and_meet_where_asking_is_dear() -> None:
    limits = MODEL.limits()
    assert limits.good < MODEL.threshold() < limits.anomalous
    assert MODEL.probability(limits.good) == pytest.approx(0.25, abs=1e-3)
    assert MODEL.probability(limits.anomalous) == pytest.approx(0.75, abs=1e-3)
    dear = MODEL.limits(Costs(referral=0.6))
    assert dear.good == dear.anomalous == MODEL.threshold(Costs(referral=0.6))


def test_zero_and_huge_scores_have_an_answer() -> None:
    assert MODEL.probability(0.0) < 0.5
    assert MODEL.probability(1e9) == pytest.approx(1)
    assert MODEL.errors(0.0).false_alarms == pytest.approx(1)


@pytest.mark.parametrize("broken", [(0.0, 0.0, 1.0, 1.0), (0.0, 1.0, math.nan, 1.0), (0.0, 1.0, 1.0, -1.0)])
def test_broken_models_are_refused(broken: tuple[float, float, float, float]) -> None:
    with pytest.raises(SettingsError):
        ScoreModel(*broken)


@pytest.mark.parametrize("broken", [{"missed": 0.0}, {"referral": 1.0}, {"defect_rate": 0.0}, {"missed": math.inf}])
def test_broken_costs_are_refused(broken: dict[str, float]) -> None:
    with pytest.raises(SettingsError):
        Costs(**broken)
