"""Progress callbacks for tests."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable


def quiet(phase: str, done: int, total: int, detail: str) -> None:
    """Shows nothing."""


class Seen:
    """Counts the finished phases; raises KeyboardInterrupt when `stop` says so."""

    def __init__(self, stop: Callable[[str, int], bool] = lambda _phase, _done: False) -> None:
        self.finished: Counter[str] = Counter()
        self.stop = stop

    def __call__(self, phase: str, done: int, total: int, detail: str) -> None:
        if self.stop(phase, done):
            raise KeyboardInterrupt
        if done >= total:
            self.finished[phase] += 1


class Stop:
    """Raises KeyboardInterrupt, as Ctrl-C does, when phase `phase` has done `step` steps."""

    def __init__(self, phase: str, step: int) -> None:
        self.where = phase, step

    def __call__(self, phase: str, done: int, total: int, detail: str) -> None:
        if (phase, done) == self.where:
            raise KeyboardInterrupt
