"""The answer for a photo, from its maps and repaints: score, verdict, and the mask that raised the alarm."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import numpy as np
import numpy.typing as npt

from anomalysd_edge.core.types import F32, Mask
from anomalysd_edge.method import anomaly_map
from anomalysd_edge.method.inpainting.mask_plan import GUIDED
from anomalysd_edge.method.inpainting.masks import grid_cells, to_pixels
from anomalysd_edge.method.networks import NetworkSizes
from anomalysd_edge.method.patches.out_of_distribution import contrast, raised_score
from anomalysd_edge.method.photo_state import PhotoState
from anomalysd_edge.method.result import Evidence, Inspection
from anomalysd_edge.method.settings import InspectSettings
from anomalysd_edge.vision import images


def make_inspection(
    photo: PhotoState,
    settings: InspectSettings,
    sizes: NetworkSizes,
    mode: str,
    timings_ms: Mapping[str, float],
    backend: str,
    deadline_met: bool | None,
) -> Inspection:
    """The answer for a photo whose maps are made."""
    constants, fused = photo.constants, photo.maps["fused"]
    scores = {name: anomaly_map.image_score(m, settings.top_share) for name, m in photo.maps.items()}
    evidence, repaint = _evidence(photo, fused, sizes)
    calibration = constants.calibration
    threshold, pixel = calibration.threshold, calibration.pixel_threshold
    if calibration.limits is not None and threshold is not None and photo.median_patch_distance is not None:
        excess = calibration.limits.excess(photo.median_patch_distance, contrast(photo.seen))
        if excess > 1:
            scores["fused"] = raised_score(scores["fused"], max(calibration.steps), excess)
            evidence = replace(evidence, kind="photo", scale=0, cell=np.ones(fused.shape, np.bool_))
    score = scores["fused"]
    return Inspection(
        class_name=photo.class_name,
        pred_score=score,
        pred_label=None if threshold is None else int(score >= threshold),
        threshold=threshold,
        verdict=calibration.verdict(score),
        pred_probability=calibration.probability(score),
        limits=calibration.decision,
        anomaly_map=fused,
        pred_mask=None if pixel is None else fused >= pixel,
        maps=photo.maps,
        scores=scores,
        repaint=repaint,
        evidence=evidence,
        mode=f"{mode} cut" if photo.ended == "cut" else mode,
        timings_ms=timings_ms,
        backend=backend,
        ended=photo.ended,
        deadline_met=deadline_met,
    )


def _evidence(photo: PhotoState, fused: F32, sizes: NetworkSizes) -> tuple[Evidence, npt.NDArray[np.uint8]]:
    """The mask around the highest pixel whose repaint differs most there, and that repaint (S,S,3)."""
    side, factor = sizes.latent_side, sizes.latent_factor
    y, x = (int(v) for v in np.unravel_index(int(fused.argmax()), fused.shape))
    cut = photo.frame.cut_mask

    def covers(scale: int) -> tuple[Mask, F32] | None:
        return next(((m, r) for m, r in photo.repaints[scale] if cut(m)[y, x]), None)

    candidates = {scale: found for scale in photo.repaints if (found := covers(scale)) is not None}
    if not candidates:
        # No repaint there: the memory bank's evidence, with the latent cells around its highest patch.
        around = np.zeros(fused.shape, np.bool_)
        around[max(0, y - factor) : y + factor + 1, max(0, x - factor) : x + factor + 1] = True
        shown = np.stack([photo.frame.cut(plane) for plane in images.to_array(photo.seen)[0]])
        return Evidence(kind="prototypes", scale=0, cell=around, x_px=x, y_px=y), images.to_image(shown)
    best = max(candidates, key=lambda scale: float(photo.frame.cut(photo.per_scale[scale])[y, x]))
    mask, repaint = candidates[best]
    if best != GUIDED:
        row, column = photo.frame.under(y, x, len(mask))
        cells = grid_cells(best, side)
        mask = to_pixels(cells[cells[:, row // factor, column // factor]][0], factor)
    planes = np.stack([photo.frame.cut(plane) for plane in repaint])
    kind = "guided" if best == GUIDED else "grid"
    return Evidence(kind=kind, scale=best, cell=cut(mask), x_px=x, y_px=y), images.to_image(planes)
