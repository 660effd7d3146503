"""Real-IAD (Wang et al., CVPR 2024): photos of five views a part, and a JSON a class that splits them.

realiad_1024/CLASS/OK/S0001/*.jpg, .../CLASS/NG/DEFECT/S0001/*.jpg with *_mask.png beside them,
realiad_jsons/realiad_jsons/CLASS.json {"train": [...], "test": [...]}, each with image_path, mask_path (relative
to the class's folder) and anomaly_class, "OK" for good
"""

from __future__ import annotations

from pathlib import Path

from anomalysd_edge.core.files import read_json
from anomalysd_edge.data.layouts.tree import subfolders
from anomalysd_edge.data.layouts.visa import inside
from anomalysd_edge.data.samples import GOOD, ClassData, Sample
from anomalysd_edge.errors import DatasetError

_SIZES = ("realiad_1024", "realiad_512", "realiad_256", "realiad_raw")
"""The published resolutions, the one that is taken first."""
_SPLITS = ("realiad_jsons/realiad_jsons", "realiad_jsons")


def read(root: Path) -> dict[str, ClassData]:
    """The classes below `root`, in one resolution. Raises DatasetError where photos, splits or a listed file lack."""
    photos = root if root.name in _SIZES else next((root / size for size in _SIZES if (root / size).is_dir()), root)
    places = [base / split for base in (root, root.parent) for split in _SPLITS]
    splits = next((place for place in places if any(place.glob("*.json"))), None)
    if splits is None:
        raise DatasetError(f"{root} lacks {_SPLITS[0]}/CLASS.json, Real-IAD's published split; unpack it beside them")
    note = f"photos are those of {photos.name}, split by {splits.name}"
    return {
        folder.name: _read_class(folder, splits / f"{folder.name}.json", note)
        for folder in subfolders(photos)
        if (splits / f"{folder.name}.json").is_file()
    }


def _read_class(folder: Path, table: Path, note: str) -> ClassData:
    rows = read_json(table)
    try:
        train = [_sample(folder, row, table) for row in rows["train"]]
        test = [_sample(folder, row, table) for row in rows["test"]]
    except (KeyError, TypeError, AttributeError) as error:
        raise DatasetError(f"{table} is not one of Real-IAD's splits ({error!r}); take the published file") from error
    if bad := next((sample for sample in train if sample.label), None):
        raise DatasetError(f"{table}: {bad.path} is bad and stands in the training split; take the one-class split")
    photos = tuple(sorted(sample.path for sample in train))
    return ClassData(folder.name, photos, tuple(sorted(test, key=lambda s: s.path)), (note,))


def _sample(folder: Path, row: dict[str, str], table: Path) -> Sample:
    photo, kind = inside(folder, row["image_path"], str(table)), row["anomaly_class"]
    if kind == "OK":
        return Sample(photo, folder.name, GOOD, None)
    return Sample(photo, folder.name, kind, inside(folder, row["mask_path"], str(table)) if row["mask_path"] else None)
