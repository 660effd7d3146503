"""Verdicts of classes that nobody described, on real photos, beside the plainest line: nothing is trained.

    python -m benchmarks.verdicts --bundle BUNDLE --data DIR --shots 1,4,16 --seeds first,0,1 --tests 70 --out FILE

Each class of DIR is calibrated as `sd-edge add-class` would, from its first or some seeded good photos, and its test
photos are judged by prototypes alone, or with `--repaint` under the whole preset with the bundle's own UNet (which has
never seen the class). Beside it stand the distance to the nearest prototype at one and at the other size of the photo,
with the same banks: image and pixel AUROC, and the least balanced error that any threshold would give. `--peer-python`
adds anomalib's PatchCore on the same shots and photos, at the thresholds of its own rule.
"""

from __future__ import annotations

import hashlib
import tempfile
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from anomalysd_edge.bundle.detector_factory import calibration_task, preset_settings
from anomalysd_edge.bundle.reader import NEGATIVE_PROMPT, Bundle, read_bundle
from anomalysd_edge.calibration.calibrate import calibrate
from anomalysd_edge.calibration.class_features import ClassFeatures
from anomalysd_edge.core.files import write_json
from anomalysd_edge.core.threads import use_threads
from anomalysd_edge.core.types import F32, U8, Progress
from anomalysd_edge.data.class_inference import guess
from anomalysd_edge.data.classes import ClassSpec
from anomalysd_edge.data.datasets import ClassData, Dataset, few_shot, open_dataset
from anomalysd_edge.evaluation.evaluate import METRIC_PX, measure, truth_mask
from anomalysd_edge.evaluation.metrics import best_balanced_error, image_auroc, pixel_auroc
from anomalysd_edge.method.anomaly_map import image_score
from anomalysd_edge.method.class_model import ClassModel
from anomalysd_edge.method.detector import Detector
from anomalysd_edge.method.fusion import finished_prototype_map
from anomalysd_edge.method.networks import ForwardingNetworks, Networks
from anomalysd_edge.reports.console import progress_bars, show_table
from anomalysd_edge.vision.images import load_rgb, resize_map
from benchmarks import harness
from benchmarks.peers import MAP, PatchcoreSettings, patchcore

LINES = ("plain 256 px", "plain 448 px")
FIGURES = ("balanced_error", "best_balanced_error", "f1", "seg_f1", "image_auroc", "pixel_auroc")


class RememberedFeatures(ForwardingNetworks):
    """The networks, whose features of the same pixels are computed once: every number of shots sees the same photos."""

    def __init__(self, networks: Networks) -> None:
        super().__init__(networks)
        self.found: dict[bytes, F32] = {}

    def features(self, images: F32) -> F32:
        key = hashlib.blake2b(images.tobytes(), digest_size=16).digest()
        if key not in self.found:
            self.found[key] = self.networks.features(images)
        return self.found[key]


def judge_class(
    bundle: Bundle, networks: Networks, part: ClassData, shots: int, seed: int | None, repaint: bool, progress: Progress
) -> dict[str, Any]:
    """Calibrate one class on some of its good photos and judge its test photos."""
    photos = [load_rgb(file) for file in few_shot(part.train, shots, seed, part.name)]
    settings = preset_settings(bundle, "edge")
    settings = settings if repaint else replace(settings, cells="none")
    spec = guess(ClassSpec(part.name, part.name.replace("_", " ")), photos[:4])
    prompts = bundle.prompts(next(iter(bundle.manifest.classes)))
    task = calibration_task(bundle, networks, {part.name: photos}, settings)
    task = replace(task, specs={part.name: spec}, prompts={part.name: prompts})
    calibrated = calibrate(task)
    known = calibrated.classes[part.name]
    negative = bundle.constants[NEGATIVE_PROMPT]
    detector = Detector(networks, bundle.schedule(), {part.name: known}, settings, negative)
    verdicts: list[str | None] = []
    plain: dict[str, list[F32]] = {line: [] for line in LINES[-len(known.banks) :]}

    def judged() -> Any:
        for sample in part.test:
            photo = load_rgb(sample.path)
            (answer,) = detector.inspect([photo], part.name)
            verdicts.append(answer.verdict)
            for line, found in zip(plain, plain_maps(networks, known, photo, detector), strict=True):
                plain[line].append(found)
            yield sample, photo, answer

    (result,) = measure(judged(), Dataset(Path(), "", {part.name: part}), progress)
    labels = np.array([sample.label for sample in part.test])
    masks = [truth_mask(sample, load_rgb(sample.path).shape[:2]) for sample in part.test]
    return {
        "kind": spec.kind,
        "seconds": calibrated.seconds[part.name],
        "threshold": known.calibration.threshold,
        "expected": known.calibration.expected,
        "evidence": known.calibration.evidence,
        **result.verdicts,
        **result.figures["fused"],
        "false_alarms": result.false_alarms,
        "missed": result.missed,
        "good": result.good,
        "bad": result.bad,
        "uncertain": sum(verdict == "uncertain" for verdict in verdicts),
        "wrong_beyond_limits": sum(
            verdict == ("good" if label else "anomalous") for verdict, label in zip(verdicts, labels, strict=True)
        ),
        "lines": {line: figures_of(found, labels, masks, settings.top_share) for line, found in plain.items()},
    }


def plain_maps(networks: Networks, known: ClassModel, photo: U8, detector: Detector) -> list[F32]:
    """Score maps of the distance alone, at each size."""
    seen = ClassFeatures(networks, known.aspect, (1, known.tiles)[-len(known.banks) :])
    size, settings = networks.sizes.size_px, detector.settings
    return [
        finished_prototype_map(bank.distance(features), seen.frame(photo), None, settings, size)
        for bank, features in zip(known.banks, seen(photo), strict=True)
    ]


def figures_of(maps: list[F32], labels: np.ndarray, masks: list[Any], top_share: float) -> dict[str, float]:
    """AUROCs and the least balanced error."""
    scores = np.array([image_score(found, top_share) for found in maps])
    drawn = [
        (mask, resize_map(found, (METRIC_PX, METRIC_PX)))
        for mask, found in zip(masks, maps, strict=True)
        if mask is not None
    ]
    return {
        "image_auroc": image_auroc(labels, scores),
        "pixel_auroc": pixel_auroc([mask for mask, _ in drawn], [found for _, found in drawn]),
        "best_balanced_error": best_balanced_error(labels, scores)[0],
    }


def means(found: Mapping[str, Any]) -> dict[str, dict[str, float]]:
    """By number of shots: the mean over classes and seeds of every figure, those of the plain lines included."""
    by_shots: dict[str, dict[str, float]] = {}
    for shots in sorted({key.split("/")[1] for key in found}, key=int):
        mine = [cell for key, cell in found.items() if key.split("/")[1] == shots]
        by_shots[shots] = {figure: float(np.nanmean([cell[figure] for cell in mine])) for figure in FIGURES}
        for line in mine[0]["lines"]:
            for figure in ("image_auroc", "pixel_auroc", "best_balanced_error"):
                values = [cell["lines"][line][figure] for cell in mine]
                by_shots[shots][f"{line}: {figure}"] = float(np.nanmean(values))
        for figure in mine[0].get(MAP, {}):
            by_shots[shots][f"{MAP}: {figure}"] = float(np.nanmean([cell[MAP][figure] for cell in mine]))
        photos = sum(cell["good"] + cell["bad"] for cell in mine)
        by_shots[shots]["uncertain"] = sum(cell["uncertain"] for cell in mine) / photos
        by_shots[shots]["wrong_beyond_limits"] = sum(cell["wrong_beyond_limits"] for cell in mine) / photos
    return by_shots


def main() -> None:
    """Judge, print, write."""
    from anomalysd_runtime.onnx.networks import OnnxNetworks

    parser = harness.parser_of(__doc__, "--bundle", "--data", "--classes", "--tests", "--threads", "--out")
    parser.add_argument("--shots", default="1,4")
    parser.add_argument("--seeds", default="first,0,1")
    parser.add_argument("--peer-python", type=Path, default=None, help="Python that has anomalib")
    parser.add_argument("--repaint", action="store_true", help="the whole preset in place of prototypes alone")
    asked = parser.parse_args()
    use_threads(asked.threads)
    bundle = read_bundle(asked.bundle)
    classes = asked.classes.split(",") if asked.classes else None
    data = harness.few_tests(open_dataset(asked.data, classes), asked.tests)
    found: dict[str, Any] = {}
    with progress_bars() as progress, OnnxNetworks.of_bundle(bundle, "cpu", asked.threads) as networks:
        for name, part in data.classes.items():
            remembered = RememberedFeatures(networks)
            for shots in harness.numbers(asked.shots):
                if len(part.train) < shots:
                    print(f"{name}: {len(part.train)} good photos to learn from, so nothing at {shots} shots")
                    continue
                for seed in asked.seeds.split(","):
                    number = None if seed == "first" else int(seed)
                    cell = judge_class(bundle, remembered, part, shots, number, asked.repaint, progress)
                    found[f"{name}/{shots}/{seed}"] = cell
            write_json(asked.out, {**harness.facts(asked), "means": means(found), "cells": found})
    if asked.peer_python is not None:
        facts = add_peer(found, data, PatchcoreSettings(asked.peer_python, threads=asked.threads))
        write_json(asked.out, {**harness.facts(asked), "peer": facts, "means": means(found), "cells": found})
    columns = ("class", "shots", *FIGURES, *LINES)
    show_table(
        "Percent; plain lines: image / pixel AUROC", columns, [rows_of(key, cell) for key, cell in found.items()]
    )
    for count, values in means(found).items():
        print(f"{count} shots: " + ", ".join(f"{name} {100 * value:.1f}" for name, value in values.items()))


def add_peer(found: dict[str, Any], data: Dataset, how: PatchcoreSettings) -> dict[str, Any]:
    """Give every cell what PatchCore makes of the same shots and test photos; the peer's facts."""
    facts: dict[str, Any] = {}
    for shots, seed in sorted({tuple(key.split("/")[1:]) for key in found}):
        names = [name for name in data.classes if f"{name}/{shots}/{seed}" in found]
        part = replace(data, classes={name: data.classes[name] for name in names})
        number = None if seed == "first" else int(seed)
        chosen = {name: few_shot(c.train, int(shots), number, name) for name, c in part.classes.items()}
        with tempfile.TemporaryDirectory() as folder:
            results, facts = patchcore(replace(how, seed=number or 0), part, chosen, Path(folder))
        for result in results:
            found[f"{result.class_name}/{shots}/{seed}"][MAP] = {**result.verdicts, **result.figures[MAP]}
    return facts


def rows_of(key: str, cell: Mapping[str, Any]) -> tuple[str, ...]:
    """One line of the table."""
    lines = cell["lines"].values()
    pairs = [f"{100 * line['image_auroc']:.1f} / {100 * line['pixel_auroc']:.1f}" for line in lines]
    return (*key.split("/", 1), *(f"{100 * cell[figure]:.1f}" for figure in FIGURES), *pairs)


if __name__ == "__main__":
    main()
