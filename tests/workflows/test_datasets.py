"""Data sets as the verbs open them: told back once, classes never taken for another, poor shots named."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from anomalysd_edge.data.datasets import open_dataset
from anomalysd_edge.errors import DatasetError
from anomalysd_edge.vision.images import save_png
from anomalysd_edge.workflows.datasets import check_class_names, of_bundle, open_described, say_faults
from tests.support.data_sets import touch


def test_a_data_set_is_told_back_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    touch(tmp_path / "bolt", "train/good/0.png", "test/OK/0.png", "test/bent/0.png", "train/good/x.heic")
    for _ in range(2):
        open_described(tmp_path / "bolt")
    assert capsys.readouterr().err.splitlines() == [
        f"{tmp_path}/bolt: mvtec layout, class bolt: 1 good to train with, 1 good and 1 bad to test on, no masks",
        "  bolt: test/OK is read as good photos",
        "  left out: 1 .heic (not read as photos) in train/good",
    ]


def test_photos_of_other_classes_never_stand_under_a_bundles_only_class(tmp_path: Path) -> None:
    touch(tmp_path / "sets", "bolt/train/good/0.png", "nut/train/good/0.png")
    touch(tmp_path / "photos", "0.png")
    for root, expected in (("sets", ["bolt", "nut"]), ("sets/nut", ["nut"]), ("photos", ["bolt"])):
        data = of_bundle(open_dataset(tmp_path / root), ["bolt"])
        assert list(data.classes) == expected
    assert list(of_bundle(open_dataset(tmp_path / "photos"), ["bolt", "nut"]).classes) == ["photos"]


@pytest.mark.parametrize("name", ["good", "OK", "train", "normal_images"])
def test_a_folder_of_good_photos_gives_no_class_its_name(tmp_path: Path, name: str) -> None:
    touch(tmp_path / "bolt" / name, "0.png")
    data = open_dataset(tmp_path / "bolt" / name)
    with pytest.raises(DatasetError, match="the class would be called"):
        check_class_names(data)


def test_poor_shots_are_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    save_png(tmp_path / "white.png", np.full((20, 20, 3), 255, np.uint8))
    save_png(tmp_path / "noise.png", np.random.default_rng(0).integers(0, 256, (20, 20, 3), dtype=np.uint8))
    say_faults({"bolt": [tmp_path / "white.png", tmp_path / "noise.png"]})
    (line,) = capsys.readouterr().err.splitlines()
    assert line == f"bolt: {tmp_path}/white.png is a poor shot: it is of one colour, (255, 255, 255)"
