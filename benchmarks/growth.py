"""How time and memory grow: with masks, photo size, batch, photos in flight, classes, and the number of photos.

    python benchmarks/growth.py --bundle BUNDLE --photo PHOTO --class NAME --out results.json [--parts masks,batch,...]

Every row is measured in a process of its own, from file to verdict (`sd-edge bench`'s own code). A part that stands in
the results file is not measured again: --fresh for that.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from anomalysd_edge.bundle.reader import CONSTANTS, MANIFEST, prompt_key, prototypes_key, read_bundle
from anomalysd_edge.bundle.writer import write_bundle
from anomalysd_edge.cli.bench import in_own_process
from anomalysd_edge.core.files import read_json, write_json
from anomalysd_edge.profiling.hardware import machine_facts
from anomalysd_edge.profiling.measurement import BenchRequest, BenchRow
from anomalysd_edge.vision import images

MASKS = ((1,), (2,), (4,), (1, 2, 4), (8,), (1, 2, 4, 8))
"""Scales of the paper plan: 1, 4, 16, 21, 64 and 85 masks, and the prototype-guided one."""
SIDES = (128, 512, 1024, 2048, 4096, 7000)
"""Of the camera's photo, in pixels: what reading and resizing add."""
BATCHES = (1, 2, 4, 8, 16, 32)
FLIGHTS = (1, 2, 4, 8, 16)
CLASSES = (1, 10, 100)


def short(row: BenchRow) -> dict[str, Any]:
    """What a row of this benchmark keeps."""
    return {
        "p50_ms": row.p50_ms,
        "photos_a_second": row.photos_a_second,
        "peak_rss_mib": row.peak_rss_bytes / 2**20,
        "unet_samples": row.counts["unet"]["samples"],
        "in_networks": row.in_networks,
        "file_and_preprocess_ms": row.stages_ms["file"] + row.stages_ms["preprocess"],
        "rounds": row.rounds,
        "first_verdict_s": row.first_verdict_s,
        "rss_mib_first_middle_last": [value / 2**20 for value in row.rss_rounds_bytes],
    }


def with_classes(bundle: Path, name: str, count: int, target: Path) -> list[str]:
    """Write `bundle` with `count` copies of the class `name`, to `target`; their names."""
    found = read_bundle(bundle, verify=False)
    names = [f"{name}_{i}" for i in range(count)]
    shared = ("prompts/negative", "reading/")
    constants = {key: value for key, value in found.constants.items() if key.startswith(shared)}
    for copy in names:
        for level in ("whole", "detail"):
            if prompt_key(name, level) in found.constants:
                constants[prompt_key(copy, level)] = found.constants[prompt_key(name, level)]
        if prototypes_key(name) in found.constants:
            constants[prototypes_key(copy)] = found.constants[prototypes_key(name)]
    manifest = replace(found.manifest, classes=dict.fromkeys(names, found.manifest.classes[name]), precisions={})
    with write_bundle(target) as writer:
        for part in bundle.iterdir():
            if part.is_dir() and part.name in found.manifest.networks:
                (writer.folder / part.name).mkdir()
                for file in part.iterdir():
                    (writer.folder / part.name / file.name).write_bytes(file.read_bytes())
        writer.finish(manifest, constants)
    assert (target / MANIFEST).is_file()
    assert (target / CONSTANTS).is_file()
    return names


def parts(
    bundle: Path, photo: Path, name: str, threads: int, work: Path
) -> dict[str, Callable[[], list[dict[str, Any]]]]:
    """The measurements, by name."""
    base = BenchRequest(str(bundle), [(str(photo), name)], threads=threads, rounds=8, warm_up=1)

    def row(note: dict[str, Any], asked: BenchRequest) -> dict[str, Any]:
        found = {**note, **short(in_own_process(asked))}
        print(found, flush=True)
        return found

    def masks() -> list[dict[str, Any]]:
        paper = replace(base, preset="paper", rounds=3, seconds=25.0)
        return [
            row({"masks": sum(k * k for k in scales)}, replace(paper, changes={"scales": list(scales)}))
            for scales in MASKS
        ]

    def sizes() -> list[dict[str, Any]]:
        found = []
        picture = Image.fromarray(images.load_rgb(photo))
        for side in SIDES:
            file = work / f"{side}.jpg"
            picture.resize((side, side), Image.Resampling.BICUBIC).save(file, quality=92)
            found.append(row({"side_px": side}, replace(base, photos=[(str(file), name)])))
        return found

    def classes() -> list[dict[str, Any]]:
        found = []
        for count in CLASSES:
            names = with_classes(bundle, name, count, work / f"classes-{count}")
            asked = replace(base, bundle=str(work / f"classes-{count}"), photos=[(str(photo), n) for n in names])
            found.append(row({"classes": count}, replace(asked, in_flight=4, rounds=5)))
        return found

    return {
        "masks": masks,
        "sizes": sizes,
        "batch": lambda: [row({"batch": n}, replace(base, batch=n, in_flight=4, rounds=4)) for n in BATCHES],
        "in_flight": lambda: [
            row({"in_flight": n}, replace(base, in_flight=n, rounds=max(2, 16 // n))) for n in FLIGHTS
        ],
        "classes": classes,
        "photos": lambda: [row({"photos": n}, replace(base, rounds=n)) for n in (4, 16, 64)],
    }


def main() -> None:
    """Measure and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bundle", type=Path, required=True)
    parser.add_argument("--photo", type=Path, required=True)
    parser.add_argument("--class", dest="name", required=True)
    parser.add_argument("--parts", default="masks,sizes,batch,in_flight,classes,photos")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--fresh", action="store_true")
    parser.add_argument("--out", type=Path, required=True)
    asked = parser.parse_args()
    collected: dict[str, Any] = read_json(asked.out) if asked.out.is_file() and not asked.fresh else {}
    with tempfile.TemporaryDirectory() as work:
        known = parts(asked.bundle, asked.photo, asked.name, asked.threads, Path(work))
        for part in asked.parts.split(","):
            if part not in collected:
                before = machine_facts()
                collected[part] = {"load_average_before": before["load_average"], "rows": known[part]()}
                collected["machine"] = before
                write_json(asked.out, collected)
    memory = [row["peak_rss_mib"] for row in collected.get("photos", {}).get("rows", [])]
    if memory:
        print(f"peak memory with more photos: {np.round(memory, 1).tolist()} MiB")


if __name__ == "__main__":
    main()
