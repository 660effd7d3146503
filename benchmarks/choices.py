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

from anomalysd_edge.bundle.detector_factory import calibration_task, preset_settings
from anomalysd_edge.bundle.reader import MANIFEST, read_bundle
from anomalysd_edge.calibration.calibrate import calibrate
from anomalysd_edge.calibration.outcome import words
from anomalysd_edge.calibration.settings import CalibrationSettings
from anomalysd_edge.calibration.settings_search import rounds_for
from anomalysd_edge.core.files import json_ready, sha256_file, write_json
from anomalysd_edge.core.types import Progress
from anomalysd_edge.data.datasets import Dataset, open_dataset
from anomalysd_edge.evaluation import aggregate
from anomalysd_edge.evaluation.evaluate import ClassResult, evaluate, mean_figure
from anomalysd_edge.reports.calibration import Report as CalibrationReport
from anomalysd_edge.reports.console import progress_bars, show_table
from anomalysd_edge.vision.images import load_rgb
from anomalysd_edge.workflows.calibrate import CalibrateRequest, false_alarms, recalibrate
from anomalysd_edge.workflows.open_options import InspectOptions
from anomalysd_edge.workflows.photo_sources import good_photos
from benchmarks import harness
from benchmarks.harness import few_tests


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
        sizes = read_bundle(asked.bundle).manifest.sizes
        for candidate in (c for candidates in rounds_for(sizes.size_px, sizes.latent_side) for c in candidates):
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
    found = recalibrate(CalibrateRequest(bundle=asked.bundle, photos=asked.photos, out=out, settings=how), progress)
    seen = false_alarms(found, asked.data, InspectOptions(), progress) if asked.check else {}
    with InspectOptions().detector(out) as detector:
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
    shots = {n: [load_rgb(f) for f in files] for n, files in good_photos(asked.photos, records, None).items()}
    with InspectOptions().detector(asked.bundle) as opened:
        task = calibration_task(bundle, opened.networks, shots, settings, CalibrationSettings(negatives=12))
        constants = calibrate(task, told).classes
        results = evaluate(opened.under(settings, constants), data, told)
    return harness.keep_results(kept, key, results)


def _pair(way: Fixed, name: str) -> str:
    values = (aggregate.figure([way.results], name, "fused", f) for f in ("image_auroc", "pixel_auroc"))
    return " / ".join(map(str, values))


if __name__ == "__main__":
    main()
