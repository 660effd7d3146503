"""How far scores move when the camera, the light or the file changes: named disturbances at two strengths.

    python -m benchmarks.robustness BUNDLE --data DIR --photos 16 --out out/robustness.json

Every test photo (or a seeded few of each class) is inspected as it is and under each disturbance. For good photos: how
far the score moves, in units of the class's threshold, and how many raise an alarm. For all photos: image and pixel
AUROC when good and bad ones are disturbed alike; masks turn and move with their photos.
"""

from __future__ import annotations

import argparse
import io
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageFilter

from anomalysd_edge.core.files import write_json
from anomalysd_edge.core.types import U8, Mask, Progress
from anomalysd_edge.data.datasets import Sample, few_tests, open_dataset
from anomalysd_edge.evaluation.evaluate import METRIC_PX, class_figures
from anomalysd_edge.method.detector import Detector
from anomalysd_edge.reports.console import progress_bars, show_table
from anomalysd_edge.vision import images
from anomalysd_edge.workflows.doctor import examine
from anomalysd_edge.workflows.open_options import Opening

Disturb = Callable[[U8, np.random.Generator], U8]


def light(factor: float) -> Disturb:
    """All pixels times `factor`: another exposure."""

    def apply(photo: U8, _: np.random.Generator) -> U8:
        return np.asarray(np.clip(np.rint(photo * np.float32(factor)), 0, 255), dtype=np.uint8)

    return apply


def blur(share: float) -> Disturb:
    """Gaussian of sigma `share` of the longer side: out of focus."""

    def apply(photo: U8, _: np.random.Generator) -> U8:
        sigma = share * max(photo.shape[:2])
        return np.asarray(Image.fromarray(photo).filter(ImageFilter.GaussianBlur(sigma)))

    return apply


def noise(sigma: float) -> Disturb:
    """Independent Gaussian noise of `sigma` grey levels a channel: a darker room, more gain."""

    def apply(photo: U8, rng: np.random.Generator) -> U8:
        grain = rng.normal(0, sigma, photo.shape).astype(np.float32)
        return np.asarray(np.clip(np.rint(photo + grain), 0, 255), dtype=np.uint8)

    return apply


def rotation(degrees: float) -> Disturb:
    """Turned about its middle; what comes in at the corners is the photo's own mirror."""

    def apply(photo: U8, _: np.random.Generator) -> U8:
        return _moved(photo, degrees, 0.0)

    return apply


def shift(share: float) -> Disturb:
    """Moved right and down by `share` of the longer side; the photo's own mirror comes in."""

    def apply(photo: U8, _: np.random.Generator) -> U8:
        return _moved(photo, 0.0, share)

    return apply


def jpeg(quality: int) -> Disturb:
    """Through a JPEG file of this quality, colours at half resolution as cameras do."""

    def apply(photo: U8, _: np.random.Generator) -> U8:
        file = io.BytesIO()
        Image.fromarray(photo).save(file, "JPEG", quality=quality, subsampling=2)
        return np.asarray(Image.open(file).convert("RGB"))

    return apply


DISTURBANCES: Mapping[str, Disturb] = {
    "light -10 %": light(0.9),
    "light -25 %": light(0.75),
    "light +10 %": light(1.1),
    "light +25 %": light(1.25),
    "blur 0.4 %": blur(0.004),
    "blur 1 %": blur(0.01),
    "noise 4": noise(4),
    "noise 12": noise(12),
    "rotation 2°": rotation(2),
    "rotation 6°": rotation(6),
    "shift 2 %": shift(0.02),
    "shift 6 %": shift(0.06),
    "JPEG 75": jpeg(75),
    "JPEG 40": jpeg(40),
}
"""By name, weak and strong; shares are of the photo's longer side, noise in grey levels of 255."""
GEOMETRIC = ("rotation", "shift")
"""Those that move the mask too."""


@dataclass(frozen=True)
class Effect:
    """What one disturbance did to one class."""

    class_name: str
    disturbance: str
    """Of DISTURBANCES; "none" for the photos as they are."""
    good: int
    bad: int
    moved: float
    """Mean over good photos of (score - score undisturbed) / threshold; NaN without a threshold."""
    moved_most: float
    """The largest of them."""
    false_alarms: int | None
    """Good photos at or above the threshold."""
    missed: int | None
    """Bad photos below it."""
    image_auroc: float
    pixel_auroc: float


def measure(detector: Detector, name: str, samples: tuple[Sample, ...], progress: Progress) -> list[Effect]:
    """Effects on one class, the undisturbed photos first."""
    photos = [images.load_rgb(sample.path) for sample in samples]
    truth = [
        np.zeros(photo.shape[:2], np.bool_)
        if not sample.label
        else None
        if sample.mask_path is None
        else images.load_mask(sample.mask_path, (photo.shape[0], photo.shape[1]))
        for sample, photo in zip(samples, photos, strict=True)
    ]
    labels = np.array([sample.label for sample in samples])
    threshold = detector.classes[name].calibration.threshold
    before: npt.NDArray[np.float64] | None = None
    effects = []
    ways: dict[str, Disturb | None] = {"none": None, **DISTURBANCES}
    for number, (way, disturb) in enumerate(ways.items()):
        progress(f"{name}", number, len(ways), way)
        seen = [disturb(p, np.random.default_rng(i)) if disturb else p for i, p in enumerate(photos)]
        answers = detector.inspect(seen, name)
        scores = np.array([answer.pred_score for answer in answers])
        before = scores if before is None else before
        masks = [None if m is None else _small(_moved_mask(m, way, disturb)) for m in truth]
        maps = [images.resize_map(answer.anomaly_map, (METRIC_PX, METRIC_PX)) for answer in answers]
        figures = class_figures(labels.tolist(), scores.tolist(), maps, masks)
        moved = (scores - before)[labels == 0] / (threshold or np.nan)
        high = None if threshold is None else scores >= threshold
        effects.append(
            Effect(
                class_name=name,
                disturbance=way,
                good=int((labels == 0).sum()),
                bad=int(labels.sum()),
                moved=float(moved.mean()),
                moved_most=float(moved.max()),
                false_alarms=None if high is None else int(high[labels == 0].sum()),
                missed=None if high is None else int((~high[labels == 1]).sum()),
                image_auroc=figures["image_auroc"],
                pixel_auroc=figures["pixel_auroc"],
            )
        )
    progress(f"{name}", len(ways), len(ways), "done")
    return effects


def rows(effects: list[Effect]) -> list[tuple[str, ...]]:
    """Under COLUMNS: a row a disturbance, over all classes; AUROC as the mean over classes, and its fall."""
    plain = [e for e in effects if e.disturbance == "none"]
    found: list[tuple[str, ...]] = []
    for way in dict.fromkeys(e.disturbance for e in effects):
        mine = [e for e in effects if e.disturbance == way]

        def fall(field: str, mine: list[Effect] = mine) -> str:
            now = np.nanmean([getattr(e, field) for e in mine])
            return f"{100 * now:.1f} ({100 * (now - np.nanmean([getattr(e, field) for e in plain])):+.1f})"

        judged = [e for e in mine if e.false_alarms is not None]
        found.append(
            (
                way,
                f"{np.nanmean([e.moved for e in mine]):+.2f}",
                f"{np.nanmax([e.moved_most for e in mine]):+.2f}",
                f"{sum(e.false_alarms or 0 for e in judged)}/{sum(e.good for e in judged)}",
                f"{sum(e.missed or 0 for e in judged)}/{sum(e.bad for e in judged)}",
                fall("image_auroc"),
                fall("pixel_auroc"),
            )
        )
    return found


COLUMNS = ("disturbance", "score moves, thresholds", "at most", "false alarms", "missed", "image AUROC", "pixel AUROC")


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--data", type=Path, required=True, help="labelled photos, as for sd-edge eval")
    parser.add_argument("--classes", default=None, help="some of them, by commas")
    parser.add_argument("--photos", type=int, default=16, help="test photos a class, half of them good")
    parser.add_argument("--preset", default="edge")
    parser.add_argument("--backend", default="cpu")
    parser.add_argument("--out", type=Path, required=True, help="results, JSON")
    asked = parser.parse_args()
    data = few_tests(open_dataset(asked.data, asked.classes.split(",") if asked.classes else None), asked.photos)
    effects: list[Effect] = []
    with progress_bars() as progress, Opening(asked.preset, asked.backend).detector(asked.bundle) as detector:
        for name, part in data.classes.items():
            effects += measure(detector, name, part.test, progress)
            said: dict[str, Any] = {"photos": asked.photos, "preset": asked.preset, "backend": asked.backend}
            machine = {f.what: f.because for f in examine()}
            write_json(asked.out, {"machine": machine, "settings": said, "effects": effects})
    show_table(f"{len(data.classes)} classes, all photos disturbed alike", COLUMNS, rows(effects))


def _moved(photo: U8, degrees: float, share: float) -> U8:
    height, width = photo.shape[:2]
    margin = int(np.ceil(0.3 * max(height, width)))
    margin = min(margin, min(height, width) - 1)
    padded = Image.fromarray(np.pad(photo, ((margin, margin), (margin, margin), (0, 0)), mode="reflect"))
    turned = padded.rotate(degrees, Image.Resampling.BICUBIC) if degrees else padded
    by = round(share * max(height, width))
    left, top = margin - by, margin - by
    return np.asarray(turned.crop((left, top, left + width, top + height)))


def _moved_mask(mask: Mask, way: str, disturb: Disturb | None) -> Mask:
    """The mask under a disturbance that moves things; what mirrors in at the border stays unmarked nowhere."""
    if disturb is None or not way.startswith(GEOMETRIC):
        return mask
    as_photo = np.repeat(mask.astype(np.uint8)[..., None] * 255, 3, axis=2)
    return np.asarray(disturb(as_photo, np.random.default_rng(0))[..., 0] > 127)


def _small(mask: Mask) -> Mask:
    grey = Image.fromarray(mask)
    return np.asarray(grey.resize((METRIC_PX, METRIC_PX), Image.Resampling.NEAREST), dtype=np.bool_)


if __name__ == "__main__":
    main()
