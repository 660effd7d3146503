"""What the benchmarks share, and that every one of them says how it is called."""

from __future__ import annotations

import importlib
import math
from pathlib import Path

import pytest

from benchmarks import harness
from tests.support.benchmarks import RunBenchmark
from tests.support.command import ROOT
from tests.support.small_graphs import small_bundle

HELPERS = {"harness", "large.networks", "peers"}
"""Modules that are no programs."""
OTHER_PYTHONS = {"patchcore_peer", "anomalib_speed_peer", "optimum_repaints"}
"""Programs that run where this project is not installed."""
FILES = [file.relative_to(ROOT / "benchmarks") for file in (ROOT / "benchmarks").rglob("*.py")]
NAMES = {".".join(file.with_suffix("").parts) for file in FILES}
PROGRAMS = sorted(name for name in NAMES - HELPERS - OTHER_PYTHONS if not name.startswith("gpu.") or "main" in name)


@pytest.mark.parametrize("name", PROGRAMS)
def test_help_says_how_to_call_it(name: str, run_benchmark: RunBenchmark, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        run_benchmark(importlib.import_module(f"benchmarks.{name}"), "--help")
    assert ended.value.code == 0
    text = capsys.readouterr().out
    assert f"python -m benchmarks.{name.removesuffix('.__main__')} " in text
    assert "--out" in text


def test_paths_are_kept_by_name_alone() -> None:
    asked = harness.parser_of(None, "--data", "--tests", "--out").parse_args(["--data", "/a/b", "--out", "c/d.json"])
    assert harness.facts(asked)["settings"] == {"data": "b", "tests": "24", "out": "d.json"}
    assert harness.facts(asked)["machine"]


def test_rates_before_and_after_count_by_their_time() -> None:
    assert harness.joint_rate(1.0, 3.0) == pytest.approx(1.5), "as many photos at each rate"


def test_work_is_timed_on_both_clocks() -> None:
    found, wall, cpu = harness.timed(math.hypot, 3, 4)
    assert found == 5
    assert wall > 0
    assert cpu >= 0


@pytest.mark.net
@pytest.mark.slow
def test_a_box_is_ready_and_ends(tmp_path: Path) -> None:
    bundle = small_bundle(tmp_path / "line1").path
    with harness.serving(bundle, "--threads", "1") as port:
        assert harness.ask(port, "GET", "/v2/health/ready")[0] == 200
    with pytest.raises(OSError, match="refused"):
        harness.ask(port, "GET", "/v2/health/ready")


@pytest.mark.slow
def test_a_box_that_does_not_start_ends_the_benchmark(tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match="was not ready"), harness.serving(tmp_path / "absent"):
        pass
