"""Looks at a class's shots for what its threshold needs: the shots themselves, copies, synthetic anomalies on them.

Everything is judged as an inspection would judge it, but for the bank: a shot, and the synthetic anomalies on it, are
held against the prototypes of the other shots. A single shot has no others; there its disturbed copies stand for good
photos, and its anomalies are held against its own prototypes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Generic, Protocol, TypeVar

import numpy as np

from anomalysd_edge.calibration.holdout import perturbed
from anomalysd_edge.calibration.synthetic_anomalies import synthetic_anomaly
from anomalysd_edge.core.types import F32, U8, Mask
from anomalysd_edge.data.classes import symmetry_group
from anomalysd_edge.errors import SettingsError
from anomalysd_edge.method.patches.memory_bank import MemoryBank
from anomalysd_edge.method.patches.shot_banks import ShotBanks

T = TypeVar("T")
View = tuple[int, bool]
"""Quarter turns, and whether it is mirrored (data.classes.apply_view)."""


class Describe(Protocol):
    """What gives the features of photos."""

    def __call__(self, photo: U8, view: View = (0, False)) -> tuple[F32, ...]:
        """A photo, (H,W,3) uint8, -> unit features of its view at each size from the smallest, (D,f,f) float32."""
        ...


Judge = Callable[[U8, tuple[F32, ...], list[MemoryBank]], T]
"""A photo, its features and the bank of each size -> what is made of it: an image score, say."""
VIEWS = symmetry_group(("rotate90", "flip_x"))
"""Of every shot, whatever its class: four turns and their mirrors. Real parts lie at any angle."""
PROTOTYPES = 2048
"""Of a class at each size, all shots together."""
_COPIES = 4
"""Disturbed copies of a single shot."""
_PAINTED = 6
"""Synthetic anomalies of a single shot; of several, this many are shared out, at least two to each."""
_PAINTED_SHOTS = 12
"""Shots that synthetic anomalies are painted on, at most: the first ones."""


@dataclass(frozen=True)
class Observed(Generic[T]):
    """What the judge made of a class's own photos."""

    left_out: tuple[T, ...]
    """Of each shot under the banks of the others; empty for a single shot."""
    copies: tuple[T, ...]
    """Of disturbed copies of a single shot; empty for more."""
    synthetic: tuple[T, ...]
    """Of synthetic anomalies on the shots."""


def banks_of(describe: Describe, shots: Sequence[U8], prototypes: int = PROTOTYPES) -> tuple[ShotBanks, ...]:
    """Banks of (H,W,3) shots at each size, of `prototypes` vectors in all. Raises SettingsError without a shot."""
    views = [[describe(photo, view) for view in VIEWS] for photo in shots]
    if not views:
        raise SettingsError("a class without good photos has no evidence for a threshold")
    return tuple(
        ShotBanks.of([np.stack([view[size] for view in mine]) for mine in views], prototypes)
        for size in range(len(views[0][0]))
    )


def observe(
    describe: Describe,
    shots: Sequence[U8],
    inside: Sequence[Mask],
    banks: Sequence[ShotBanks],
    judge: Judge[T],
    seed: int = 0,
) -> Observed[T]:
    """What `judge` makes of the class's own photos under its `banks`; deterministic for a seed.

    `inside` are (H,W) masks of where a defect may lie: the foreground of a part, everything of a surface.
    """
    rng, alone = np.random.default_rng(seed), len(shots) == 1
    joined: dict[int | None, list[MemoryBank]] = {}

    def judged(photo: U8, without: int | None) -> T:
        if without not in joined:
            joined[without] = [bank.joined(without) for bank in banks]
        return judge(photo, describe(photo), joined[without])

    copies = [judged(perturbed(shots[0], rng), None) for _ in range(_COPIES if alone else 0)]
    left_out = [] if alone else [judged(photo, number) for number, photo in enumerate(shots)]
    synthetic = []
    for number, (photo, where) in enumerate(list(zip(shots, inside, strict=True))[:_PAINTED_SHOTS]):
        for _ in range(max(2, _PAINTED // len(shots))):
            other = shots[int(rng.integers(len(shots)))]
            made = synthetic_anomaly(photo, where, other, rng)
            if made is not None:
                synthetic.append(judged(made.photo, None if alone else number))
    return Observed(tuple(left_out), tuple(copies), tuple(synthetic))
