"""Subcommand large: networks of Stable Diffusion 1.5's size at 512 px in fp16, with random weights.

What torch shows needs torch and diffusers alone; what ONNX Runtime shows needs the exported UNet, which --work keeps.
"""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from anomalysd_edge.core.types import F32
from benchmarks.gpu.claims import Claim, Kit, Lines, Part
from benchmarks.gpu.machine import matrix_rate, seconds_of
from benchmarks.gpu.needs import first_missing

if TYPE_CHECKING:
    from benchmarks.gpu.large_networks import Large

BATCHES = (1, 2, 4, 8, 16)
GIB = 2**30
NAIVE_MASKS = 6
"""That the pipeline is called for: what the others would take follows from these."""

CLAIMS = (
    Claim("large.rate", "the UNet in fp16 fills the matrix units at batch 16", "30 % of the random-data rate", True),
    Claim("large.batch", "a sample costs less in a batch", "at 16 no more than at 1", True),
    Claim("large.memory", "batch 16 needs little beside the weights", "at most 6 GiB at the peak", True),
    Claim("large.fused", "fused attention is faster and needs less memory than not", "less of both, at batch 16", True),
    Claim(
        "large.plans", "the edge plan costs a fraction of the paper's, as its operations say", "15 times or more", True
    ),
    Claim("large.naive", "the exact plan is no slower than a call a mask", "1 time or more", True),
    Claim("large.graph", "the exported UNet in ONNX Runtime is torch's", "within 2 % of the largest output"),
    Claim("large.graph_time", "and it takes no longer", "at most 1.25 times torch's time at batch 16", True),
    Claim("large.operator", "in it, too, fused attention saves both", "less time and memory; at most 8 GiB", True),
    Claim("large.binding", "IO binding spares the copies", "no slower than numpy in and out", True),
)


def run(kit: Kit, lines: Lines) -> None:
    """Show CLAIMS."""
    import torch

    from benchmarks.gpu.large_networks import large

    made = large(kit)
    rate = matrix_rate(kit, torch.float16)
    times: dict[int, float] = {}
    with torch.no_grad():
        with lines.showing("large.rate", "large.batch", "large.memory"):
            times = _unet(kit, lines, made, rate)
        with lines.showing("large.fused"):
            _fused(kit, lines, made)
        with lines.showing("large.plans", "large.naive"):
            _plans(lines, made)
    right = made.answer(BATCHES[-1])
    made.free()
    _release(kit)
    why = first_missing(kit, ("onnxruntime-gpu",))
    if not unet_graph(kit).is_file():
        why = why or first_missing(kit, ("export",))
    if why:
        lines.not_shown_rest(why)
        return
    with lines.showing("large.graph", "large.graph_time", "large.operator", "large.binding"):
        _graph(kit, lines, made, right, times)


def unet_graph(kit: Kit) -> Path:
    """Where the UNet's fp16 graph is kept."""
    return kit.work / ("rehearsal-large" if kit.rehearsal else "large") / "unet.onnx"


def _unet(kit: Kit, lines: Lines, made: Large, rate: float) -> dict[int, float]:
    """Milliseconds a sample by batch."""
    rows: dict[int, dict[str, float]] = {}
    for batch in BATCHES:
        with _peak(kit) as peak:
            seconds = seconds_of(kit, made.unet_call(batch)) / batch
        rows[batch] = {"ms_a_sample": seconds * 1e3, "share": made.unet_flops / seconds / rate, "peak_gib": peak[0]}
    first, last = rows[BATCHES[0]], rows[BATCHES[-1]]
    lines.shown("large.rate", last["share"], last["share"] >= 0.3, batches=rows, flops_a_second=rate)
    lines.shown("large.batch", last["ms_a_sample"] / first["ms_a_sample"], last["ms_a_sample"] <= first["ms_a_sample"])
    lines.shown("large.memory", last["peak_gib"], last["peak_gib"] <= 6)
    return {batch: row["ms_a_sample"] for batch, row in rows.items()}


def _fused(kit: Kit, lines: Lines, made: Large) -> None:
    from torch.nn.attention import SDPBackend, sdpa_kernel

    fused = [SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION, SDPBackend.CUDNN_ATTENTION]
    found = {}
    for name, kernels in (("fused", fused), ("not fused", [SDPBackend.MATH])):
        with sdpa_kernel(kernels), _peak(kit) as peak:
            seconds = seconds_of(kit, made.unet_call(BATCHES[-1]))
        found[name] = {"ms_a_sample": seconds * 1e3 / BATCHES[-1], "peak_gib": peak[0]}
        _release(kit)
    less = all(found["fused"][key] < found["not fused"][key] for key in found["fused"])
    lines.shown("large.fused", found, less)


def _plans(lines: Lines, made: Large) -> None:
    """The whole edge and paper plan on one photo, and the pipeline for some of the masks."""
    from anomalysd_edge.method.settings import EDGE, PAPER
    from anomalysd_edge.profiling.network_meter import MeteredNetworks
    from benchmarks.large import plans

    settings = made.plans(EDGE, PAPER)
    with made.networks() as opened:
        known = made.known(opened)
        networks = MeteredNetworks(opened)
        plans.run(networks, settings["edge"], known)  # warm-up
        seconds = {}
        jobs = {}
        for name, plan in settings.items():
            seconds[name], jobs[name] = plans.run(networks, plan, known)
        ratio = seconds["paper"] / seconds["edge"]
        lines.shown("large.plans", ratio, ratio >= 15, seconds=seconds, jobs=jobs)
    masks = jobs["paper"]["encode"]["samples"] - 1
    done, taken = made.naive(NAIVE_MASKS, settings["paper"])
    whole = taken / done * masks
    figures = {"seconds": whole, "masks": masks, "masks_run": done, "edge_times_faster": whole / seconds["edge"]}
    lines.shown("large.naive", whole / seconds["paper"], whole >= seconds["paper"], **figures)


def _graph(kit: Kit, lines: Lines, made: Large, right: F32, torch_ms: dict[int, float]) -> None:
    """The exported fp16 UNet: values, times by numpy and by binding, memory with and without fused attention."""
    from anomalysd_runtime.onnx.fused_attention import fuse_attention
    from anomalysd_runtime.onnx.sessions import open_session
    from anomalysd_runtime.onnx.sessions import run as run_numpy

    file, batch = unet_graph(kit), BATCHES[-1]
    if not file.is_file():
        made.export_unet(file)
    operators = fuse_attention(file.read_bytes())[1]
    found: dict[bool, dict[str, float]] = {}
    rows: dict[int, dict[str, float]] = {}
    for fuse in (True, False):
        before = _used_bytes(kit)
        session = open_session(file, kit.device, 1 if kit.rehearsal else 4, "unet", fuse=fuse)
        for size in BATCHES if fuse else (batch,):
            call = partial(run_numpy, session, made.feeds(size), "unet")
            if fuse and size == batch:
                far = float(np.abs(call().astype(np.float32) - right).max() / np.abs(right).max())
                lines.shown("large.graph", far, far <= 0.02, operators=operators)
            taken = seconds_of(kit, call), seconds_of(kit, _bound(kit, session, made.feeds(size)))
            rows[size] = {"numpy_ms_a_sample": taken[0] / size * 1e3, "binding_ms_a_sample": taken[1] / size * 1e3}
        # ONNX Runtime's arena only grows: what is held at the end was the peak.
        gib = (_used_bytes(kit) - before) / GIB
        found[fuse] = {"ms_a_sample": rows[batch]["binding_ms_a_sample"], "gib": gib}
        if fuse:
            _graph_times(lines, rows, torch_ms)
        del session, call
        _release(kit)
    less = all(found[True][key] < found[False][key] for key in found[True])
    measured = {"one operator": found[True], "products": found[False]}
    lines.shown("large.operator", measured, less and operators > 0 and found[True]["gib"] <= 8)


def _graph_times(lines: Lines, rows: dict[int, dict[str, float]], torch_ms: dict[int, float]) -> None:
    last = rows[BATCHES[-1]]
    if torch_ms:
        ratio = last["binding_ms_a_sample"] / torch_ms[BATCHES[-1]]
        lines.shown("large.graph_time", ratio, ratio <= 1.25, batches=dict(rows), torch_ms=torch_ms)
    else:
        lines.not_shown("large.graph_time", "torch's time was not measured")
    ratio = last["binding_ms_a_sample"] / last["numpy_ms_a_sample"]
    lines.shown("large.binding", ratio, ratio <= 1.0)


def _bound(kit: Kit, session: Any, feeds: dict[str, Any]) -> Callable[[], None]:
    """A call from and into tensors that stay on the device."""
    from anomalysd_runtime.onnx.sessions import run_bound, to_device

    inputs = {name: to_device(kit.device, value) for name, value in feeds.items()}
    (output,) = session.get_outputs()
    shape = (len(feeds["sample"]), 4, *feeds["sample"].shape[2:])
    kind = np.float16 if output.type == "tensor(float16)" else np.float32
    outputs = {output.name: to_device(kit.device, np.zeros(shape, kind))}
    return lambda: run_bound(session, inputs, outputs, "unet")


@contextmanager
def _peak(kit: Kit) -> Iterator[list[float]]:
    """GiB that torch held at the peak of a block, weights included; a list of one number, set at the end."""
    import torch

    found = [0.0]
    if not kit.rehearsal:
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    yield found
    if not kit.rehearsal:
        torch.cuda.synchronize()
        found[0] = torch.cuda.max_memory_allocated() / GIB


def _used_bytes(kit: Kit) -> int:
    from benchmarks.gpu.primitives import used_bytes

    return used_bytes(kit)


def _release(kit: Kit) -> None:
    """Give torch's cached memory back to the GPU."""
    import torch

    gc.collect()
    if not kit.rehearsal:
        torch.cuda.empty_cache()
        time.sleep(0.1)


PARTS = (Part("large", "Stable Diffusion 1.5's size, 512 px, fp16", 300, ("torch", "training"), CLAIMS, run),)
