"""`sd-edge export`: from a training run to a bundle."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from anomalysd_edge.bundle.reader import Bundle
from anomalysd_edge.calibration.settings import CalibrationSettings
from anomalysd_edge.core.types import Progress
from anomalysd_edge.data.classes import load_classes


def export_to(
    run: Path,
    out: Path,
    class_file: Path | None,
    threads: int | None,
    progress: Progress,
    graphs: Mapping[str, Any] | None = None,
    calibration: CalibrationSettings | None = None,
) -> Bundle:
    """Export the run to a bundle; `graphs` are fields of ExportSettings. Raises what read_run and export_run raise."""
    from anomalysd_edge.training.run import read_run
    from anomalysd_export.exporting import ExportSettings, export_run

    opened = read_run(run)
    # Only the file's classes: for the others the run records what was inferred from their photos.
    specs = load_classes(class_file) if class_file else None
    settings = ExportSettings(**(graphs or {}))
    return export_run(
        opened, out, specs=specs, calibration=calibration, threads=threads, progress=progress, graphs=settings
    )
