"""Plain folders of photos, and folders that the user names as in anomalib's Folder data module.

    ROOT/*.png, all good; or ROOT/good and ROOT/bad (bad/DEFECT too), with masks of the same stem in ROOT/masks or
    ROOT/ground_truth; or one level of class folders, each of this form

With bad photos, all of good/ trains if there is a good_test/, else the first half of the sorted good photos, rounded
up, and the rest test.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from anomalysd_edge.data.classes import find_class
from anomalysd_edge.data.layouts.roles import role
from anomalysd_edge.data.layouts.tree import MASK_FOLDERS, child, folder_name, labelled, photos_beneath, subfolders
from anomalysd_edge.data.samples import GOOD, ClassData
from anomalysd_edge.errors import DatasetError
from anomalysd_edge.vision.images import list_images

_OPTIONS = {"good": "--normal-dir", "bad": "--abnormal-dir", "mask": "--mask-dir"}
_NAMES = {"good": "good", "bad": "bad", "mask": "masks"}
_PARTS = (GOOD, "bad", "good_test", *MASK_FOLDERS)


@dataclass(frozen=True)
class NamedFolders:
    """The folders of one class, relative to the root or absolute: the arguments of anomalib's Folder."""

    normal_dir: Sequence[Path]
    """Good photos to train with."""
    abnormal_dir: Sequence[Path] = ()
    """Bad photos to test on, in them or a folder a defect."""
    normal_test_dir: Sequence[Path] = ()
    """Good photos to test on; without them half of the normal photos."""
    mask_dir: Sequence[Path] = ()
    """Masks of the bad photos, by their stems."""
    name: str | None = None
    """The class; as the root is called if None."""
    notes: tuple[str, ...] = ()
    """What is to be said of them beside the counts."""


def is_lone(root: Path) -> bool:
    """Whether `root` is itself a class: photos, or good/ or bad/."""
    return _has_parts(root) or bool(list_images(root))


def read(root: Path, choose: Sequence[str] | None = None) -> dict[str, ClassData]:
    """The classes below `root`, or the one that it is; only `choose` where given.

    Raises DatasetError where folders look like the good, bad and mask photos of one part under other names.
    """
    if choose is None or _has_parts(root):
        _refuse_other_words(root)
    own = _read_class(root)
    if own is not None and (_has_parts(root) or not _classes(root)):
        return {own.name: own}
    inner = _classes(root)
    if own is not None:  # Good only, yet with folders of photos beside: which of them are meant is not ours to guess.
        raise DatasetError(f"{root} holds photos and folders of photos ({', '.join(inner)}); keep one of the two")
    chosen = [part.strip() for name in choose or () for part in (name, *name.split(","))]
    for folder in subfolders(root):
        if choose is None or find_class(folder.name, chosen):
            _refuse_other_words(folder)
    return inner


def read_named(root: Path, named: NamedFolders) -> ClassData:
    """The class whose folders are named. Raises DatasetError for a missing folder, no photos, a photo named twice."""
    name = named.name or folder_name(root)
    for folder in (*named.normal_dir, *named.abnormal_dir, *named.normal_test_dir, *named.mask_dir):
        if not (root / folder).is_dir():
            raise DatasetError(f"{root / folder} is no folder; check the name, which is relative to {root}")
    masks: list[Path | None] = [root / folder for folder in named.mask_dir]
    good = [path for folder in named.normal_dir for path in list_images(root / folder)]
    held_out = [path for folder in named.normal_test_dir for path in list_images(root / folder)]
    bad = [root / folder for folder in named.abnormal_dir]
    if len(masks) > 1 and len(masks) != len(bad):
        raise DatasetError(f"{len(masks)} mask folders for {len(bad)} of bad photos; name one, or one for each")
    pairs = zip(bad, masks * len(bad) if len(masks) == 1 else masks or [None] * len(bad), strict=True)
    data = _class_of(name, tuple(good), tuple(held_out), list(pairs))
    if data is None:
        raise DatasetError(f"{root} holds no photos in {', '.join(map(str, named.normal_dir))}")
    seen = Counter(path.resolve() for path in (*data.train, *(sample.path for sample in data.test)))
    twice = next((path for path, count in seen.items() if count > 1), None)
    if twice is not None:
        raise DatasetError(f"{twice} is named twice, by folders of good, bad or test photos; name each folder once")
    return replace(data, notes=(*data.notes, *named.notes))


def _classes(root: Path) -> dict[str, ClassData]:
    return {data.name: data for folder in subfolders(root) if (data := _read_class(folder)) is not None}


def _read_class(folder: Path) -> ClassData | None:
    """The class in a plain folder; None where it holds neither photos nor good/ or bad/ folders with photos."""
    if not _has_parts(folder):
        photos = list_images(folder)
        return ClassData(folder_name(folder), photos, ()) if photos else None
    good, held_out, bad = child(folder, GOOD), child(folder, "good_test"), child(folder, "bad")
    return _class_of(
        folder_name(folder),
        list_images(good) if good else (),
        list_images(held_out) if held_out else (),
        [(bad, child(folder, "masks", *MASK_FOLDERS))] if bad else [],
    )


def _class_of(
    name: str, good: tuple[Path, ...], held_out: tuple[Path, ...], bad: Sequence[tuple[Path, Path | None]]
) -> ClassData | None:
    """`bad`: folders of bad photos, each with the folder of its masks."""
    samples = []
    for folder, masks in bad:
        samples += labelled(name, "bad", list_images(folder), masks)
        for defect in subfolders(folder):
            if defect != masks:
                samples += labelled(name, defect.name, list_images(defect), child(masks, defect.name) or masks)
    notes = []
    if samples and not held_out and good:
        half = (len(good) + 1) // 2
        good, held_out = good[:half], good[half:]
        notes.append(f"{name}: of the sorted good photos the first half trains, the rest tests; good_test/ says which")
    test = labelled(name, GOOD, held_out, None) + samples
    return ClassData(name, good, tuple(test), tuple(notes)) if good or test else None


def _has_parts(folder: Path) -> bool:
    return child(folder, GOOD) is not None or child(folder, "bad") is not None


def _refuse_other_words(folder: Path) -> None:
    """Raise DatasetError where subfolders look like the parts of one class, under names that would be classes."""
    own = _has_parts(folder)
    found = {
        path.name: meant
        for path in subfolders(folder)
        if (meant := role(path.name)) is not None
        and not (own and path.name.casefold() in _PARTS)
        and photos_beneath(path)
    }
    others = dict(sorted(found.items(), key=lambda item: list(_OPTIONS).index(item[1])))
    if len(set(others.values())) + own < 2 and set(others.values()) != {"bad"}:
        return
    names = list(others)
    joined = names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"
    raise DatasetError(
        f"{folder} holds {joined}, which {'looks' if len(names) == 1 else 'look'} like the "
        f"{', '.join(dict.fromkeys(others.values()))} photos of one part, not like classes; say "
        f"{' '.join(f'{_OPTIONS[meant]} {name}' for name, meant in others.items())}, or rename: "
        f"{', '.join(f'{name} to {_NAMES[meant]}' for name, meant in others.items())}"
    )
