"""Data sets of the verbs: opened, and told back on stderr before anything is made of them."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from functools import lru_cache
from pathlib import Path

from anomalysd_edge.core.files import printable
from anomalysd_edge.data.benchmark_splits import PUBLISHED, open_published
from anomalysd_edge.data.classes import find_class
from anomalysd_edge.data.datasets import Dataset, NamedFolders, open_dataset, open_folders
from anomalysd_edge.data.layouts.roles import role
from anomalysd_edge.errors import DatasetError
from anomalysd_edge.reports.console import say
from anomalysd_edge.vision.images import load_rgb, photo_faults


def open_described(
    root: Path,
    classes: Sequence[str] | None = None,
    dataset: str | None = None,
    named: NamedFolders | None = None,
) -> Dataset:
    """open_dataset, open_published (`dataset` is the name) or open_folders; a few lines on stderr say what it holds."""
    notes: list[str] = []
    if named is not None:
        data = open_folders(root, named)
    elif dataset is not None:
        data, notes = open_published(root, dataset, classes)
    else:
        data = open_dataset(root, classes)
    tell((*data.described(), *(f"  not the published photos: {note}" for note in notes)))
    return data


@lru_cache(maxsize=64)
def tell(lines: tuple[str, ...]) -> None:
    """The lines that describe a data set, on stderr; once, however often a verb opens it."""
    for line in lines:
        say(printable(line))


def of_bundle(data: Dataset, known: Collection[str]) -> Dataset:
    """Its classes as a bundle of the classes `known` calls them.

    A root that is a plain folder of photos may be called anything: it is the bundle's only class where that is one.
    Folders of classes, and a class in a published layout, are never taken for another class.
    """
    if (
        data.lone
        and data.layout == "folder"
        and len(known) == 1
        and not any(find_class(name, known) for name in data.classes)
    ):
        (name,) = known
        tell((f"  {data.root} is a folder of one class: its photos are taken for {name}, the bundle's only one",))
        return data.renamed(lambda _: name)
    return data.renamed(lambda name: find_class(name, known) or name)


def open_for(
    known: Collection[str], root: Path, dataset: str | None = None, named: NamedFolders | None = None
) -> Dataset:
    """open_described and of_bundle, for photos of the classes `known`; of a published data set only these are read.

    Raises DatasetError where the published data set has none of them.
    """
    classes = None
    if dataset is not None and dataset in PUBLISHED:
        classes = [name for name in PUBLISHED[dataset].counts if find_class(name, known)]
        if not classes:
            title = PUBLISHED[dataset].title
            raise DatasetError(f"the bundle holds no class of {title}; its classes are {', '.join(known)}")
    return of_bundle(open_described(root, classes, dataset, named), known)


def check_class_names(data: Dataset, named: bool = False) -> None:
    """Raise DatasetError where a new class would be called "good" or "train", since such a folder was given.

    `named`: whether its folders were named by --normal-dir.
    """
    for name in data.classes if data.lone else ():
        if role(name) is not None or name.casefold() in ("train", "test"):
            above = f"give the folder above it, or say --normal-dir {name} with that as --data"
            raise DatasetError(
                f"the class would be called {name!r}, as {data.root} is; {'say --classes NAME' if named else above}"
            )


def say_faults(shots: Mapping[str, Sequence[Path]]) -> None:
    """A line on stderr for every shot that hardly shows anything."""
    for name, files in shots.items():
        for file in files:
            for fault in photo_faults(load_rgb(file)):
                say(printable(f"{name}: {file} is a poor shot: {fault}"))
