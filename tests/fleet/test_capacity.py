"""The capacity model: its queue against a simulated one, its arithmetic by hand, its words."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from anomalysd_edge.errors import InputError, SettingsError
from anomalysd_edge.fleet.capacity import (
    CALL_S,
    TIMES_FLOOR,
    Gpu,
    Wanted,
    gpu_of,
    plan_boxes,
    plans,
    read_bench,
    table_row,
)
from anomalysd_edge.fleet.waiting_time import STEADY_USE, largest_use, latency_quantile_s, waiting_quantile_s
from tests.conftest import sd_edge


def bench(networks: bool = True) -> dict[str, Any]:
    """A bench.json of one row: 0.5 s a photo, of it 0.4 s in 20 UNet samples and 0.04 s in 4 of the decoder."""
    counted = {
        "unet": {"gflop": 20 * 700.0, "megabytes": 20 * 1000.0},
        "decode": {"gflop": 4 * 500.0, "megabytes": 400},
    }
    row = {
        "plan": "edge", "backend": "onnxruntime CPUExecutionProvider", "mode": "packed", "photos_a_second": 2.0,
        "counts": {
            "unet": {"samples": 20, "calls": 2, "seconds": 0.4, "bytes": 1},
            "decode": {"samples": 4, "calls": 1, "seconds": 0.04, "bytes": 1},
            "distance": {"samples": 0, "calls": 0, "seconds": 0.0, "bytes": 0},
        },
        "floor": {"networks": counted if networks else {}},
    }  # fmt: skip
    return {"machine": {"processor": "a processor", "cores": 2}, "rows": [row]}


@pytest.mark.parametrize("use", [0.3, 0.6, 0.85])
def test_the_wait_is_that_of_a_simulated_queue(use: float) -> None:
    rng = np.random.default_rng(0)
    arrivals = np.cumsum(rng.exponential(1 / use, 400_000))
    # Lindley: with service 1, a photo waits for what the one before left over.
    gaps = 1 - np.diff(arrivals, prepend=arrivals[0])
    gaps[0] = 0
    total = np.cumsum(gaps)
    waits = total - np.minimum.accumulate(total)
    expected = float(np.quantile(waits, 0.99))
    assert waiting_quantile_s(1.0, use) == pytest.approx(expected, rel=0.08)
    assert waiting_quantile_s(0.25, use) == pytest.approx(waiting_quantile_s(1.0, use) / 4)


@pytest.mark.parametrize("use", [0.2, 0.5, 0.8])
@pytest.mark.parametrize("group", [1, 4])
def test_latency_bounds_that_of_a_box_that_judges_groups(use: float, group: int) -> None:
    """The box of `sd-edge serve`: it takes what waits, up to a group, and tells all verdicts at the group's end."""
    rng = np.random.default_rng(1)
    arrivals = np.cumsum(rng.exponential(1 / use, 60_000))
    free, position, taken = 0.0, 0, np.empty(len(arrivals))
    while position < len(arrivals):
        start = max(free, arrivals[position])
        count = int(np.searchsorted(arrivals[position : position + group], start, side="right"))
        free = start + count
        taken[position : position + count] = free - arrivals[position : position + count]
        position += count
    simulated = float(np.quantile(taken, 0.99))
    predicted = latency_quantile_s(1.0, group, use, steady=False)
    assert 0.95 * simulated <= predicted <= 1.6 * simulated


def test_the_largest_use_meets_the_deadline_and_no_more() -> None:
    use = largest_use(0.5, 4, 3.0, steady=False)
    assert 0 < use < STEADY_USE
    assert latency_quantile_s(0.5, 4, use, steady=False) == pytest.approx(3.0, rel=1e-6)
    assert largest_use(0.5, 4, 0.4, steady=False) == 0
    assert largest_use(0.5, 4, 1e9, steady=False) == STEADY_USE
    assert largest_use(0.5, 4, 0.6, steady=True) == STEADY_USE
    assert latency_quantile_s(0.5, 4, 0.99, steady=True) == math.inf
    with pytest.raises(SettingsError):
        waiting_quantile_s(1.0, 1.0)


def test_boxes_are_counted() -> None:
    wanted = Wanted(photos_s=10, deadline_s=1.0, steady=True, spare=1)
    plan = plan_boxes("belt", 0.5, "measured", wanted)
    assert plan.use == STEADY_USE
    assert plan.boxes == math.ceil(10 * 0.5 / STEADY_USE) + 1
    assert plan_boxes("slow", 2.0, "measured", wanted).boxes is None
    random = plan_boxes("random", 0.1, "measured", Wanted(10, 1.0))
    assert random.boxes is not None
    assert random.latency_s is not None
    assert random.latency_s <= 1.0
    fewer = 10 * 0.1 / (random.boxes - 1) if random.boxes > 1 else 1.0
    assert fewer >= 1 or latency_quantile_s(0.1, 4, fewer, False) > 1.0
    with pytest.raises(SettingsError, match="expected numbers above 0"):
        Wanted(0, 1.0)


def test_a_photo_costs_its_samples_and_the_rest() -> None:
    (cost,) = read_bench(bench(), "bench.json")
    assert cost.seconds == pytest.approx(0.5)
    assert cost.host_s == pytest.approx(0.06)
    assert cost.under({"unet": 40, "decode": 4}).seconds == pytest.approx(0.06 + 0.8 + 0.04)
    # By hand: 20 x 700 GFLOP at 70 TFLOP/s are 0.2 s, their bytes less; the decoder's 2 TFLOP 29 ms.
    gpu = Gpu(tflops=70, gigabytes_s=1000)
    assert cost.on_gpu(gpu, 1.0) == pytest.approx(0.06 + 0.2 + 2 / 70)
    assert cost.on_gpu(gpu, 3.0) == pytest.approx(0.06 + 0.6 + 6 / 70)
    assert cost.on_gpu(Gpu(1e9, 1e9), 1.0) == pytest.approx(0.06 + 3 * CALL_S)
    with pytest.raises(InputError, match="were not counted"):
        read_bench(bench(networks=False), "bench.json")[0].on_gpu(gpu, 1.0)
    with pytest.raises(InputError, match=r"is no bench\.json"):
        read_bench({"rows": [{}]}, "bench.json")


def test_gpus_are_named_or_described() -> None:
    assert gpu_of("L4") == ("l4", Gpu(121, 300))
    assert gpu_of("mine=20:100") == ("mine", Gpu(20, 100))
    for wrong in ("l5", "mine=20", "mine=a:b", "mine=0:1"):
        with pytest.raises(SettingsError):
            gpu_of(wrong)


def test_published_runs_lie_within_the_estimate() -> None:
    """100 samples of 0.68 TFLOP: 1.00 s on an A100, 5.0 s on a T4, both published."""
    for gpu, published in (("a100", 1.00), ("t4", 5.0)):
        floor = 100 * 0.68 / gpu_of(gpu)[1].tflops
        assert TIMES_FLOOR[0] * floor <= published <= TIMES_FLOOR[2] * floor


def test_the_command_says_what_is_measured_and_what_is_not(tmp_path: Path) -> None:
    (tmp_path / "bench.json").write_text(json.dumps(bench()))
    asked = ["plan-capacity", ".", "--photos-per-second", "6", "--deadline-ms", "4000", "--gpu", "l4,mine=20:100"]
    done = sd_edge(*asked, cwd=tmp_path)
    assert "a processor, 2 cores" in done.stdout
    assert "measured" in done.stdout
    assert "estimate" in done.stdout
    assert "before you buy" in done.stderr
    found = json.loads(sd_edge(*asked, "--json", cwd=tmp_path).stdout)
    assert [len(plans) for plans in found] == [1, 3, 3]
    assert found[0][0]["photo_s"] == pytest.approx(0.5)
    too_late = sd_edge(*asked[:4], "--deadline-ms", "10", cwd=tmp_path, check=False)
    assert too_late.returncode == 1
    wrong = sd_edge("plan-capacity", ".", *asked[2:], "--preset", "paper", cwd=tmp_path, check=False)
    assert wrong.returncode == 2
    assert "no row of the preset" in wrong.stderr


def test_a_row_shows_the_ends_of_an_estimate() -> None:
    (cost,) = read_bench(bench(), "bench.json")
    rows = [table_row(entry) for entry in plans(cost, "here", ["l4"], Wanted(6, 4.0))]
    assert rows[0][:3] == ("here", "measured", "500")
    assert rows[1][2].count("-") == 1
