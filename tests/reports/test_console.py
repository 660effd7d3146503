"""Tables at terminals of every width and in pipes: the verdict is never what is cut."""

from __future__ import annotations

import sys
import time

import pytest

from anomalysd_edge.reports.console import progress_bars, show_table

COLUMNS = ("photo", *(f"a figure with a long name {n}" for n in range(9)), "verdict")
ROW = ("line7/2026-11-27/part.png", *map(str, range(9)), "anomalous")


def test_a_pipe_gets_the_whole_table(capsys: pytest.CaptureFixture[str]) -> None:
    show_table("Verdicts", COLUMNS, [ROW])
    shown = capsys.readouterr().out
    assert "anomalous" in shown
    assert "a figure with a long name 8" in shown
    assert "…" not in shown


def test_a_narrow_terminal_gets_lines_in_place_of_cut_cells(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setenv("TERM", "dumb")
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    show_table("Verdicts", COLUMNS, [ROW])
    shown = capsys.readouterr().out
    assert "photo line7/2026-11-27/part.png" in shown
    assert "  verdict: anomalous" in shown
    show_table("Small", ("photo", "verdict"), [("a.png", "good")])
    assert "verdict:" not in capsys.readouterr().out, "what fits stays a table"


def test_the_time_left_is_reckoned_from_the_steps_that_were_timed(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A resumed training begins at step 101; the first report times nothing."""
    now = [0.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    with progress_bars() as report:
        report("train", 101, 200, "")
        now[0] = 20.0
        report("train", 111, 200, "")
    first, second = capsys.readouterr().err.splitlines()
    assert "left" not in first
    assert "about 178 s left" in second, "89 steps of 2 s"
