"""K, lambda, passes and draws, an ablation of the repaint: S_ms alone on synthetic anomalies over good photos.

    python -m benchmarks.repaints BUNDLE --photos RUN --anomalies 16 --out out/repaints.json

For each class the shots are judged by S_ms under each setting, as they are, in disturbed copies, and with one synthetic
anomaly each (synthetic.py). No photo of a defect is looked at.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from anomalysd_edge.bundle.detector_factory import preset_settings
from anomalysd_edge.bundle.reader import NEGATIVE_PROMPT, read_bundle
from anomalysd_edge.calibration.holdout import perturbed
from anomalysd_edge.calibration.outcome import words
from anomalysd_edge.calibration.settings_search import judged, merit, small_masks
from anomalysd_edge.calibration.synthetic_anomalies import synthetic_anomaly
from anomalysd_edge.core.files import write_json
from anomalysd_edge.method.detector import Detector
from anomalysd_edge.method.inpainting.masks import foreground
from anomalysd_edge.reports.console import progress_bars, show_table
from anomalysd_edge.vision.images import load_rgb
from anomalysd_edge.workflows.open_options import InspectOptions
from anomalysd_edge.workflows.photo_sources import good_photos
from benchmarks import harness

SETTINGS: tuple[Mapping[str, Any], ...] = (
    {},
    {"scales": (2, 4, 8)},
    {"scales": (4, 8)},
    {"scales": (8, 16)},
    {"scales": (16,)},
    {"strength": 0.08},
    {"strength": 0.25},
    {"strength": 0.25, "passes": 2},
    {"strength": 0.4, "passes": 4},
    {"draws": 1},
    {"draws": 4},
)
"""Changes of the edge preset."""


@dataclass(frozen=True)
class Outcome:
    """What one setting gave."""

    changes: Mapping[str, Any]
    figures: Mapping[str, tuple[float, float]]
    """(image AUROC, pixel AUROC) of S_ms by class, in [0,1]."""
    ms_per_photo: float
    """On this machine; compare within one run alone."""


def main() -> None:
    """Measure, print, write."""
    parser = harness.parser_of(__doc__, "bundle", "--photos", "--out")
    parser.add_argument(
        "--anomalies", type=int, default=16, help="synthetic anomalies a class, and as many good photos"
    )
    parser.add_argument("--seed", type=int, default=0)
    asked = parser.parse_args()
    bundle = read_bundle(asked.bundle)
    base = preset_settings(bundle, "edge")
    schedule = bundle.schedule()
    photos = _photos(asked, bundle.manifest.classes)
    outcomes = []
    with progress_bars() as progress, InspectOptions().detector(asked.bundle) as opened:
        side = opened.networks.sizes.latent_side
        fitting = [c for c in SETTINGS if max(c.get("scales", (1,))) <= side]
        for number, changes in enumerate(fitting):
            figures, spent, count = {}, 0.0, 0
            for name, (seen, masks) in photos.items():
                progress("settings", number, len(fitting), f"{words(changes) or 'the preset'}: {name}")
                # Without a bank there is no guided mask: S_ms alone is repainted.
                bare = replace(opened.classes[name], banks=()).calibrated(choices={})
                settings = replace(base, fusion="paper", **changes)
                detector = Detector(
                    opened.networks, schedule, {name: bare}, settings, bundle.constants[NEGATIVE_PROMPT]
                )
                began = time.perf_counter()
                maps = [answer.maps["multiscale"] for answer in detector.inspect(seen, name)]
                spent, count = spent + time.perf_counter() - began, count + len(seen)
                figures[name] = merit(judged(maps, settings.top_share), masks)
            outcomes.append(Outcome(changes, figures, 1e3 * spent / count))
        progress("settings", len(fitting), len(fitting), "done")
    write_json(asked.out, {**harness.facts(asked), "outcomes": outcomes})
    show_table(
        "S_ms alone on synthetic anomalies, image / pixel AUROC, percent",
        ("settings", *photos, "mean", "time"),
        [_row(o, outcomes[0].ms_per_photo) for o in outcomes],
    )


def _photos(asked: argparse.Namespace, records: Any) -> dict[str, tuple[list[Any], Any]]:
    """By class: good photos (the shots and disturbed copies), then as many with an anomaly; and their masks."""
    found: dict[str, tuple[list[Any], Any]] = {}
    for name, files in good_photos(asked.photos, records, None).items():
        rng = np.random.default_rng((asked.seed, len(found)))
        shots = [load_rgb(file) for file in files]
        good = [shots[i % len(shots)] for i in range(asked.anomalies)]
        good = [p if i < len(shots) else perturbed(p, rng) for i, p in enumerate(good)]
        made = [
            synthetic_anomaly(p, foreground(p, records[name].kind), shots[int(rng.integers(len(shots)))], rng)
            for p in good
        ]
        bad = [m for m in made if m is not None]
        found[name] = (good + [m.photo for m in bad], small_masks([None] * len(good) + [m.mask for m in bad]))
    return found


def _row(found: Outcome, first_ms: float) -> tuple[str, ...]:
    pairs = list(found.figures.values())
    mean = (float(np.mean([a for a, _ in pairs])), float(np.mean([b for _, b in pairs])))
    cells = (f"{100 * a:.1f} / {100 * b:.1f}" for a, b in [*pairs, mean])
    return (words(found.changes) or "the preset", *cells, f"x{found.ms_per_photo / first_ms:.2f}")


if __name__ == "__main__":
    main()
