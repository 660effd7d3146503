"""MVTec AD's layout and the data sets that follow it: MVTec LOCO and AD 2, BTAD, MPDD, AutoVI, VisA as converted.

    CLASS/train/good, CLASS/test/good, CLASS/test/DEFECT, CLASS/ground_truth/DEFECT/NAME_mask.png

BTAD says ok and ko. LOCO and AutoVI keep one or several masks a photo in ground_truth/DEFECT/NAME/. AD 2 has
test_public/{good,bad} with test_public/ground_truth/bad; its private test sets carry no labels. The validation photos
of LOCO and AD 2 neither train nor test, as published.
"""

from __future__ import annotations

from collections import Counter
from pathlib import Path

from anomalysd_edge.data.layouts.roles import role
from anomalysd_edge.data.layouts.tree import MASK_FOLDERS, child, folder_name, labelled, photos_beneath, subfolders
from anomalysd_edge.data.samples import GOOD, ClassData, Sample
from anomalysd_edge.errors import DatasetError
from anomalysd_edge.vision.images import list_images

_TESTS = ("test", "test_public")


def is_class(folder: Path) -> bool:
    """Whether `folder` is a class in this layout: a train or test folder with a folder of good photos."""
    return any(_good(child(folder, part)) is not None for part in ("train", *_TESTS))


def is_lone(root: Path) -> bool:
    """Whether `root` is itself a class, not a folder of classes."""
    return child(root, "train", *_TESTS) is not None


def read(root: Path) -> dict[str, ClassData]:
    """The classes below `root`, or the one that `root` is. Raises DatasetError for a class without photos."""
    found = {}
    for folder in [root] if is_lone(root) else subfolders(root):
        train, test = child(folder, "train"), child(folder, *_TESTS)
        if train is None and test is None:
            continue
        data = _read_class(folder, train, test)
        if not data.train and train is not None and photos_beneath(train):
            inside = ", ".join(path.name for path in subfolders(train)) or "photos"
            raise DatasetError(
                f"{folder} has no photos in train/good (found {inside} in {train.name}); move them there"
            )
        if not data.train and not data.test:
            raise DatasetError(f"{folder} has no photos in train/good or test/*; expected good photos in train/good")
        found[data.name] = data
    return found


def _good(part: Path | None) -> Path | None:
    """train/good or test/good: by that name, else the only folder with another word for it."""
    if part is None:
        return None
    others = [path for path in subfolders(part) if role(path.name) == "good"]
    return child(part, GOOD) or (others[0] if len(others) == 1 else None)


def _read_class(folder: Path, train: Path | None, test: Path | None) -> ClassData:
    name = folder_name(folder)
    masks = child(folder, *MASK_FOLDERS) or child(test, *MASK_FOLDERS)
    samples: list[Sample] = []
    notes = []
    kinds = [kind for kind in subfolders(test) if kind != masks] if test is not None else []
    # Where defects lie in folders of their own, masks do; masks side by side need names of their own.
    bad = [kind for kind in kinds if role(kind.name) != "good"]
    together = masks if masks is not None and list_images(masks) else None
    if together is not None and len(bad) > 1:
        stems = Counter(path.stem for kind in bad for path in list_images(kind))
        if twice := [stem for stem, count in stems.items() if count > 1]:
            raise DatasetError(
                f"{masks} holds the masks of several kinds of defects, and photos of two kinds are called {twice[0]}; "
                f"put the masks into {masks}/DEFECT"
            )
    for kind in kinds:
        good = kind not in bad
        if good and kind.name != GOOD and list_images(kind):
            notes.append(f"{name}: {kind.relative_to(folder)} is read as good photos")
        own = child(masks, kind.name) or together
        samples += labelled(name, GOOD if good else kind.name, list_images(kind), own)
    good_train = _good(train)
    if good_train is not None and good_train.name != GOOD:
        notes.append(f"{name}: {good_train.relative_to(folder)} is read as good photos")
    return ClassData(name, list_images(good_train) if good_train else (), tuple(samples), tuple(notes))
