"""How many boxes, and of which kind: from what a photo costs, in samples of each network, to a number of boxes.

What a photo costs on a measured machine is `sd-edge bench`'s: seconds a sample of each network, samples a photo, and
what happens outside the networks. On a GPU that was not measured a sample is taken to need as many times its roofline
as published runs of such networks do, and the answer says that it is an estimate, with a low and a high end.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from anomalysd_edge.errors import InputError, SettingsError
from anomalysd_edge.fleet.waiting_time import largest_use, latency_quantile_s

TIMES_FLOOR = (3.0, 4.0, 6.0)
"""Time over the matrix units' roofline: low, expected, high. Published runs of Stable Diffusion 1.5 in TensorRT 8.6 at
512 px, 50 guided steps (100 samples of 0.68 TFLOP), took 1.00 s on an A100-80G, 3.39 s there for four pictures, and
5.0 s on a T4: 4.6, 3.9 and 4.8 times what 312 and 65 TFLOP/s allow."""
CALL_S = 0.0005
"""Least time of a network's call on a GPU: launching some hundred kernels, copies and synchronising."""


@dataclass(frozen=True)
class Gpu:
    """A kind of GPU, by its data sheet."""

    tflops: float
    """Dense half precision with float32 sums, 1e12 operations a second."""
    gigabytes_s: float
    """Memory, 1e9 bytes a second."""


GPUS = {
    "t4": Gpu(65, 320), "l4": Gpu(121, 300), "a10": Gpu(125, 600), "l40s": Gpu(362, 864), "a100": Gpu(312, 2039),
    "h100": Gpu(989, 3350), "h200": Gpu(989, 4800), "rtx4090": Gpu(165, 1008), "orin": Gpu(43, 205),
}  # fmt: skip
"""orin: Jetson AGX Orin 64 GB, half of its dense int8 rate."""


@dataclass(frozen=True)
class Cost:
    """What one network adds to a photo."""

    samples: float
    """A photo."""
    calls: float
    """A photo; below 1 where photos share them."""
    seconds: float
    """A sample, where it was measured."""
    gflop: float | None = None
    """A sample; None where they were not counted."""
    megabytes: float | None = None
    """A sample alone in its batch."""


@dataclass(frozen=True)
class PhotoCost:
    """A photo on one configuration of a machine that was measured."""

    backend: str
    """What ran the networks."""
    mode: str
    """Plan, scales, lambda and passes in words."""
    networks: Mapping[str, Cost]
    """By network."""
    host_s: float
    """A photo's time outside the networks."""

    @property
    def seconds(self) -> float:
        """A photo's whole time where it was measured."""
        return self.host_s + sum(cost.samples * cost.seconds for cost in self.networks.values())

    def on_gpu(self, gpu: Gpu, times_floor: float) -> float:
        """Seconds a photo on a GPU that was not measured, at so many times its roofline. Raises InputError."""
        total = self.host_s
        for name, cost in self.networks.items():
            if not cost.samples:
                continue
            if cost.gflop is None or cost.megabytes is None:
                raise InputError(
                    f"the operations of {name} were not counted; measure where the package onnx is installed"
                )
            floor = max(cost.gflop / (gpu.tflops * 1e3), cost.megabytes / (gpu.gigabytes_s * 1e3)) * cost.samples
            total += max(times_floor * floor, cost.calls * CALL_S)
        return total

    def under(self, samples: Mapping[str, float]) -> PhotoCost:
        """The same machine with another plan: other numbers of samples a photo, the same seconds a sample."""
        changed = {
            name: Cost(samples.get(name, 0.0), cost.calls, cost.seconds, cost.gflop, cost.megabytes)
            for name, cost in self.networks.items()
        }
        return PhotoCost(self.backend, self.mode, changed, self.host_s)


def read_bench(value: Mapping[str, Any], where: str) -> list[PhotoCost]:
    """The rows of a bench.json that `sd-edge bench --out` wrote. Raises InputError."""
    try:
        return [_photo_cost(row) for row in value["rows"]]
    except (KeyError, TypeError, ValueError, ZeroDivisionError) as error:
        raise InputError(f"{where} is no bench.json ({error!r}): make it with 'sd-edge bench ... --out DIR'") from error


def _photo_cost(row: Mapping[str, Any]) -> PhotoCost:
    counted = row.get("floor", {}).get("networks", {})
    networks = {}
    inside = 0.0
    for name, tally in row["counts"].items():
        samples = float(tally["samples"])
        inside += float(tally["seconds"])
        floor = counted.get(name)
        networks[name] = Cost(
            samples,
            float(tally["calls"]),
            float(tally["seconds"]) / samples if samples else 0.0,
            float(floor["gflop"]) / samples if floor else None,
            float(floor["megabytes"]) / samples if floor else None,
        )
    whole = 1 / float(row["photos_a_second"])
    return PhotoCost(str(row["backend"]), str(row["mode"]), networks, max(0.0, whole - inside))


@dataclass(frozen=True)
class Wanted:
    """What the line asks for."""

    photos_s: float
    """Photos a second, all boxes together."""
    deadline_s: float
    """From arrival at a box to the verdict, for `share` of the photos."""
    share: float = 0.99
    """Share of photos that must keep it."""
    steady: bool = False
    """Photos come at even times, as on a belt; else at random ones."""
    spare: int = 0
    """Boxes that may be down."""
    group: int = 4
    """Photos that a box judges at once, `sd-edge serve --group`."""

    def __post_init__(self) -> None:
        if self.photos_s <= 0 or self.deadline_s <= 0 or self.spare < 0 or self.group < 1 or not 0 < self.share < 1:
            raise SettingsError(
                f"{self.photos_s:g} photos a second within {self.deadline_s * 1e3:g} ms for {100 * self.share:g} %, "
                f"{self.spare} spare boxes, groups of {self.group}; expected numbers above 0"
            )


@dataclass(frozen=True)
class Plan:
    """The answer for one kind of box."""

    kind: str
    """The machine."""
    photo_s: float
    """A photo's time there."""
    basis: str
    """'measured' or 'estimate'."""
    use: float
    """Largest share of its time that a box may work; 0 = it cannot keep the deadline at all."""
    boxes: int | None
    """How many, spare ones included; None where no number of them keeps the deadline."""
    latency_s: float | None
    """What `share` of the photos do not exceed with that many boxes."""

    @property
    def photos_s(self) -> float:
        """Photos a second that one box may be given."""
        return self.use / self.photo_s


def plan_boxes(kind: str, photo_s: float, basis: str, wanted: Wanted) -> Plan:
    """The smallest number of equal boxes, photos spread evenly over them."""
    use = largest_use(photo_s, wanted.group, wanted.deadline_s, wanted.steady, wanted.share)
    if use <= 0:
        return Plan(kind, photo_s, basis, 0.0, None, None)
    needed = max(1, math.ceil(wanted.photos_s * photo_s / use - 1e-9))
    load = wanted.photos_s * photo_s / needed
    latency = latency_quantile_s(photo_s, wanted.group, load, wanted.steady, wanted.share)
    return Plan(kind, photo_s, basis, use, needed + wanted.spare, latency)


def gpu_of(text: str) -> tuple[str, Gpu]:
    """'l4', or NAME=TFLOPS:GIGABYTES for one that is not in the table. Raises SettingsError."""
    name, equals, figures = text.partition("=")
    if not equals:
        if name.lower() not in GPUS:
            raise SettingsError(f"the GPU {name!r} is unknown; give NAME=TFLOPS:GB/S, or one of {', '.join(GPUS)}")
        return name.lower(), GPUS[name.lower()]
    try:
        tflops, gigabytes = (float(word) for word in figures.split(":"))
        if not (0 < tflops < math.inf and 0 < gigabytes < math.inf):
            raise ValueError("not above 0")
    except ValueError as error:
        raise SettingsError(f"{text!r} is no GPU; write NAME=TFLOPS:GB/S, as in myboard=20:100") from error
    return name, Gpu(tflops, gigabytes)


def plans(cost: PhotoCost, measured_on: str, gpus: Sequence[str], wanted: Wanted) -> list[tuple[Plan, ...]]:
    """The measured machine first, then a low, an expected and a high plan for each GPU of `gpus`."""
    found: list[tuple[Plan, ...]] = [(plan_boxes(measured_on, cost.seconds, "measured", wanted),)]
    for text in gpus:
        name, gpu = gpu_of(text)
        found.append(tuple(plan_boxes(name, cost.on_gpu(gpu, times), "estimate", wanted) for times in TIMES_FLOOR))
    return found


def machine_of(value: Mapping[str, Any], cost: PhotoCost) -> str:
    """The measured machine in words."""
    machine = value.get("machine", {})
    gpu = machine.get("gpu")
    name = gpu.get("name") if isinstance(gpu, Mapping) and "CPU" not in cost.backend else None
    return str(name or f"{machine.get('processor', 'this CPU')}, {machine.get('cores', '?')} cores")


def table_row(found: Sequence[Plan]) -> tuple[str, ...]:
    """A kind of box: expected, with the low and high end of an estimate in brackets."""
    middle = found[len(found) // 2]

    def told(show: Callable[[Plan], str]) -> str:
        ends = [show(found[0]), show(found[-1])]
        return show(middle) if len(found) == 1 else f"{show(middle)} ({ends[0]}-{ends[1]})"

    return (
        middle.kind, middle.basis, told(lambda p: f"{p.photo_s * 1e3:.4g}"), told(lambda p: f"{p.photos_s:.3g}"),
        told(lambda p: f"{100 * p.use:.0f} %"), told(lambda p: "none" if p.boxes is None else str(p.boxes)),
        told(lambda p: "-" if p.latency_s is None else f"{p.latency_s * 1e3:.4g}"),
    )  # fmt: skip
