"""The ablation benchmarks on a bundle of small graphs: they run to their end and say what they measured."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from anomalysd_edge.data.classes import class_spec
from anomalysd_edge.training.data import prompt_levels
from benchmarks import choices, defect_kinds, fine_tuning, prompts, repaints
from tests.support.benchmarks import RunBenchmark
from tests.support.data_sets import bottle_data_set, spot_data_set
from tests.support.small_graphs import small_bundle


def test_prompts_are_cut_down_to_what_is_told() -> None:
    bottle = class_spec("bottle")
    said = {way: prompt_levels(prompts.told(bottle, way)) for way in prompts.WAYS}
    whole, detail = "A perfect bottle.", "A bottle with intact neck, body and rim."
    assert said == {"whole": [whole], "detail": [detail], "both": [whole, detail], "none": [""]}
    plain = class_spec("bracket_of_mine")
    detailed = prompt_levels(prompts.told(plain, "detail"))
    assert detailed == prompt_levels(plain), "without named parts there is one level"


@pytest.mark.slow
def test_repaints_under_every_setting_that_fits(tmp_path: Path, run_benchmark: RunBenchmark) -> None:
    small_bundle(tmp_path / "B")
    out = tmp_path / "repaints.json"
    data = bottle_data_set(tmp_path / "DATA", train=5)
    run_benchmark(repaints, tmp_path / "B", "--photos", data, "--anomalies", 4, "--out", out)
    outcomes = json.loads(out.read_text())["outcomes"]
    assert [o["changes"] for o in outcomes[:2]] == [{}, {"strength": 0.08}], "4 x 4 latents take no finer grid"
    assert all(0 <= v <= 1 for o in outcomes for v in o["figures"]["bottle"])
    assert len({tuple(o["figures"]["bottle"]) for o in outcomes}) > 1


@pytest.mark.slow
def test_the_choice_is_held_against_every_fixed_one(
    tmp_path: Path, run_benchmark: RunBenchmark, monkeypatch: pytest.MonkeyPatch
) -> None:
    small_bundle(tmp_path / "B")
    data, out = bottle_data_set(tmp_path / "DATA", train=5), tmp_path / "OUT"
    asked = [tmp_path / "B", "--photos", data, "--data", data, "--tests", 4, "--synthetic", 4, "--check", "--out", out]
    monkeypatch.setattr(choices, "rounds_for", lambda *_sizes: [[{"strength": 0.3}], [{"top_share": 0.5}]])
    run_benchmark(choices, *asked)
    found = json.loads((out / "choices.json").read_text())
    assert list(found["merit"]) == ["calibrate's choice", "the preset", "strength 0.3", "top_share 0.5"]
    assert found["merit"][found["best_fixed"]] == max(v for k, v in found["merit"].items() if "calibrate" not in k)
    assert found["best_per_class_in_hindsight"] >= found["merit"][found["best_fixed"]] - 1e-9
    assert found["calibration"]["checked"]["bottle"]["photos"] == 3, "all good ones serve calibration: three to test on"
    kept = {f.name: f.stat().st_mtime_ns for f in (out / "fixed").iterdir()}
    run_benchmark(choices, *asked)
    assert {f.name: f.stat().st_mtime_ns for f in (out / "fixed").iterdir()} == kept


@pytest.mark.slow
def test_kinds_of_defects_under_plans_that_are_calibrated_alike(
    tmp_path: Path, run_benchmark: RunBenchmark, monkeypatch: pytest.MonkeyPatch
) -> None:
    small_bundle(tmp_path / "B")
    data, out = spot_data_set(tmp_path / "DATA", "bottle", train=5, test=4), tmp_path / "kinds.json"
    monkeypatch.setattr(defect_kinds, "PLANS", ({"draws": 2}, {"draws": 1}))
    asked = ["--bundle", tmp_path / "B", "--photos", data, "--data", data, "--tests", 8, "--threads", 1, "--out", out]
    run_benchmark(defect_kinds, *asked)
    plans = json.loads(out.read_text())["plans"]
    assert list(plans) == ["draws 2", "draws 1"]
    two, one = plans.values()
    assert two["unet_samples"] == 2 * one["unet_samples"] > 0
    for plan in (two, one):
        (kind,) = plan["kinds"].values()
        (known,) = plan["classes"]
        assert kind["photos"] == known["bad"]
        for name in ("prototypes", "multiscale", "fused"):
            assert kind["image_auroc"][name] == known["figures"][name]["image_auroc"], "there is one kind alone"


@pytest.mark.slow
def test_settings_of_fine_tuning_train_models_of_their_own_on_the_same_classes(
    tmp_path: Path, run_benchmark: RunBenchmark, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, rng = tmp_path / "TEXTURES", np.random.default_rng(0)
    folder.mkdir()
    for number in range(12):
        coarse = Image.fromarray(rng.integers(0, 255, (24, 24, 3), np.uint8))
        coarse.resize((640, 640), Image.Resampling.BICUBIC).save(folder / f"tex_{number}.jpg")
    short = {"steps": 2, "warmup": 1, "batch": 2, "copies": 1, "masks_per_copy": 1, "decoder_steps": 1}
    monkeypatch.setattr(fine_tuning, "VARIANTS", (short, {**short, "lr": 5e-2}))
    monkeypatch.setattr(fine_tuning, "JUDGED", 2)
    out = tmp_path / "fine.json"
    asked = ["--textures", folder, "--classes", 2, "--shots", 1, "--threads", 1, "--out", out]
    run_benchmark(fine_tuning, *asked)
    variants = json.loads(out.read_text())["variants"]
    few, fast = variants.values()
    assert list(few["classes"]) == list(fast["classes"])
    assert len(few["classes"]) == 2
    assert few["classes"] != fast["classes"]
    run_benchmark(fine_tuning, *asked)
    assert json.loads(out.read_text())["variants"] == variants, "what is measured is not done again"
