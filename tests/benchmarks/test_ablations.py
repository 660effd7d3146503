"""The ablation benchmarks on a bundle of small graphs: they run to their end and say what they measured."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from anomalysd_edge.data.classes import class_spec
from anomalysd_edge.training.data import prompt_levels
from benchmarks import choices, prompts, repaints
from tests.support.benchmarks import RunBenchmark
from tests.support.data_sets import bottle_data_set
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
