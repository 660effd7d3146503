"""Folders as people and publishers lay them out: what is read, what is said of it, and what is refused."""

from __future__ import annotations

import json
import os
import unicodedata
from pathlib import Path

import pytest

from anomalysd_edge.data.datasets import ClassData, NamedFolders, open_dataset, open_folders
from anomalysd_edge.data.layouts.roles import role
from anomalysd_edge.errors import ClassError, DatasetError
from tests.support.data_sets import touch


def counts(data: ClassData) -> tuple[int, int, int, int]:
    """Good to train with, good and bad to test on, bad with masks."""
    bad = [s for s in data.test if s.label]
    return len(data.train), len(data.test) - len(bad), len(bad), sum(s.mask_path is not None for s in bad)


def test_good_and_bad_photos_of_one_part_are_not_classes(tmp_path: Path) -> None:
    for number, names in enumerate((
        ("OK", "NG", "MASK"), ("gut", "n.i.O."), ("Normal images", "Abnormal"), ("NG",), ("良品", "不良品"),
        ("good", "NG"), ("OK", "bad"), ("bueno", "défaut"),
    )):  # fmt: skip
        root = tmp_path / str(number)
        touch(root, *(f"{name}/0.png" for name in names))
        with pytest.raises(DatasetError, match=r"like the .* photos of one part") as raised:
            open_dataset(root)
        assert all(name in str(raised.value) for name in names if name not in ("good", "bad"))
        # A class of its own in a folder of classes: the same words, one level deeper.
        touch(root / "parts" / "bolt", *(f"{name}/sub/0.png" for name in names))
        with pytest.raises(DatasetError, match=r"bolt holds .* photos of one part"):
            open_dataset(root / "parts")
    root = tmp_path / "0"
    with pytest.raises(DatasetError, match="--normal-dir OK --abnormal-dir NG --mask-dir MASK"):
        open_dataset(root)
    # Whoever names them as classes means classes.
    assert list(open_dataset(root, ["OK"]).classes) == ["OK"]
    touch(tmp_path / "products", "label/0.png", "bottle/0.png", "cap/0.png")
    assert list(open_dataset(tmp_path / "products").classes) == ["bottle", "cap", "label"]


def test_words_for_good_bad_and_mask() -> None:
    for meant, words in {
        "good": "good Good GOOD OK ok_parts Normal normal-images i.O. IO Gut bon conforme 正常 合格品 pass",
        "bad": "bad NG nok NOK nio Defekt Fehler abnormal anomalies defective 缺陷 不合格 불량 ko not_ok",
        "mask": "mask Masks ground_truth GT label_images annotations",
        None: "bolt nut 01 bottle goodyear badge masking ionic normalizer",
    }.items():
        assert {role(word) for word in words.split()} == {meant}, words


def test_a_part_of_a_class_given_as_the_root_is_refused(tmp_path: Path) -> None:
    touch(tmp_path / "bottle", "train/good/0.png", "test/good/0.png", "test/crack/0.png", "ground_truth/crack/0.png")
    for part in ("train", "test"):
        with pytest.raises(DatasetError, match=f"is the {part} part of the class bottle, not a class; give .*bottle$"):
            open_dataset(tmp_path / "bottle" / part)
    assert counts(open_dataset(tmp_path / "bottle").classes["bottle"]) == (1, 1, 1, 1)


def test_classes_in_two_layouts_are_refused_unless_chosen(tmp_path: Path) -> None:
    touch(tmp_path, "bottle/train/good/0.png", "nut/0.png", "bolt/good/0.png", "docs/site/logo.png")
    with pytest.raises(DatasetError, match=r"holds bottle with train/good .*, and bolt, nut without"):
        open_dataset(tmp_path)
    assert list(open_dataset(tmp_path, ["bottle"]).classes) == ["bottle"]


def test_classes_inside_the_splits_are_refused(tmp_path: Path) -> None:
    """As image classifiers lay them out: train/CLASS and test/CLASS."""
    touch(tmp_path / "d", "train/bolt/0.png", "train/nut/0.png", "test/bolt/1.png", "test/nut/1.png")
    with pytest.raises(DatasetError, match=r"no photos in train/good \(found bolt, nut in train\)"):
        open_dataset(tmp_path / "d", layout="mvtec")


def test_linked_class_folders_keep_their_names(tmp_path: Path) -> None:
    for name in ("x", "y"):
        touch(tmp_path / "store" / name / "images", "train/good/0.png")
        touch(tmp_path / "flat" / name / "images", "0.png", "1.png")
    for source, layout in (("store", "mvtec"), ("flat", "folder")):
        root = tmp_path / f"linked-{source}"
        root.mkdir()
        for name, target in {"bolt": "x", "nut": "y"}.items():
            (root / name).symlink_to(f"../{source}/{target}/images")
        data = open_dataset(root)
        assert (list(data.classes), data.layout) == (["bolt", "nut"], layout)
        assert data.left_out == ()
        assert list(open_dataset(root / "bolt").classes) == ["bolt"]
    (tmp_path / "linked-flat/nut/circle").symlink_to("..")
    assert list(open_dataset(tmp_path / "linked-flat").classes) == ["bolt", "nut"]


@pytest.mark.parametrize("word", ["Good", "OK", "normal", "i.O."])
def test_other_words_for_good_in_test(tmp_path: Path, word: str) -> None:
    touch(tmp_path / "part", "train/good/0.png", f"test/{word}/0.png", f"test/{word}/1.png", "test/scratch/0.png")
    data = open_dataset(tmp_path / "part")
    assert counts(data.classes["part"]) == (1, 2, 1, 0)
    assert f"test/{word} is read as good photos" in "\n".join(data.described())
    touch(tmp_path / "other", f"Train/{word}/0.png", f"Test/{word}/0.png", "Test/scratch/0.png")
    assert counts(open_dataset(tmp_path / "other").classes["other"]) == (1, 1, 1, 0)


def test_masks_one_level_deeper_and_of_other_names(tmp_path: Path) -> None:
    masks = {
        "loco": ["000/000.png", "000/001.png", "001/000.png"],
        "same": ["000.PNG", "001.png"],
        "suffix": ["000_mask.gif", "001_gt.bmp"],
        "prefix": ["mask_000.tif", "gt-001.webp"],
        "double": ["000.jpg.png", "001.jpg.png"],
        "upper": ["000_MASK.png", "001_Mask.png"],
    }
    for name, files in masks.items():
        root = tmp_path / name
        touch(root, "train/good/0.jpg", "test/Scratch/000.jpg", "test/Scratch/001.jpg")
        touch(root, *(f"ground_truth/scratch/{file}" for file in files))
        data = open_dataset(root)
        assert counts(data.classes[name]) == (1, 0, 2, 2), name
        assert data.left_out == (), name
    assert open_dataset(tmp_path / "loco").classes["loco"].test[0].mask_path == (
        tmp_path / "loco/ground_truth/scratch/000"
    )
    touch(tmp_path / "loco", "test/Scratch/002.jpg")
    with pytest.raises(DatasetError, match=r"002\.jpg has no mask"):
        open_dataset(tmp_path / "loco")


def test_masks_side_by_side(tmp_path: Path) -> None:
    root = tmp_path / "part"
    touch(root, "train/good/0.png", "test/a/0.png", "test/b/1.png", "masks/0.png", "masks/1.png")
    assert counts(open_dataset(root).classes["part"]) == (1, 0, 2, 2)
    touch(root, "test/b/0.png")
    with pytest.raises(DatasetError, match=r"photos of two kinds are called 0; put the masks into .*/DEFECT"):
        open_dataset(root)


def test_what_was_left_out_is_named(tmp_path: Path) -> None:
    root = tmp_path / "part"
    touch(root, "train/good/0.png", "train/good/1.JFIF", "train/good/2.heic", "train/good/3", "train/bad/0.png")
    touch(root, "validation/good/0.png", "test/scratch/0.png", "ground_truth/scratch/0.npy", "readme.md", ".x/0.png")
    data = open_dataset(root)
    assert data.left_out == (
        "1 .npy (not read as photos) in ground_truth/scratch",
        "1 .png in train/bad",
        "1 files without an ending (not read as photos) in train/good",
        "1 .heic (not read as photos) in train/good",
        "1 .png in validation/good",
    )
    assert data.described()[0] == (
        f"{root}: mvtec layout, class part: 2 good to train with, 0 good and 1 bad to test on, no masks, "
        "1 .jfif and 2 .png"
    )
    assert "  left out: 1 .heic (not read as photos) in train/good" in data.described()
    touch(tmp_path / "raws", *(f"{i}.heic" for i in range(3)))
    with pytest.raises(DatasetError, match=r"found 3 \.heic \(not read as photos\)"):
        open_dataset(tmp_path / "raws")


def test_many_classes_are_described_by_their_totals(tmp_path: Path) -> None:
    touch(tmp_path, *(f"c{i:02}/{j}.png" for i in range(9) for j in range(2)))
    (line,) = open_dataset(tmp_path).described()
    assert line.startswith(f"{tmp_path}: folder layout, 9 classes (c00, c01, ")
    assert line.endswith("c08): 18 good to train with")
    assert open_dataset(tmp_path, ["c00", "c01"]).described()[1:] == [
        "  c00: 2 good to train with", "  c01: 2 good to train with"
    ]  # fmt: skip


def test_names_in_two_unicode_forms(tmp_path: Path) -> None:
    composed = unicodedata.normalize("NFC", "Gehäuse")
    decomposed = unicodedata.normalize("NFD", "Gehäuse")
    touch(tmp_path, f"{decomposed}/0.png", "nut/0.png")
    assert list(open_dataset(tmp_path, [composed]).classes) == [decomposed]
    touch(tmp_path, f"{composed}/0.png")
    assert list(open_dataset(tmp_path, [composed]).classes) == [composed]
    with pytest.raises(DatasetError, match="twice, in two Unicode forms"):
        open_dataset(tmp_path)


def test_names_with_commas(tmp_path: Path) -> None:
    touch(tmp_path, "bolt, M4/0.png", "nut/0.png", "a,b,c/0.png")
    for asked in (["bolt, M4"], ["bolt", "M4"], ["bolt,M4"]):
        assert list(open_dataset(tmp_path, asked).classes) == ["bolt, M4"]
    assert list(open_dataset(tmp_path, ["nut", "a", "b", "c", "bolt", "M4"]).classes) == ["nut", "a,b,c", "bolt, M4"]
    with pytest.raises(ClassError, match="no class 'M5'; it has a,b,c, bolt, M4, nut"):
        open_dataset(tmp_path, ["bolt, M4", "M5"])


def test_names_that_are_not_utf8(tmp_path: Path) -> None:
    touch(tmp_path, *(os.fsdecode(b"teil_\xe4/" + name) for name in (b"\xe4.png", b"\xf6.heic")))
    data = open_dataset(tmp_path)
    assert list(data.classes) == [os.fsdecode(b"teil_\xe4")]
    assert data.left_out == ("1 .heic (not read as photos) in teil_\ufffd",)


PUBLISHED_FILES = {
    "mvtec-loco": (
        ["pushpins/train/good/000.png", "pushpins/validation/good/000.png", "pushpins/test/good/000.png",
         "pushpins/test/logical_anomalies/000.png", "pushpins/test/structural_anomalies/000.png",
         "pushpins/ground_truth/logical_anomalies/000/000.png", "pushpins/ground_truth/logical_anomalies/000/001.png",
         "pushpins/ground_truth/structural_anomalies/000/000.png", "pushpins/defects_config.json"],
        "pushpins", (1, 1, 2, 2)),
    "mvtec-ad2": (
        ["can/train/good/000_regular.png", "can/validation/good/000_regular.png", "can/test_public/good/000_a.png",
         "can/test_public/bad/000_shift_1.png", "can/test_public/ground_truth/bad/000_shift_1_mask.png",
         "can/test_private/000_regular.png", "can/test_private_mixed/000_mixed.png"],
        "can", (1, 1, 1, 1)),
    "btad": (
        ["01/train/ok/0000.bmp", "01/train/ok/0001.bmp", "01/test/ok/0000.bmp", "01/test/ko/0000.bmp",
         "01/ground_truth/ko/0000.png"],
        "01", (2, 1, 1, 1)),
    "mpdd": (
        ["tubes/train/good/000.png", "tubes/test/good/000.png", "tubes/test/anomalous/000.png",
         "tubes/ground_truth/anomalous/000_mask.png"],
        "tubes", (1, 1, 1, 1)),
    "real-iad": (
        ["realiad_1024/usb/OK/S0001/usb_0001_OK_C1_1.jpg", "realiad_1024/usb/OK/S0002/usb_0002_OK_C1_1.jpg",
         "realiad_1024/usb/NG/HS/S0003/usb_0003_NG_HS_C1_1.jpg",
         "realiad_1024/usb/NG/HS/S0003/usb_0003_NG_HS_C1_1_mask.png", "realiad_256/usb/OK/S0001/x.jpg"],
        "usb", (1, 1, 1, 1)),
}  # fmt: skip


@pytest.mark.parametrize("name", PUBLISHED_FILES)
def test_published_layouts_by_name_and_by_looking(tmp_path: Path, name: str) -> None:
    files, class_name, expected = PUBLISHED_FILES[name]
    touch(tmp_path, *files)
    if name == "real-iad":
        good = [{"category": "usb", "anomaly_class": "OK", "image_path": f[17:], "mask_path": None} for f in files[:2]]
        bad = {"category": "usb", "anomaly_class": "HS", "image_path": files[2][17:], "mask_path": files[3][17:]}
        touch(tmp_path, "realiad_jsons/realiad_jsons/usb.json", "realiad_jsons/realiad_jsons_sv/usb.json")
        split = {"meta": {"prefix": "usb/"}, "train": good[:1], "test": [good[1], bad]}
        (tmp_path / "realiad_jsons/realiad_jsons/usb.json").write_text(json.dumps(split))
    for layout in (name, "auto"):
        data = open_dataset(tmp_path, layout=layout)
        assert list(data.classes) == [class_name]
        assert counts(data.classes[class_name]) == expected
    if name == "mvtec-ad2":
        assert {words.split(" in ")[1] for words in data.left_out} == {
            "can/validation/good", "can/test_private", "can/test_private_mixed"
        }  # fmt: skip


def test_real_iad_without_its_split(tmp_path: Path) -> None:
    touch(tmp_path, "realiad_512/usb/OK/S0001/a.jpg")
    with pytest.raises(DatasetError, match=r"lacks realiad_jsons/realiad_jsons/CLASS\.json"):
        open_dataset(tmp_path)
    touch(tmp_path, "realiad_jsons/realiad_jsons/usb.json")
    for text, message in {
        "[]": "not one of Real-IAD's splits",
        '{"train": [{"anomaly_class": "OK", "image_path": "../x.jpg"}], "test": []}': "one below",
        '{"train": [{"anomaly_class": "HS", "image_path": "OK/S0001/a.jpg", "mask_path": ""}], "test": []}': "is bad",
    }.items():
        (tmp_path / "realiad_jsons/realiad_jsons/usb.json").write_text(text)
        with pytest.raises(DatasetError, match=message):
            open_dataset(tmp_path, layout="real-iad")


def test_folders_by_name_as_in_anomalib(tmp_path: Path) -> None:
    root = tmp_path / "bracket"
    touch(root, *(f"OK/{i}.jpg" for i in range(5)), "NG/x.png", "NG/bent/y.png", "MASK/x.png", "MASK/bent/y.png")
    named = NamedFolders(normal_dir=[Path("OK")], abnormal_dir=[Path("NG")], mask_dir=[Path("MASK")])
    data = open_folders(root, named)
    assert list(data.classes) == ["bracket"]
    assert counts(data.classes["bracket"]) == (3, 2, 2, 2)
    assert {s.defect for s in data.classes["bracket"].test} == {"good", "bad", "bent"}
    touch(root, "more/9.jpg", "held/8.jpg", "NG/raw.heic")
    named = NamedFolders([Path("OK"), Path("more")], [Path("NG")], [root / "held"], name="angle")
    data = open_folders(root, named)
    assert counts(data.classes["angle"]) == (6, 1, 2, 0)
    assert data.left_out == ("1 .heic (not read as photos) in NG",)
    with pytest.raises(DatasetError, match=r"bracket/ok2 is no folder"):
        open_folders(root, NamedFolders([Path("ok2")]))
    with pytest.raises(DatasetError, match="2 mask folders for 1 of bad photos"):
        open_folders(root, NamedFolders([Path("OK")], [Path("NG")], mask_dir=[Path("MASK"), Path("held")]))
