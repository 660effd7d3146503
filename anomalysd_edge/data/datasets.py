"""Data sets as folders: which layout a folder has, its classes, what was left out, and mistakes that are likely.

Nothing is decoded here: a data set is a list of paths, good photos to train with and labelled photos to test on. The
layouts stand in layouts/: MVTec AD's, which most published sets share, VisA's, Real-IAD's, plain folders, and folders
that a configuration of anomalib names.
"""

from __future__ import annotations

import unicodedata
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from anomalysd_edge.core.files import printable
from anomalysd_edge.data.classes import check_name, choose_classes
from anomalysd_edge.data.layouts import anomalib_folder, mvtec, plain, real_iad, visa
from anomalysd_edge.data.layouts.plain import NamedFolders
from anomalysd_edge.data.layouts.roles import role
from anomalysd_edge.data.layouts.tree import child, folder_name, left_out, subfolders
from anomalysd_edge.data.samples import GOOD, ClassData, Dataset, Sample, few_shot
from anomalysd_edge.errors import DatasetError, SettingsError
from anomalysd_edge.vision.images import IMAGE_SUFFIXES, list_images

__all__ = [
    "GOOD", "LAYOUTS", "PUBLISHED_LAYOUTS", "ClassData", "Dataset", "NamedFolders", "Sample", "few_shot",
    "open_dataset", "open_folders",
]  # fmt: skip

LAYOUTS = ("mvtec", "visa", "real-iad", "folder")
PUBLISHED_LAYOUTS: Mapping[str, str] = {
    "mvtec-ad": "mvtec",
    "visa": "visa",
    "mvtec-loco": "mvtec",
    "mvtec-ad2": "mvtec",
    "btad": "mvtec",
    "mpdd": "mvtec",
    "real-iad": "real-iad",
}
"""The layout of each published data set that is known by name."""

_EXPECTED = {
    "mvtec": "CLASS/train/good and CLASS/test/...",
    "visa": "CLASS/Data/Images/Normal and .../Anomaly",
    "real-iad": "realiad_1024/CLASS and realiad_jsons/realiad_jsons/CLASS.json",
    "folder": "photos, or good/ and bad/, or class folders of these",
}


def open_dataset(root: Path, classes: Sequence[str] | None = None, layout: str = "auto") -> Dataset:
    """List the photos under `root`; `classes` chooses some.

    `root` may be a .yaml file, anomalib's configuration of its Folder data module, which names its folders itself.
    `layout` is "auto", one of LAYOUTS, or the name of a published data set (PUBLISHED_LAYOUTS).
    Raises DatasetError for a missing or empty folder, a broken split, a photo without its mask where its neighbours
    have theirs, and for what is likely a mistake: a part of a class given as the root, good and bad photos of one part
    that would be classes, classes in two layouts; ClassError for a class that is not there; SettingsError for an
    unknown layout.
    """
    if layout not in ("auto", *LAYOUTS, *PUBLISHED_LAYOUTS):
        names = dict.fromkeys(("auto", *LAYOUTS, *PUBLISHED_LAYOUTS))
        raise SettingsError(f"the layout {layout!r} is unknown; expected {', '.join(names)}")
    if root.suffix.lower() in anomalib_folder.SUFFIXES and root.is_file():
        return _open_config(root, classes, layout)
    _check_root(root)
    readers: dict[str, Callable[[Path], dict[str, ClassData]]] = {
        "mvtec": mvtec.read,
        "visa": visa.read,
        "real-iad": real_iad.read,
        "folder": lambda folder: plain.read(folder, classes),
    }
    try:
        chosen = _detect(root) if layout == "auto" else PUBLISHED_LAYOUTS.get(layout, layout)
        found = readers[chosen](root)
        lone = {"mvtec": mvtec.is_lone, "folder": plain.is_lone}.get(chosen, lambda _: False)(root)
        if layout == "auto" and chosen == "mvtec" and not lone and classes is None:
            _refuse_mixed(root, found)
        if not found:
            raise DatasetError(_nothing(root, chosen))
        chosen_names = sorted(found) if classes is None else choose_classes(classes, found, str(root))
        picked = {name: found[name] for name in chosen_names}
        _check_names(root, picked)
        folders = [root] if classes is None or lone else [root / name for name in chosen_names]
        unused = left_out(folders, _files(picked), root)
    except OSError as error:
        raise DatasetError(
            f"{error.filename or root} cannot be read ({error.strerror}); mend its permissions"
        ) from error
    return Dataset(root, chosen, picked, lone, unused)


def open_folders(root: Path, named: NamedFolders) -> Dataset:
    """One class whose folders of good photos, bad photos and masks are named. Raises as :func:`open_dataset`."""
    _check_root(root, part=False)
    data = plain.read_named(root, named)
    check_name(data.name)
    folders = [*named.normal_dir, *named.abnormal_dir, *named.normal_test_dir, *named.mask_dir]
    unused = left_out([root / folder for folder in folders], _files({data.name: data}), root)
    return Dataset(root, "folder", {data.name: data}, lone=named.name is None, left_out=unused)


def _open_config(file: Path, classes: Sequence[str] | None, layout: str) -> Dataset:
    """The class of an anomalib configuration. Raises as :func:`open_dataset`."""
    if layout not in ("auto", "folder"):
        raise SettingsError(f"{file} names its folders itself, and {layout} has its own: give one of the two")
    data = open_folders(*anomalib_folder.read(file))
    if classes is not None:
        choose_classes(classes, data.classes, str(file))
    return data


def _check_root(root: Path, part: bool = True) -> None:
    if not root.is_dir():
        found = "is a file" if root.exists() else "does not exist"
        raise DatasetError(f"data folder {root} {found}; expected a folder of photos: check the path")
    name, parent = folder_name(root).casefold(), root.absolute().parent
    if not part or name not in ("train", "test"):
        return
    kinds = [path for path in subfolders(root) if role(path.name) == "good"]
    if kinds or child(parent, "test" if name == "train" else "train", "ground_truth") is not None:
        raise DatasetError(f"{root} is the {name} part of the class {parent.name}, not a class; give {parent}")


def _detect(root: Path) -> str:
    inner = subfolders(root)
    if (root / "split_csv").is_dir() or any((path / "Data" / "Images").is_dir() for path in inner):
        return "visa"
    if any(path.name.startswith("realiad_") for path in (root, *inner)):
        return "real-iad"
    return "mvtec" if any(mvtec.is_class(path) for path in (root, *inner)) else "folder"


def _refuse_mixed(root: Path, found: Mapping[str, ClassData]) -> None:
    """Raise DatasetError where class folders of another layout stand beside those of MVTec AD's."""
    others = [
        path.name
        for path in subfolders(root)
        if path.name not in found
        and (list_images(path) or any(role(kind.name) in ("good", "bad") for kind in subfolders(path)))
    ]
    if others:
        raise DatasetError(
            f"{root} holds {', '.join(found)} with train/good or test/good, and {', '.join(others)} without, which "
            f"would be left out; put their good photos into CLASS/train/good, or name the classes: --classes "
            f"{','.join(found)}"
        )


def _nothing(root: Path, layout: str) -> str:
    endings = Counter(words for words in left_out([root], (), root))
    found = f"; found {'; '.join(endings)}" if endings else ""
    return (
        f"{root} holds no photos in the {layout} layout; expected {_EXPECTED[layout]} with "
        f"{', '.join(sorted(IMAGE_SUFFIXES))} files{found}"
    )


def _check_names(root: Path, found: Mapping[str, ClassData]) -> None:
    by_form: dict[str, str] = {}
    for name in found:
        check_name(name)
        twin = by_form.setdefault(unicodedata.normalize("NFC", name), name)
        if twin != name:
            raise DatasetError(
                f"{root} holds the class {printable(name)} twice, in two Unicode forms (NFC and NFD); merge the folders"
            )


def _files(classes: Mapping[str, ClassData]) -> list[Path]:
    found: list[Path] = []
    for part in classes.values():
        found += part.train
        for sample in part.test:
            found += [sample.path] if sample.mask_path is None else [sample.path, sample.mask_path]
    return found
