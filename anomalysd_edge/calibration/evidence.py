"""Measures a class's evidence for its threshold: what its shots, their copies and synthetic anomalies on them score.

Everything is scored as an inspection would score it, but for the bank: a shot, and the synthetic anomalies on it, are
held against the prototypes of the other shots. A single shot has no others; there its disturbed copies stand for good
photos, and its anomalies are held against its own prototypes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from anomalysd_edge.calibration.holdout import disturbed
from anomalysd_edge.calibration.synthetic_anomalies import synthetic_anomaly
from anomalysd_edge.calibration.threshold_model import Evidence
from anomalysd_edge.core.types import F32, U8, Mask
from anomalysd_edge.data.classes import apply_view, symmetry_group
from anomalysd_edge.errors import SettingsError
from anomalysd_edge.method.patches.memory_bank import Bank, own_distances
from anomalysd_edge.method.patches.multisize import patch_score
from anomalysd_edge.method.patches.multisize_scorer import MAP_SIDE, MultisizeScorer
from anomalysd_edge.method.patches.shot_banks import ShotBanks

Describe = Callable[[U8], tuple[F32, ...]]
"""A photo, (H,W,3) uint8, -> its unit features at each size from the smallest, (D,f,f) float32."""
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
_OWN_SHARE, _OWN_PATCHES = 0.0125, 256
"""Of a photo's own patches the nearest part that its self-similarity counts, and how many it is compared with."""


@dataclass(frozen=True)
class Measured:
    """A class's banks and what they say of its own photos."""

    banks: tuple[ShotBanks, ...]
    """At each size."""
    evidence: Evidence
    """Image scores of `scorer`."""
    scorer: MultisizeScorer

    def score(self, features: Sequence[F32]) -> float:
        """Image score of a further photo, by its features at each size, under the bank of all shots."""
        return self.scorer.score(features, [bank.joined() for bank in self.banks])


def measure(
    describe: Describe,
    shots: Sequence[U8],
    inside: Sequence[Mask],
    scorer: MultisizeScorer | None = None,
    seed: int = 0,
    prototypes: int = PROTOTYPES,
) -> Measured:
    """Banks of (H,W,3) shots and the evidence of their class; deterministic for a seed.

    `inside` are (H,W) masks of where a defect may lie: the foreground of a part, everything of a surface. Raises
    SettingsError without a shot, or where no synthetic anomaly shows on any.
    """
    if not shots:
        raise SettingsError("a class without good photos has no evidence for a threshold")
    views = [[describe(np.ascontiguousarray(apply_view(photo, view))) for view in VIEWS] for photo in shots]
    banks = tuple(
        ShotBanks.of([np.stack([view[size] for view in mine]) for mine in views], prototypes)
        for size in range(len(views[0][0]))
    )
    rng = np.random.default_rng(seed)

    judge, alone = scorer or MultisizeScorer(), len(shots) == 1
    joined: dict[int | None, list[Bank]] = {}

    def score(features: Sequence[F32], without: int | None) -> float:
        if without not in joined:
            joined[without] = [bank.joined(without) for bank in banks]
        return judge.score(features, joined[without])

    copies = [score(describe(disturbed(shots[0], rng)), None) for _ in range(_COPIES if alone else 0)]
    left_out = [] if alone else [score(mine[0], number) for number, mine in enumerate(views)]
    synthetic = []
    for number, (photo, where) in enumerate(list(zip(shots, inside, strict=True))[:_PAINTED_SHOTS]):
        for _ in range(max(2, _PAINTED // len(shots))):
            other = shots[int(rng.integers(len(shots)))]
            made = synthetic_anomaly(photo, where, other, rng)
            if made is not None:
                synthetic.append(score(describe(made.photo), None if alone else number))
    own = [patch_score(own_distances(mine[0][-1], (_OWN_SHARE,), _OWN_PATCHES), MAP_SIDE, (1.0,)) for mine in views]
    evidence = Evidence(tuple(left_out), tuple(copies), tuple(synthetic), float(np.mean(own)))
    return Measured(banks, evidence, judge)
