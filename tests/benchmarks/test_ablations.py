"""The ablation benchmarks on a bundle of small graphs: they run to their end and say what they measured."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from anomalysd_edge.data.classes import class_spec
from anomalysd_edge.training.data import levels
from benchmarks import choices, prompts, repaints
from tests.support.small_graphs import small_bundle
from tests.workflows.test_protocol import data_set


def run(module: object, *arguments: object, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["benchmark", *map(str, arguments)])
    module.main()  # type: ignore[attr-defined]


def test_prompts_are_cut_down_to_what_is_told() -> None:
    bottle = class_spec("bottle")
    said = {way: levels(prompts.told(bottle, way)) for way in prompts.WAYS}
    whole, detail = "A perfect bottle.", "A bottle with intact neck, body and rim."
    assert said == {"whole": [whole], "detail": [detail], "both": [whole, detail], "none": [""]}
    plain = class_spec("bracket_of_mine")
    assert levels(prompts.told(plain, "detail")) == levels(plain), "without named parts there is one level"


def test_repaints_under_every_setting_that_fits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    small_bundle(tmp_path / "B")
    out = tmp_path / "repaints.json"
    data = data_set(tmp_path / "DATA", train=5)
    run(repaints, tmp_path / "B", "--photos", data, "--anomalies", 4, "--out", out, monkeypatch=monkeypatch)
    outcomes = json.loads(out.read_text())["outcomes"]
    assert [o["changes"] for o in outcomes[:2]] == [{}, {"strength": 0.08}], "4 x 4 latents take no finer grid"
    assert all(0 <= v <= 1 for o in outcomes for v in o["figures"]["bottle"])
    assert len({tuple(o["figures"]["bottle"]) for o in outcomes}) > 1


def test_the_choice_is_held_against_every_fixed_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    small_bundle(tmp_path / "B")
    data, out = data_set(tmp_path / "DATA", train=5), tmp_path / "OUT"
    asked = [tmp_path / "B", "--photos", data, "--data", data, "--tests", 4, "--synthetic", 4, "--check", "--out", out]
    monkeypatch.setattr(choices, "ROUNDS", (({"scales": (4, 8, 16)}, {"strength": 0.3}), ({"top_share": 0.5},)))
    run(choices, *asked, monkeypatch=monkeypatch)
    found = json.loads((out / "choices.json").read_text())
    assert list(found["merit"]) == ["calibrate's choice", "the preset", "strength 0.3", "top_share 0.5"]
    assert found["merit"][found["best_fixed"]] == max(v for k, v in found["merit"].items() if "calibrate" not in k)
    assert found["best_per_class_in_hindsight"] >= found["merit"][found["best_fixed"]] - 1e-9
    assert found["calibration"]["checked"]["bottle"]["photos"] == 4, "one more to train with, three to test on"
    kept = {f.name: f.stat().st_mtime_ns for f in (out / "fixed").iterdir()}
    run(choices, *asked, monkeypatch=monkeypatch)
    assert {f.name: f.stat().st_mtime_ns for f in (out / "fixed").iterdir()} == kept
