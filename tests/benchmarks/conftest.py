"""Fixtures of the tests of benchmarks."""

from __future__ import annotations

import sys

import pytest

from tests.support.benchmarks import RunBenchmark


@pytest.fixture
def run_benchmark(monkeypatch: pytest.MonkeyPatch) -> RunBenchmark:
    """Runs a benchmark's `main` in this process."""

    def run(module: object, *arguments: object) -> None:
        monkeypatch.setattr(sys, "argv", ["benchmark", *map(str, arguments)])
        module.main()  # type: ignore[attr-defined]

    return run
