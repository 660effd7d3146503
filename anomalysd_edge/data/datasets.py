"""Data sets as folders: MVTec AD's layout, VisA's original layout, plain folders of photos; and the few-shot choice.

Nothing is decoded here: a data set is a list of paths, good photos to train with and labelled photos to test on.

    mvtec   ROOT/CLASS/train/good, .../test/good, .../test/DEFECT, .../ground_truth/DEFECT/NAME_mask.png
    visa    ROOT/CLASS/Data/Images/Normal, .../Images/Anomaly, .../Masks/Anomaly/NAME.png, ROOT/split_csv/1cls.csv
    folder  ROOT/*.png, all good; or ROOT/good and ROOT/bad, with masks of the same stem in ROOT/masks or
            ROOT/ground_truth; or one level of class folders, each of this form

ROOT may itself be one class of the mvtec layout.
"""

from __future__ import annotations

import csv
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import numpy as np

from anomalysd_edge.data.classes import check_name
from anomalysd_edge.errors import ClassError, DatasetError, SettingsError
from anomalysd_edge.vision.images import IMAGE_SUFFIXES, list_images

LAYOUTS = ("mvtec", "visa", "folder")
GOOD = "good"
_VISA_COLUMNS = {"object", "split", "label", "image", "mask"}


@dataclass(frozen=True)
class Sample:
    """One test photo."""

    path: Path
    """The photo."""
    class_name: str
    """The class of part it shows."""
    defect: str
    """The kind of defect, or "good"."""
    mask_path: Path | None
    """Where the defect is; None for a good photo, and for a bad one of a data set that has no masks."""

    @property
    def label(self) -> int:
        """0 good, 1 bad."""
        return int(self.defect != GOOD)


@dataclass(frozen=True)
class ClassData:
    """The photos of one class, each list sorted by path."""

    name: str
    """The class, as its folder is called."""
    train: tuple[Path, ...]
    """Good photos from which shots are chosen."""
    test: tuple[Sample, ...]
    """Photos to measure on; empty where the folder has none."""


@dataclass(frozen=True)
class Dataset:
    """A folder of photos, read."""

    root: Path
    """The folder."""
    layout: str
    """"mvtec", "visa" or "folder"."""
    classes: Mapping[str, ClassData]
    """By class name, sorted, or in the order that was asked for."""


def open_dataset(root: Path, classes: Sequence[str] | None = None, layout: str = "auto") -> Dataset:
    """List the photos under `root`; `classes` chooses some, `layout` is "auto", "mvtec", "visa" or "folder".

    VisA without its split csv: the first 90% of the sorted normal photos train, the rest test (the csv has the same
    shares but draws them at random: figures then differ from published ones). A plain folder with bad/: all of
    good/ trains if there is a good_test/, else the first half of the sorted good photos, rounded up, and the rest test.
    Raises DatasetError for a missing or empty folder, a broken csv, a photo without its mask where its neighbours
    have theirs; ClassError for a class that is not there; SettingsError for an unknown layout.
    """
    if layout not in ("auto", *LAYOUTS):
        raise SettingsError(f"the layout {layout!r} is unknown; expected auto, {', '.join(LAYOUTS)}")
    if not root.is_dir():
        found = "is a file" if root.exists() else "does not exist"
        raise DatasetError(f"data folder {root} {found}; expected a folder of photos: check the path")
    readers: dict[str, Callable[[Path], dict[str, ClassData]]] = {"mvtec": _mvtec, "visa": _visa, "folder": _folder}
    try:
        chosen = _detect(root) if layout == "auto" else layout
        found_classes = readers[chosen](root)
    except OSError as error:
        raise DatasetError(
            f"{error.filename or root} cannot be read ({error.strerror}); mend its permissions"
        ) from error
    if not found_classes:
        raise DatasetError(
            f"{root} holds no photos in the {chosen} layout; expected {_EXPECTED[chosen]} with "
            f"{', '.join(sorted(IMAGE_SUFFIXES))} files"
        )
    for name in found_classes:
        check_name(name)
    if classes is not None:
        for name in classes:
            if name not in found_classes:
                raise ClassError(f"{root} has no class {name!r}; it has {', '.join(sorted(found_classes))}")
        return Dataset(root, chosen, {name: found_classes[name] for name in classes})
    return Dataset(root, chosen, dict(sorted(found_classes.items())))


def few_shot(paths: Sequence[Path], k: int, seed: int | None = None, name: str = "the class") -> tuple[Path, ...]:
    """Choose `k` of the good photos: the first k of the sorted paths, or with a seed k of a seeded permutation.

    The permutation does not depend on k, so the 1-shot choice lies within the 2-shot choice. `name` stands in errors.
    Raises DatasetError, which says how many there are, where there are fewer than k; SettingsError for k < 0.
    """
    if k < 0:
        raise SettingsError(f"asked for {k} shots; expected 0 or more")
    ordered = sorted(paths)
    if len(ordered) < k:
        raise DatasetError(
            f"asked for {k} good photos of {name}, found {len(ordered) or 'none'}; add photos or ask for fewer shots"
        )
    if seed is None:
        return tuple(ordered[:k])
    return tuple(ordered[i] for i in np.random.default_rng(seed).permutation(len(ordered))[:k])


def few_tests(data: Dataset, count: int, seed: int = 0) -> Dataset:
    """At most `count` test photos of each class, half of them good where there are so many, by a seeded permutation.

    A smaller choice lies within a larger one of the same seed. Raises SettingsError for count < 2.
    """
    if count < 2:
        raise SettingsError(f"asked for {count} test photos a class; expected at least 2, a good and a bad one")
    classes = {}
    for name, part in data.classes.items():
        good = [s for s in part.test if not s.label]
        bad = [s for s in part.test if s.label]
        wanted_good = min(len(good), max(count // 2, count - len(bad)))
        chosen = []
        for pool, wanted in ((good, wanted_good), (bad, count - wanted_good)):
            order = np.random.default_rng(seed).permutation(len(pool))[:wanted]
            chosen += [pool[i] for i in sorted(order)]
        classes[name] = ClassData(name, part.train, tuple(chosen))
    return Dataset(data.root, data.layout, classes)


_EXPECTED = {
    "mvtec": "CLASS/train/good and CLASS/test/...",
    "visa": "CLASS/Data/Images/Normal and .../Anomaly",
    "folder": "photos, or good/ and bad/, or class folders of these",
}


def _subfolders(folder: Path) -> list[Path]:
    return sorted(path for path in folder.iterdir() if path.is_dir() and not path.name.startswith("."))


def _detect(root: Path) -> str:
    inner = _subfolders(root)
    if (root / "split_csv").is_dir() or any((path / "Data" / "Images").is_dir() for path in inner):
        return "visa"
    if any((path / part).is_dir() for path in (root, *inner) for part in ("train/good", "test/good")):
        return "mvtec"
    return "folder"


def _mvtec(root: Path) -> dict[str, ClassData]:
    folders = [root] if (root / "train").is_dir() or (root / "test").is_dir() else _subfolders(root)
    found = {}
    for folder in folders:
        name = folder.resolve().name
        test: list[Sample] = []
        for defect in _subfolders(folder / "test") if (folder / "test").is_dir() else []:
            masks = folder / "ground_truth" / defect.name
            test += _samples(name, defect.name, list_images(defect), masks)
        train = list_images(folder / "train" / GOOD)
        if train or test:
            found[name] = ClassData(name, train, tuple(test))
        elif (folder / "train").is_dir() or (folder / "test").is_dir():
            raise DatasetError(f"{folder} has no photos in train/good or test/*; expected good photos in train/good")
    return found


def _folder(root: Path) -> dict[str, ClassData]:
    own = _folder_class(root)
    inner = {data.name: data for folder in _subfolders(root) if (data := _folder_class(folder)) is not None}
    if own is not None:
        # Good only, yet with folders of photos beside: which of them are meant is not ours to guess.
        if inner and not _has_parts(root):
            raise DatasetError(f"{root} holds photos and folders of photos ({', '.join(inner)}); keep one of the two")
        return {own.name: own}
    return inner


def _folder_class(folder: Path) -> ClassData | None:
    """The class in a plain folder; None where it holds neither photos nor good/ or bad/ folders with photos."""
    name = folder.resolve().name
    good, held_out = list_images(folder / GOOD), list_images(folder / "good_test")
    bad_folder = folder / "bad"
    if not _has_parts(folder):
        photos = list_images(folder)
        return ClassData(name, photos, ()) if photos else None
    masks = folder / "masks" if (folder / "masks").is_dir() else folder / "ground_truth"
    bad = _samples(name, "bad", list_images(bad_folder), masks)
    for defect in _subfolders(bad_folder) if bad_folder.is_dir() else []:
        own_masks = masks / defect.name
        bad += _samples(name, defect.name, list_images(defect), own_masks if own_masks.is_dir() else masks)
    if bad and not held_out:
        half = (len(good) + 1) // 2
        good, held_out = good[:half], good[half:]
    test = _samples(name, GOOD, held_out, masks) + bad
    return ClassData(name, good, tuple(test)) if good or test else None


def _has_parts(folder: Path) -> bool:
    return (folder / GOOD).is_dir() or (folder / "bad").is_dir()


def _samples(class_name: str, defect: str, photos: Sequence[Path], masks: Path) -> list[Sample]:
    """One sample a photo; bad ones with the mask that `masks` holds for them, NAME_mask or NAME."""
    if defect == GOOD:
        return [Sample(path, class_name, GOOD, None) for path in photos]
    by_stem = {path.stem: path for path in list_images(masks)}
    samples = []
    for path in photos:
        mask = by_stem.get(f"{path.stem}_mask", by_stem.get(path.stem))
        # Counting an unmarked defect's pixels as good would spoil every pixel figure without a word.
        if mask is None and by_stem:
            raise DatasetError(f"{path} has no mask in {masks}, where others have; add {path.stem}_mask.png")
        samples.append(Sample(path, class_name, defect, mask))
    return samples


def _visa(root: Path) -> dict[str, ClassData]:
    table = root / "split_csv" / "1cls.csv"
    if table.is_file():
        return _visa_csv(root, table)
    found = {}
    for folder in _subfolders(root):
        images = folder / "Data" / "Images"
        normal = list_images(images / "Normal")
        train = normal[: len(normal) * 9 // 10]
        anomalous = _samples(folder.name, "anomaly", list_images(images / "Anomaly"), folder / "Data/Masks/Anomaly")
        test = _samples(folder.name, GOOD, normal[len(train) :], folder) + anomalous
        if train or test:
            found[folder.name] = ClassData(folder.name, train, tuple(test))
    return found


def _visa_csv(root: Path, table: Path) -> dict[str, ClassData]:
    train: dict[str, list[Path]] = {}
    test: dict[str, list[Sample]] = {}
    for where, row in _csv_rows(table):
        name, split, label = row["object"], row["split"], row["label"]
        if not name or split not in ("train", "test") or label not in ("normal", "anomaly"):
            raise DatasetError(f"{where}: found {row}; expected train or test, normal or anomaly: take VisA's own csv")
        if split == "train" and label == "anomaly":
            raise DatasetError(f"{where}: an anomaly stands in the training split; take the one-class csv, 1cls.csv")
        if not (root / name).is_dir():
            continue  # The csv lists all 12 classes; who has unpacked three of them uses three.
        photo = _inside(root, row["image"], where)
        train.setdefault(name, [])
        test.setdefault(name, [])
        if split == "train":
            train[name].append(photo)
        elif label == "normal":
            test[name].append(Sample(photo, name, GOOD, None))
        else:
            test[name].append(Sample(photo, name, "anomaly", _inside(root, row["mask"], where)))
    return {
        name: ClassData(name, tuple(sorted(train[name])), tuple(sorted(test[name], key=lambda sample: sample.path)))
        for name in train
    }


def _csv_rows(table: Path) -> list[tuple[str, dict[str, str | None]]]:
    """The rows of VisA's csv, each with its place in the file for messages."""
    try:
        with table.open(newline="", encoding="utf-8-sig") as file:
            reader = csv.DictReader(file)
            rows: list[tuple[str, dict[str, str | None]]] = [(f"{table}, line {reader.line_num}", r) for r in reader]
            missing = _VISA_COLUMNS - set(reader.fieldnames or ())
    except (UnicodeDecodeError, csv.Error) as error:
        raise DatasetError(f"{table} is not a csv file ({error}); take VisA's own 1cls.csv") from error
    if missing:
        raise DatasetError(f"{table} lacks the columns {', '.join(sorted(missing))}; take VisA's own 1cls.csv")
    return rows


def _inside(root: Path, relative: str | None, where: str) -> Path:
    """A csv's path as a path under `root`. Raises DatasetError if it leads outside or to no file."""
    parts = PurePosixPath(relative or "")
    if not relative or parts.is_absolute() or ".." in parts.parts:
        raise DatasetError(f"{where}: found the path {relative!r}; expected one below {root}")
    path = root / parts
    if not path.is_file():
        raise DatasetError(f"{where}: {path} does not exist; unpack the whole data set")
    return path
