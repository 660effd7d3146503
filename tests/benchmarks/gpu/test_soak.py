"""soak on the CPU: the engine, its worker, memory and a fault that ends the worker, over a bundle of small graphs."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from anomalysd_edge.vision import images
from benchmarks.gpu import soak
from benchmarks.gpu.claims import Kit, Lines
from benchmarks.gpu.prepared import Prepared


@pytest.mark.slow
def test_the_box_bears_load_reloads_and_the_loss_of_its_worker(prepared: Prepared, tmp_path: Path) -> None:
    lines = Lines(soak.CLAIMS, rehearsal=True)
    soak.run(Kit("cpu", tmp_path), lines)
    assert {name: line["holds"] for name, line in lines.written.items()} == {
        "soak.batches": True, "soak.memory": True, "soak.reloads": True, "soak.fault": True, "soak.recovers": True,
    }, lines.written  # fmt: skip
    assert lines.written["soak.fault"]["measured"] == 1
    restarts, judged = lines.written["soak.recovers"]["measured"]
    assert 1 <= restarts <= 2
    assert judged == 20


@pytest.mark.slow
def test_a_box_that_answers_every_photo_with_an_error_does_not_recover(
    prepared: Prepared, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A lost GPU in a worker that goes on: what the claims are there to find."""
    box = soak.SoakedBox(Kit("cpu", tmp_path), prepared.bundle)
    try:
        photos = [images.load_rgb(file) for file in prepared.test_photos()]
        alone = [box.score(photo) for photo in photos]
        real = box.submit
        lost = False

        def submit(photo: np.ndarray, client: str = "soak") -> object:
            nonlocal lost
            lost = lost or not photo.any()
            return real(photo[:0] if lost else photo, client)

        monkeypatch.setattr(box, "submit", submit)
        lines = Lines(soak.CLAIMS, rehearsal=True)
        soak._fault(lines, box, photos, alone)
    finally:
        box.engine.stop()
    assert lines.written["soak.fault"]["holds"] is False
    assert lines.written["soak.recovers"]["holds"] is False


def test_the_slope_is_that_of_the_second_half() -> None:
    filling = [0.0, 50.0, 80.0, 100.0]
    assert soak.slope([*filling, *(100 + 3.0 * n for n in range(4))]) == pytest.approx(3.0)
    assert soak.slope([*filling, *[100.0] * 4]) == pytest.approx(0.0)
