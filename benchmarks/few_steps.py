"""What distillation is worth: the same masks in 1, 2, 4, ... passes, by a run and by its distilled self.

    python benchmarks/few_steps.py --run RUN --distilled RUN2 --bundle BUNDLE --data DIR --passes 1,2,4 --out FILE

BUNDLE is RUN's: its classes, prompts and schedule serve both. Both UNets are run by torch on the same masks, from the
same noise, at the same lambda; S_ms alone is measured (image and pixel AUROC, mean over the classes), and the time a
photo takes in the UNet. The first row is the run at --reference passes.
"""

from __future__ import annotations

import argparse
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

from anomalysd_edge.bundle.detector_factory import class_constants
from anomalysd_edge.bundle.reader import read_bundle
from anomalysd_edge.core.files import write_json
from anomalysd_edge.data.datasets import open_dataset
from anomalysd_edge.evaluation import evaluate
from anomalysd_edge.method.class_model import Calibration
from anomalysd_edge.method.detector import Detector
from anomalysd_edge.method.settings import EDGE
from anomalysd_edge.reports.console import show_table
from anomalysd_edge.training.run import networks_of_run, read_run


def measure(run: Path, asked: argparse.Namespace, passes: int) -> dict[str, Any]:
    """S_ms of one UNet at one number of passes over all test photos."""
    bundle = read_bundle(asked.bundle, verify=False)
    settings = replace(EDGE, strength=asked.strength, passes=passes, draws=1)
    # Thresholds, scales and each class's own choices are for other settings: S_ms needs none of them.
    bare = {
        name: replace(known, calibration=Calibration(), guided={})
        for name, known in class_constants(bundle, "edge").items()
    }
    spent: list[float] = []
    with networks_of_run(read_run(run)) as networks:
        detector = Detector(networks, bundle.schedule(), bare, settings, bundle.constants["prompts/negative"])
        began = time.monotonic()
        results = evaluate.evaluate(
            detector,
            open_dataset(asked.data),
            lambda *_told: None,
            lambda _sample, _photo, answer: spent.append(answer.timings_ms["unet"]),
        )
    return {
        "passes": passes,
        "image_auroc": evaluate.mean_figure(results, "multiscale", "image_auroc"),
        "pixel_auroc": evaluate.mean_figure(results, "multiscale", "pixel_auroc"),
        "unet_ms": sorted(spent)[len(spent) // 2],
        "seconds": time.monotonic() - began,
        "photos": len(spent),
    }


def main() -> None:
    """Measure and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", type=Path, required=True)
    parser.add_argument("--distilled", type=Path, required=True)
    parser.add_argument("--bundle", type=Path, required=True)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--strength", type=float, default=0.3)
    parser.add_argument("--passes", default="1,2,4")
    parser.add_argument("--reference", type=int, default=15, help="0 leaves it out: it takes longest")
    parser.add_argument("--out", type=Path, required=True)
    asked = parser.parse_args()
    wanted = [int(word) for word in asked.passes.split(",")]
    jobs = [("undistilled", asked.run, n) for n in ([asked.reference] if asked.reference else [])]
    jobs += [
        (name, run, n) for n in wanted for name, run in (("undistilled", asked.run), ("distilled", asked.distilled))
    ]
    rows: list[dict[str, Any]] = []
    for name, run, passes in jobs:
        rows.append({"unet": name, **measure(run, asked, passes)})
        write_json(asked.out, {"strength": asked.strength, "rows": rows})
    show_table(
        f"S_ms from lambda = {asked.strength:g}",
        ("UNet", "passes", "image AUROC", "pixel AUROC", "UNet ms a photo"),
        [
            (r["unet"], str(r["passes"]), f"{r['image_auroc']:.3f}", f"{r['pixel_auroc']:.3f}", f"{r['unet_ms']:.0f}")
            for r in rows
        ],
    )


if __name__ == "__main__":
    main()
