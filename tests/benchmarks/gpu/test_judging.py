"""parity and bench on the CPU, over a bundle of small graphs: what they compare, and what they say they could not."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from benchmarks.gpu import judging, speed
from benchmarks.gpu.claims import REHEARSAL, Kit, Lines
from benchmarks.gpu.prepared import Prepared


def by_word(lines: Lines) -> dict[str, dict[str, Any]]:
    return {name.partition(".")[2]: line for name, line in lines.written.items()}


@pytest.mark.slow
def test_parity_compares_what_is_there_and_says_what_is_not(prepared: Prepared, tmp_path: Path) -> None:
    """The small bundle has neither the run it came from nor graphs in fp16."""
    lines = Lines(judging.PARITY, rehearsal=True)
    judging.parity(Kit("cpu", tmp_path), lines)
    written = by_word(lines)
    assert written["float32"]["measured"]["flips"] == 0
    assert written["float32"]["measured"]["score_difference"] <= judging.ROUNDING
    assert written["float32"]["holds"] is None, "the CPU is no GPU"
    assert written["batches"]["holds"] is True
    assert written["again"]["holds"] is True
    for missing in ("torch", "half"):
        assert written[missing]["holds"] is None
        assert written[missing]["because"] != REHEARSAL, written[missing]


@pytest.mark.slow
def test_bench_measures_rows_and_the_meter(prepared: Prepared, tmp_path: Path) -> None:
    lines = Lines(speed.BENCH, rehearsal=True)
    speed.bench(Kit("cpu", tmp_path), lines)
    written = by_word(lines)
    assert written["rest"]["measured"] > 0
    assert written["in_flight"]["measured"] > 0
    assert written["meter"]["measured"] > 0
    assert written["memory"]["because"] == "nvidia-smi does not tell a process's memory here"
    # The small bundle has no graphs in fp16 to stand beside.
    assert "fp16" in written["cuda"]["because"]
