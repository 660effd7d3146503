"""One configuration, measured in a process of its own: from file to verdict, per stage, with its memory.

    python -m anomalysd_edge.workflows.bench_worker < request.json

is what `sd-edge bench` runs for each row of its table.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from anomalysd_edge.errors import SDEdgeError
from anomalysd_edge.method.result import Inspection
from anomalysd_edge.method.settings import InspectSettings
from anomalysd_edge.profiling.hardware import EnergyMeter, gpu_memory_bytes, peak_rss_bytes
from anomalysd_edge.profiling.measurement import STAGES, BenchRequest, BenchRow
from anomalysd_edge.profiling.network_meter import Meter, MeteredNetworks
from anomalysd_edge.vision import images


def measure(request: BenchRequest, started: float) -> BenchRow:
    """Measure; `started` is time.time() at the process's start. Raises what opening and inspecting raise."""
    from anomalysd_runtime.loading import open_with

    began = time.time()
    detector = open_with(Path(request.bundle), request)
    with detector:
        if request.changes:
            settings = InspectSettings.from_json({**detector.settings.to_json(), **request.changes})
            detector = detector.under(settings, detector.classes)
        networks = MeteredNetworks(detector.networks)
        metered = detector.over(networks)
        metered.group = request.in_flight
        inspect = partial(metered.inspect, full=request.full)
        opened = time.time()
        turn = _turns(request.photos, request.in_flight)
        _round(inspect, turn(0))
        first = time.time()
        warm = [_round(inspect, turn(1 + i))[0] for i in range(max(0, request.warm_up - 1))]
        networks.meter = Meter()
        taken: list[float] = []
        stages = dict.fromkeys(STAGES, 0.0)
        memory: list[int] = []
        until = time.monotonic() + request.seconds if request.seconds else None
        with EnergyMeter() as energy:
            while len(taken) < request.rounds and (until is None or not taken or time.monotonic() < until):
                whole, parts = _round(inspect, turn(len(taken)))
                taken.append(whole)
                memory.append(peak_rss_bytes())
                for stage, ms in parts.items():
                    stages[stage] += ms
        photos = len(taken) * request.in_flight
        counts = networks.meter.to_json()
        spent = sum(taken)
        return BenchRow(
            plan=request.preset, backend=networks.backend, batch=request.largest_batch, in_flight=request.in_flight,
            mode=detector.mode if request.full else f"{detector.mode} settle", rounds=len(taken),
            p50_ms=float(np.percentile(taken, 50)), p95_ms=float(np.percentile(taken, 95)),
            p99_ms=float(np.percentile(taken, 99)), photos_a_second=photos / spent * 1e3,
            stages_ms={stage: ms / photos for stage, ms in stages.items()},
            in_networks=networks.meter.seconds * 1e3 / spent,
            counts={name: {k: v / photos for k, v in tally.items()} for name, tally in counts.items()},
            peak_rss_bytes=peak_rss_bytes(), gpu_bytes=gpu_memory_bytes(), open_s=opened - began,
            first_verdict_s=first - started, warm_up_ms=float(np.mean(warm)) if warm else (first - opened) * 1e3,
            joules_a_photo={source: joules / photos for source, joules in energy.joules.items()},
            rss_rounds_bytes=[memory[0], memory[len(memory) // 2], memory[-1]],
        )  # fmt: skip


def _turns(photos: Sequence[tuple[str, str]], width: int) -> Callable[[int], list[tuple[str, str]]]:
    def turn(number: int) -> list[tuple[str, str]]:
        return [photos[(number * width + i) % len(photos)] for i in range(width)]

    return turn


def _round(
    inspect: Callable[[list[Any], list[str]], list[Inspection]], chosen: list[tuple[str, str]]
) -> tuple[float, dict[str, float]]:
    """Milliseconds of a round, from its files to its verdicts, and of each stage."""
    began = time.perf_counter()
    photos = [images.load_rgb(Path(file)) for file, _ in chosen]
    read = time.perf_counter()
    answers = inspect(photos, [name for _, name in chosen])
    whole = (time.perf_counter() - began) * 1e3
    parts = {"file": (read - began) * 1e3}
    for answer in answers:
        for stage, ms in answer.timings_ms.items():
            parts[stage] = parts.get(stage, 0.0) + ms
    return whole, {**parts, "rest": max(0.0, whole - sum(parts.values()))}


def main() -> None:
    """Read a request from stdin, with the time it was sent; write the row to stdout."""
    message = json.load(sys.stdin)
    try:
        row = measure(BenchRequest(**message["request"]), float(message["sent"]))
    except SDEdgeError as error:
        print(json.dumps({"error": str(error)}))  # noqa: T201
        return
    print(json.dumps(asdict(row)))  # noqa: T201


if __name__ == "__main__":
    main()
