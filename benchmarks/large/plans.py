"""Edge against paper plan at Stable Diffusion 1.5's size, with random weights: counted, and measured where it can be.

    python -m benchmarks.large.plans count   --out counts.json [--side 512]
    python -m benchmarks.large.plans export  --work DIR [--side 256]
    python -m benchmarks.large.plans measure --work DIR --out results.json [--device cpu]
    python -m benchmarks.large.plans memory  --work DIR --out memory.json --max-batch 4

Random weights cost what trained ones cost; no score is read from them. The edge plan is run whole on one photo. The
paper plan's 1290 UNet samples would take an hour on a CPU: a part of its masks and passes is run, and what a mask costs
(encode, decode, distance) and what a UNet sample costs are multiplied by its counts. On a GPU --whole runs it all. The
edge plan is run again with an AutoencoderTiny in the autoencoder's place. `memory` adds the peak of one grid of one
photo, with the tiny autoencoder and UNet batches of --max-batch, to its results: a process for each batch, and the
largest one is foretold from the two smallest. --work holds about 4 GB and is yours to delete.
"""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from anomalysd_edge.core.files import read_json, write_json
from anomalysd_edge.method.anomaly_map import MapScale
from anomalysd_edge.method.class_model import Calibration, ClassModel
from anomalysd_edge.method.detector import Detector
from anomalysd_edge.method.inpainting.schedule import NoiseSchedule
from anomalysd_edge.method.networks import NetworkSizes
from anomalysd_edge.method.patches.memory_bank import MemoryBank
from anomalysd_edge.method.settings import EDGE, PAPER, InspectSettings
from anomalysd_edge.profiling.hardware import gpu_memory_bytes, machine_facts, peak_rss_bytes
from anomalysd_edge.profiling.network_meter import JOBS, MeteredNetworks
from benchmarks import harness
from benchmarks.large.networks import PROMPT_WIDTH, network

NETWORKS = ("unet", "vae_encoder", "vae_decoder", "perceptual", "features")
TINY = {"vae_encoder": "tiny_encoder", "vae_decoder": "tiny_decoder"}
"""Graphs of the tiny autoencoder, and whose place they take."""
SCHEDULE = {
    "beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012, "steps_offset": 1,
    "set_alpha_to_one": False,
}  # fmt: skip


def sizes_of(side: int) -> NetworkSizes:
    """Of Stable Diffusion at `side` pixels."""
    return NetworkSizes(size_px=side, latent_channels=4, latent_factor=8, features_px=256)


def export(work: Path, side: int) -> None:
    """Write all graphs, float32; those that are there are kept."""
    import torch

    from anomalysd_edge.training.models.features import load_features
    from anomalysd_edge.training.models.perceptual import AlexPerceptual
    from anomalysd_export.graphs import graph_specs
    from anomalysd_export.onnx_export import export_graph

    specs = graph_specs(sizes_of(side), PROMPT_WIDTH)
    write_json(work / "sizes.json", {"side": side})
    meant = {tiny: usual for usual, tiny in TINY.items()}
    for name in (*NETWORKS, *meant):
        file = work / f"{name}.onnx"
        if (work / f"{name}.done").exists():
            continue
        began = time.monotonic()
        if name == "perceptual":
            torch.manual_seed(0)
            module: Any = AlexPerceptual("lpips_alex")
        elif name == "features":
            module = load_features()[0]
        else:
            module = network(name)
        export_graph(specs[meant.get(name, name)], module, file)
        (work / f"{name}.done").touch()
        print(f"{name}: {time.monotonic() - began:.0f} s", flush=True)


def count(out: Path, side: int) -> None:
    """Count both plans' operations by shapes alone: no weights, no memory, seconds."""
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    from anomalysd_edge.training.models.features import DenseFeatures
    from anomalysd_edge.training.models.perceptual import AlexPerceptual

    sizes = sizes_of(side)
    latents = sizes.latent_side
    with torch.device("meta"):
        unet, vae, tiny = network("unet"), network("vae_decoder"), network("tiny_decoder")
        modules: dict[str, tuple[Any, tuple[Any, ...]]] = {
            "features": (DenseFeatures(), (torch.empty(1, 3, 256, 256),)),
            "encode": (lambda x: vae.encode(x).latent_dist.mode(), (torch.empty(1, 3, side, side),)),
            "unet": (
                lambda x: unet(x, 10, encoder_hidden_states=torch.empty(1, 77, PROMPT_WIDTH)),
                (torch.empty(1, 9, latents, latents),),
            ),
            "decode": (lambda z: vae.decode(z).sample, (torch.empty(1, 4, latents, latents),)),
            "tiny encode": (lambda x: tiny.encode(x).latents, (torch.empty(1, 3, side, side),)),
            "tiny decode": (lambda z: tiny.decode(z).sample, (torch.empty(1, 4, latents, latents),)),
            # Of the repaint; its reference's features are made once.
            "distance": (AlexPerceptual("lpips_alex").trunk, (torch.empty(1, 3, side, side),)),
        }
        gflop = {}
        for job, (module, inputs) in modules.items():
            with FlopCounterMode(display=False) as counter, torch.no_grad():
                module(*inputs)
            gflop[job] = counter.get_total_flops() / 1e9
    counts = {"paper": whole_counts(PAPER, sizes), "edge": whole_counts(EDGE, sizes)}
    total = {plan: sum(n * gflop[job] for job, n in mine.items()) for plan, mine in counts.items()}
    small = {**gflop, "encode": gflop["tiny encode"], "decode": gflop["tiny decode"]}
    total["edge, tiny autoencoder"] = sum(n * small[job] for job, n in counts["edge"].items())
    found = {
        "what": "Stable Diffusion 1.5's size, counted by shapes",
        "side_px": side,
        "gflop_a_sample": gflop,
        "counts": counts,
        "gflop_a_photo": total,
        "counted_ratio": total["paper"] / total["edge"],
        "counted_ratio_with_a_tiny_autoencoder": total["paper"] / total["edge, tiny autoencoder"],
    }
    write_json(out, found)
    print(found)


def constants(rng: np.random.Generator, depth: int) -> ClassModel:
    """A class with a bank of 4096 prototypes and a guided mask: what a photo asks for at most."""
    vectors = rng.normal(size=(4096, depth)).astype(np.float32)
    return ClassModel(
        prompts={"whole": rng.normal(size=(77, PROMPT_WIDTH)).astype(np.float32)},
        banks=(MemoryBank(vectors / np.linalg.norm(vectors, axis=1, keepdims=True)),),
        guided=dict.fromkeys(("distance", "own", "reading"), 0.0),
        calibration=Calibration(
            1.0, scales={name: MapScale(0.1, 0.1) for name in ("prototypes", "multiscale", "guided")}
        ),
    )


def run(networks: MeteredNetworks, settings: InspectSettings, known: ClassModel) -> tuple[float, dict[str, Any]]:
    """Seconds of one photo, and its counts."""
    for tally in networks.meter.jobs.values():
        tally.calls = tally.samples = tally.bytes = 0
        tally.seconds = 0.0
    rng = np.random.default_rng(1)
    photo = rng.integers(0, 255, (512, 512, 3)).astype(np.uint8)
    detector = Detector(networks, NoiseSchedule.from_config(SCHEDULE), {"part": known}, settings, group=1)
    began = time.monotonic()
    detector.inspect([photo], "part")
    return time.monotonic() - began, networks.meter.to_json()


def whole_counts(settings: InspectSettings, sizes: NetworkSizes) -> dict[str, int]:
    """Samples of each network for one photo, guided mask included, worked out from the plan."""
    from anomalysd_edge.method.inpainting.mask_plan import make_plan

    slots = len(make_plan(settings.plan, sizes.latent_side, settings.scales).slots) + 1
    schedule = NoiseSchedule.from_config(SCHEDULE)
    passes = len(schedule.table(settings.sampler, settings.grid_steps, settings.passes, settings.strength))
    decodes = (len(settings.scales) + 1 if settings.merge_decode else slots) + (settings.reference != "photo")
    measured = len(settings.scales) + 1 if settings.merge_decode else slots
    features = 1 + (measured + 1 if settings.features_weight else 0)
    return {
        "features": features,
        "encode": 1 + slots,
        "unet": slots * passes * settings.draws,
        "decode": decodes,
        "distance": measured if settings.perceptual_weight else 0,
    }


def measure(work: Path, out: Path, device: str, threads: int, max_batch: int, whole: bool) -> None:
    """Run both plans and write what they took."""
    from anomalysd_export.engines.counting import graph_cost
    from anomalysd_runtime.machine_rates import measure_rates
    from anomalysd_runtime.onnx.networks import OnnxNetworks

    sizes = sizes_of(int(read_json(work / "sizes.json")["side"]))
    files = {name: work / f"{name}.onnx" for name in NETWORKS}
    rates = measure_rates(device, threads)
    gflop = {job: graph_cost(files[name]).flops / 1e9 for job, name in zip(JOBS, ORDER, strict=True)}
    found: dict[str, Any] = {
        "what": "Stable Diffusion 1.5's size, random weights, float32", "side_px": sizes.size_px,
        "max_batch": max_batch, "machine": machine_facts(), "gflop_a_sample": gflop,
        "gflop_a_second": rates.flops_a_second / 1e9,
    }  # fmt: skip
    rng = np.random.default_rng(0)
    with OnnxNetworks(files, sizes, device, threads, max_batch) as opened:
        depth = opened.features(np.zeros((1, 3, 256, 256), np.float32)).shape[1]
        known = constants(rng, depth)
        networks = MeteredNetworks(opened)
        counts = {"paper": whole_counts(PAPER, sizes), "edge": whole_counts(EDGE, sizes)}
        total = {plan: sum(n * gflop[job] for job, n in mine.items()) for plan, mine in counts.items()}
        found |= {"counts": counts, "gflop_a_photo": total, "counted_ratio": total["paper"] / total["edge"]}
        small = replace(EDGE, scales=(2,), draws=1)
        run(networks, small, known)  # warm-up
        rates = measure_rates(device, threads)  # again: the machine's load changes
        edge_s, edge_jobs = run(networks, EDGE, known)
        assert {job: edge_jobs[job]["samples"] for job in JOBS} == counts["edge"], "the plan's counts are the run's"
        found |= {"edge_seconds": edge_s, "edge_jobs": edge_jobs}
        found["edge_share_of_matrix_rate_in_unet"] = _share(edge_jobs["unet"], gflop["unet"], rates.flops_a_second)
        write_json(out, found)
        # Two grids' worth of masks, three of fifteen passes.
        part = PAPER if whole else replace(PAPER, scales=(1, 2), grid_steps=10)
        part_s, part_jobs = run(networks, part, known)
        each = {job: part_jobs[job]["seconds"] / max(1, part_jobs[job]["samples"]) for job in JOBS}
        outside = part_s - sum(part_jobs[job]["seconds"] for job in JOBS)
        slots = part_jobs["distance"]["samples"]
        scaled = sum(each[job] * counts["paper"][job] for job in JOBS) + outside / slots * counts["paper"]["distance"]
        found |= {
            "paper_part_seconds": part_s,
            "paper_part_jobs": part_jobs,
            "paper_seconds": part_s if whole else scaled,
            "paper_seconds_are": "measured" if whole else "a part measured, times the plan's counts",
            "measured_ratio": (part_s if whole else scaled) / edge_s,
            "paper_share_of_matrix_rate_in_unet": _share(part_jobs["unet"], gflop["unet"], rates.flops_a_second),
            "peak_rss_gib": peak_rss_bytes() / 2**30,
            "gpu_gib": (gpu_memory_bytes() or 0) / 2**30,
            "gflop_a_second_just_before": rates.flops_a_second / 1e9,
        }
        write_json(out, found)
    files |= {usual: work / f"{tiny}.onnx" for usual, tiny in TINY.items()}
    with OnnxNetworks(files, sizes, device, threads, max_batch) as opened:
        networks = MeteredNetworks(opened)
        run(networks, small, known)
        tiny_s, tiny_jobs = run(networks, EDGE, known)
    found |= {"tiny_seconds": tiny_s, "tiny_jobs": tiny_jobs, "tiny_ratio": found["paper_seconds"] / tiny_s}
    write_json(out, found)
    print({k: v for k, v in found.items() if isinstance(v, float)})


def memory(work: Path, out: Path, threads: int, max_batch: int) -> None:
    """Add this process's peak at one UNet batch to `out`."""
    from anomalysd_runtime.onnx.networks import OnnxNetworks

    sizes = sizes_of(int(read_json(work / "sizes.json")["side"]))
    files = {name: work / f"{TINY.get(name, name)}.onnx" for name in NETWORKS}
    with OnnxNetworks(files, sizes, "cpu", threads, max_batch) as opened:
        depth = opened.features(np.zeros((1, 3, 256, 256), np.float32)).shape[1]
        grid = replace(EDGE, scales=(4,), draws=2)
        run(MeteredNetworks(opened), grid, constants(np.random.default_rng(0), depth))
    peaks = read_json(out)["peak_bytes"] if out.exists() else {}
    peaks = {**peaks, str(max_batch): peak_rss_bytes()}
    found: dict[str, Any] = {"side_px": sizes.size_px, "machine": machine_facts(), "peak_bytes": peaks}
    if len(peaks) > 2:
        first, second, *_, last = sorted(int(batch) for batch in peaks)
        a_row = (peaks[str(second)] - peaks[str(first)]) / (second - first)
        found["foretold"] = {str(last): round(peaks[str(first)] + (last - first) * a_row)}
    write_json(out, found)
    print(found)


ORDER = ("features", "vae_encoder", "unet", "vae_decoder", "perceptual")
"""The graphs, in the order of metering.JOBS."""


def _share(tally: dict[str, float], gflop: float, rate: float) -> float:
    return tally["samples"] * gflop * 1e9 / tally["seconds"] / rate


def main() -> None:
    """Export or measure."""
    parser = harness.parser_of(__doc__, "--threads")
    parser.add_argument("step", choices=("count", "export", "measure", "memory"))
    parser.add_argument("--work", type=Path)
    parser.add_argument("--side", type=int, default=256)
    parser.add_argument("--out", type=Path, default=Path("large-plans.json"))
    parser.add_argument("--device", default="cpu", help="cpu or cuda (ONNX Runtime)")
    parser.add_argument("--max-batch", type=int, default=4)
    parser.add_argument("--whole", action="store_true", help="run the whole paper plan")
    asked = parser.parse_args()
    if asked.step == "count":
        count(asked.out, asked.side)
        return
    if asked.work is None:
        parser.error("--work is needed: where the graphs lie")
    asked.work.mkdir(parents=True, exist_ok=True)
    if asked.step == "export":
        export(asked.work, asked.side)
    elif asked.step == "memory":
        memory(asked.work, asked.out, asked.threads, asked.max_batch)
    else:
        measure(asked.work, asked.out, asked.device, asked.threads, asked.max_batch, asked.whole)


if __name__ == "__main__":
    main()
