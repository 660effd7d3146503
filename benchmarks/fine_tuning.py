"""What a few minutes of fine-tuning learn, an ablation: each setting trains a model of its own on the same classes.

    python -m benchmarks.fine_tuning --textures DIR --classes 10 --shots 4 --out out/fine-tuning.json

The classes are made as the threshold prior's are, half from photos of DIR that the embedded base was not taught on,
half drawn; each has further good photos and as many with a painted defect. S_ms alone is measured, under preset edge,
and the difference from the first setting paired over classes, with its standard error. What is measured stays in FILE,
and the same command goes on from there.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from anomalysd_edge.calibration.outcome import words
from anomalysd_edge.calibration.settings_search import judged, merit, small_masks
from anomalysd_edge.core.files import read_json, write_json
from anomalysd_edge.core.types import Progress
from anomalysd_edge.data.class_inference import guess
from anomalysd_edge.data.classes import ClassSpec
from anomalysd_edge.method.class_model import ClassModel
from anomalysd_edge.method.detector import Detector
from anomalysd_edge.method.inpainting.schedule import NoiseSchedule
from anomalysd_edge.method.settings import EDGE
from anomalysd_edge.reports.console import progress_bars, show_table
from anomalysd_edge.training.models.base import prompt_states
from anomalysd_edge.training.nano.textures import split_photos
from anomalysd_edge.training.run import Run, networks_of_run
from anomalysd_edge.training.settings import TrainSettings
from anomalysd_edge.training.threshold_prior.known_classes import Photographed, photographed, sources
from anomalysd_edge.training.train import train
from anomalysd_edge.vision.images import list_images
from benchmarks import harness

VARIANTS: tuple[Mapping[str, Any], ...] = (
    {},
    {"start_corruption": 0.0},
    {"start_corruption": 0.8},
    {"lr": 2e-4},
    {"lr": 1e-3},
    {"max_timestep": 0.18},
    {"max_timestep": 0.6},
    {"grid_masks": 0.3},
    {"grid_masks": 1.0},
    {"mask_most": 1},
    {"lora_rank": 16, "lr": 2e-3},
    {"steps": 1080},
)
"""Changes of the nano base's defaults."""
JUDGED = 8
"""Good photos of a class that are judged, and as many defective ones, at most."""


def classes_of(textures: Path, count: int) -> dict[str, Photographed]:
    """`count` classes by name, half of photos that the base was not taught on, half drawn. Deterministic."""
    held_out = {photo.path for photo in split_photos(textures)[1]}
    everything = list_images(textures)
    found: dict[str, Photographed] = {}
    wanted = {"photo": count - count // 2, "drawn": count // 2}
    used: set[Path | int] = set()
    for number, source in enumerate(sources(everything, 10_000)):
        kind = "photo" if isinstance(source, Path) else "drawn"
        if not wanted[kind] or source in used or (isinstance(source, Path) and source not in held_out):
            continue
        made = photographed(source, number, everything)
        if made.defective:
            used.add(source)
            wanted[kind] -= 1
            found[f"{made.group.split()[-1]} {number}"] = made
    return found


def fine_tuned(classes: Mapping[str, Photographed], settings: TrainSettings, folder: Path, progress: Progress) -> Run:
    """A model of all classes, in `folder`."""
    files: dict[str, list[Path]] = {}
    for name, made in classes.items():
        for number, photo in enumerate(made.shots[: settings.shots]):
            file = folder / "shots" / name / f"{number}.png"
            file.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(photo).save(file)
            files.setdefault(name, []).append(file)
    specs = {name: guess(ClassSpec(name, name), made.shots[: settings.shots]) for name, made in classes.items()}
    return train(settings, files, folder / "run", specs, progress=progress)


def measured(run: Run, classes: Mapping[str, Photographed], threads: int) -> dict[str, tuple[float, float]]:
    """(image AUROC, pixel AUROC) of S_ms by class, in [0,1]."""
    base = run.load()
    schedule = NoiseSchedule.from_config(base.scheduler)
    found: dict[str, tuple[float, float]] = {}
    with networks_of_run(run, threads=threads) as networks:
        for name, made in classes.items():
            spec = run.specs[name]
            states = np.ascontiguousarray(prompt_states(base, [spec.prompts().whole])[0].numpy(), np.float32)
            known = ClassModel(prompts={"whole": states}, kind=spec.kind)
            detector = Detector(networks, schedule, {name: known}, EDGE)
            photos = [*made.good[:JUDGED], *made.defective[:JUDGED]]
            maps = [answer.maps["multiscale"] for answer in detector.inspect(photos, name)]
            masks = small_masks([None] * len(made.good[:JUDGED]) + list(made.masks[:JUDGED]))
            found[name] = merit(judged(maps, EDGE.top_share), masks)
    return found


def main() -> None:
    """Train, measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--textures", type=Path, required=True, help="the folder of photos that the base's recipe took")
    parser.add_argument("--classes", type=int, default=10)
    parser.add_argument("--shots", type=int, default=4)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--out", type=Path, required=True, help="results, JSON")
    asked = parser.parse_args()
    torch.set_num_threads(asked.threads)
    classes = classes_of(asked.textures, asked.classes)
    kept = read_json(asked.out)["variants"] if asked.out.is_file() else {}
    with progress_bars() as progress:
        for number, changes in enumerate(VARIANTS):
            name = words(changes) or "the defaults"
            if name in kept:
                continue
            said = harness.labelled(progress, f"{number + 1} of {len(VARIANTS)}, {name}:")
            values = {**changes, "shots": asked.shots, "threads": asked.threads}
            with tempfile.TemporaryDirectory() as folder:
                began = time.process_time()
                run = fine_tuned(classes, TrainSettings.for_base("nano", **values), Path(folder), said)
                spent = time.process_time() - began
                kept[name] = {"cpu_seconds": spent, "classes": measured(run, classes, asked.threads)}
            write_json(asked.out, {**harness.facts(asked), "variants": kept})
    show(kept)


def show(kept: Mapping[str, Any]) -> None:
    """The table."""
    first = _figures(next(iter(kept.values())))
    rows = []
    for name, one in kept.items():
        found = _figures(one)
        apart = found - first
        error = apart.std(axis=0, ddof=1) / np.sqrt(len(apart))
        difference = (f"{m:+.1f} ({e:.1f})" for m, e in zip(apart.mean(axis=0), error, strict=True))
        rows.append((name, *(f"{v:.1f}" for v in found.mean(axis=0)), *difference, f"{one['cpu_seconds']:.0f}"))
    columns = ("setting", "image AUROC", "pixel AUROC", "image, difference", "pixel, difference", "CPU s of training")
    show_table("S_ms alone on classes that the base did not see, percent", columns, rows)


def _figures(one: Mapping[str, Any]) -> Any:
    """(classes, 2) in percent."""
    pairs: Sequence[Sequence[float]] = list(one["classes"].values())
    return 100 * np.asarray(pairs)


if __name__ == "__main__":
    main()
