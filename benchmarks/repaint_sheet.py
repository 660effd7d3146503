"""One picture of what repaints are: photo, round trip, repaint, and the maps, of a few photos of each class.

    python -m benchmarks.repaint_sheet --bundle BUNDLE --data DIR --classes a,b --out sheet.png

A row for each class's first good and first defective test photo. Columns: the photo as the networks see it; its round
trip through the autoencoder; the repaint, every masked cell in its place; S_ms; the prototypes' map; both together; the
annotated mask. Maps of a class share a scale: white is twice what the map of its good photo reaches.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from anomalysd_edge.core.types import F32, U8
from anomalysd_edge.data.datasets import open_dataset
from anomalysd_edge.data.samples import Sample
from anomalysd_edge.method.detector import Detector
from anomalysd_edge.method.networks import Networks
from anomalysd_edge.reports.console import progress_bars
from anomalysd_edge.vision.images import load_mask, load_rgb, resize, save_png, to_array, to_image
from anomalysd_edge.vision.letterbox import Letterbox
from benchmarks import harness

TILE_PX = 160
MAPS = ("multiscale", "prototypes", "fused")


def shades(values: F32, most: float) -> U8:
    """(h,w) -> (h,w,3): black at 0, white from `most` on."""
    grey = (255 * np.clip(values / max(most, 1e-9), 0, 1)).astype(np.uint8)
    return np.repeat(grey[..., None], 3, axis=2)


def row(detector: Detector, networks: Networks, name: str, sample: Sample, most: dict[str, float]) -> U8:
    """(TILE_PX, 7 TILE_PX, 3); the first row of a class sets the maps' scale in `most`."""
    photo = load_rgb(sample.path)
    (answer,) = detector.inspect([photo], name, full=True)
    frame = Letterbox.of((photo.shape[0], photo.shape[1]), detector.classes[name].aspect)
    seen = frame.resize(photo, networks.sizes.size_px)
    trip = to_image(networks.decode(networks.encode(to_array(seen)))[0])
    mask = np.zeros(photo.shape[:2], np.bool_)
    if sample.mask_path is not None:
        mask = load_mask(sample.mask_path, (photo.shape[0], photo.shape[1]))
    for kind in MAPS:
        most.setdefault(kind, 2 * float(answer.maps[kind].max()))
    pictures = [seen, trip, answer.repaint]
    pictures += [shades(answer.maps[kind], most[kind]) for kind in MAPS]
    return np.concatenate([resize(each, TILE_PX) for each in (*pictures, shades(mask.astype(np.float32), 1.0))], axis=1)


def main() -> None:
    """Inspect in full, and write the picture."""
    from anomalysd_runtime.loading import open_detector

    parser = harness.parser_of(__doc__, "--bundle", "--data", "--classes", "--threads", "--out")
    asked = parser.parse_args()
    data = open_dataset(asked.data, asked.classes.split(",") if asked.classes else None)
    rows: list[U8] = []
    with progress_bars() as progress, open_detector(asked.bundle, threads=asked.threads) as detector:
        for number, (name, part) in enumerate(data.classes.items()):
            progress("inspect", number, len(data.classes), name)
            most: dict[str, float] = {}
            for label in (0, 1):
                sample = next(s for s in part.test if s.label == label)
                rows.append(row(detector, detector.networks, name, sample, most))
    save_png(Path(asked.out), np.concatenate(rows, axis=0))


if __name__ == "__main__":
    main()
