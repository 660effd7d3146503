"""The edge plan against the exact plan on labelled photos: image and pixel AUROC, the same photos, one run.

    python -m benchmarks.plans --bundle BUNDLE --data DIR --good 8 --bad 8 --out results.json [--seconds 450]

A seeded choice of test photos of each class. The exact plan takes long: what is judged stands in OUT.rows/, and the
same command goes on from there. Figures are made of the photos that all plans have judged. --modes adds settings that
leave repaints out (settling, which inspect, watch and serve do; cascade, suspect cells), with what they missed and
called wrong, and how many verdicts differ from those of the first plan.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from anomalysd_edge.bundle.detector_factory import detector_of
from anomalysd_edge.bundle.reader import read_bundle
from anomalysd_edge.core.files import write_json
from anomalysd_edge.data.datasets import Sample, open_dataset
from anomalysd_edge.evaluation import metrics
from anomalysd_edge.method.detector import Detector
from anomalysd_edge.method.settings import InspectSettings
from anomalysd_edge.profiling.hardware import machine_facts
from anomalysd_edge.profiling.network_meter import MeteredNetworks
from anomalysd_edge.vision import images
from anomalysd_runtime.onnx.networks import OnnxNetworks
from benchmarks import harness

SIDE = 256
MODES: dict[str, dict[str, Any]] = {
    "edge, settling": {"settle": True},
    "edge, cascade": {"cascade": True},
    "edge, suspect cells": {"cells": "suspect"},
    "edge, cascade, settling, suspect cells": {"cascade": True, "settle": True, "cells": "suspect"},
    "prototypes alone": {"cells": "none"},
}


def chosen(data: Path, good: int, bad: int, seed: int, classes: list[str]) -> list[Sample]:
    """`good` and `bad` test photos of each class, by the seed; classes take turns, so that a part run is balanced."""
    by_class: list[list[Sample]] = []
    for number, (name, found) in enumerate(open_dataset(data).classes.items()):
        if name not in classes:
            continue
        rng = np.random.default_rng((seed, number))
        mine: list[list[Sample]] = []
        for label, count in ((0, good), (1, bad)):
            pool = [s for s in found.test if s.label == label]
            order = rng.permutation(len(pool))[:count]
            mine.append([pool[i] for i in order])
        by_class.append([s for pair in _turns(mine) for s in pair])
    return [s for turn in _turns(by_class) for s in turn]


def _turns(lists: list[list[Sample]]) -> list[list[Sample]]:
    return [[some[i] for some in lists if i < len(some)] for i in range(max(map(len, lists), default=0))]


def small_mask(sample: Sample) -> npt.NDArray[np.bool_]:
    """(256,256) bool."""
    if sample.label == 0 or sample.mask_path is None:
        return np.zeros((SIDE, SIDE), np.bool_)
    height, width = images.load_rgb(sample.path).shape[:2]
    mask = images.load_mask(sample.mask_path, (height, width))
    return np.asarray(Image.fromarray(mask).resize((SIDE, SIDE), Image.Resampling.NEAREST), dtype=np.bool_)


def figures(rows: Path, samples: list[Sample], plans: list[str]) -> dict[str, Any]:
    """AUROC by plan and class over the photos that all `plans` have judged."""
    done = [i for i in range(len(samples)) if all((rows / f"{plan}-{i}.npz").is_file() for plan in plans)]
    found: dict[str, Any] = {"photos": len(done)}
    whole: list[str] = []
    for plan in plans:
        loaded = {i: np.load(rows / f"{plan}-{i}.npz") for i in done}
        per_class: dict[str, Any] = {}
        for name in dict.fromkeys(samples[i].class_name for i in done):
            mine = [i for i in done if samples[i].class_name == name]
            labels = [int(samples[i].label) for i in mine]
            maps = [loaded[i]["map"] for i in mine]
            called = [int(loaded[i]["label"]) for i in mine]
            per_class[name] = {
                "good": labels.count(0),
                "bad": labels.count(1),
                "image_auroc": metrics.image_auroc(labels, [float(loaded[i]["score"]) for i in mine]),
                "pixel_auroc": metrics.pixel_auroc([small_mask(samples[i]) for i in mine], maps),
                "missed": sum(y == 1 and v == 0 for y, v in zip(labels, called, strict=True)),
                "false_alarms": sum(y == 0 and v == 1 for y, v in zip(labels, called, strict=True)),
            }
        ended = [str(loaded[i]["ended"]) for i in done]
        verdicts = [str(loaded[i]["verdict"]) for i in done]
        whole = whole or verdicts
        good = [float(loaded[i]["seconds"]) for i in done if samples[i].label == 0]
        found[plan] = {
            "verdicts_changed": sum(a != b for a, b in zip(verdicts, whole, strict=True)),
            "uncertain": verdicts.count("uncertain"),
            "seconds_a_good_photo": float(np.mean(good)) if good else None,
            "mean_image_auroc": float(np.nanmean([c["image_auroc"] for c in per_class.values()])) if done else None,
            "mean_pixel_auroc": float(np.nanmean([c["pixel_auroc"] for c in per_class.values()])) if done else None,
            "seconds_a_photo": float(np.mean([loaded[i]["seconds"] for i in done])) if done else None,
            "unet_samples_a_photo": float(np.mean([loaded[i]["samples"] for i in done])) if done else None,
            "ended": {how: ended.count(how) for how in dict.fromkeys(ended)},
            "classes": per_class,
        }
    return found


def main() -> None:
    """Judge and write."""
    parser = harness.parser_of(__doc__, "--bundle", "--data", "--threads", "--out")
    parser.add_argument("--good", type=int, default=8, help="good photos a class")
    parser.add_argument("--bad", type=int, default=8, help="bad photos a class")
    parser.add_argument("--seed", type=int, default=0, help="of the choice")
    parser.add_argument("--plans", default="paper,edge", help="presets of the bundle; empty: modes alone")
    parser.add_argument(
        "--modes",
        nargs="?",
        const=";".join(MODES),
        default="",
        help="also settings that leave repaints out, by ';'; all",
    )
    parser.add_argument("--seconds", type=float, default=0, help="stop after so long; 0 = when all is judged")
    asked = parser.parse_args()
    bundle = read_bundle(asked.bundle)
    samples = chosen(asked.data, asked.good, asked.bad, asked.seed, list(bundle.manifest.classes))
    rows = asked.out.with_suffix(".rows")
    rows.mkdir(parents=True, exist_ok=True)
    until = time.monotonic() + asked.seconds if asked.seconds else None
    with OnnxNetworks.of_bundle(bundle, "cpu", asked.threads) as opened:
        networks = MeteredNetworks(opened)
        plans: dict[str, Detector] = {p: detector_of(bundle, networks, p) for p in asked.plans.split(",") if p}
        if asked.modes:
            edge = detector_of(bundle, networks, "edge")
            for name in asked.modes.split(";"):
                settings = InspectSettings.from_json({**edge.settings.to_json(), **MODES[name]})
                plans[name] = edge.under(settings, edge.classes)
        for i, sample in enumerate(samples):
            photo = images.load_rgb(sample.path)
            for name, detector in plans.items():
                file = rows / f"{name}-{i}.npz"
                if file.is_file() or (until is not None and time.monotonic() > until):
                    continue
                before, began = networks.meter.jobs["unet"].samples, time.monotonic()
                (answer,) = detector.inspect([photo], sample.class_name)
                np.savez_compressed(
                    file,
                    score=answer.pred_score,
                    map=images.resize_map(answer.anomaly_map, (SIDE, SIDE)),
                    label=-1 if answer.pred_label is None else answer.pred_label,
                    ended=answer.ended,
                    verdict=str(answer.verdict),
                    seconds=time.monotonic() - began,
                    samples=networks.meter.jobs["unet"].samples - before,
                )
    found = figures(rows, samples, list(plans))
    kept = {"good": asked.good, "bad": asked.bad, "seed": asked.seed, "data": asked.data.name}
    write_json(asked.out, {"machine": machine_facts(), "settings": kept, **found})
    for name in plans:
        mean = found[name]
        print(
            f"{name}: {found['photos']} photos, AUROC {mean['mean_image_auroc']} / {mean['mean_pixel_auroc']}, "
            f"{mean['seconds_a_photo']} s, good ones {mean['seconds_a_good_photo']} s, "
            f"{mean['unet_samples_a_photo']} samples, {mean['verdicts_changed']} verdicts changed"
        )


if __name__ == "__main__":
    main()
