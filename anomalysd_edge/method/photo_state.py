"""One photo on its way through the pipeline: its maps and repaints so far."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from anomalysd_edge.core.types import F32, Mask
from anomalysd_edge.method.class_model import ClassConstants
from anomalysd_edge.method.inpainting.mask_plan import Slot
from anomalysd_edge.vision.letterbox import Frame


@dataclass
class PhotoWork:
    """One photo on its way through the stages."""

    constants: ClassConstants
    class_name: str
    slots: list[Slot]
    """What is to be repainted; empty for a verdict from prototypes alone."""
    frame: Frame
    seen: npt.NDArray[np.uint8]
    """(S,S,3) the photo as the networks see it."""
    foreground: Mask | None = None
    prototype_map: F32 | None = None
    middle_distance: float | None = None
    """Of its patches to the prototypes; None where no reading made its map."""
    maps: dict[str, F32] = field(default_factory=dict)
    planned: dict[int, Mask] = field(default_factory=dict)
    """(S,S) by scale: the pixels that its slots repaint; a scale whose slots cover everything is not in it."""
    per_scale: dict[int, F32] = field(default_factory=dict)
    """(S,S) by scale: S^(k), once measured."""
    repaints: dict[int, list[tuple[Mask, F32]]] = field(default_factory=dict)
    ended: str = "whole"
