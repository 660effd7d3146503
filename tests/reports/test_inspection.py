"""An inspection in plain values: the three answers, and what an old bundle leaves open."""

from __future__ import annotations

import json
from typing import Any

import pytest

from anomalysd_edge.method.detector import Detector
from anomalysd_edge.method.score_model import Limits, ScoreModel
from anomalysd_edge.reports.console import percent, score_limits
from anomalysd_edge.reports.inspection import inspection_json, report_row
from tests.support.detectors import MODULATED, detector, photo


def recalibrate(asked: Detector, **changes: Any) -> None:
    asked.classes = {name: model.calibrated(**changes) for name, model in asked.classes.items()}


@pytest.mark.parametrize(
    ("good", "anomalous", "expected"),
    [(0.5, 2.0, "uncertain"), (2.0, 4.0, "good"), (0.25, 0.5, "anomalous"), (1.0, 1.0, "anomalous")],
)
def test_limits_decide_and_the_label_stays_the_thresholds(good: float, anomalous: float, expected: str) -> None:
    """Limits in units of the photo's own score; the threshold is always twice it."""
    asked = detector(settings=MODULATED)
    (plain,) = asked.inspect([photo(5)], "part")
    score = plain.pred_score
    recalibrate(
        asked, threshold=2 * score, decision=Limits(good * score, anomalous * score), score_model=ScoreModel(0, 1, 1, 1)
    )
    (answer,) = asked.inspect([photo(5)], "part")
    told = json.loads(json.dumps(inspection_json(answer, "a.png")))
    assert answer.pred_score == score
    assert (told["verdict"], told["pred_label"]) == (expected, 0)
    assert told["limits"] == {"good": good * score, "anomalous": anomalous * score}
    # Two log-normal densities of equal spread: the log odds are the log score less the middle of the two means.
    assert told["pred_probability"] == pytest.approx(1 / (1 + 2.718281828459045**0.5 / score))
    row = report_row(answer, photo(5), "a.png", "good")
    assert (row.uncertain, row.outcome) == (expected == "uncertain", "passed")
    assert (row.limits, row.pred_probability) == (answer.limits, answer.pred_probability)


def test_without_limits_and_without_a_threshold() -> None:
    asked = detector()
    (answer,) = asked.inspect([photo(5)], "part")
    told = inspection_json(answer, "a.png")
    assert told["verdict"] == ("good", "anomalous")[answer.pred_label or 0]
    assert (told["limits"], told["pred_probability"]) == (None, None)
    recalibrate(asked, threshold=None)
    (answer,) = asked.inspect([photo(5)], "part")
    assert inspection_json(answer, "a.png")["verdict"] == "unknown"


def test_thresholds_and_shares_in_words() -> None:
    assert score_limits(None) == percent(None) == "-"
    assert score_limits(0.5) == "0.5000"
    assert score_limits(0.5, {"good": 0.4, "anomalous": 0.75}) == "0.5000 (0.4000 to 0.7500)"
    assert percent(0.126) == "13 %"
