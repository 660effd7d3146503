"""An inspection as other software and people read it: JSON values, pictures, rows of the report."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from anomalysd_edge.core.files import folder_aside, write_json
from anomalysd_edge.core.types import U8
from anomalysd_edge.method.result import Inspection
from anomalysd_edge.method.score_model import Limits
from anomalysd_edge.reports import gallery
from anomalysd_edge.vision import heatmap, images


def inspection_json(answer: Inspection, photo: str) -> dict[str, Any]:
    """Plain values of one inspection, without its maps. Keys follow anomalib's where there is such a key."""
    ys, xs = np.nonzero(answer.evidence.cell)
    return {
        "photo": photo,
        "class": answer.class_name,
        "pred_score": answer.pred_score,
        "pred_label": answer.pred_label,
        "threshold": answer.threshold,
        "verdict": verdict(answer),
        "pred_probability": answer.pred_probability,
        "limits": limits_json(answer.limits),
        "scores": dict(answer.scores),
        "evidence": {
            "kind": answer.evidence.kind,
            "scale": answer.evidence.scale,
            "box_px": [int(xs.min()), int(ys.min()), int(xs.max()) + 1, int(ys.max()) + 1],
            "peak_px": [answer.evidence.x_px, answer.evidence.y_px],
            "map_side_px": answer.anomaly_map.shape[0],
        },
        "mode": answer.mode,
        "ended": answer.ended,
        "deadline_met": answer.deadline_met,
        "backend": answer.backend,
        "timings_ms": {stage: round(ms, 3) for stage, ms in answer.timings_ms.items()},
    }


def verdict(answer: Inspection) -> str:
    """'good', 'anomalous', 'uncertain' between the class's limits, or 'unknown' where it has no threshold."""
    return answer.verdict or "unknown"


def limits_json(limits: Limits | None) -> dict[str, float] | None:
    """Under 'good' and 'anomalous', the image scores between which a verdict is 'uncertain'; None without limits."""
    return None if limits is None else asdict(limits)


def heat_range(answer: Inspection) -> tuple[float, float]:
    """Low and high end of the colours of its map."""
    return heatmap.heat_range(answer.anomaly_map, answer.threshold)


def pictures(answer: Inspection, photo: U8) -> dict[str, U8]:
    """(S,S,3) uint8 each: photo, heat (map over the photo), map, repaint, evidence."""
    small = images.resize(photo, answer.anomaly_map.shape[0])
    low, high = heat_range(answer)
    return {
        "photo": small,
        "overlay": heatmap.overlay(small, answer.anomaly_map, low, high),
        "map": heatmap.heat_map(answer.anomaly_map, low, high),
        "repaint": answer.repaint,
        "evidence": heatmap.spotlight(small, answer.evidence.cell),
    }


def report_row(answer: Inspection, photo: U8, name: str, truth: str | None) -> gallery.ReportRow:
    """The report's row of one photo."""
    drawn = pictures(answer, photo)
    where = {
        "guided": "prototype-guided mask",
        "grid": f"a cell of the {answer.evidence.scale} x {answer.evidence.scale} grid",
        "prototypes": "the prototypes' highest patch, not repainted",
        "photo": "a photo that as a whole does not show its class",
    }[answer.evidence.kind]
    return gallery.ReportRow(
        name=name,
        class_name=answer.class_name,
        truth=truth,
        pred_score=answer.pred_score,
        threshold=answer.threshold,
        pred_label=answer.pred_label,
        limits=answer.limits,
        pred_probability=answer.pred_probability,
        uncertain=answer.verdict == "uncertain",
        photo=drawn["photo"],
        heat=drawn["overlay"],
        repaint=drawn["repaint"],
        evidence=drawn["evidence"],
        note=f"highest at ({answer.evidence.x_px}, {answer.evidence.y_px}) px, in {where}",
    )


def examples_picture(rows: Sequence[gallery.ReportRow]) -> U8 | None:
    """A strip per class: its bad photo with the highest score, score map, repaint and mask; None without one."""
    best: dict[str, gallery.ReportRow] = {}
    for row in rows:
        if row.truth not in (None, "good") and (
            row.class_name not in best or gallery.severity(row) > gallery.severity(best[row.class_name])
        ):
            best[row.class_name] = row
    columns = [np.concatenate([r.photo, r.heat, r.repaint, r.evidence], axis=0) for r in best.values()]
    return np.concatenate(columns, axis=1) if columns else None


def save_inspection(folder: Path, answer: Inspection, photo: U8, name: str) -> None:
    """Write `folder` with result.json and the pictures, aside first: it is there whole or not at all."""
    with folder_aside(folder, marker="result.json") as target:
        for kind, picture in pictures(answer, photo).items():
            images.save_png(target / f"{kind}.png", picture)
        np.save(target / "anomaly_map.npy", answer.anomaly_map)
        write_json(target / "result.json", inspection_json(answer, name))
