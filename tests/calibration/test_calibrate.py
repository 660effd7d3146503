"""Constants from good photos alone."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from anomalysd_edge.calibration.bank_photos import BANK_PHOTOS, k_centre, split_photos
from anomalysd_edge.calibration.holdout import perturbed
from anomalysd_edge.calibration.threshold_model import Regression, ThresholdPrior
from anomalysd_edge.data.classes import ClassSpec
from anomalysd_edge.method.detector import Detector
from anomalysd_edge.method.patches.prediction_bounds import student_t, upper_bound
from anomalysd_edge.method.score_model import Costs
from tests.support.calibration import INSPECT, SETTINGS, calibrated
from tests.support.detectors import SCHEDULE, photo
from tests.support.fake_networks import FakeNetworks


@pytest.mark.parametrize("shots", [1, 2, 4])
def test_a_calibrated_class_tells_good_from_bad(shots: int) -> None:
    networks, spec = FakeNetworks(), ClassSpec("part", "part", "object", (), ())
    found = calibrated(networks, spec, [photo(s) for s in range(shots)], INSPECT, SETTINGS)
    assert found.calibration.threshold is not None
    assert found.banks
    good, bad = Detector(networks, SCHEDULE, {"part": found}, INSPECT).inspect([photo(50), photo(50, True)], "part")
    assert bad.pred_label == 1
    assert good.pred_score < bad.pred_score


def test_no_shots_give_prompts_and_nothing_else() -> None:
    spec = ClassSpec("part", "part", "object", (), ())
    found = calibrated(FakeNetworks(), spec, [], INSPECT, SETTINGS)
    assert (found.banks, found.calibration.threshold, found.guided_threshold(INSPECT)) == ((), None, None)


def test_the_one_shot_is_never_judged_undisturbed() -> None:
    """With K = 1 the bank holds the photo itself: its own negatives must differ from it, or the threshold is 0."""
    spec, networks = ClassSpec("part", "part", "object", (), ()), FakeNetworks()
    found = calibrated(networks, spec, [photo(1)], INSPECT, SETTINGS)
    threshold = found.guided_threshold(INSPECT)
    assert threshold is not None
    assert threshold > 1e-4


def test_each_kind_of_prototype_map_has_its_guided_threshold() -> None:
    """Presets judge patches in different units: paper's guided mask must not be cut at edge's value."""
    spec, networks = ClassSpec("part", "part", "texture", (), ()), FakeNetworks()
    own = replace(INSPECT, prototype_map="distance", self_share=0.1)
    found = calibrated(networks, spec, [photo(1)], own, SETTINGS)
    assert set(found.guided) == {"distance", "own"}
    assert found.guided_threshold(own) == found.guided["own"]
    assert found.guided["distance"] != found.guided["own"]


def prior(good: float, defect: float) -> ThresholdPrior:
    """Says for any class that log scores of good photos lie around `good`, of defective ones around `defect`."""
    offset, zeros = np.array([good, np.log(0.2), defect, np.log(0.2)]), np.zeros((3, 4))
    one = Regression(np.zeros(3), np.ones(3), offset, zeros, np.zeros(4))
    return ThresholdPrior({1: one, 2: one})


def test_a_threshold_lies_between_what_good_and_defective_photos_are_expected_to_score() -> None:
    networks, spec = FakeNetworks(), ClassSpec("part", "part", "object", (), ())
    found = calibrated(networks, spec, [photo(1)], INSPECT, SETTINGS, threshold_prior=prior(-4.0, -3.0)).calibration
    assert found.score_model is not None
    assert found.decision is not None
    assert found.threshold is not None
    assert found.evidence is not None
    # Both shift alike by what the repaint adds to a good photo, at most a factor of 1.2.
    repaint = found.score_model.good_mean + 4
    assert 0 <= repaint <= np.log(1.2) + 1e-6
    assert found.score_model.defect_mean == pytest.approx(-3 + repaint)
    cap = max(found.evidence.synthetic) * np.exp(repaint)
    assert found.threshold == pytest.approx(min(cap, np.exp(-3.5 + repaint)), rel=0.02)
    assert found.decision.good < found.threshold < found.decision.anomalous
    assert found.expected == found.score_model.errors(found.threshold)


def test_dear_misses_lower_the_threshold() -> None:
    networks, spec = FakeNetworks(), ClassSpec("part", "part", "object", (), ())
    cheap, dear = (
        calibrated(
            networks,
            spec,
            [photo(s) for s in range(2)],
            INSPECT,
            replace(SETTINGS, costs=Costs(missed=missed)),
            threshold_prior=prior(-1.0, -0.5),
        ).calibration.threshold
        for missed in (1.0, 10.0)
    )
    assert cheap is not None
    assert dear is not None
    assert dear < cheap


def test_photos_beyond_the_banks_are_judged_by_them() -> None:
    shots, others = split_photos([photo(s) for s in range(4)])
    assert (len(shots), len(others)) == (4, 0)
    photos = [photo(s) for s in range(BANK_PHOTOS + 9)]
    shots, others = split_photos(photos)
    assert (len(shots), len(others)) == (BANK_PHOTOS, 9)
    assert shots[0] is photos[0]
    assert shots[-1] is photos[-1]
    networks, spec = FakeNetworks(), ClassSpec("part", "part", "object", (), ())
    evidence = calibrated(
        networks, spec, photos, INSPECT, SETTINGS, threshold_prior=prior(-1.0, -0.5)
    ).calibration.evidence
    assert evidence is not None
    assert len(evidence.left_out) == 9


def test_of_many_photos_half_is_judged_and_the_bank_covers_the_other_half() -> None:
    """Two photos taken under another light, 44 under the usual one: the bank must hold one of the two."""
    dark = [photo(s) // 3 for s in (100, 101)]
    photos = [photo(s) for s in range(44)]
    photos[8:8], photos[17:17] = [dark[0]], [dark[1]]
    shots, others = split_photos(photos)
    assert len(shots) == BANK_PHOTOS
    assert len(others) == len(photos) // 2
    assert not {id(one) for one in shots} & {id(one) for one in others}
    assert any(one is each for one in shots for each in dark)


def test_k_centre_takes_the_corners_after_the_middle() -> None:
    points = np.array([[0, 0], [0.1, 0], [10, 0], [0, 8], [0.2, 0.1], [10, 0]], np.float64)
    chosen = k_centre(points, 3)
    assert chosen[0] in (0, 1, 4, 2, 5)
    assert {tuple(points[i]) for i in chosen} >= {(10.0, 0.0), (0.0, 8.0)}
    assert sorted(k_centre(points, 6)) == list(range(6))
    assert sorted(k_centre(np.zeros((4, 2)), 3)) == sorted(set(k_centre(np.zeros((4, 2)), 3))), "no photo twice"


def test_disturbed_copies_stay_near_and_keep_the_shape() -> None:
    image = photo(2)
    copy = perturbed(image, np.random.default_rng(0))
    assert copy.shape == image.shape
    assert not np.array_equal(copy, image)
    assert abs(float(copy.mean()) - float(image.mean())) < 12


def test_student_t_against_scipy() -> None:
    stats = pytest.importorskip("scipy.stats")
    for freedom in (5, 7, 15, 40):
        assert student_t(0.98, freedom) == pytest.approx(float(stats.t.ppf(0.98, freedom)), rel=0.01)


def test_the_upper_bound_keeps_its_false_alarm_rate() -> None:
    rng = np.random.default_rng(0)
    exceeded = [rng.normal() > upper_bound(rng.normal(size=8).tolist(), 0.05) for _ in range(4000)]
    assert 0.02 < np.mean(exceeded) < 0.06
