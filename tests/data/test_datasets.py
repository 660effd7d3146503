"""The three layouts from small folders, the few-shot choice, and what wrong folders are told."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from anomalysd_edge.data.datasets import few_shot, open_dataset
from anomalysd_edge.errors import ClassError, DatasetError, SettingsError


def touch(root: Path, *names: str) -> None:
    """Data sets are listed, not decoded: empty files do."""
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(b"")


def short(root: Path, paths: tuple[Path, ...]) -> list[str]:
    return [path.relative_to(root).as_posix() for path in paths]


@pytest.fixture
def mvtec(tmp_path: Path) -> Path:
    touch(
        tmp_path,
        "bottle/train/good/001.png", "bottle/train/good/000.png", "bottle/test/good/000.png",
        "bottle/test/crack/000.png", "bottle/test/crack/001.png",
        "bottle/ground_truth/crack/000_mask.png", "bottle/ground_truth/crack/001_mask.png",
        "cable/train/good/0.png", "cable/test/swap/0.png", "readme.txt", "licences/text.txt",
    )  # fmt: skip
    return tmp_path


def test_mvtec_layout(mvtec: Path) -> None:
    data = open_dataset(mvtec)
    assert data.layout == "mvtec"
    assert list(data.classes) == ["bottle", "cable"]
    bottle = data.classes["bottle"]
    assert short(mvtec, bottle.train) == ["bottle/train/good/000.png", "bottle/train/good/001.png"]
    assert [(sample.defect, sample.label) for sample in bottle.test] == [("crack", 1), ("crack", 1), ("good", 0)]
    assert bottle.test[1].mask_path == mvtec / "bottle/ground_truth/crack/001_mask.png"
    assert bottle.test[2].mask_path is None
    # A data set without any masks for a defect is one to measure image scores on.
    assert data.classes["cable"].test[0].mask_path is None
    assert list(open_dataset(mvtec, ["cable", "bottle"]).classes) == ["cable", "bottle"]
    assert list(open_dataset(mvtec / "bottle").classes) == ["bottle"]


def test_a_photo_without_its_mask_is_named(mvtec: Path) -> None:
    (mvtec / "bottle/ground_truth/crack/001_mask.png").unlink()
    with pytest.raises(DatasetError, match=r"crack/001\.png has no mask"):
        open_dataset(mvtec)


def test_an_unknown_class_is_told_which_there_are(mvtec: Path) -> None:
    with pytest.raises(ClassError, match=r"no class 'botle'; it has bottle, cable"):
        open_dataset(mvtec, ["botle"])


def visa(root: Path) -> Path:
    for name in ("candle", "pcb1"):
        touch(root, *(f"{name}/Data/Images/Normal/{i:04}.JPG" for i in range(10)))
        touch(root, *(f"{name}/Data/Images/Anomaly/{i:03}.JPG" for i in range(2)))
        touch(root, *(f"{name}/Data/Masks/Anomaly/{i:03}.png" for i in range(2)))
    return root


HEADER = "object,split,label,image,mask\n"


def test_visa_with_its_csv(tmp_path: Path) -> None:
    root = visa(tmp_path)
    (root / "split_csv").mkdir()
    (root / "split_csv" / "1cls.csv").write_text(
        HEADER
        + "candle,train,normal,candle/Data/Images/Normal/0007.JPG,\n"
        + "candle,train,normal,candle/Data/Images/Normal/0001.JPG,\n"
        + "candle,test,anomaly,candle/Data/Images/Anomaly/001.JPG,candle/Data/Masks/Anomaly/001.png\n"
        + "candle,test,normal,candle/Data/Images/Normal/0002.JPG,\n"
        + "cashew,train,normal,cashew/Data/Images/Normal/0000.JPG,\n"
    )
    data = open_dataset(root)
    assert data.layout == "visa"
    assert list(data.classes) == ["candle"]
    assert [path.name for path in data.classes["candle"].train] == ["0001.JPG", "0007.JPG"]
    test = data.classes["candle"].test
    assert [(sample.path.name, sample.label) for sample in test] == [("001.JPG", 1), ("0002.JPG", 0)]
    assert test[0].mask_path == root / "candle/Data/Masks/Anomaly/001.png"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("object,split\ncandle,train\n", "lacks the columns image, label, mask"),
        (HEADER + "candle,train,normal,candle/Data/Images/Normal/9999.JPG,\n", "line 2: .*9999.JPG does not exist"),
        (HEADER + "candle,train,normal,../secret.png,\n", "line 2: found the path"),
        (HEADER + "candle,valid,normal,x,\n", "line 2: found .*expected train or test"),
        (HEADER + "candle,train,anomaly,candle/Data/Images/Anomaly/000.JPG,\n", "line 2: an anomaly"),
        (HEADER + "candle,test\n", "line 2: found"),
        ("\udcff", "not a csv file"),
    ],
)
def test_wrong_visa_csv_names_the_line(tmp_path: Path, text: str, message: str) -> None:
    root = visa(tmp_path)
    (root / "split_csv").mkdir()
    (root / "split_csv" / "1cls.csv").write_bytes(text.encode("utf-8", "surrogateescape"))
    with pytest.raises(DatasetError, match=message):
        open_dataset(root)


def test_visa_without_its_csv(tmp_path: Path) -> None:
    data = open_dataset(visa(tmp_path))
    assert data.layout == "visa"
    candle = data.classes["candle"]
    assert len(candle.train) == 9
    assert [sample.label for sample in candle.test] == [0, 1, 1]
    assert candle.test[0].path.name == "0009.JPG"
    assert candle.test[2].mask_path == tmp_path / "candle/Data/Masks/Anomaly/001.png"


def test_folder_of_good_photos(tmp_path: Path) -> None:
    touch(tmp_path, "bracket/b.jpg", "bracket/a.PNG", "bracket/notes.txt")
    data = open_dataset(tmp_path / "bracket")
    assert data.layout == "folder"
    assert [path.name for path in data.classes["bracket"].train] == ["a.PNG", "b.jpg"]
    assert data.classes["bracket"].test == ()


@pytest.mark.parametrize("masks", ["masks", "ground_truth"])
def test_folder_with_good_bad_and_masks(tmp_path: Path, masks: str) -> None:
    root = tmp_path / "bracket"
    touch(root, *(f"good/{i}.png" for i in range(5)), "bad/x.png", "bad/bent/y.png", f"{masks}/x.png", f"{masks}/y.png")
    data = open_dataset(root).classes["bracket"]
    assert short(root, data.train) == ["good/0.png", "good/1.png", "good/2.png"]
    assert [(s.path.stem, s.defect) for s in data.test] == [("3", "good"), ("4", "good"), ("x", "bad"), ("y", "bent")]
    assert [s.mask_path for s in data.test[2:]] == [root / masks / "x.png", root / masks / "y.png"]
    touch(root, "good_test/g.png")
    data = open_dataset(root).classes["bracket"]
    assert len(data.train) == 5
    assert [s.path.stem for s in data.test] == ["g", "x", "y"]


def test_folder_of_class_folders(tmp_path: Path) -> None:
    touch(tmp_path, "nut/1.png", "bolt/good/1.png", "bolt/good/2.png", "bolt/bad/3.png", "empty/readme.txt")
    data = open_dataset(tmp_path)
    assert list(data.classes) == ["bolt", "nut"]
    assert [sample.label for sample in data.classes["bolt"].test] == [0, 1]
    touch(tmp_path, "preview.png")
    with pytest.raises(DatasetError, match=r"holds photos and folders of photos \(bolt, nut\)"):
        open_dataset(tmp_path)


def test_wrong_roots(tmp_path: Path) -> None:
    touch(tmp_path, "file.txt", "empty/x.txt", "m/bottle/train/god/1.png", "m/cable/train/good/1.png")
    for name, message in {"none": "does not exist", "file.txt": "is a file", "empty": "holds no photos"}.items():
        with pytest.raises(DatasetError, match=message):
            open_dataset(tmp_path / name)
    with pytest.raises(DatasetError, match=r"bottle has no photos in train/good"):
        open_dataset(tmp_path / "m")
    for layout in ("mvtec", "visa"):
        with pytest.raises(DatasetError, match=f"in the {layout} layout"):
            open_dataset(tmp_path / "empty", layout=layout)
    with pytest.raises(SettingsError, match="coco"):
        open_dataset(tmp_path, layout="coco")


def test_few_shot_choices_are_nested_and_independent_of_order() -> None:
    paths = [Path(f"{i:02}.png") for i in range(20)]
    mixed = [paths[i] for i in np.random.default_rng(9).permutation(20)]
    assert few_shot(mixed, 3) == tuple(paths[:3])
    assert few_shot(mixed, 0) == few_shot([], 0) == ()
    four = few_shot(mixed, 4, seed=1)
    assert four == few_shot(paths, 4, seed=1)
    assert len(set(four)) == 4
    assert few_shot(paths, 1, seed=1) == four[:1]
    assert few_shot(paths, 4, seed=2) != four


def test_too_few_photos_are_counted() -> None:
    with pytest.raises(DatasetError, match=r"asked for 4 good photos of bottle, found 2"):
        few_shot([Path("a"), Path("b")], 4, name="bottle")
    with pytest.raises(DatasetError, match="found none"):
        few_shot([], 1)
    with pytest.raises(SettingsError, match="-1 shots"):
        few_shot([], -1)
