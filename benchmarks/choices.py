"""calibrate's choice of settings against every fixed choice, on labelled photos; and what calibrating costs.

    python -m benchmarks.choices BUNDLE --photos RUN --data DIR --tests 24 --out out/choices

Each candidate that calibrate may choose among is fixed for all classes, scales and thresholds are fitted to the shots
under it, and it is measured on test photos: the best of these in hindsight is what a choice by synthetic anomalies is
held against. Nothing is chosen by these figures. Finished candidates are kept in --out.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from anomalysd_edge.bundle.detector_factory import preset_settings, reading_of
from anomalysd_edge.bundle.reader import MANIFEST, NEGATIVE_PROMPT, read_bundle
from anomalysd_edge.calibration.calibrate import CalibrationSettings, calibrate
from anomalysd_edge.calibration.outcome import words
from anomalysd_edge.calibration.settings_search import ROUNDS
from anomalysd_edge.core.files import json_ready, sha256_file, write_json
from anomalysd_edge.core.types import Progress
from anomalysd_edge.data.classes import ClassSpec
from anomalysd_edge.data.datasets import Dataset, few_tests, open_dataset
from anomalysd_edge.evaluation import aggregate
from anomalysd_edge.evaluation.evaluate import ClassResult, evaluate, mean_figure
from anomalysd_edge.method.detector import Detector
from anomalysd_edge.method.inpainting.schedule import NoiseSchedule
from anomalysd_edge.reports.calibration import Report as CalibrationReport
from anomalysd_edge.reports.console import progress_bars, show_table
from anomalysd_edge.vision.images import load_rgb
from anomalysd_edge.workflows.calibrate import CalibrateRequest, false_alarms, good_photos, recalibrate
from anomalysd_edge.workflows.open_options import Opening
from benchmarks import harness


@dataclass(frozen=True)
class Fixed:
    """What one way of setting gave."""

    name: str
    """The changes in words."""
    results: list[ClassResult]
    """Per class."""

    @property
    def merit(self) -> float:
        """Mean of image and pixel AUROC over classes: what calibrate maximises, too."""
        return (
            mean_figure(self.results, "fused", "image_auroc") + mean_figure(self.results, "fused", "pixel_auroc")
        ) / 2

    def class_merit(self, name: str) -> float:
        """The same of one class."""
        figures = [r.figures["fused"] for r in self.results if r.class_name == name]
        return (figures[0]["image_auroc"] + figures[0]["pixel_auroc"]) / 2 if figures else math.nan


def main() -> None:
    """Measure, print, write."""
    parser = harness.parser_of(__doc__, "bundle", "--photos", "--data", "--tests", "--out")
    parser.add_argument("--synthetic", type=int, default=24, help="synthetic anomalies a class for calibrate")
    parser.add_argument("--check", action="store_true", help="count alarms on the data's other good photos")
    asked = parser.parse_args()
    data = few_tests(open_dataset(asked.data), asked.tests)
    with progress_bars() as progress:
        chosen, report = _calibrated(asked, data, progress)
        ways = [Fixed("the preset", _fixed(asked, data, {}, progress))]
        side = read_bundle(asked.bundle).manifest.sizes.latent_side
        for candidate in (c for round_ in ROUNDS for c in round_ if max(c.get("scales", (1,))) <= side):
            ways.append(Fixed(words(candidate), _fixed(asked, data, candidate, progress)))
    best = max(ways, key=lambda way: way.merit)
    found = [Fixed("calibrate's choice", chosen), *ways]
    names = [r.class_name for r in ways[0].results]
    oracle = float(np.mean([max(way.class_merit(n) for way in ways) for n in names]))
    rows = [
        (
            ("* " if way is best else "") + way.name,
            *(harness.auroc_pair([way.results], n, "fused") for n in [*names, aggregate.MEAN]),
            f"{100 * way.merit:.2f}",
        )
        for way in found
    ]
    columns = ("settings (* best fixed)", *names, aggregate.MEAN, "merit")
    show_table(f"Image / pixel AUROC on {asked.tests} test photos a class, percent", columns, rows)
    report.show()
    value = {
        **harness.facts(asked),
        "merit": {way.name: way.merit for way in found},
        "best_fixed": best.name,
        "best_per_class_in_hindsight": oracle,
        "results": {way.name: way.results for way in found},
        "calibration": {k: v for k, v in report.to_json().items() if k != "shots"},
    }
    write_json(asked.out / "choices.json", value)


def _calibrated(
    asked: argparse.Namespace, data: Dataset, progress: Progress
) -> tuple[list[ClassResult], CalibrationReport]:
    """Results of a bundle that chose for itself, and its report."""
    out: Path = asked.out / "calibrated"
    how = CalibrationSettings(synthetic=asked.synthetic, negatives=12)
    found = recalibrate(CalibrateRequest(asked.bundle, asked.photos, out, settings=how), progress)
    seen = false_alarms(found, asked.data, Opening(), progress) if asked.check else {}
    with Opening().detector(out) as detector:
        return evaluate(detector, data, progress), CalibrationReport(found, seen)


def _fixed(
    asked: argparse.Namespace, data: Dataset, changes: Mapping[str, Any], progress: Progress
) -> list[ClassResult]:
    """Results with `changes` for every class; kept in --out."""
    bundle = read_bundle(asked.bundle)
    key = json_ready([sha256_file(asked.bundle / MANIFEST), changes, asked.tests])
    name = words(changes).replace("/", "-").replace(" ", "_").replace(",", "") or "preset"
    kept: Path = asked.out / "fixed" / f"{name}.json"
    if (found := harness.kept_results(kept, key)) is not None:
        return found
    told = harness.labelled(progress, name[:20])
    records = bundle.manifest.classes
    settings = replace(preset_settings(bundle, "edge"), **changes)
    schedule = NoiseSchedule.from_config(
        {**bundle.manifest.scheduler, "prediction_type": bundle.manifest.prediction_type}
    )
    negative = bundle.constants[NEGATIVE_PROMPT]
    shots = {n: [load_rgb(f) for f in files] for n, files in good_photos(asked.photos, records, None).items()}
    with Opening().detector(asked.bundle) as opened:
        constants = calibrate(
            opened.networks,
            schedule,
            shots,
            {n: ClassSpec(n, r.noun, r.kind, r.parts, r.symmetries, r.tiles) for n, r in records.items()},
            {n: constants.prompts for n, constants in opened.classes.items()},
            settings,
            CalibrationSettings(negatives=12),
            negative,
            told,
            reading=reading_of(bundle),
        )
        results = evaluate(Detector(opened.networks, schedule, constants, settings, negative), data, told)
    return harness.keep_results(kept, key, results)


if __name__ == "__main__":
    main()
