"""Drift: the exact test's level, what it finds and how soon, and what it says."""

from __future__ import annotations

import numpy as np
import pytest

from anomalysd_edge.calibration import drift
from anomalysd_edge.calibration.drift import (
    BLOCK,
    FALSE_ALARMS,
    LEAST_REFERENCE,
    QUANTITIES,
    Quantity,
    compare,
    smirnov,
)
from anomalysd_edge.errors import SettingsError


@pytest.mark.parametrize(("n", "m"), [(40, 20), (57, 20), (8, 8), (1, 5), (200, 20)])
def test_the_probability_is_the_exact_one(n: int, m: int) -> None:
    stats, rng = pytest.importorskip("scipy.stats"), np.random.default_rng(n)
    for shift in (0.0, 0.3, 1.0, 3.0):
        first, second = rng.normal(size=n), rng.normal(shift, 1, size=m)
        expected = stats.ks_2samp(first, second, method="exact").pvalue
        assert smirnov(first.tolist(), second.tolist()) == pytest.approx(expected, rel=1e-6, abs=1e-12)
    assert smirnov([1.0, 2.0], [1.0, 2.0]) == 1.0


@pytest.mark.parametrize("quantity", QUANTITIES)
def test_an_unchanged_line_raises_false_alarms_at_the_stated_rate_at_most(
    quantity: Quantity, monkeypatch: pytest.MonkeyPatch
) -> None:
    # At one in fifty the rate can be counted; without the least change every rejection counts.
    monkeypatch.setattr(drift, "FALSE_ALARMS", 0.02 * len(QUANTITIES))
    monkeypatch.setattr(drift, "LEAST_CHANGE", dict.fromkeys(QUANTITIES, 0.0))
    rng, blocks = np.random.default_rng(3), 1500
    alarms = 0
    for number in range(blocks):
        draws = (
            rng.lognormal(-2, 0.5, LEAST_REFERENCE + BLOCK) if number % 2 else rng.beta(2, 5, LEAST_REFERENCE + BLOCK)
        )
        alarms += compare(quantity, draws[:LEAST_REFERENCE].tolist(), draws[LEAST_REFERENCE:].tolist()).drifted
    # Binomial(1500, 0.02): above 46 with a probability of 1 in 1000. The exact test is discrete, so a little below.
    assert 0 < alarms <= 46


def test_the_stated_level_is_used_and_small_changes_do_not_count() -> None:
    rng = np.random.default_rng(5)
    alarms = 0
    for _ in range(1000):
        draws = rng.normal(0.5, 0.02, LEAST_REFERENCE + BLOCK)
        alarms += compare("brightness", draws[:LEAST_REFERENCE].tolist(), draws[LEAST_REFERENCE:].tolist()).drifted
    assert alarms <= 3, f"{FALSE_ALARMS} a block for three quantities"
    steady = rng.normal(0.5, 0.0005, LEAST_REFERENCE)
    small = compare("brightness", steady.tolist(), (0.98 * rng.normal(0.5, 0.0005, BLOCK)).tolist())
    assert small.probability < 1e-6
    assert not small.drifted, "two percent of the light harm nobody"


def test_a_tenth_less_light_and_blur_are_found_by_the_next_block() -> None:
    rng = np.random.default_rng(7)
    for _ in range(50):
        reference = rng.normal(0.5, 0.02, LEAST_REFERENCE)
        found = compare("brightness", reference.tolist(), (0.9 * rng.normal(0.5, 0.02, BLOCK)).tolist())
        assert found.drifted
        assert found.sentence().startswith("the lamp ages: photos are ")
        assert found.change == pytest.approx(-0.1, abs=0.04)


def test_a_fifth_of_defects_is_no_drift_and_a_shift_everywhere_is() -> None:
    rng = np.random.default_rng(9)
    reference = rng.lognormal(-2, 0.3, 60).tolist()
    for _ in range(50):
        run = [*rng.lognormal(-2, 0.3, 16), *rng.lognormal(0, 0.3, 4)]
        assert not compare("score", reference, run).drifted
    moved = compare("score", reference, rng.lognormal(-1.4, 0.3, BLOCK).tolist())
    assert moved.drifted
    assert "scores are" in moved.sentence()
    assert "higher everywhere" in moved.sentence()
    with pytest.raises(SettingsError):
        compare("score", reference, [])


def test_every_direction_has_its_words() -> None:
    words = {
        ("brightness", 0.2): "exposure changed: photos are 20 % brighter",
        ("sharpness", -0.2): "lost focus, or its lens is dirty: photos are 20 % less sharp",
        ("sharpness", 0.2): "focused or moved: photos are 20 % sharper",
        ("score", -0.2): "scores are 20 % lower everywhere",
    }
    for (quantity, change), sentence in words.items():
        assert sentence in drift.DriftFinding(quantity, change, 0.0, True).sentence()  # type: ignore[arg-type]
