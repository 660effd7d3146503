"""Commissioning measured on a few drawn photos."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from anomalysd_edge.data.datasets import open_dataset
from benchmarks import commissioning
from tests.support.data_sets import spot_data_set
from tests.support.small_graphs import small_bundle


def test_every_stage_is_measured_on_photos_of_no_stream(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    small_bundle(tmp_path / "BUNDLE")
    data = spot_data_set(tmp_path / "DATA", "bottle", train=10, test=14)
    out = tmp_path / "commissioning.json"
    asked = ["--bundle", tmp_path / "BUNDLE", "--data", data, "--shots", "1", "--seeds", "first,0", "--join"]
    asked += ["--tests", "6", "--threads", "1", "--out", out]
    monkeypatch.setattr(sys, "argv", ["commissioning", *map(str, asked)])
    commissioning.main()
    found = json.loads(out.read_text())
    assert set(found["cells"]) == {"bottle/1/first", "bottle/1/0"}
    for cell in found["cells"].values():
        assert set(cell["stages"]) == set(commissioning.STAGES)
        for one in cell["stages"].values():
            assert one["balanced_error"] >= one["best_balanced_error"]
            assert one["balanced_error"] == pytest.approx((one["false_alarms"] + one["missed"]) / 2)
        kept = cell["stages"]["half bad"]
        assert kept["proposed"] or kept["threshold"] == cell["stages"]["before"]["threshold"]
    mean = found["means"]["1/stream"]["balanced_error"]
    assert mean == pytest.approx(sum(c["stages"]["stream"]["balanced_error"] for c in found["cells"].values()) / 2)
    parts = commissioning.split(open_dataset(data).classes["bottle"], 4, 0, 6)
    judged = [file for file, _ in parts.judged]
    everything = [*parts.shots, *parts.good, *parts.bad, *judged]
    assert len(set(everything)) == len(everything)
    assert {label for _, label in parts.judged} == {0, 1}
