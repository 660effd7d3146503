"""Which photos `--photos` names: files, a folder, a data set or a run; and the folders that results are written to."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path, PurePosixPath

from anomalysd_edge.bundle.manifest import ClassRecord
from anomalysd_edge.bundle.reader import Bundle
from anomalysd_edge.core.files import read_json
from anomalysd_edge.data.classes import find_class
from anomalysd_edge.data.datasets import GOOD, NamedFolders, Sample, few_shot
from anomalysd_edge.errors import ClassError, DatasetError, InputError
from anomalysd_edge.vision import images
from anomalysd_edge.workflows.datasets import open_for

RUN_RECORD = "run.json"
DEFAULT_SHOTS = 4
"""Good photos a class where the bundle was fitted to none."""


def photo_files(paths: Sequence[Path]) -> list[Path]:
    """Photos, and those in folders. Raises InputError where a path does not exist or a folder holds no photo."""
    found: list[Path] = []
    for path in paths:
        if path.is_dir():
            inside = images.list_images(path)
            if not inside:
                raise InputError(
                    f"{path} holds no photos; known endings are {', '.join(sorted(images.IMAGE_SUFFIXES))}"
                )
            found += inside
        elif path.exists():
            found.append(path)
        else:
            raise InputError(f"{path} does not exist; give photos or folders of photos")
    return found


def good_photos(
    source: Path,
    records: Mapping[str, ClassRecord],
    shots: int | None,
    partial: bool = False,
    every: bool = False,
    dataset: str | None = None,
    named: NamedFolders | None = None,
) -> dict[str, list[Path]]:
    """By class: the shots of a run, or the first good photos of a data set or folder.

    Of each class `shots`, or as many as the bundle was fitted to; with `every`, all. With `partial`, classes without
    photos are left out and fewer photos will do. `dataset` is the name of a published one, `named` the folders of one
    class. Raises DatasetError where photos are missing.
    """
    if named is None and (source / RUN_RECORD).is_file():
        classes = read_json(source / RUN_RECORD).get("classes", {})
        found = {name: [source / shot["file"] for shot in entry["shots"]] for name, entry in classes.items()}
    else:
        data = open_for(records, source, dataset, named)
        found = {name: list(part.train) for name, part in data.classes.items()}
    missing = [name for name in records if not found.get(name)]
    if missing if not partial else len(missing) == len(records):
        raise DatasetError(
            f"{source} holds no good photos of {', '.join(missing)}; the bundle's classes are {', '.join(records)}"
        )
    chosen = {}
    for name, record in records.items():
        if name not in missing:
            count = len(found[name]) if every else shots or record.shots or DEFAULT_SHOTS
            count = min(count, len(found[name])) if partial else count
            chosen[name] = list(few_shot(tuple(found[name]), count, None, name))
    return chosen


def samples_of(
    photos: Path, bundle: Bundle, dataset: str | None = None, named: NamedFolders | None = None
) -> list[Sample]:
    """Test photos of the bundle's classes in a data set, or of a class without any its good ones.

    `dataset` is the name of a published one, `named` the folders of one class. A lone folder is the bundle's only
    class. Raises DatasetError where there is no photo of the bundle's classes.
    """
    names = list(bundle.manifest.classes)
    data = open_for(names, photos, dataset, named)
    found: list[Sample] = []
    for name in (name for name in data.classes if name in names):
        part = data.classes[name]
        found += part.test or [Sample(path, name, GOOD, None) for path in part.train]
    if not found:
        raise DatasetError(
            f"{photos} holds photos of {', '.join(data.classes)}; the bundle's classes are {', '.join(names)}"
        )
    return found


def chosen_class(name: str | None, classes: Collection[str]) -> str:
    """`name`, or the only class if None. Raises ClassError for an unknown one, or None among several."""
    known = ", ".join(sorted(classes))
    if name is None:
        if len(classes) != 1:
            raise ClassError(f"this bundle holds several classes, say which with --class: {known}")
        return next(iter(classes))
    found = find_class(name, classes)
    if found is None:
        raise ClassError(f"class {name!r} is not in this bundle; it holds: {known}")
    return found


def result_folders(places: Sequence[str]) -> list[str]:
    """A folder name for each photo: its stem; where several share it, with its own folder and a number."""
    paths = [PurePosixPath(place) for place in places]
    count, seen = Counter(path.stem for path in paths), Counter[str]()
    found = []
    for path in paths:
        found.append(path.stem if count[path.stem] == 1 else f"{path.parent.name}_{path.stem}_{seen[path.stem]}")
        seen[path.stem] += 1
    return found
