"""`sd-edge bench`: rows, each measured in a process of its own; their floor; the table of modes for deadlines."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from anomalysd_edge.bundle.backend_spec import ENGINES, backend_choice
from anomalysd_edge.bundle.detector_factory import preset_settings
from anomalysd_edge.bundle.reader import MANIFEST, Bundle, read_bundle
from anomalysd_edge.core.files import sha256_file, write_aside, write_json
from anomalysd_edge.core.types import Progress
from anomalysd_edge.errors import BackendError
from anomalysd_edge.evaluation.backend_parity import spread_over_classes
from anomalysd_edge.profiling import operating_point_search, operating_points
from anomalysd_edge.profiling.hardware import machine_facts
from anomalysd_edge.profiling.measurement import BenchRequest, BenchRow
from anomalysd_edge.profiling.operating_points import OperatingPoint
from anomalysd_edge.reports.bench import Floor, as_csv, plot
from anomalysd_edge.vision import images
from anomalysd_edge.workflows.open_options import InspectOptions, machine_name
from anomalysd_edge.workflows.photo_sources import chosen_class, good_photos, photo_files, samples_of

_NETWORK_OF = {"features": "features", "encode": "vae_encoder", "unet": "unet", "decode": "vae_decoder",
               "distance": "perceptual"}  # fmt: skip
"""By stage of a photo."""
PEAK_BATCHES = (1, 4, 16)
"""UNet batches whose peak memory the table of modes holds."""


@dataclass(frozen=True)
class BenchResult:
    """What was measured, and on which machine."""

    rows: list[BenchRow]
    floors: dict[str, Floor]
    """By backend; empty where the operations could not be counted."""
    machine: dict[str, Any] = field(default_factory=machine_facts)

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        found = []
        for row in self.rows:
            floor = self.floors.get(row.backend)
            entry: dict[str, Any] = asdict(row)
            if floor is not None:
                entry["floor"] = {"times_floor": floor.times(row), "networks": floor.of(row)}
            found.append(entry)
        rates = {
            name: {"gflop_a_second": f.flops_a_second / 1e9, "gigabytes_a_second": f.bytes_a_second / 1e9}
            for name, f in self.floors.items()
        }
        return {"machine": self.machine, "rates": rates, "rows": found}

    def write(self, out: Path) -> None:
        """bench.json, bench.csv and bench.png."""
        write_json(out / "bench.json", self.to_json())
        with write_aside(out / "bench.csv") as aside:
            aside.write_text(as_csv(self.rows), encoding="utf-8")
        title = f"From file to verdict: {self.machine['processor']}, {self.machine['cores']} cores"
        images.save_png(out / "bench.png", plot(self.rows, title))


def run_bench(requests: Sequence[BenchRequest], progress: Progress) -> BenchResult:
    """Measure each request. Raises BackendError where one cannot be measured."""
    rows = []
    for number, request in enumerate(requests):
        progress(
            "bench", number, len(requests), f"{request.preset} on {request.backend}, batch {request.largest_batch}"
        )
        rows.append(in_own_process(request))
    progress("bench", len(requests), len(requests), "done")
    floors: dict[str, Floor] = {}
    for request, row in zip(requests, rows, strict=True):
        if row.backend not in floors:
            opened = read_bundle(Path(request.bundle), verify=False)
            floor = floor_of(opened, request.backend, request.threads, request.largest_batch)
            floors |= {} if floor is None else {row.backend: floor}
    return BenchResult(rows, floors)


def in_own_process(request: BenchRequest) -> BenchRow:
    """Measure one row in a fresh Python: its memory and its start are its own. Raises BackendError."""
    command = [sys.executable, "-m", "anomalysd_edge.workflows.bench_worker"]
    message = json.dumps({"request": asdict(request), "sent": time.time()})
    done = subprocess.run(command, input=message, capture_output=True, text=True, check=False)
    last = done.stdout.strip().splitlines()[-1:] or ["{}"]
    found = json.loads(last[0]) if done.returncode == 0 else {}
    if "error" in found:
        raise BackendError(found["error"])
    if not found:
        words = (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1]
        raise BackendError(
            f"measuring {request.preset} on {request.backend} broke off ({words}): try a smaller --max-batch"
        )
    return BenchRow(**found)


def floor_of(bundle: Bundle, backend: str, threads: int | None, batch: int) -> Floor | None:
    """The roofline of the networks on this machine; None without the package onnx or a library to measure its rates."""
    try:
        from anomalysd_export.engines.counting import graph_cost
        from anomalysd_runtime.machine_rates import measure_rates
        from anomalysd_runtime.onnx.providers import built_in
        from anomalysd_runtime.static_batches import PIXELS_A_CALL, PIXELS_ON_CPU
    except ModuleNotFoundError:
        return None
    choice = backend_choice(backend)
    device = "cpu" if choice.kind == "cpu" else "cuda"
    if device == "cuda" and "CUDAExecutionProvider" not in built_in():
        return None
    rates = measure_rates(device, threads, half=device == "cuda" and choice.precision != "fp32")
    sizes, most = bundle.manifest.sizes, PIXELS_ON_CPU if device == "cpu" else PIXELS_A_CALL
    gflop, megabytes, seconds = {}, {}, {}
    for job, network in _NETWORK_OF.items():
        if network not in bundle.manifest.networks:
            continue
        side = sizes.features_px if network == "features" else sizes.size_px
        used = batch if network == "unet" else max(1, min(batch, most // side**2))
        file = bundle.network_file(network, "fp32" if choice.kind in ENGINES else choice.precision)
        one, many = graph_cost(file), graph_cost(file, used)
        gflop[job], megabytes[job] = one.flops / 1e9, one.bytes / 1e6
        seconds[job] = many.floor_seconds(rates.flops_a_second, rates.bytes_a_second) / used
    return Floor(rates.flops_a_second, rates.bytes_a_second, gflop, megabytes, seconds)


def bench_photos(bundle: Path, photos: Path, class_name: str | None) -> list[tuple[str, str]]:
    """(file, class): of a data set in turn over its classes, or with `class_name` of a folder of that class."""
    opened = read_bundle(bundle)
    if class_name is None:
        return [(str(s.path), s.class_name) for s in spread_over_classes(samples_of(photos, opened), 64)]
    name = chosen_class(class_name, opened.manifest.classes)
    return [(str(file), name) for file in photo_files([photos])]


def measure_operating_points(
    path: Path, photos: Path, good: Path, per_class: int, options: InspectOptions, progress: Progress
) -> tuple[Path, tuple[OperatingPoint, ...]]:
    """The table of modes, written beside the bundle; its file and its modes.

    `good` (a run, data set or folder) gives the photos that thresholds are fitted to, `photos` those that modes are
    measured on: labelled ones, else synthetic anomalies on the good ones; `per_class` good and bad ones each.
    """
    bundle = read_bundle(path)
    records = bundle.manifest.classes
    shots = {
        name: [images.load_rgb(file) for file in files] for name, files in good_photos(good, records, None).items()
    }
    samples = samples_of(photos, bundle)
    judged = operating_point_search.labelled(samples, per_class)
    named = "labelled photos"
    if {j.bad for j in judged} != {False, True}:
        judged = operating_point_search.synthetic_judged(
            shots, {name: r.kind for name, r in records.items()}, per_class
        )
        named = "synthetic anomalies"
    preset = options.preset
    with options.detector(bundle) as base:
        request = operating_point_search.SearchRequest(
            bundle, preset, preset_settings(bundle, preset), shots, judged, operating_point_search.CANDIDATES
        )
        found = operating_point_search.measure_operating_points(request, base.networks, base, progress)
    files = [(str(s.path), s.class_name) for s in samples[:4]]
    peaks = {}
    for batch in PEAK_BATCHES:
        alone = BenchRequest(
            bundle=str(path), photos=files, preset=preset, backend=options.backend, max_batch=batch, in_flight=4,
            rounds=2, warm_up=1, threads=options.threads, force=options.force,
        )  # fmt: skip
        peaks[str(batch)] = in_own_process(alone).peak_rss_bytes
    table = operating_points.OperatingPointTable(
        sha256_file(path / MANIFEST), preset, str(backend_choice(options.backend)), machine_name(), options.threads,
        named, found, peaks,
    )  # fmt: skip
    return operating_points.write_table(path, table), found
