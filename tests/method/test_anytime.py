"""Cascade, suspect cells, settled verdicts, deadlines: what is left out, and what that may change."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest

from anomalysd_edge.core.types import F32
from anomalysd_edge.errors import SettingsError
from anomalysd_edge.method.anomaly_map import MapScale
from anomalysd_edge.method.class_model import ClassModel
from anomalysd_edge.method.detector import Detector
from anomalysd_edge.method.fusion import clear_bound
from anomalysd_edge.method.inpainting.mask_plan import packed_plan, touching
from anomalysd_edge.method.networks import InpaintJob
from anomalysd_edge.method.result import Inspection
from anomalysd_edge.method.score_model import Limits
from anomalysd_edge.method.settings import EDGE, PAPER, InspectSettings
from tests.support.detectors import SCHEDULE, STATES, constants, photo
from tests.support.fake_networks import FakeNetworks

MODULATED = replace(EDGE, scales=(1, 2, 4, 8), passes=2, foreground=False)
SMALL = replace(MODULATED, fusion="scaled", multiscale_weight=0.5, prototype_map="distance")
PHOTOS = [photo(seed, defect=seed % 3 == 0) for seed in range(6)]


def judge(
    settings: InspectSettings, known: ClassModel, networks: FakeNetworks | None = None
) -> tuple[list[Inspection], FakeNetworks]:
    networks = networks or FakeNetworks()
    return Detector(networks, SCHEDULE, {"part": known}, settings).inspect(PHOTOS, "part"), networks


@pytest.mark.parametrize("threshold", [-0.6, -0.2, 0.0, 0.3, 0.6, 1.0, 1.5, 2.0, 3.0, 5.0, 9.0])
@pytest.mark.parametrize("weight", [0.0, 0.4])
def test_a_settled_verdict_is_the_whole_inspections_verdict(threshold: float, weight: float) -> None:
    known = constants(FakeNetworks(), threshold).calibrated(
        scales={name: MapScale(0.2, 0.3) for name in ("prototypes", "multiscale", "guided")}
    )
    settings = replace(SMALL, guided_weight=weight)
    whole, networks = judge(settings, known)
    early, saving = judge(replace(settings, settle=True), known)
    assert [a.pred_label for a in early] == [a.pred_label for a in whole]
    assert saving.samples <= networks.samples
    for a in early:
        assert a.pred_label == int(a.pred_score >= threshold), "score and verdict agree"


def test_most_of_the_repaints_are_spared_far_from_the_threshold() -> None:
    known = constants(FakeNetworks(), 50.0).calibrated(
        scales={n: MapScale(0.2, 0.3) for n in ("prototypes", "multiscale")}
    )
    whole, networks = judge(SMALL, known)
    early, saving = judge(replace(SMALL, settle=True), known)
    assert {a.ended for a in early} == {"settled"}
    assert saving.samples == 0 < networks.samples
    assert all(a.ended == "whole" for a in whole)
    assert all(a.evidence.kind == "prototypes" and a.evidence.cell.any() for a in early)


@pytest.mark.parametrize("threshold", [0.001, 0.05, 0.1, 0.2, 0.24, 0.26, 0.28, 0.3, 0.34, 0.5])
@pytest.mark.parametrize("weight", [0.0, 0.3])
def test_a_settled_answer_is_the_whole_inspections_answer(threshold: float, weight: float) -> None:
    """Of three: good, uncertain, anomalous."""
    known = constants(FakeNetworks(), threshold).calibrated(decision=Limits(0.9 * threshold, 1.2 * threshold))
    settings = replace(MODULATED, multiscale_weight=0.1, guided_weight=weight)
    whole, networks = judge(settings, known)
    early, saving = judge(replace(settings, settle=True), known)
    assert [(a.pred_label, a.verdict) for a in early] == [(a.pred_label, a.verdict) for a in whole]
    assert saving.samples <= networks.samples


@pytest.mark.parametrize("threshold", [0.05, 0.2, 0.24, 0.26, 0.28, 0.3, 0.5])
def test_photos_that_are_not_asked_for_in_full_get_the_whole_plans_answer(threshold: float) -> None:
    known = constants(FakeNetworks(), threshold).calibrated(decision=Limits(0.9 * threshold, 1.2 * threshold))
    whole, networks = judge(MODULATED, known)
    saving = FakeNetworks()
    wanted = [i == 1 for i in range(len(PHOTOS))]
    early = Detector(saving, SCHEDULE, {"part": known}, MODULATED).inspect(PHOTOS, "part", full=wanted)
    assert [(a.pred_label, a.verdict) for a in early] == [(a.pred_label, a.verdict) for a in whole]
    assert early[1].pred_score == pytest.approx(whole[1].pred_score, abs=1e-6)
    assert (early[1].mode, early[1].ended) == (whole[1].mode, "whole")
    assert all(a.mode == f"{whole[0].mode} settle" for i, a in enumerate(early) if i != 1)
    assert saving.samples < networks.samples


def test_a_settled_photo_that_is_not_good_is_shown_repainted_where_it_is_suspect() -> None:
    known = constants(FakeNetworks(), 0.1).calibrated(decision=Limits(0.09, 0.12))
    networks = FakeNetworks()
    found = Detector(networks, SCHEDULE, {"part": known}, MODULATED).inspect(PHOTOS, "part", full=False)
    shown = [a for a in found if a.verdict != "good"]
    assert shown
    assert {a.evidence.kind for a in shown} == {"guided"}
    assert {a.evidence.kind for a in found if a.verdict == "good"} <= {"prototypes"}
    assert networks.samples == len(shown) * MODULATED.passes * MODULATED.draws
    for a, b in zip(found, judge(replace(MODULATED, cells="none"), known)[0], strict=True):
        np.testing.assert_allclose(a.anomaly_map, b.anomaly_map, atol=1e-4)


def test_the_papers_fusion_is_not_cut_short_unasked() -> None:
    networks = FakeNetworks()
    known = constants(networks, 50.0)
    settings = replace(PAPER, scales=(1, 2), grid_steps=10)
    found = Detector(networks, SCHEDULE, {"part": known}, settings).inspect(PHOTOS, "part", full=False)
    assert {a.ended for a in found} == {"whole"}


def test_a_repaint_raises_what_prototypes_see_by_a_bounded_factor() -> None:
    answers, _ = judge(replace(MODULATED, multiscale_weight=0.1, multiscale_cap=2.0), constants(FakeNetworks()))
    for answer in answers:
        seen, fused = answer.maps["prototypes"], answer.maps["fused"]
        assert (fused >= np.minimum(seen, 1.2 * seen) - 1e-7).all()
        assert (fused <= np.maximum(seen, 1.2 * seen) + 1e-7).all()


def test_the_papers_fusion_settles_too() -> None:
    settings = replace(PAPER, scales=(1, 2, 4), grid_steps=10)
    for threshold in (0.0005, 0.02, 0.2):
        known = constants(FakeNetworks(), threshold)
        whole, networks = judge(settings, known)
        early, saving = judge(replace(settings, settle=True), known)
        assert [a.pred_label for a in early] == [a.pred_label for a in whole]
        assert saving.samples <= networks.samples


def test_settling_leaves_the_other_photos_of_a_group_alone() -> None:
    known = constants(FakeNetworks(), 1.2)
    together, _ = judge(replace(SMALL, settle=True), known)
    for number, image in enumerate(PHOTOS):
        networks = FakeNetworks()
        (alone,) = Detector(networks, SCHEDULE, {"part": known}, replace(SMALL, settle=True)).inspect([image], "part")
        assert alone.pred_score == pytest.approx(together[number].pred_score, abs=1e-5)
        assert alone.ended == together[number].ended


def test_the_cascade_spares_clear_normals_and_no_one_else() -> None:
    known = constants(FakeNetworks())
    scores = [a.scores["prototypes"] for a in judge(replace(SMALL, cells="none"), known)[0]]
    bound = sorted((s - 0.02) / 0.05 for s in scores)[2] + 1e-4  # three photos lie below
    found, networks = judge(replace(SMALL, cascade=True), known.calibrated(clear=bound))
    assert sorted(a.ended for a in found) == ["clear"] * 3 + ["whole"] * 3
    assert {a.pred_label for a in found if a.ended == "clear"} == {0}
    slots = 1 + 3 * 4 + 1
    assert networks.samples == 3 * slots * SMALL.passes * SMALL.draws
    assert networks.encodes == 3 * (1 + slots), "a clear photo is not even encoded"
    whole, _ = judge(SMALL, known)
    for a, b in zip(found, whole, strict=True):
        if a.ended == "whole":
            assert a.pred_score == pytest.approx(b.pred_score, abs=1e-6)


def test_without_a_bound_the_cascade_repaints_everything() -> None:
    found, _ = judge(replace(SMALL, cascade=True), constants(FakeNetworks()).calibrated(clear=None))
    assert {a.ended for a in found} == {"whole"}


def test_the_clear_bound_is_the_normals_median_and_never_above_the_threshold() -> None:
    assert clear_bound([0.2, 0.9, 0.5], 3.0) == 0.5
    assert clear_bound([0.2, 0.9, 0.5], 0.4) == 0.4


def test_only_suspect_cells_are_repainted() -> None:
    networks = FakeNetworks()
    known = constants(networks)
    paper = replace(SMALL, plan="paper")
    whole, every = judge(paper, known)
    found, few = judge(replace(paper, cells="suspect"), known)
    assert few.samples < every.samples / 2
    assert any(answer.pred_label for answer in whole)
    for a, b in zip(found, whole, strict=True):
        if b.pred_label:
            assert a.pred_label == 1
            assert abs(a.evidence.x_px - b.evidence.x_px) <= 4


def test_touching_keeps_cells_that_meet_the_place_and_their_slots_numbers() -> None:
    plan = packed_plan(8, (2, 4))
    where = np.zeros((8, 8), np.bool_)
    where[0, 0] = True
    kept = touching(plan.slots, where)
    assert [(slot.scale, slot.number) for slot in kept] == [(2, 0), (4, 0)]
    assert [int(slot.mask.sum()) for slot in kept] == [16, 4]
    assert touching(plan.slots, np.zeros((8, 8), np.bool_)) == []
    np.testing.assert_array_equal(sum(s.mask.astype(int) for s in touching(plan.slots, where | True)), 2)


def test_prototypes_alone_never_open_the_unet() -> None:
    found, networks = judge(replace(SMALL, cells="none"), constants(FakeNetworks()))
    assert (networks.samples, networks.encodes, networks.decodes) == (0, 0, 0)
    assert set(found[0].maps) == {"prototypes", "fused"}
    bare = ClassModel(prompts={"whole": STATES})
    found, networks = judge(replace(SMALL, cells="none"), bare)
    assert networks.samples > 0, "without prototypes there is nothing else to judge by"
    for wrong in ({"cells": "none"}, {"cascade": True}):
        with pytest.raises(SettingsError, match="prototypes alone"):
            replace(PAPER, **wrong)


class SlowNetworks(FakeNetworks):
    """A UNet sample takes 2 ms."""

    def inpaint(self, job: InpaintJob) -> F32:
        time.sleep(0.002 * len(job.start_latents) * len(job.timesteps))
        return super().inpaint(job)


def inspect_within(detector: Detector, photos: Sequence[np.ndarray], seconds: float) -> list[Inspection]:
    return detector.inspect(photos, "part", time.monotonic() + seconds)


def test_a_deadline_leaves_fine_scales_out_and_says_so() -> None:
    known = constants(FakeNetworks())
    settings = replace(SMALL, draws=1, passes=4)  # 14 slots x 4 passes x 2 ms = 112 ms
    networks = SlowNetworks()
    detector = Detector(networks, SCHEDULE, {"part": known}, settings)
    (free,) = inspect_within(detector, PHOTOS[:1], 60)
    assert (free.ended, free.deadline_met) == ("whole", True)
    before = networks.samples
    (cut,) = inspect_within(detector, PHOTOS[:1], 0.05)
    assert cut.ended == "cut"
    assert 0 < networks.samples - before < 14 * 4
    before = networks.samples
    (late,) = inspect_within(detector, PHOTOS[:1], 0.0)
    assert (late.ended, late.deadline_met) == ("cut", False)
    assert networks.samples == before
    (untimed,) = detector.inspect(PHOTOS[:1], "part")
    assert untimed.deadline_met is None
    assert untimed.pred_score == pytest.approx(free.pred_score, abs=1e-6)


def test_without_prototypes_the_first_scale_is_made_whatever_the_deadline() -> None:
    detector = Detector(SlowNetworks(), SCHEDULE, {"part": ClassModel(prompts={"whole": STATES})}, SMALL)
    inspect_within(detector, PHOTOS[:1], 60)
    (late,) = inspect_within(detector, PHOTOS[:1], 0.0)
    assert late.ended == "cut"
    assert "multiscale" in late.maps
