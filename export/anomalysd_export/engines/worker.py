"""Builds one engine and ends: python -m anomalysd_export.engines.worker JOB. Reads job.json, writes job.result.json.

A process of its own: a builder's memory goes back to the system, and a builder that dies takes nobody with it.
"""

from __future__ import annotations

import resource
import sys
import time
from pathlib import Path
from typing import Any

from anomalysd_edge.core.files import read_json, write_json
from anomalysd_edge.errors import SDEdgeError
from anomalysd_edge.profiling.hardware import peak_rss_bytes
from anomalysd_runtime.static_batches import references_of
from anomalysd_runtime.tensorrt.library import Library, load_library, select_polygraphy_library


def main(job_file: Path) -> int:
    """Build as the job says; the exit code is 0 where an engine was written."""
    job = read_json(job_file)
    if job["memory_limit_bytes"]:
        resource.setrlimit(resource.RLIMIT_DATA, (job["memory_limit_bytes"],) * 2)
    select_polygraphy_library(job["kind"])
    began = time.monotonic()
    result: dict[str, Any] = {"error": None}
    try:
        _build(job, load_library(job["kind"]))
    except MemoryError:
        result["error"] = "out of memory"
    except SDEdgeError as error:
        result["error"] = str(error)
    except Exception as error:  # polygraphy and the library raise classes of their own, here they become one sentence
        result["error"] = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
    result["seconds"] = time.monotonic() - began
    used = resource.getrusage(resource.RUSAGE_SELF)
    result["cpu_seconds"] = used.ru_utime + used.ru_stime
    result["peak_bytes"] = peak_rss_bytes()
    write_json(job_file.with_suffix(".result.json"), result)
    return 0 if result["error"] is None else 1


def _build(job: dict[str, Any], library: Library) -> None:
    from polygraphy.backend.trt import Profile, engine_bytes_from_network, network_from_onnx_path

    parsed = network_from_onnx_path(job["onnx"], strongly_typed=True)
    network = parsed[1]
    profiles = []
    for batch in job["batches"]:
        profile = Profile()
        for number in range(network.num_inputs):
            tensor = network.get_input(number)
            shape = _shape(tensor, batch, job["axes"])
            profile.add(tensor.name, shape, shape, shape)
        profiles.append(profile)
    cache = job["timing_cache"] if library.has_timing_cache else None
    config = library.config_loader(job["targets"], job["workspace_bytes"], profiles=profiles, load_timing_cache=cache)
    engine = engine_bytes_from_network(parsed, config=config, save_timing_cache=cache)
    Path(job["out"]).write_bytes(memoryview(engine))


def _shape(tensor: Any, batch: int, axes: dict[str, str | int]) -> tuple[int, ...]:
    """The static shape at this batch size: axes named in the graph, by what `axes` says of the name, else the batch."""
    shape = []
    for number, length in enumerate(tuple(tensor.shape)):
        name = tensor.get_dimension_name(number)
        meaning = axes.get(name, "batch")
        if length >= 0:
            shape.append(int(length))
        elif isinstance(meaning, int):
            shape.append(meaning)
        else:
            shape.append({"batch": batch, "references": references_of(batch), "passes": 2 * batch}[meaning])
    return tuple(shape)


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
