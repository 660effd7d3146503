"""Subcommands naive and bench: nano's inspections, timed; what stands beside them is measured in the same run."""

from __future__ import annotations

import subprocess
import sys
import time
from typing import Any

import numpy as np

from anomalysd_edge.bundle.backend_spec import ENGINES
from anomalysd_edge.bundle.reader import read_bundle
from anomalysd_edge.core.files import read_json
from anomalysd_edge.method.detector import Detector
from anomalysd_edge.profiling.hardware import EnergyMeter
from anomalysd_edge.profiling.measurement import BenchRequest, BenchRow
from anomalysd_edge.vision import images
from benchmarks.gpu.claims import Claim, Kit, Lines, Part
from benchmarks.gpu.judging import detector
from benchmarks.gpu.needs import first_missing
from benchmarks.gpu.prepared import CLASS, Prepared, prepared

NAIVE = (
    Claim("naive.scores", "diffusers' pipeline, a call a mask, gives the exact plan's scores", "within 1e-3"),
    Claim("naive.exact", "the exact plan is faster than a call a mask", "at least 1.5 times", True),
    Claim("naive.edge", "the edge plan is far faster than a call a mask", "at least 20 times", True),
)
BENCH = (
    Claim("bench.cuda", "a photo takes less on CUDA than on the CPU", "half its time or less", True),
    Claim("bench.rest", "little is left beside the networks", "at most 40 ms a photo", True),
    Claim("bench.tail", "times are steady", "p95 at most 1.3 times p50", True),
    Claim("bench.in_flight", "photos in flight share the GPU's work", "4 at least 1.3 times the photos of 1", True),
    Claim("bench.memory", "nano fits the smallest GPU", "at most 2 GiB of its memory", True),
    Claim("bench.energy", "the GPU's energy is read", "more than 0 joules a photo", True),
    Claim("bench.meter", "reading the energy does not slow a photo down", "p95 at most 1.05 times that without", True),
)


def naive(kit: Kit, lines: Lines) -> None:
    """Show NAIVE by benchmarks/naive.py."""
    at = prepared(kit)
    out = kit.work / "naive.json"
    command = [
        sys.executable, "-m", "benchmarks.naive", "--run", at.run, "--bundle", at.bundle, "--class", CLASS,
        "--photos", at.data / CLASS / "test/colour", "--count", "1" if kit.rehearsal else "2", "--device", kit.device,
        "--out", out, *(("--scales", "1,2", "--edge-rounds", "1") if kit.rehearsal else ()),
    ]  # fmt: skip
    subprocess.run([str(word) for word in command], check=True, stdout=sys.stderr)
    found = read_json(out)
    far = found["largest_score_difference"]
    lines.shown("naive.scores", far, far <= 1e-3, map_difference=found["largest_map_difference"])
    wall, masks = found["wall"], found["masks"]
    exact, edge = wall["exact_times_faster_than_naive"], wall["edge_times_faster_than_naive"]
    lines.shown("naive.exact", exact, exact >= 1.5, seconds=wall["seconds_a_photo"], masks=masks)
    lines.shown("naive.edge", edge, edge >= 20)


def bench(kit: Kit, lines: Lines) -> None:
    """Show BENCH by the rows of `sd-edge bench`."""
    at = prepared(kit)
    slow = row(kit, at, "cpu", 1, 3)
    alone, four = row(kit, at, kit.device, 1, 40), row(kit, at, kit.device, 4, 15)
    half: dict[str, Any] = {}
    with lines.showing("bench.cuda"):
        half = {name: row(kit, at, name, 1, 20).p50_ms for name in _further(kit, at)}
        ratio = alone.p50_ms / slow.p50_ms
        lines.shown("bench.cuda", ratio, ratio <= 0.5, p50_ms={"cpu": slow.p50_ms, kit.device: alone.p50_ms, **half})
    rest = alone.p50_ms * (1 - alone.in_networks)
    lines.shown("bench.rest", rest, rest <= 40, stages_ms=alone.stages_ms, floor=_floor(kit, at, alone))
    tail = alone.p95_ms / alone.p50_ms
    lines.shown("bench.tail", tail, tail <= 1.3, p50_ms=alone.p50_ms, p95_ms=alone.p95_ms, p99_ms=alone.p99_ms)
    gain = four.photos_a_second / alone.photos_a_second
    lines.shown("bench.in_flight", gain, gain >= 1.3, photos_a_second=[alone.photos_a_second, four.photos_a_second])
    if alone.gpu_bytes is None:
        lines.not_shown("bench.memory", "nvidia-smi does not tell a process's memory here")
    else:
        lines.shown("bench.memory", alone.gpu_bytes, alone.gpu_bytes <= 2 << 30)
    joules = {name: value for name, value in alone.joules_a_photo.items() if name != "cpu package"}
    lines.shown("bench.energy", joules, any(value > 0 for value in joules.values()))
    with lines.showing("bench.meter"), detector(at, kit.device) as opened:
        _meter(kit, lines, at, opened)


def _further(kit: Kit, at: Prepared) -> list[str]:
    """Backends whose times stand beside: fp16, and the engines that subcommand engines built."""
    found = [f"{kit.device}:fp16"]
    marks = [record.fingerprint for record in read_bundle(at.bundle, verify=False).manifest.engines]
    built = any((mark.library, mark.precision) == (ENGINES["rtx"], "fp16") for mark in marks)
    if built and first_missing(kit, ("tensorrt-rtx",)) is None:
        found.append("rtx:fp16")
    return found


def row(kit: Kit, at: Prepared, backend: str, in_flight: int, rounds: int) -> BenchRow:
    """A row of `sd-edge bench`, in a process of its own."""
    from anomalysd_edge.workflows.bench import in_own_process

    photos = [(str(file), CLASS) for file in at.test_photos()]
    return in_own_process(
        BenchRequest(
            bundle=str(at.bundle), photos=photos, backend=backend, in_flight=in_flight, force=True,
            rounds=2 if kit.rehearsal else rounds, warm_up=2,
        )
    )  # fmt: skip


def _floor(kit: Kit, at: Prepared, measured: BenchRow) -> dict[str, Any] | None:
    """How far each network is from the machine's rates; None where the operations cannot be counted."""
    from anomalysd_edge.workflows.bench import floor_of

    floor = floor_of(read_bundle(at.bundle, verify=False), kit.device, None, 16)
    return None if floor is None else {"times_floor": floor.times(measured), "networks": floor.of(measured)}


def _meter(kit: Kit, lines: Lines, at: Prepared, opened: Detector) -> None:
    """p95 with and without the meter, in turns: other work on the machine then disturbs both."""
    photo = images.load_rgb(at.test_photos()[0])
    taken: dict[bool, list[float]] = {False: [], True: []}

    def some(count: int) -> list[float]:
        found = []
        for _ in range(count):
            began = time.perf_counter()
            opened.inspect([photo], CLASS)
            found.append((time.perf_counter() - began) * 1e3)
        return found

    some(3)
    for _ in range(1 if kit.rehearsal else 5):
        taken[False] += some(2 if kit.rehearsal else 20)
        with EnergyMeter():
            taken[True] += some(2 if kit.rehearsal else 20)
    without, with_it = (float(np.percentile(taken[key], 95)) for key in (False, True))
    lines.shown("bench.meter", with_it / without, with_it <= 1.05 * without, p95_ms=[without, with_it])


PARTS = (
    Part(
        "naive", "diffusers' pipeline once a mask beside the plans", 90,
        ("torch", "training", "onnxruntime-gpu", "bundle"), NAIVE, naive,
    ),
    Part(
        "bench", "a photo from file to verdict, its energy, its memory", 120, ("torch", "onnxruntime-gpu", "bundle"),
        BENCH, bench,
    ),
)  # fmt: skip
