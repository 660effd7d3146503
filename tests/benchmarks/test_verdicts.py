"""Verdicts without training, on a few drawn photos."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from benchmarks import verdicts
from tests.support.data_sets import bottle_data_set
from tests.support.small_graphs import small_bundle


def test_every_cell_has_a_verdict_and_stands_beside_the_plain_distance(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    small_bundle(tmp_path / "BUNDLE")
    data = bottle_data_set(tmp_path / "DATA")
    out = tmp_path / "verdicts.json"
    asked = ["--bundle", tmp_path / "BUNDLE", "--data", data, "--shots", "1,2", "--seeds", "first,0"]
    asked += ["--tests", "6", "--threads", "1", "--out", out]
    monkeypatch.setattr(sys, "argv", ["verdicts", *map(str, asked)])
    verdicts.main()
    found = json.loads(out.read_text())
    assert set(found["cells"]) == {f"bottle/{shots}/{seed}" for shots in (1, 2) for seed in ("first", "0")}
    for cell in found["cells"].values():
        assert cell["threshold"] is not None
        assert cell["balanced_error"] >= cell["best_balanced_error"]
        assert set(cell["lines"]) <= set(verdicts.LINES)
    for shots, values in found["means"].items():
        mine = [cell for key, cell in found["cells"].items() if key.split("/")[1] == shots]
        assert values["balanced_error"] == pytest.approx(sum(c["balanced_error"] for c in mine) / len(mine))
    assert "2 shots: balanced_error" in capsys.readouterr().out
