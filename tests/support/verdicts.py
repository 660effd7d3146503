"""Verdicts for the store, the messages and the page."""

from __future__ import annotations

from dataclasses import replace

from anomalysd_runtime.server.verdicts import Verdict


def verdict(number: int, score: float = 0.5, **changes: object) -> Verdict:
    """A verdict that nobody made."""
    made = Verdict(
        uid=f"{number:032x}", at=1000.0 + number, source="http", client="test", photo=f"{number}.png",
        photo_sha256="0" * 64, width_px=20, height_px=20, bundle="line1", bundle_id="b" * 16, preset="edge",
        settings={"seed": 0}, class_name="bottle", pred_score=score, threshold=0.75, pred_label=int(score >= 0.75),
        verdict="anomalous" if score >= 0.75 else "good", pred_probability=None, limits=None,
        scores={"fused": score}, regions=[], evidence={},
        mode="packed", backend="cpu", timings_ms={"unet": 1.0},
    )  # fmt: skip
    return replace(made, **changes)  # type: ignore[arg-type]
