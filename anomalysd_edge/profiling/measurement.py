"""One measured configuration of a bench: the request, and the row of figures that it gave."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from anomalysd_edge.bundle.open_options import OpenOptions

STAGES = ("file", "preprocess", "features", "prototypes", "encode", "unet", "decode", "distance", "score", "rest")
"""Where a photo's time is booked; `rest` is what no stage has."""


@dataclass(frozen=True, kw_only=True)
class BenchRequest(OpenOptions):
    """One row of the table: how the bundle is opened, and how often photos are inspected."""

    bundle: str
    """Its folder."""
    photos: list[tuple[str, str]]
    """(file, class), taken in turn."""
    in_flight: int = 1
    """Photos that are inspected together."""
    full: bool = True
    """Whether whole plans are repainted, whatever the verdicts need."""
    rounds: int = 20
    """Inspections that count, each of `in_flight` photos."""
    warm_up: int = 2
    """Inspections before, which do not."""
    seconds: float = 0.0
    """No further round is begun after so long (at least one is made); 0 = no limit."""
    changes: dict[str, Any] = field(default_factory=dict)
    """Inspection settings over the preset's, for instance other scales."""


@dataclass
class BenchRow:
    """What it measured. Times are milliseconds; those of stages are a photo's share."""

    plan: str
    backend: str
    batch: int
    in_flight: int
    mode: str
    rounds: int
    p50_ms: float
    """From the files of a round to its verdicts."""
    p95_ms: float
    p99_ms: float
    photos_a_second: float
    stages_ms: dict[str, float]
    """Means a photo, by STAGES."""
    in_networks: float
    """Share of the time inside the networks."""
    counts: dict[str, dict[str, float]]
    """Calls, samples, bytes and seconds of each network, a photo."""
    peak_rss_bytes: int
    gpu_bytes: int | None
    open_s: float
    """Reading the bundle and opening its networks."""
    first_verdict_s: float
    """Process start to first verdict."""
    warm_up_ms: float
    """Mean of the warm-up rounds."""
    joules_a_photo: dict[str, float] = field(default_factory=dict)
    rss_rounds_bytes: list[int] = field(default_factory=list)
    """Peak memory after the first, the middle and the last round: flat in the number of photos, or not."""
