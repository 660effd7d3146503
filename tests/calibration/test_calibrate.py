"""Constants from good photos alone."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from anomalysd_edge.calibration.calibrate import _expected
from anomalysd_edge.calibration.holdout import disturbed, exposed, hold_out
from anomalysd_edge.calibration.holdout_maps import PrototypeScores
from anomalysd_edge.calibration.settings import CalibrationSettings
from anomalysd_edge.data.classes import ClassSpec
from anomalysd_edge.method.anomaly_map import MapScale
from anomalysd_edge.method.class_model import ClassConstants
from anomalysd_edge.method.detector import Detector
from anomalysd_edge.method.patches.patch_scorer import Usual, shipped_reading
from anomalysd_edge.method.patches.prediction_bounds import student_t, upper_bound
from anomalysd_edge.method.settings import EDGE
from anomalysd_edge.vision.images import resize, to_array
from tests.method.test_detector import SCHEDULE, photo
from tests.support.calibration import calibrated
from tests.support.fake_networks import FakeNetworks

SETTINGS = CalibrationSettings(bank_size=300, negatives=4)
INSPECT = replace(EDGE, scales=(1, 2), passes=2)


@pytest.mark.parametrize("shots", [1, 2, 4])
def test_a_calibrated_class_tells_good_from_bad(shots: int) -> None:
    networks, spec = FakeNetworks(), ClassSpec("part", "part", "object", (), ())
    found = calibrated(networks, spec, [photo(s) for s in range(shots)], INSPECT, SETTINGS)
    assert found.calibration.threshold is not None
    assert found.bank is not None
    good, bad = Detector(networks, SCHEDULE, {"part": found}, INSPECT).inspect([photo(50), photo(50, True)], "part")
    assert bad.pred_label == 1
    assert good.pred_score < bad.pred_score


def test_no_shots_give_prompts_and_nothing_else() -> None:
    spec = ClassSpec("part", "part", "object", (), ())
    found = calibrated(FakeNetworks(), spec, [], INSPECT, SETTINGS)
    assert (found.bank, found.calibration.threshold, found.guided_threshold(INSPECT)) == (None, None, None)


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
    found = calibrated(networks, spec, [photo(1)], INSPECT, SETTINGS)
    assert set(found.guided) == {"distance", "own"}
    assert found.guided_threshold(INSPECT) == found.guided["own"]
    assert found.guided["distance"] != found.guided["own"]


def test_with_a_single_shot_the_drawn_good_photos_keep_the_threshold_up() -> None:
    """Copies of one shot do not tell how good photos differ: the drawn classes do, on the class's scales."""
    reading = shipped_reading("efficientnet_lite2")
    assert reading is not None
    assert reading.usual is not None
    scales = {"prototypes": MapScale(0.05, 0.02), "multiscale": MapScale(0.1, 0.3)}
    part = ClassConstants({}, kind="object", reading=reading)
    usual = reading.usual[1]
    nine_in_ten = np.exp(usual.middle + 1.2816 * np.hypot(usual.between, usual.within))
    # Two copies: one at the prototypes' centre, to which the repaint added 0.2, one above it, to which it added 0.1.
    copies, fused = PrototypeScores([0.05, 0.07], []), [0.2, 1 / 1.5 + 0.1]
    alone = _expected(part, copies, fused, scales, EDGE, 0.02)
    assert alone == pytest.approx((nine_in_ten - 0.05) / 0.02 / 1.5 + 0.2, rel=1e-3)
    surface = _expected(replace(part, kind="texture"), copies, fused, scales, EDGE, 0.02)
    assert surface is not None
    assert alone is not None
    assert surface > alone
    assert _expected(replace(part, reading=None), copies, fused, scales, EDGE, 0.02) is None
    assert _expected(part, copies, fused, scales, replace(EDGE, prototype_map="distance"), 0.02) is None
    shots = replace(copies, shots=[0.05, 0.07])
    known = _expected(part, shots, fused, scales, EDGE, 0.02)
    bound = usual.bound([0.05, 0.07], 0.02)
    assert known == pytest.approx((bound - 0.05) / 0.02 / 1.5 + 0.2, rel=1e-3)


def test_held_out_shots_move_the_threshold_the_more_the_more_they_are() -> None:
    usual = Usual(middle=np.log(0.2), between=0.4, within=0.5)
    few, many = usual.bound([0.05] * 2, 0.02), usual.bound([0.05] * 40, 0.02)
    assert usual.bound([], 0.02) > few > many > 0.05
    assert usual.bound([0.05] * 4, 0.02) < usual.bound([0.05] * 4, 0.002)
    assert usual.bound([0.02, 0.05, 0.05, 0.08], 0.02) > usual.bound([0.045, 0.05, 0.05, 0.055], 0.02)
    assert usual.bound([0.0, 0.0], 0.02) > 0, "a score of nothing has no logarithm"


@pytest.mark.parametrize("count", [1, 2, 4, 16])
def test_a_bound_keeps_its_false_alarm_rate_on_classes_like_the_drawn_ones(count: int) -> None:
    """Classes differ in how much their good photos do: variances of a scaled inverse chi-square, 4 degrees."""
    rng, usual, rate = np.random.default_rng(count), Usual(-2.0, 0.4, 0.5), 0.05
    alarms = []
    for _ in range(4000):
        mine = rng.normal(usual.middle, usual.between)
        spread = usual.within * np.sqrt(2 / rng.chisquare(4))
        *seen, new = np.exp(rng.normal(mine, spread, count + 1))
        alarms.append(new > usual.bound(seen, rate))
    assert 0.03 < np.mean(alarms) < 0.07


def test_disturbed_copies_stay_near_and_keep_the_shape() -> None:
    image = photo(2)
    copy = disturbed(image, np.random.default_rng(0))
    assert copy.shape == image.shape
    assert not np.array_equal(copy, image)
    assert abs(float(copy.mean()) - float(image.mean())) < 12


def test_another_exposure_is_the_photo_times_it() -> None:
    image = photo(2)
    assert exposed(image, 1.0) is image
    np.testing.assert_array_equal(exposed(image, 0.5), (image * 0.5 + 0.5).astype(np.uint8))
    assert exposed(np.full((2, 2, 3), 200, np.uint8), 2.0).max() == 255


def test_prototypes_know_a_good_part_in_another_light() -> None:
    networks, spec, shot = FakeNetworks(), ClassSpec("part", "part", tiles=1), photo(1)
    bright = networks.features(to_array(resize(exposed(shot, 1.4), networks.sizes.features_px)))[0]
    plain = hold_out(networks, [shot], spec, None, 2, 4096, 0).bank
    lit = hold_out(networks, [shot], spec, None, 2, 4096, 0, (0.7, 1.4)).bank
    assert plain is not None
    assert lit is not None
    assert lit.distance(bright).mean() < 0.5 * plain.distance(bright).mean()


def test_student_t_against_scipy() -> None:
    stats = pytest.importorskip("scipy.stats")
    for freedom in (5, 7, 15, 40):
        assert student_t(0.98, freedom) == pytest.approx(float(stats.t.ppf(0.98, freedom)), rel=0.01)


def test_the_upper_bound_keeps_its_false_alarm_rate() -> None:
    rng = np.random.default_rng(0)
    exceeded = [rng.normal() > upper_bound(rng.normal(size=8).tolist(), 0.05) for _ in range(4000)]
    assert 0.02 < np.mean(exceeded) < 0.06
