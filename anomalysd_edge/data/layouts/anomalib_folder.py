"""anomalib's configuration of its Folder data module, a .yaml file, in place of a folder of photos.

    class_path: anomalib.data.Folder          or under the key data, as in a configuration of anomalib's command
    init_args: {name: bracket, root: PHOTOS, normal_dir: good, abnormal_dir: bad, mask_dir: masks}

Names and meanings are those of anomalib 2.7 (anomalib/data/datamodules/image/folder.py). As there, a relative root is
one of the working directory and folders of good photos count with all below them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from anomalysd_edge.data.layouts.plain import NamedFolders
from anomalysd_edge.data.layouts.tree import folders_of_photos
from anomalysd_edge.errors import DatasetError, missing_extra

SUFFIXES = (".yaml", ".yml")
FOLDERS = ("normal_dir", "abnormal_dir", "normal_test_dir", "mask_dir")
"""Arguments that name folders."""
UNUSED = (
    "normal_split_ratio", "train_batch_size", "eval_batch_size", "num_workers", "train_augmentations",
    "val_augmentations", "test_augmentations", "augmentations", "test_split_ratio", "val_split_mode",
    "val_split_ratio", "seed",
)  # fmt: skip
"""Arguments of anomalib's own training and splits, which change nothing here."""


def read(file: Path) -> tuple[Path, NamedFolders]:
    """Root and folders of the one class that the configuration `file` describes.

    Raises DatasetError for another configuration, an argument of another type, and one that would choose other photos
    than are read here; MissingExtra without PyYAML.
    """
    try:
        import yaml
    except ModuleNotFoundError as error:
        raise missing_extra("yaml", "anomalib") from error
    try:
        config = yaml.safe_load(file.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise DatasetError(f"{file} is no YAML ({' '.join(str(error).split())}); mend it") from error
    if isinstance(config, Mapping) and isinstance(config.get("data"), Mapping):
        config = config["data"]
    place = config.get("class_path") if isinstance(config, Mapping) else None
    if not isinstance(place, str) or not (place == "Folder" or _is_anomalibs(place)):
        found = f"the class_path {place}" if place else "no class_path"
        raise DatasetError(
            f"{file} has {found}, expected anomalib.data.Folder: other data modules of anomalib are not read; give the "
            "folder of photos itself"
        )
    arguments = config.get("init_args")
    if not isinstance(arguments, Mapping):
        raise DatasetError(f"{file} has no init_args, expected those of {place}: name, root, normal_dir, ...")
    _check(file, arguments)
    root = Path(_text(file, arguments, "root") or ".")
    normal, abnormal, normal_test, masks = (_folders(file, arguments, name) for name in FOLDERS)
    if not normal:
        raise DatasetError(f"{file} has no normal_dir, the folder of good photos to train with")
    unused = sorted(set(UNUSED) & arguments.keys())
    return root, NamedFolders(
        folders_of_photos(root, normal),
        abnormal,
        folders_of_photos(root, normal_test),
        masks,
        _text(file, arguments, "name"),
        (f"of {file.name}, not used here: {', '.join(unused)}",) if unused else (),
    )


def _is_anomalibs(place: str) -> bool:
    return place.startswith("anomalib.data.") and place.endswith(".Folder")


def _check(file: Path, arguments: Mapping[str, Any]) -> None:
    """Raise DatasetError for arguments that anomalib does not have, or that would choose other photos."""
    known = {"name", "root", "extensions", "test_split_mode", *FOLDERS, *UNUSED}
    unknown = sorted(str(name) for name in arguments if name not in known)
    if unknown:
        raise DatasetError(
            f"{file}: {unknown[0]} is no argument of anomalib 2.7's Folder; take it out, or mend its name"
        )
    if arguments.get("extensions") is not None:
        raise DatasetError(f"{file}: extensions is not supported, all photos of a folder are read; take it out")
    mode = arguments.get("test_split_mode", "from_dir")
    if mode != "from_dir":
        raise DatasetError(f"{file}: test_split_mode {mode} is not supported, expected from_dir; take it out")


def _text(file: Path, arguments: Mapping[str, Any], name: str) -> str | None:
    value = arguments.get(name)
    if value is not None and (not isinstance(value, str) or not value.strip()):
        raise DatasetError(f"{file}: {name} is {value!r}, expected a text")
    return value


def _folders(file: Path, arguments: Mapping[str, Any], name: str) -> Sequence[Path]:
    value = arguments.get(name)
    found = [] if value is None else value if isinstance(value, list) else [value]
    if not all(isinstance(entry, str) and entry.strip() for entry in found):
        raise DatasetError(f"{file}: {name} is {value!r}, expected a folder or a list of folders")
    return [Path(entry) for entry in found]
