"""What this machine's matrix units and memory reach, measured through the same library that runs the networks."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any

import numpy as np

from anomalysd_edge.core.threads import cores
from anomalysd_runtime.onnx.graph_bytes import FLOAT, FLOAT16, model, node, tensor
from anomalysd_runtime.onnx.sessions import empty_on, open_session, run_bound, to_device

SIDES = {"cpu": (768, 1024, 1536, 2048), "cuda": (2048, 4096, 8192)}
"""Sides of the square matrices that are tried: the best of them is the rate."""
COPIED_BYTES = {"cpu": 128 << 20, "cuda": 1 << 30}


@dataclass(frozen=True)
class MachineRates:
    """Best of several tries; nothing that runs on this machine this way is faster."""

    flops_a_second: float
    """Multiplications and additions of a matrix product."""
    bytes_a_second: float
    """Read and written by a sum of a tensor with itself."""
    dtype: str
    """Of the matrices."""


def measure_rates(
    device: str = "cpu", threads: int | None = None, half: bool = False, seconds: float = 1.0
) -> MachineRates:
    """Measure on `device` (cpu or cuda), about `seconds` for each of the two rates. Raises BackendError."""
    kind, dtype = (FLOAT16, np.float16) if half else (FLOAT, np.float32)
    count = threads or cores()
    product = model(
        "product", [node("MatMul", ["a", "b"], ["c"])],
        [tensor("a", ("m", "k"), kind), tensor("b", ("k", "n"), kind)], [tensor("c", ("m", "n"), kind)],
    )  # fmt: skip
    session = open_session(product, device, count, "product")
    rng = np.random.default_rng(0)
    best = 0.0
    place = "cpu" if device == "cpu" else "cuda"
    for side in SIDES[place]:
        # Random numbers: a constant matrix draws less power and runs faster than any network's weights do.
        a = to_device(device, rng.uniform(-1, 1, (side, side)).astype(dtype))
        feeds, out = {"a": a, "b": a}, {"c": _empty_on(device, (side, side), dtype)}
        best = max(best, 2 * side**3 / _fastest(session, feeds, out, seconds / len(SIDES[place])))
    double = model("double", [node("Add", ["a", "a"], ["b"])], [tensor("a", ("n",))], [tensor("b", ("n",))])
    session = open_session(double, device, count, "double")
    values = to_device(device, rng.uniform(-1, 1, COPIED_BYTES[place] // 8).astype(np.float32))
    target = {"b": empty_on(device, (COPIED_BYTES[place] // 8,))}
    moved = COPIED_BYTES[place] / _fastest(session, {"a": values}, target, seconds)
    return MachineRates(best, moved, np.dtype(dtype).name)


def _fastest(session: Any, feeds: dict[str, Any], out: dict[str, Any], seconds: float) -> float:
    """Seconds of the fastest of several runs; the first one warms up."""
    run_bound(session, feeds, out, "rate")
    best, until = float("inf"), time.perf_counter() + seconds
    while True:
        began = time.perf_counter()
        run_bound(session, feeds, out, "rate")
        now = time.perf_counter()
        best = min(best, now - began)
        if now > until:
            return best


def _empty_on(device: str, shape: tuple[int, ...], dtype: type[np.generic]) -> Any:
    return to_device(device, np.empty(shape, dtype)) if dtype is np.float16 else empty_on(device, shape)
