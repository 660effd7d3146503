"""Labelled photos in MVTec-AD's layout, drawn by `tests.support.detectors.photo`, and data sets of empty files."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from anomalysd_edge.vision import images
from tests.support.detectors import photo

VISA_CSV = "object,split,label,image,mask\n"
"""The first line of VisA's CSV."""


def good_photos(root: Path, count: int = 5, class_name: str = "bottle") -> Path:
    """Write `count` good photos to train with; returns `root`."""
    for number in range(count):
        images.save_png(root / class_name / "train/good" / f"{number}.png", photo(number))
    return root


def spot_data_set(root: Path, class_name: str = "part", train: int = 4, test: int = 4, mask_side: int = 40) -> Path:
    """Write one class whose bad photos have a red spot; `test` good and as many bad ones, masks of `mask_side` px."""
    good_photos(root, train, class_name)
    mask = np.zeros((mask_side, mask_side), np.uint8)
    mask[8:14, 24:30] = 255
    for number in range(test):
        images.save_png(root / class_name / "test/good" / f"{number}.png", photo(10 + number))
        images.save_png(root / class_name / "test/spot" / f"{number}.png", photo(20 + number, defect=True))
        images.save_png(root / class_name / "ground_truth/spot" / f"{number}_mask.png", mask)
    return root


def bottle_data_set(root: Path, train: int = 3) -> Path:
    """The same of the class of `small_bundle`, with three good and three bad test photos."""
    return spot_data_set(root, "bottle", train, test=3)


def touch(root: Path, *names: str) -> None:
    """Write empty files: data sets are listed, not decoded."""
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(b"")
