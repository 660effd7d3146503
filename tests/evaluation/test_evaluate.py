"""Evaluation of a detector on a small data set in MVTec-AD layout."""

from __future__ import annotations

import math
from pathlib import Path

import pytest

from anomalysd_edge.core.files import json_ready
from anomalysd_edge.data.datasets import open_dataset
from anomalysd_edge.errors import DatasetError
from anomalysd_edge.evaluation.evaluate import COLUMNS, evaluate, result_of, table_rows, to_json
from anomalysd_edge.method.result import MAPS
from tests.support.data_sets import spot_data_set
from tests.support.detectors import detector


def test_figures_of_an_easy_defect(tmp_path: Path) -> None:
    seen: list[str] = []
    results = evaluate(detector(), open_dataset(spot_data_set(tmp_path)), watch=lambda s, _p, _a: seen.append(s.defect))
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
        evaluate(detector(), open_dataset(spot_data_set(tmp_path, mask_side=39)))


def test_a_bad_photo_without_a_mask_counts_for_the_image_and_not_for_pixels(tmp_path: Path) -> None:
    root = spot_data_set(tmp_path)
    for file in (root / "part/ground_truth/spot").iterdir():
        file.unlink()
    (found,) = evaluate(detector(), open_dataset(root))
    assert found.figures["fused"]["image_auroc"] == 1.0
    assert math.isnan(found.figures["fused"]["pixel_auroc"])
