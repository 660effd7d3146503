"""The detector over networks written in numpy: what must hold whatever the networks are."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import numpy.typing as npt
import pytest

from anomalysd_edge.errors import ClassError, InputError, SettingsError
from anomalysd_edge.method.anomaly_map import MapScale
from anomalysd_edge.method.class_model import Calibration, ClassConstants
from anomalysd_edge.method.detector import Detector
from anomalysd_edge.method.inpainting.schedule import NoiseSchedule
from anomalysd_edge.method.patches.memory_bank import build_bank
from anomalysd_edge.method.settings import EDGE, PAPER, InspectSettings
from tests.support.fake_networks import FakeNetworks

SCHEDULE = NoiseSchedule.from_config({"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012})
STATES = np.zeros((77, 4), np.float32)
SMALL = replace(EDGE, scales=(1, 2, 4), passes=3)


def photo(seed: int = 0, defect: bool = False) -> npt.NDArray[np.uint8]:
    rng = np.random.default_rng(seed)
    image = np.clip(rng.normal(120, 6, (40, 40, 3)), 0, 255).astype(np.uint8)
    if defect:
        image[8:14, 24:30] = (250, 20, 20)
    return image


def constants(networks: FakeNetworks, threshold: float | None = 3.0) -> ClassConstants:
    from anomalysd_edge.vision import images

    views = np.concatenate([images.to_array(images.resize(photo(s), networks.sizes.features_px)) for s in range(3)])
    scale = MapScale(0.02, 0.05)
    return ClassConstants(
        prompts={"whole": STATES},
        bank=build_bank(networks.features(views), 500),
        guided=dict.fromkeys(("distance", "own", "reading"), 0.02),
        calibration=Calibration(threshold, threshold, dict.fromkeys(("prototypes", "multiscale", "guided"), scale)),
    )


def detector(networks: FakeNetworks, settings: InspectSettings = SMALL, group: int = 4) -> Detector:
    return Detector(networks, SCHEDULE, {"part": constants(networks)}, settings, group=group)


def test_a_defect_is_found_where_it_is() -> None:
    good, bad = detector(FakeNetworks()).inspect([photo(5), photo(5, defect=True)], "part")
    assert (good.pred_label, bad.pred_label) == (0, 1)
    assert bad.pred_score > 2 * good.pred_score
    y, x = np.unravel_index(bad.anomaly_map.argmax(), bad.anomaly_map.shape)
    assert 5 <= y <= 12
    assert 18 <= x <= 25
    assert bad.evidence.cell[bad.evidence.y_px, bad.evidence.x_px]
    assert bad.pred_mask is not None
    assert bad.pred_mask[y, x]
    assert set(bad.maps) == {"prototypes", "multiscale", "guided", "fused"}


@pytest.mark.parametrize("settings", [SMALL, replace(PAPER, scales=(1, 2, 4), grid_steps=10)])
def test_verdicts_do_not_depend_on_batches_groups_or_company(settings: InspectSettings) -> None:
    photos = [photo(s, defect=s % 2 == 0) for s in range(5)]
    alone = [detector(FakeNetworks(max_batch=1), settings, group=1).inspect([p], "part")[0] for p in photos]
    for max_batch, group in ((3, 2), (64, 5)):
        together = detector(FakeNetworks(max_batch=max_batch), settings, group).inspect(photos, "part")
        for a, b in zip(alone, together, strict=True):
            assert a.pred_score == pytest.approx(b.pred_score, abs=1e-5)
            assert a.pred_label == b.pred_label


def test_twice_the_same_photo_gives_the_same_bits() -> None:
    first, second = (detector(FakeNetworks()).inspect([photo(3, True)], "part")[0] for _ in range(2))
    assert first.pred_score == second.pred_score
    np.testing.assert_array_equal(first.anomaly_map, second.anomaly_map)


def test_counts_of_the_paper_and_the_edge_plan() -> None:
    """What does not drift: UNet samples, encodes and decodes of one photo with all 85 masks."""
    paper, edge = FakeNetworks(max_batch=16), FakeNetworks(max_batch=16)
    whole = ClassConstants(prompts={"whole": STATES})
    Detector(paper, SCHEDULE, {"part": whole}, PAPER).inspect([photo()], "part")
    Detector(edge, SCHEDULE, {"part": whole}, replace(EDGE, scales=(1, 2, 4, 8))).inspect([photo()], "part")
    assert (paper.samples, paper.encodes, paper.decodes) == (85 * 15, 86, 85)
    assert (edge.samples, edge.encodes, edge.decodes) == (13 * EDGE.passes * EDGE.draws, 14, 5)
    assert max(paper.batches) <= 16


def test_draws_average_the_latents_of_repaints_from_different_noise() -> None:
    one, two, both = (
        detector(FakeNetworks(), replace(SMALL, seed=seed, draws=draws)).inspect([photo(5, True)], "part")[0]
        for seed, draws in ((0, 1), (1, 1), (0, 2))
    )
    assert not np.array_equal(one.maps["multiscale"], two.maps["multiscale"])
    assert float(both.maps["multiscale"].mean()) < float((one.maps["multiscale"] + two.maps["multiscale"]).mean() / 2)


def test_a_class_with_settings_of_its_own_is_inspected_under_them_and_the_others_are_not() -> None:
    networks = FakeNetworks()
    usual = constants(networks)
    own = usual.calibrated(choices={"strength": 0.4, "multiscale_weight": 0.0})
    mixed = Detector(networks, SCHEDULE, {"usual": usual, "own": own}, SMALL)
    first, second, third = mixed.inspect([photo(1, True)] * 3, ["usual", "own", "usual"])
    changed = replace(SMALL, strength=0.4, multiscale_weight=0.0)
    alone = Detector(networks, SCHEDULE, {"own": usual}, changed).inspect([photo(1, True)], "own")[0]
    assert second.pred_score == pytest.approx(alone.pred_score, abs=1e-6)
    assert first.pred_score == pytest.approx(third.pred_score, abs=1e-6)
    assert first.pred_score != pytest.approx(second.pred_score, abs=1e-3)
    assert ("lambda=0.4" in second.mode, "lambda=0.15" in first.mode) == (True, True)


def test_without_shots_there_is_a_score_and_no_verdict() -> None:
    found = Detector(FakeNetworks(), SCHEDULE, {"part": ClassConstants({"whole": STATES})}, SMALL).inspect(
        [photo()], "part"
    )
    assert found[0].pred_label is None
    assert found[0].threshold is None
    assert set(found[0].maps) == {"multiscale", "fused"}


def test_paper_fusion_is_the_weighted_sum_of_its_two_maps() -> None:
    settings = replace(PAPER, scales=(1, 2), grid_steps=10, alpha=0.3)
    found = detector(FakeNetworks(), settings).inspect([photo(1, True)], "part")[0]
    expected = 0.7 * found.maps["multiscale"] + 0.3 * found.maps["guided"]
    np.testing.assert_allclose(found.anomaly_map, expected, rtol=1e-5)


def test_prompts_of_several_classes_share_a_batch_without_mixing() -> None:
    networks = FakeNetworks()
    a = constants(networks)
    b = replace(a, prompts={"whole": STATES + 0.3})
    both = Detector(networks, SCHEDULE, {"a": a, "b": b}, SMALL)
    together = both.inspect([photo(1), photo(1)], ["a", "b"])
    alone = [both.inspect([photo(1)], name)[0] for name in ("a", "b")]
    assert together[0].scores["multiscale"] != together[1].scores["multiscale"]
    for x, y in zip(together, alone, strict=True):
        assert x.pred_score == pytest.approx(y.pred_score, abs=1e-5)


def test_wrong_use_is_refused_in_words() -> None:
    ready = detector(FakeNetworks())
    with pytest.raises(ClassError, match="part"):
        ready.inspect([photo()], "screw")
    with pytest.raises(InputError, match="2 photos"):
        ready.inspect([photo(), photo()], ["part"])
    with pytest.raises(SettingsError, match="negative"):
        detector(FakeNetworks(), replace(SMALL, guidance_scale=7.5))


@pytest.mark.parametrize(
    "wrong",
    [{"plan": "fast"}, {"alpha": 1.5}, {"top_share": -1}, {"scales": ()}],
)
def test_settings_out_of_range_are_refused(wrong: dict[str, object]) -> None:
    with pytest.raises(SettingsError):
        InspectSettings.from_json({**EDGE.to_json(), **wrong})


def test_settings_travel_as_json_and_a_typo_does_not_pass() -> None:
    assert InspectSettings.from_json(PAPER.to_json()) == PAPER
    with pytest.raises(SettingsError, match="lamda"):
        InspectSettings.from_json({"lamda": 0.3})
