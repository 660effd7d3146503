"""Fixtures of the box's tests."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.small_graphs import small_bundle


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of a bundle of small graphs, named line1; one for all tests of a module, so it is not to be changed."""
    return small_bundle(tmp_path_factory.mktemp("served") / "line1").path
