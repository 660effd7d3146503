"""How tests call a benchmark's `main`."""

from __future__ import annotations

from typing import Protocol


class RunBenchmark(Protocol):
    """The fixture `run_benchmark`."""

    def __call__(self, module: object, *arguments: object) -> None:
        """Call `module.main()` with `arguments` on the command line."""
