"""Fixtures of the GPU kit's tests."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from anomalysd_edge.vision import images
from benchmarks.gpu import judging, soak, speed
from benchmarks.gpu.prepared import Prepared
from tests.support.small_graphs import small_bundle

PHOTOS = 20


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """torch's threads wait for each other, which on a busy machine takes most of a small network's time."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def prepared(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Prepared:
    """A bundle of small graphs that knows 'bottle', and twenty photos of noise."""
    rng = np.random.default_rng(0)
    at = Prepared(tmp_path / "data", tmp_path / "run", small_bundle(tmp_path / "bundle").path)
    for number in range(4):
        images.save_png(at.data / "bottle/train/good" / f"{number}.png", rng.integers(0, 256, (40, 40, 3), np.uint8))
    for number in range(PHOTOS):
        kind = ("good", "dent")[number % 2]
        images.save_png(at.data / "bottle/test" / kind / f"{number}.png", rng.integers(0, 256, (40, 40, 3), np.uint8))
    for module in (soak, judging, speed):
        monkeypatch.setattr(module, "CLASS", "bottle")
        monkeypatch.setattr(module, "prepared", lambda _kit: at)
    monkeypatch.setattr(Prepared, "test_photos", lambda _at: sorted((at.data / "bottle/test").rglob("*.png")))
    return at
