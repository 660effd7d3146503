"""What all layouts share: folders by name in any case, the mask of a photo, and which files a layout left out."""

from __future__ import annotations

import os
import re
import unicodedata
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from anomalysd_edge.core.files import printable
from anomalysd_edge.data.samples import GOOD, Sample
from anomalysd_edge.errors import DatasetError
from anomalysd_edge.vision.images import IMAGE_SUFFIXES, list_images

MASK_FOLDERS = ("ground_truth", "groundtruth", "masks", "mask", "gt", "labels", "label")
_MASK_SUFFIXES = IMAGE_SUFFIXES | {".gif"}
_AFFIX = re.compile(r"^(mask|gt)[_\-. ]|[_\-. ](mask|gt|label|seg|ground_?truth)$")
_NO_PHOTOS = frozenset({
    ".txt", ".md", ".rst", ".pdf", ".html", ".htm", ".csv", ".tsv", ".xls", ".xlsx", ".json", ".jsonl", ".xml", ".yaml",
    ".yml", ".toml", ".ini", ".cfg", ".log", ".db", ".py", ".sh", ".ipynb", ".zip", ".tar", ".gz", ".xz", ".7z",
    ".sha256", ".md5", ".docx", ".lnk", ".url",
})  # fmt: skip
"""Files beside photos that nobody takes for photos."""
_GROUPS = 5
"""Groups of left-out files that are named one by one."""


def subfolders(folder: Path) -> list[Path]:
    """The folders in `folder`, links to folders included, sorted; hidden ones are left out."""
    if not folder.is_dir():
        return []
    return sorted(path for path in folder.iterdir() if path.is_dir() and not path.name.startswith("."))


def child(folder: Path | None, *names: str) -> Path | None:
    """The first of `names` that `folder` has as a folder, as it is written or in another case."""
    if folder is None:
        return None
    for name in names:
        if (folder / name).is_dir():
            return folder / name
    inside = {path.name.casefold(): path for path in subfolders(folder)}
    return next((inside[name.casefold()] for name in names if name.casefold() in inside), None)


def folder_name(folder: Path) -> str:
    """The name of a class's folder: its own where it is a link, and that of the working directory for "."."""
    whole = folder.absolute()
    return whole.resolve().name if whole.name == ".." else whole.name


def photos_beneath(folder: Path) -> bool:
    """Whether there is a photo in `folder` or anywhere below it."""
    return any(Path(name).suffix.lower() in IMAGE_SUFFIXES for _, names in _walk(folder) for name in names)


def folders_of_photos(root: Path, folders: Iterable[Path]) -> list[Path]:
    """`folders` (relative to `root`, or absolute), and behind each the folders below it that hold photos."""
    found: list[Path] = []
    for folder in folders:
        inner = [Path(path) for path, _ in _walk(root / folder) if Path(path) != root / folder]
        found += [folder, *sorted(folder / path.relative_to(root / folder) for path in inner if list_images(path))]
    return found


def labelled(class_name: str, defect: str, photos: Sequence[Path], masks: Path | None) -> list[Sample]:
    """One sample a photo; bad ones with what `masks` holds for them.

    That is NAME_mask or NAME with any suffix of an image, other usual forms (mask_NAME, NAME_gt, NAME.jpg.png), or a
    folder NAME with one or several masks (MVTec LOCO, AutoVI). Raises DatasetError for a photo without a mask where
    others have one.
    """
    if defect == GOOD or masks is None or not masks.is_dir():
        return [Sample(path, class_name, defect, None) for path in photos]
    files = [p for p in masks.iterdir() if p.suffix.lower() in _MASK_SUFFIXES and p.name[0] != "." and p.is_file()]
    loose = {_AFFIX.sub("", _bare(path.stem)): path for path in files}
    exact = {_key(path.stem): path for path in files}
    several = {_key(path.name): path for path in subfolders(masks) if list_images(path)}
    samples = []
    for path in photos:
        key = _key(path.stem)
        found = (places.get(name) for places, name in (
            (exact, f"{key}_mask"), (exact, key), (several, key), (several, f"{key}_mask"), (loose, key)
        ))  # fmt: skip
        mask = next((place for place in found if place is not None), None)
        # Counting an unmarked defect's pixels as good would spoil every pixel figure without a word.
        if mask is None and (files or several):
            raise DatasetError(f"{path} has no mask in {masks}, where others have; add {path.stem}_mask.png")
        samples.append(Sample(path, class_name, defect, mask))
    return samples


def _key(stem: str) -> str:
    return unicodedata.normalize("NFC", stem).casefold()


def _bare(stem: str) -> str:
    name = Path(_key(stem))
    return name.stem if name.suffix in IMAGE_SUFFIXES else name.name


def left_out(folders: Iterable[Path], used: Iterable[Path], root: Path) -> tuple[str, ...]:
    """A sentence for each folder and ending of files below `folders` that are not in `used` and may be photos."""
    known = {str(path) for path in used}
    groups: Counter[tuple[str, str]] = Counter()
    for start in folders:
        for folder, names in _walk(start):
            if folder in known:  # a folder of masks that count together
                continue
            for name in names:
                suffix = Path(name).suffix.lower()
                if suffix not in _NO_PHOTOS and str(Path(folder) / name) not in known:
                    groups[os.path.relpath(folder, root), suffix] += 1
    named = groups.most_common(_GROUPS)
    sentences = [
        f"{count} {suffix or 'files without an ending'}{'' if suffix in IMAGE_SUFFIXES else ' (not read as photos)'} "
        f"in {printable(folder)}"
        for (folder, suffix), count in sorted(named)
    ]
    if rest := sum(groups.values()) - sum(count for _, count in named):
        sentences.append(f"{rest} more files in other folders")
    return tuple(sentences)


def _walk(start: Path) -> Iterator[tuple[str, list[str]]]:
    """(folder, names of its files), without what is hidden; links to folders are followed, circles are not."""
    seen = set()
    for folder, inside, names in os.walk(start, followlinks=True):
        real = os.path.realpath(folder)
        if real in seen:
            inside.clear()
            continue
        seen.add(real)
        inside[:] = sorted(name for name in inside if not name.startswith("."))
        yield folder, [name for name in names if not name.startswith(".")]
