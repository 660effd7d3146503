"""One photo on its way through the pipeline: what it needs, and its maps and repaints so far."""

from __future__ import annotations

from dataclasses import dataclass, field

from anomalysd_edge.core.types import F32, U8, Mask
from anomalysd_edge.method.class_model import ClassModel
from anomalysd_edge.method.inpainting.mask_plan import Slot
from anomalysd_edge.vision.letterbox import Letterbox


@dataclass
class PhotoState:
    """Filled stage by stage by inspection_pipeline.py; S is the side of the repainted photo in pixels."""

    constants: ClassModel
    """What is known of its class."""
    class_name: str
    """The class that it is judged as."""
    slots: list[Slot]
    """What is to be repainted; empty for a verdict from prototypes alone."""
    frame: Letterbox
    """How the photo lies in the networks' square."""
    seen: U8
    """(S,S,3) the photo as the networks see it."""
    row: int = -1
    """Its row in the group's tensors, once there are any."""
    foreground: Mask | None = None
    """(S,S) an object's outline, widened; None where every pixel counts."""
    prototype_map: F32 | None = None
    """(f,f) distance of its patches to the class's bank; None without a bank."""
    median_patch_distance: float | None = None
    """Median distance of its patches to the prototypes; None where no patch scorer made its map."""
    maps: dict[str, F32] = field(default_factory=dict)
    """(S,S) by name, smoothed; filled at the end."""
    planned: dict[int, Mask] = field(default_factory=dict)
    """(S,S) by scale: the pixels that its slots repaint; a scale whose slots cover everything is not in it."""
    per_scale: dict[int, F32] = field(default_factory=dict)
    """(S,S) by scale: S^(k), once measured."""
    repaints: dict[int, list[tuple[Mask, F32]]] = field(default_factory=dict)
    """By scale: the pixels that were repainted (S,S), and the picture with them (3,S,S)."""
    settles: bool = False
    """Whether it is repainted only as far as its verdict needs it."""
    verdict: str | None = None
    """good, uncertain or anomalous, once no repaint can change it any more; None before that."""
    ended: str = "whole"
    """How its inspection ends: 'whole', 'clear', 'settled' or 'cut' (result.Inspection.ended)."""
