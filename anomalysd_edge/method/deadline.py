"""How long repaints take on this machine, learned while they are made: what a deadline is weighed against."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

_FORGET = 0.3
"""Weight of the newest measurement: a machine that got busy is believed after a few rounds."""
_MARGIN = 1.2
"""A round is begun only where it would fit if it took so much longer than usual."""
_LAST_S = 0.004
"""For maps, score and evidence after the last round."""


class Pace:
    """Seconds a slot, from its encode to its distances."""

    def __init__(self) -> None:
        self._slot_s: float | None = None

    def fits(self, slots: int, deadline: float) -> bool:
        """Whether `slots` can be repainted and measured by `deadline` (time.monotonic); unknown pace counts as zero."""
        return time.monotonic() + slots * (self._slot_s or 0.0) * _MARGIN + _LAST_S <= deadline

    @contextmanager
    def round(self, slots: int) -> Iterator[None]:
        """Measure the block as the work on `slots` slots."""
        began = time.monotonic()
        yield
        found = (time.monotonic() - began) / slots
        self._slot_s = found if self._slot_s is None else (1 - _FORGET) * self._slot_s + _FORGET * found
