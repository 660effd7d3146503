"""What an inspection answers: scores, maps, verdict, evidence."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from anomalysd_edge.core.types import F32
from anomalysd_edge.method.score_model import Limits

MAPS = ("prototypes", "multiscale", "guided", "fused")
"""The score maps of an inspection: prototype distance, S_ms, S_pg, and what the verdict is made of."""


@dataclass(frozen=True)
class Evidence:
    """Which mask raised the alarm."""

    kind: str
    """'grid' or 'guided'; 'prototypes' where nothing was repainted around the highest pixel; 'photo' where the photo
    as a whole does not show its class (out_of_distribution.py)."""
    scale: int
    """k of the k x k grid; 0 for the others."""
    cell: npt.NDArray[np.bool_]
    """(S,S) the mask in pixels."""
    x_px: int
    """Column of the score map's highest pixel."""
    y_px: int
    """Its row."""


@dataclass(frozen=True)
class Inspection:
    """The answer for one photo. Names follow anomalib's where they cross the boundary."""

    class_name: str
    """Class that the photo was judged as."""
    pred_score: float
    """Image score; larger is more anomalous."""
    pred_label: int | None
    """1 anomalous, 0 good; None where the class has no threshold (0 shots)."""
    threshold: float | None
    """What pred_score was held against."""
    anomaly_map: F32
    """(S,S) fused score map."""
    pred_mask: npt.NDArray[np.bool_] | None
    """(S,S) pixels above the class's pixel threshold; None where it has none."""
    maps: Mapping[str, F32]
    """(S,S) by name: prototypes, multiscale, guided, fused; those that this inspection made."""
    scores: Mapping[str, float]
    """Image score of each of `maps`."""
    repaint: npt.NDArray[np.uint8]
    """(S,S,3) the photo as repainted at the scale that raised the alarm; as it was seen where nothing was repainted."""
    evidence: Evidence
    """Which mask that was."""
    mode: str
    """Plan, scales, lambda and passes in words; 'settle' and 'cut' where repaints may have been, or were, left out."""
    timings_ms: Mapping[str, float]
    """Per stage, this photo's share of its batch."""
    backend: str = ""
    """What ran the networks, and which of them fell back to float32 after NaN."""
    ended: str = "whole"
    """How it ended: 'whole', every repaint was made; 'clear', by the cascade; 'settled', no further repaint could
    change the verdict; 'cut', at the deadline, judged by what there was.
    """
    deadline_met: bool | None = None
    """Whether the answer was ready by its deadline; None where none was given."""
    verdict: str | None = None
    """'good', 'anomalous' or, between `limits`, 'uncertain': a person should look. None without a threshold."""
    pred_probability: float | None = None
    """Probability in [0,1] that the part is defective, under the class's score model; None without one."""
    limits: Limits | None = None
    """Image scores between which the verdict is 'uncertain'; None where the threshold alone decides."""
