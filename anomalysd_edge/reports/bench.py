"""What a benchmark shows: table rows, CSV, the distance from the floor, and a bar a row as a PNG."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw, ImageFont

from anomalysd_edge.profiling.measurement import STAGES, BenchRow
from anomalysd_edge.profiling.network_meter import JOBS

COLUMNS = ("plan", "backend", "batch", "flight", "p50 ms", "p95", "p99", "photos/s", "networks %", "MiB", "x floor")
COLOURS = {
    "file": (90, 90, 90), "preprocess": (160, 160, 160), "features": (44, 123, 182), "prototypes": (120, 198, 226),
    "encode": (94, 160, 90), "unet": (202, 72, 60), "decode": (246, 178, 80), "distance": (145, 95, 170),
    "score": (210, 140, 190), "rest": (220, 220, 220),
}  # fmt: skip


@dataclass(frozen=True)
class Floor:
    """How fast the counted operations could be on this machine."""

    flops_a_second: float
    """Its measured matrix rate."""
    bytes_a_second: float
    """Its measured memory rate."""
    gflop: Mapping[str, float]
    """By network, of one sample."""
    megabytes: Mapping[str, float]
    """By network, of one sample alone in its batch: weights, and activations in and out of matrix nodes."""
    seconds: Mapping[str, float]
    """By network: the roofline of one sample, at the batch that the backend is given."""

    def of(self, row: BenchRow) -> dict[str, dict[str, float]]:
        """Per network: samples and GFLOP a photo, its floor and its time in milliseconds, and their ratio."""
        found = {}
        for name in JOBS:
            samples = row.counts[name]["samples"]
            if not samples or name not in self.seconds:
                continue
            floor, taken = samples * self.seconds[name] * 1e3, row.counts[name]["seconds"] * 1e3
            found[name] = {
                "samples": samples,
                "gflop": samples * self.gflop[name],
                "megabytes": samples * self.megabytes[name],
                "floor_ms": floor,
                "ms": taken,
                "times_floor": taken / floor,
                "share_of_matrix_rate": samples * self.gflop[name] * 1e9 / (taken / 1e3) / self.flops_a_second,
            }
        return found

    def times(self, row: BenchRow) -> float:
        """The whole photo against the sum of its networks' floors."""
        floor = sum(part["floor_ms"] for part in self.of(row).values())
        return 1e3 / row.photos_a_second / floor


def table(rows: Sequence[BenchRow], floor: Floor | None) -> list[tuple[str, ...]]:
    """Under COLUMNS."""
    return [
        (
            row.plan, row.backend.removeprefix("onnxruntime "), str(row.batch), str(row.in_flight),
            f"{row.p50_ms:.0f}", f"{row.p95_ms:.0f}", f"{row.p99_ms:.0f}", f"{row.photos_a_second:.2f}",
            f"{100 * row.in_networks:.1f}", f"{row.peak_rss_bytes / 2**20:.0f}",
            "-" if floor is None else f"{floor.times(row):.2f}",
        )
        for row in rows
    ]  # fmt: skip


def stage_table(rows: Sequence[BenchRow]) -> list[tuple[str, ...]]:
    """A row a plan: milliseconds a photo by STAGES."""
    return [(f"{row.plan} {row.batch}/{row.in_flight}", *(f"{row.stages_ms[s]:.1f}" for s in STAGES)) for row in rows]


def as_csv(rows: Sequence[BenchRow]) -> str:
    """A line a row: every figure of the table, stages and UNet samples too."""
    out = io.StringIO()
    writer = csv.writer(out)
    plain = ("plan", "backend", "batch", "in_flight", "rounds", "p50_ms", "p95_ms", "p99_ms", "photos_a_second",
             "in_networks", "peak_rss_bytes", "gpu_bytes", "open_s", "first_verdict_s", "warm_up_ms")  # fmt: skip
    writer.writerow([*plain, *(f"{s}_ms" for s in STAGES), *(f"{name}_samples" for name in JOBS), "door_bytes"])
    for row in rows:
        counts = [row.counts[name] for name in JOBS]
        writer.writerow(
            [
                *(getattr(row, name) for name in plain),
                *(row.stages_ms[s] for s in STAGES),
                *(c["samples"] for c in counts),
                sum(c["bytes"] for c in counts),
            ]
        )
    return out.getvalue()


def plot(rows: Sequence[BenchRow], title: str) -> npt.NDArray[np.uint8]:
    """(H,W,3) uint8: a bar a row, the stages of a photo as lengths; each bar is scaled to its own whole."""
    font, small = ImageFont.load_default(20), ImageFont.load_default(16)
    left, width, bar, gap, top = 250, 900, 34, 18, 100
    shown = [stage for stage in STAGES if any(row.stages_ms[stage] > 0 for row in rows)]
    image = Image.new("RGB", (left + width + 190, top + len(rows) * (bar + gap) + 20), "white")
    draw = ImageDraw.Draw(image)
    draw.text((20, 14), title, fill="black", font=font)
    x = 20.0
    for stage in shown:
        draw.rectangle((x, 58, x + 16, 74), fill=COLOURS[stage])
        draw.text((x + 22, 56), stage, fill="black", font=small)
        x += 40 + draw.textlength(stage, font=small)
    for number, row in enumerate(rows):
        y = top + number * (bar + gap)
        name = f"{row.plan}, batch {row.batch}" + (f", {row.in_flight} photos" if row.in_flight > 1 else "")
        draw.text((20, y + 6), name, fill="black", font=small)
        whole, start = sum(row.stages_ms.values()), float(left)
        for stage in shown:
            length = row.stages_ms[stage] / whole * width
            draw.rectangle((start, y, start + max(length - 1, 0), y + bar), fill=COLOURS[stage])
            if length > 70:
                label = f"{row.stages_ms[stage]:.0f} ms"
                draw.text((start + 6, y + 8), label, fill="white" if stage != "rest" else "black", font=small)
            start += length
        draw.text((left + width + 12, y + 6), f"{whole:.0f} ms a photo", fill="black", font=small)
    return np.asarray(image)
