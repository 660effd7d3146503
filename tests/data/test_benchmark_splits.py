"""The published protocols by name, on small folders in their layouts."""

from __future__ import annotations

from pathlib import Path

import pytest

from anomalysd_edge.data.benchmark_splits import PUBLISHED, open_published
from anomalysd_edge.data.classes import shipped_classes
from anomalysd_edge.errors import ClassError, DatasetError
from tests.data.test_datasets import HEADER, touch


def mvtec_class(root: Path, name: str, train: int, good: int, bad: int) -> None:
    touch(root / name, *(f"train/good/{i:03}.png" for i in range(train)))
    touch(root / name, *(f"test/good/{i:03}.png" for i in range(good)))
    touch(root / name, *(f"test/broken/{i:03}.png" for i in range(bad)))
    touch(root / name, *(f"ground_truth/broken/{i:03}_mask.png" for i in range(bad)))


def test_the_tables_add_up_to_the_published_totals_and_have_prompts() -> None:
    totals = {name: tuple(map(sum, zip(*known.counts.values(), strict=True))) for name, known in PUBLISHED.items()}
    # MVTec AD: 3629 to train with, 1725 to test on; VisA: 9621 normal and 1200 anomalous photos.
    assert totals == {"mvtec-ad": (3629, 467, 1258), "visa": (8659, 962, 1200)}
    assert [len(known.counts) for known in PUBLISHED.values()] == [15, 12]
    for known in PUBLISHED.values():
        assert set(known.counts) <= set(shipped_classes())


def test_the_published_split_is_recognised_to_the_photo(tmp_path: Path) -> None:
    mvtec_class(tmp_path, "toothbrush", 60, 12, 30)
    mvtec_class(tmp_path, "capsule_of_mine", 2, 2, 2)
    data, notes = open_published(tmp_path, "mvtec-ad", ["toothbrush"])
    assert list(data.classes) == ["toothbrush"]
    assert notes == ["1 of MVTec AD's 15 classes"]
    (tmp_path / "toothbrush/test/good/000.png").unlink()
    _, notes = open_published(tmp_path, "mvtec-ad", ["toothbrush"])
    assert notes[1] == "toothbrush: 11 good to test on in place of 12"


def test_all_classes_are_wanted_unless_some_are_named(tmp_path: Path) -> None:
    for name in PUBLISHED["mvtec-ad"].counts:
        mvtec_class(tmp_path, name, 4, 1, 1)
    data, notes = open_published(tmp_path, "mvtec-ad")
    assert list(data.classes) == list(PUBLISHED["mvtec-ad"].counts)
    assert len(notes) == 15
    (tmp_path / "screw").rename(tmp_path / "screws")
    with pytest.raises(DatasetError, match="lacks MVTec AD's screw"):
        open_published(tmp_path, "mvtec-ad")
    with pytest.raises(ClassError, match="no class 'screws'"):
        open_published(tmp_path, "mvtec-ad", ["screws"])
    with pytest.raises(DatasetError, match="known are mvtec-ad, visa"):
        open_published(tmp_path, "mvtec")


def test_visa_is_its_one_class_csv(tmp_path: Path) -> None:
    lines = [HEADER]
    for name in PUBLISHED["visa"].counts:
        touch(tmp_path, *(f"{name}/Data/Images/Normal/{i:04}.JPG" for i in range(3)))
        touch(tmp_path, f"{name}/Data/Images/Anomaly/000.JPG", f"{name}/Data/Masks/Anomaly/000.png")
        image = f"{name}/Data/Images"
        lines += [f"{name},train,normal,{image}/Normal/{i:04}.JPG,\n" for i in (1, 2)]
        lines += [f"{name},test,normal,{image}/Normal/0000.JPG,\n"]
        lines += [f"{name},test,anomaly,{image}/Anomaly/000.JPG,{name}/Data/Masks/Anomaly/000.png\n"]
    with pytest.raises(DatasetError, match=r"lacks split_csv/1cls\.csv"):
        open_published(tmp_path, "visa")
    (tmp_path / "split_csv").mkdir()
    (tmp_path / "split_csv/1cls.csv").write_text("".join(lines))
    data, notes = open_published(tmp_path, "visa")
    assert [p.name for p in data.classes["pcb4"].train] == ["0001.JPG", "0002.JPG"]
    assert len(data.classes["pcb4"].test) == 2
    assert len(notes) == 12
