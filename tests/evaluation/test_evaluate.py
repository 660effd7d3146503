"""Evaluation of a detector on a small data set in MVTec-AD layout."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest

from anomalysd_edge.core.files import json_ready
from anomalysd_edge.data.datasets import open_dataset
from anomalysd_edge.errors import DatasetError
from anomalysd_edge.evaluation.evaluate import COLUMNS, evaluate, result_of, table_rows, to_json
from anomalysd_edge.method.detector import Detector
from anomalysd_edge.method.result import MAPS
from anomalysd_edge.vision import images
from tests.method.test_detector import SCHEDULE, SMALL, constants, photo
from tests.support.fake_networks import FakeNetworks


def data_set(root: Path, mask_side: int = 40) -> Path:
    for number in range(4):
        images.save_png(root / "part/train/good" / f"{number}.png", photo(number))
        images.save_png(root / "part/test/good" / f"{number}.png", photo(10 + number))
        images.save_png(root / "part/test/spot" / f"{number}.png", photo(20 + number, defect=True))
        mask = np.zeros((mask_side, mask_side), np.uint8)
        mask[8:14, 24:30] = 255
        images.save_png(root / "part/ground_truth/spot" / f"{number}_mask.png", mask)
    return root


def ready() -> Detector:
    networks = FakeNetworks()
    return Detector(networks, SCHEDULE, {"part": constants(networks)}, SMALL)


def test_figures_of_an_easy_defect(tmp_path: Path) -> None:
    seen: list[str] = []
    results = evaluate(ready(), open_dataset(data_set(tmp_path)), watch=lambda s, _p, _a: seen.append(s.defect))
    (found,) = results
    assert (found.good, found.bad) == (4, 4)
    assert seen.count("spot") == 4
    assert set(found.figures) == set(MAPS)
    assert found.figures["fused"]["image_auroc"] == 1.0
    assert found.figures["fused"]["pixel_auroc"] > 0.95
    assert (found.false_alarms, found.missed) == (0, 0)
    assert found.verdicts["balanced_error"] == found.verdicts["best_balanced_error"] == 0
    assert found.verdicts["f1"] == 1
    assert 0.3 < found.verdicts["seg_f1"] < 1
    assert json_ready(found)["verdicts"] == found.verdicts
    assert result_of(json_ready(found)) == found, "a protocol goes on from what it stored"
    rows = table_rows(results)
    assert rows[0][0] == "part"
    assert len(rows[0]) == len(COLUMNS)
    assert to_json(results)["mean"]["fused"]["image_auroc"] == 1.0


def test_a_mask_of_another_size_is_refused_with_both_sizes(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match=r"(?s)39.*40|40.*39"):
        evaluate(ready(), open_dataset(data_set(tmp_path, mask_side=39)))


def test_a_bad_photo_without_a_mask_counts_for_the_image_and_not_for_pixels(tmp_path: Path) -> None:
    root = data_set(tmp_path)
    for file in (root / "part/ground_truth/spot").iterdir():
        file.unlink()
    (found,) = evaluate(ready(), open_dataset(root))
    assert found.figures["fused"]["image_auroc"] == 1.0
    assert math.isnan(found.figures["fused"]["pixel_auroc"])
