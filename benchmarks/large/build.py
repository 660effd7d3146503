"""Engines of Stable Diffusion 1.5's size, built ahead of time from random weights: time, size, memory.

    python -m benchmarks.large.build --out FOLDER [--networks unet,vae_decoder] [--targets portable] [--batch 1]

Weights are random, so only the cost of building is measured, never a score. Graphs are exported in float32, brought to
the asked precision by the same code as `sd-edge build`, and built by the same process. Everything but the results file
is removed when it has been measured: the float32 UNet alone takes 3.4 GB.
"""

from __future__ import annotations

import json
import os
import resource
import sys
from pathlib import Path
from typing import Any

import onnx

from anomalysd_edge.core.files import write_json
from anomalysd_edge.method.networks import NetworkSizes
from anomalysd_edge.profiling.hardware import peak_rss_bytes
from anomalysd_export.engines.building import run_worker
from anomalysd_export.engines.lowering import lower
from anomalysd_export.engines.precisions import save_graph
from anomalysd_export.engines.profiles import Graph
from benchmarks import harness
from benchmarks.large.networks import PROMPT_WIDTH, network

SIZES = NetworkSizes(size_px=512, latent_channels=4, latent_factor=8, features_px=0)


def export(name: str, file: Path) -> None:
    """Write the float32 graph of `name`."""
    from anomalysd_export.graphs import graph_specs
    from anomalysd_export.onnx_export import export_graph

    export_graph(graph_specs(SIZES, PROMPT_WIDTH)[name], network(name), file)


def convert(source: Path, name: str, precision: str, target: Path) -> None:
    """Write `source` in `precision`."""
    save_graph(lower(onnx.load(str(source)), name, precision).model, target)


def in_a_process(*arguments: str) -> dict[str, float]:
    """Run a step of this script by itself: seconds on the wall, seconds of CPU, peak memory in bytes."""
    found, seconds, _ = harness.timed(harness.last_json, "large.build", *arguments)
    return {"seconds": seconds, **found}


def used() -> dict[str, float]:
    """CPU seconds and peak memory of this process."""
    mine = resource.getrusage(resource.RUSAGE_SELF)
    return {"cpu_seconds": mine.ru_utime + mine.ru_stime, "peak_bytes": peak_rss_bytes()}


def measure(name: str, precision: str, targets: list[str], batches: list[int], work: Path) -> dict[str, Any]:
    """Export, convert and build one network; the figures of each step."""
    raw, low, plan = work / "raw.onnx", work / "low.onnx", work / "out.plan"
    found: dict[str, Any] = {"export": in_a_process("--step", "export", name, str(raw))}
    found["convert"] = in_a_process("--step", "convert", str(raw), name, precision, str(low))
    for file in (raw, Path(f"{raw}.data")):
        file.unlink(missing_ok=True)
    graph = Graph.read(low)
    found["weights_bytes"] = graph.weights_bytes
    found["predicted_activation_bytes"] = {str(size): graph.activation_bytes(size) for size in batches}
    job: dict[str, Any] = {
        "onnx": str(low), "kind": "rtx", "targets": targets, "batches": batches, "axes": {}, "timing_cache": "",
        "memory_limit_bytes": None, "workspace_bytes": None, "out": str(plan),
    }  # fmt: skip
    found["build"] = run_worker(job, name, work)
    found["engine_bytes"] = plan.stat().st_size
    for file in (low, Path(f"{low}.data"), plan):
        file.unlink(missing_ok=True)
    return found


def main() -> None:
    """Measure and write FOLDER/build-large.json."""
    if sys.argv[1:2] == ["--step"]:
        step, *rest = sys.argv[2:]
        if step == "export":
            export(rest[0], Path(rest[1]))
        else:
            convert(Path(rest[0]), rest[1], rest[2], Path(rest[3]))
        print(json.dumps(used()))
        return
    parser = harness.parser_of(__doc__, "--out")
    parser.add_argument("--networks", default="unet,vae_decoder,vae_encoder")
    parser.add_argument("--precision", default="fp16")
    parser.add_argument("--targets", default="portable")
    parser.add_argument("--batch", default="1")
    asked = parser.parse_args()
    asked.out.mkdir(parents=True, exist_ok=True)
    batches = harness.numbers(asked.batch)
    results: dict[str, Any] = {
        "machine": harness.processor(),
        "precision": asked.precision,
        "targets": asked.targets,
        "batches": batches,
        "networks": {},
    }
    for name in asked.networks.split(","):
        results["networks"][name] = measure(name, asked.precision, asked.targets.split(","), batches, asked.out)
        results["load_average"] = os.getloadavg()
        write_json(asked.out / "build-large.json", results)
        print(name, json.dumps(results["networks"][name]))


if __name__ == "__main__":
    main()
