"""Photos that do not show their class: a place that differs from its neighbourhood is not to be found in them."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from anomalysd_edge.bundle.detector_factory import class_record
from anomalysd_edge.data.classes import ClassSpec
from anomalysd_edge.method.class_model import ClassModel
from anomalysd_edge.method.detector import Detector
from anomalysd_edge.method.patches.out_of_distribution import PhotoLimits, contrast, raised_score
from anomalysd_edge.method.patches.patch_scorer import PatchScorer
from tests.support.calibration import INSPECT as EDGE_INSPECT
from tests.support.calibration import SETTINGS, calibrated
from tests.support.detectors import SCHEDULE, photo
from tests.support.fake_networks import FakeNetworks

SPEC = ClassSpec("part", "part", "texture", (), ())
DEAF = PatchScorer((7,), (np.zeros((1, 1, 7, 1, 1), np.float32),), (np.zeros((1, 1), np.float32),), (1,))
"""Reads FakeNetworks' seven channels and finds every patch as likely as the next: what is left is the distance."""


INSPECT = replace(EDGE_INSPECT, prototype_map="reading", fusion="scaled", multiscale_weight=0.5)


def scored(networks: FakeNetworks) -> ClassModel:
    return calibrated(networks, SPEC, [photo(s) for s in range(3)], INSPECT, SETTINGS, DEAF)


def test_limits_follow_the_class_where_its_photos_differ() -> None:
    alike, unlike = PhotoLimits.of([0.01, 0.02], [40.0, 12.0]), PhotoLimits.of([0.1, 0.3], [40.0, 12.0])
    assert alike.far == 0.25, "copies of one shot lie close: that says nothing of other good photos"
    assert unlike.far == pytest.approx(0.6)
    assert alike.flat == pytest.approx(3.0)


def test_excess_is_the_larger_of_both_and_finite() -> None:
    limits = PhotoLimits(far=0.25, flat=4.0)
    assert limits.excess(0.2, 8.0) == pytest.approx(0.8)
    assert limits.excess(0.5, 8.0) == pytest.approx(2.0)
    assert limits.excess(0.2, 1.0) == pytest.approx(4.0)
    assert limits.excess(0.2, 0.0) == 10.0
    assert PhotoLimits(far=0.25, flat=0.0).excess(0.2, 0.0) == pytest.approx(0.8), (
        "a class whose shots are flat themselves"
    )


def test_a_raised_score_is_over_the_threshold_and_grows_with_the_excess() -> None:
    assert raised_score(0.3, 0.8, 1.5) == pytest.approx(1.3)
    assert raised_score(0.3, 0.8, 3.0) > raised_score(0.3, 0.8, 2.0)
    assert raised_score(9.0, 0.8, 1.5) == 9.0, "what a defect gives is not lowered"


def test_contrast_is_of_grey() -> None:
    grey = np.full((8, 8, 3), 77, np.uint8)
    assert contrast(grey) == 0
    grey[:4] = 177
    assert contrast(grey) == pytest.approx(50.0)


def test_blank_and_foreign_photos_raise_an_alarm_and_say_why() -> None:
    networks = FakeNetworks()
    found = scored(networks)
    assert found.calibration.limits is not None
    blank = np.full((40, 40, 3), 120, np.uint8)
    foreign = photo(7)
    foreign[..., 1:] //= 8  # the same grain, but red: far from every prototype, with contrast enough
    foreign[..., 0] = 255 - photo(8)[..., 0] // 8
    detector = Detector(networks, SCHEDULE, {"part": found}, INSPECT)
    good, flat, other = detector.inspect([photo(50), blank, foreign], "part")
    assert good.evidence.kind != "photo"
    assert good.pred_score == pytest.approx(good.scores["fused"])
    assert found.calibration.threshold is not None
    for answer in (flat, other):
        assert answer.pred_label == 1
        assert answer.evidence.kind == "photo"
        assert answer.evidence.cell.all()
        assert found.calibration.threshold < answer.pred_score <= 10 * max(1, found.calibration.threshold)
        assert answer.scores["fused"] == answer.pred_score


def test_without_limits_the_verdict_is_the_maps_alone() -> None:
    """Bundles made before, and presets whose maps no reading made."""
    networks = FakeNetworks()
    found = scored(networks)
    blank = np.full((40, 40, 3), 120, np.uint8)
    (before,) = Detector(networks, SCHEDULE, {"part": found.calibrated(limits=None)}, INSPECT).inspect([blank], "part")
    assert before.evidence.kind != "photo"
    bare = calibrated(networks, SPEC, [photo(1)], INSPECT, SETTINGS)
    assert bare.calibration.limits is None


def test_limits_go_into_the_manifest() -> None:
    found = scored(FakeNetworks())
    assert class_record(SPEC, 3, {"edge": found}).calibration["edge"].limits == found.calibration.limits
