"""Fixtures of the box's tests."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support.browser import chromium
from tests.support.small_graphs import small_bundle


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of a bundle of small graphs, named line1; one for all tests of a module, so it is not to be changed."""
    return small_bundle(tmp_path_factory.mktemp("served") / "line1").path


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    """A headless Chromium; for tests marked needs_browser."""
    with chromium() as driver:
        yield driver
