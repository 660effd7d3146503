"""What repaints add beside prototypes, by kind of defect, under several plans calibrated alike, in one run.

    python -m benchmarks.defect_kinds --bundle BUNDLE --photos RUN --data DIR --tests 24 --out FILE

Every plan is a change of preset edge; each class is calibrated under it on the run's shots, then test photos are judged
in full. Of the prototypes' map, S_ms and the fused one: image and pixel AUROC by class, and by kind of defect the image
AUROC of its photos against all good ones of the class; the share of good and bad photos on the wrong side of the
threshold; the UNet samples.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt

from anomalysd_edge.bundle.detector_factory import calibration_task, preset_settings
from anomalysd_edge.bundle.reader import NEGATIVE_PROMPT, Bundle, read_bundle
from anomalysd_edge.calibration.calibrate import calibrate
from anomalysd_edge.calibration.outcome import words
from anomalysd_edge.core.files import write_json
from anomalysd_edge.core.types import U8
from anomalysd_edge.data.datasets import Sample, open_dataset
from anomalysd_edge.evaluation.evaluate import ClassResult, evaluate
from anomalysd_edge.evaluation.metrics import image_auroc
from anomalysd_edge.method.detector import Detector
from anomalysd_edge.method.networks import Networks
from anomalysd_edge.method.result import Inspection
from anomalysd_edge.profiling.network_meter import MeteredNetworks
from anomalysd_edge.reports.console import progress_bars, show_table
from anomalysd_edge.vision.images import load_rgb
from anomalysd_edge.workflows.photo_sources import good_photos
from anomalysd_runtime.onnx.networks import OnnxNetworks
from benchmarks import harness
from benchmarks.verdicts import RememberedFeatures

PLANS: tuple[Mapping[str, Any], ...] = (
    {"scales": (4, 8, 16), "draws": 2},
    {"scales": (4, 8, 16), "draws": 1},
    {"scales": (8, 16), "draws": 1},
    {"scales": (16,), "draws": 1},
)
"""Changes of preset edge: 24, 12, 8 and 4 UNet samples a photo, and a draw's worth more where a patch is suspect."""
SHOWN = ("prototypes", "multiscale", "fused")


def detector_under(
    bundle: Bundle, networks: Networks, metered: Networks, shots: Mapping[str, Sequence[U8]], changes: Mapping[str, Any]
) -> Detector:
    """Over `metered`, with every class calibrated by `networks` under the changed preset."""
    settings = replace(preset_settings(bundle, "edge"), **changes)
    known = calibrate(calibration_task(bundle, networks, shots, settings)).classes
    return Detector(metered, bundle.schedule(), known, settings, bundle.constants[NEGATIVE_PROMPT])


def by_kind(answers: Sequence[tuple[Sample, Inspection]]) -> dict[str, dict[str, Any]]:
    """By "CLASS/KIND": photos of the kind, and by map the image AUROC against the class's good ones."""
    found: dict[str, dict[str, Any]] = {}
    for key in dict.fromkeys((s.class_name, s.defect) for s, _ in answers if s.label):
        mine = [(s, answer) for s, answer in answers if (s.class_name, s.defect) in (key, (key[0], "good"))]
        labels = [s.label for s, _ in mine]
        figures = {kind: image_auroc(labels, [answer.scores[kind] for _, answer in mine]) for kind in SHOWN}
        found["/".join(key)] = {"photos": sum(labels), "image_auroc": figures}
    return found


def wrong(results: Sequence[ClassResult]) -> npt.NDArray[np.float64]:
    """(2,) mean share over the classes: good photos called anomalous, bad ones called good."""
    shares = [((r.false_alarms or 0) / max(r.good, 1), (r.missed or 0) / max(r.bad, 1)) for r in results]
    return np.asarray(np.mean(shares, axis=0))


def main() -> None:
    """Measure, print, write."""
    parser = harness.parser_of(__doc__, "--bundle", "--photos", "--data", "--tests", "--threads", "--out")
    asked = parser.parse_args()
    bundle = read_bundle(asked.bundle)
    files = good_photos(asked.photos, bundle.manifest.classes, None)
    shots = {name: [load_rgb(file) for file in mine] for name, mine in files.items()}
    data = harness.few_tests(open_dataset(asked.data, list(files)), asked.tests)
    found: dict[str, Any] = {}
    with progress_bars() as progress, OnnxNetworks.of_bundle(bundle, "cpu", asked.threads) as opened:
        remembered = RememberedFeatures(opened)
        for number, changes in enumerate(PLANS):
            progress("plans", number, len(PLANS), words(changes))
            metered = MeteredNetworks(remembered)
            answers: list[tuple[Sample, Inspection]] = []

            def watch(
                sample: Sample, _photo: U8, answer: Inspection, answers: list[tuple[Sample, Inspection]] = answers
            ) -> None:
                answers.append((sample, answer))

            results = evaluate(detector_under(bundle, remembered, metered, shots, changes), data, watch=watch)
            alarms, missed = wrong(results)
            found[words(changes)] = {
                "unet_samples": metered.meter.jobs["unet"].samples / len(answers),
                "false_alarms": alarms, "missed": missed,
                "best_balanced_error": float(np.mean([r.verdicts["best_balanced_error"] for r in results])),
                "classes": results, "kinds": by_kind(answers),
            }  # fmt: skip
            write_json(asked.out, {**harness.facts(asked), "plans": found})
    show(found)


def show(found: Mapping[str, Any]) -> None:
    """Tables by plan and, of the first plan's prototypes and every plan's maps, by kind of defect."""
    rows = []
    for plan, one in found.items():
        pairs = (
            " / ".join(
                f"{100 * np.nanmean([r.figures[kind][what] for r in one['classes']]):.1f}"
                for what in ("image_auroc", "pixel_auroc")
            )
            for kind in SHOWN
        )
        errors = (f"{100 * one[name]:.1f}" for name in ("false_alarms", "missed", "best_balanced_error"))
        rows.append((plan, *pairs, *errors, f"{one['unet_samples']:.1f}"))
    columns = ("plan", *SHOWN, "false alarms", "missed", "best error", "UNet samples")
    show_table("Mean over classes, image / pixel AUROC and shares, percent", columns, rows)
    plans = {plan: over_classes(one["kinds"]) for plan, one in found.items()}
    first = next(iter(plans.values()))
    kinds = [
        (
            kind,
            str(photos),
            f"{100 * figures['prototypes']:.1f}",
            *(f"{100 * mine[kind][1][m]:.1f}" for mine in plans.values() for m in ("multiscale", "fused")),
        )
        for kind, (photos, figures) in first.items()
    ]
    names = (f"{plan}: {shown}" for plan in plans for shown in ("S_ms", "fused"))
    show_table("Image AUROC by kind of defect, percent", ("kind", "photos", "prototypes", *names), kinds)


def over_classes(kinds: Mapping[str, Mapping[str, Any]]) -> dict[str, tuple[int, dict[str, float]]]:
    """By kind, whatever the class: photos, and by map the mean image AUROC, every photo counting alike."""
    found: dict[str, tuple[int, dict[str, float]]] = {}
    for kind in sorted({key.split("/", 1)[1] for key in kinds}):
        mine = [one for key, one in kinds.items() if key.split("/", 1)[1] == kind]
        weights = [one["photos"] for one in mine]
        means = {m: float(np.average([one["image_auroc"][m] for one in mine], weights=weights)) for m in SHOWN}
        found[kind] = (sum(weights), means)
    return found


if __name__ == "__main__":
    main()
