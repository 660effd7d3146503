"""Fixtures of all tests."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from anomalysd_edge.bundle.reader import Bundle
from anomalysd_edge.demo.dataset import render_part
from anomalysd_edge.vision import images
from tests.support.command import Chain, sd_edge, tutorial_blocks, tutorial_commands
from tests.support.small_graphs import small_bundle


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Whatever needs the whole chain is slow, however quick the test itself is."""
    for item in items:
        if "chain" in getattr(item, "fixturenames", ()):
            item.add_marker(pytest.mark.slow)


@pytest.fixture
def bundle(tmp_path: Path) -> Bundle:
    """A bundle of small graphs that a test may change."""
    return small_bundle(tmp_path / "bundle")


@pytest.fixture(scope="session")
def chain(tmp_path_factory: pytest.TempPathFactory) -> Chain:
    """A data set of one class, "bracket", and the tutorial's own commands run on it with a few training steps."""
    folder = tmp_path_factory.mktemp("chain")
    for number in range(4):
        part = render_part("demo_washer", (1, number), 128)
        images.save_png(folder / "PHOTOS/bracket/train/good" / f"{number}.png", part.photo())
    for number in range(3):
        good = render_part("demo_washer", (2, number), 128)
        bad = render_part("demo_washer", (3, number), 128, "colour")
        images.save_png(folder / "PHOTOS/bracket/test/good" / f"{number}.png", good.photo())
        images.save_png(folder / "PHOTOS/bracket/test/colour" / f"{number}.png", bad.photo())
        images.save_png(folder / "PHOTOS/bracket/ground_truth/colour" / f"{number}_mask.png", bad.mask)
    shutil.copy(folder / "PHOTOS/bracket/test/colour/0.png", folder / "new.png")
    (folder / "classes.toml").write_text(tutorial_blocks("toml")[0], encoding="utf-8")
    few = {
        "train": ["--steps", "2", "--decoder-steps", "1", "--class-file", "classes.toml"],
        "verify": ["--limit", "4"],
        "calibrate": ["--synthetic", "0"],
    }
    outputs = {}
    for _, verb, *rest in tutorial_commands():
        outputs[verb] = sd_edge(verb, *rest, *few.get(verb, []), cwd=folder)
    return Chain(folder, outputs)
