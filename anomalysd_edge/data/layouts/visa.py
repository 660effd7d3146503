"""VisA's original layout, with its published one-class split where the csv lies beside the photos.

    CLASS/Data/Images/{Normal,Anomaly}, CLASS/Data/Masks/Anomaly/NAME.png, split_csv/1cls.csv

Without the csv the first 90% of the sorted normal photos train and the rest test: the csv has the same shares but
draws them at random, so that figures differ from published ones.
"""

from __future__ import annotations

import csv
from pathlib import Path, PurePosixPath

from anomalysd_edge.data.layouts.tree import labelled, subfolders
from anomalysd_edge.data.samples import GOOD, ClassData, Sample
from anomalysd_edge.errors import DatasetError
from anomalysd_edge.vision.images import list_images

SPLIT = "split_csv/1cls.csv"
_COLUMNS = {"object", "split", "label", "image", "mask"}


def read(root: Path) -> dict[str, ClassData]:
    """The classes below `root`. Raises DatasetError for a csv that is broken or names photos that are not there."""
    table = root / SPLIT
    if table.is_file():
        return _read_split(root, table)
    found = {}
    for folder in subfolders(root):
        images = folder / "Data" / "Images"
        normal = list_images(images / "Normal")
        train = normal[: len(normal) * 9 // 10]
        masks = folder / "Data/Masks/Anomaly"
        anomalous = labelled(folder.name, "anomaly", list_images(images / "Anomaly"), masks)
        test = labelled(folder.name, GOOD, normal[len(train) :], None) + anomalous
        if train or test:
            note = f"{SPLIT} is missing: the first 90% of the sorted normal photos train"
            found[folder.name] = ClassData(folder.name, train, tuple(test), (note,))
    return found


def _read_split(root: Path, table: Path) -> dict[str, ClassData]:
    train: dict[str, list[Path]] = {}
    test: dict[str, list[Sample]] = {}
    for where, row in _rows(table):
        name, split, label = row["object"], row["split"], row["label"]
        if not name or split not in ("train", "test") or label not in ("normal", "anomaly"):
            raise DatasetError(f"{where}: found {row}; expected train or test, normal or anomaly: take VisA's own csv")
        if split == "train" and label == "anomaly":
            raise DatasetError(f"{where}: an anomaly stands in the training split; take the one-class csv, 1cls.csv")
        if not (root / name).is_dir():
            continue  # The csv lists all 12 classes; who has unpacked three of them uses three.
        photo = inside(root, row["image"], where)
        train.setdefault(name, [])
        test.setdefault(name, [])
        if split == "train":
            train[name].append(photo)
        elif label == "normal":
            test[name].append(Sample(photo, name, GOOD, None))
        else:
            test[name].append(Sample(photo, name, "anomaly", inside(root, row["mask"], where)))
    return {
        name: ClassData(name, tuple(sorted(train[name])), tuple(sorted(test[name], key=lambda sample: sample.path)))
        for name in train
    }


def _rows(table: Path) -> list[tuple[str, dict[str, str | None]]]:
    """The rows of VisA's csv, each with its place in the file for messages."""
    try:
        with table.open(newline="", encoding="utf-8-sig") as file:
            reader = csv.DictReader(file)
            rows: list[tuple[str, dict[str, str | None]]] = [(f"{table}, line {reader.line_num}", r) for r in reader]
            missing = _COLUMNS - set(reader.fieldnames or ())
    except (UnicodeDecodeError, csv.Error) as error:
        raise DatasetError(f"{table} is not a csv file ({error}); take VisA's own 1cls.csv") from error
    if missing:
        raise DatasetError(f"{table} lacks the columns {', '.join(sorted(missing))}; take VisA's own 1cls.csv")
    return rows


def inside(root: Path, relative: str | None, where: str) -> Path:
    """A listed path as a path under `root`. Raises DatasetError if it leads outside or to no file."""
    parts = PurePosixPath(relative or "")
    if not relative or parts.is_absolute() or ".." in parts.parts:
        raise DatasetError(f"{where}: found the path {relative!r}; expected one below {root}")
    path = root / parts
    if not path.is_file():
        raise DatasetError(f"{where}: {path} does not exist; unpack the whole data set")
    return path
