"""The verbs and options of many boxes: --ray, push, pull, rollback, fleet, plan-capacity."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from anomalysd_edge.errors import SettingsError

if TYPE_CHECKING:
    from anomalysd_runtime.distributed.ray_inspect import RaySettings

EXTRAS = {"ray": "ray", "fsspec": "fleet"}
"""Which extra brings what these verbs import."""

Ray = Annotated[
    str | None, typer.Option(help="Judge over Ray: 'local' starts it here, or a cluster's address, or auto.")
]
Workers = Annotated[int, typer.Option(help="With --ray: workers, each with --threads threads (1 if left out).")]
Gpus = Annotated[float, typer.Option(help="With --ray: GPUs that a worker claims; 0.5 lets two share one.")]
JournalFile = Annotated[
    Path | None, typer.Option(help="With --ray: keep answers in this file; the same command goes on from it.")
]


def cluster(ray: str | None, workers: int, gpus: float, journal: Path | None) -> RaySettings | None:
    """What the options ask for; None without --ray. Raises SettingsError."""
    if ray is None:
        if journal is not None:
            raise SettingsError("--journal goes with --ray; give --ray local to use this machine's cores")
        return None
    from anomalysd_runtime.distributed.ray_inspect import RaySettings

    return RaySettings(ray, workers, gpus, journal)


def register(app: typer.Typer) -> None:
    """Hang the verbs into the command."""
