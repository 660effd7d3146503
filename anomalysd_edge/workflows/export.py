"""`sd-edge export`: from a run folder to a bundle."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from anomalysd_edge.bundle.reader import Bundle
from anomalysd_edge.core.types import Progress
from anomalysd_edge.data.classes import load_classes

if TYPE_CHECKING:
    pass


def export_to(
    run: Path,
    out: Path,
    class_file: Path | None,
    threads: int | None,
    progress: Progress,
    graphs: Mapping[str, Any] | None = None,
) -> Bundle:
    """`sd-edge export`; `graphs`: the fields of ExportSettings."""
    from anomalysd_edge.training.run import read_run
    from anomalysd_export.exporting import ExportSettings, export_run

    opened = read_run(run)
    # The file's classes alone: of the others the run knows what their photos said.
    specs = load_classes(class_file) if class_file else None
    settings = ExportSettings(**(graphs or {}))
    return export_run(opened, out, specs=specs, threads=threads, progress=progress, graphs=settings)
