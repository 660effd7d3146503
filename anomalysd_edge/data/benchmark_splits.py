"""The published protocols of MVTec AD and VisA: which classes, and how many photos of each in which split.

Counts let a reader see whether a folder is the data set that published figures were measured on. MVTec AD: Bergmann et
al., IJCV 129 (2021), table 1. VisA: Zou et al., "SPot-the-Difference", ECCV 2022, the one-class split of its 1cls.csv.
Few-shot results choose their shots from the training split and are measured on the whole test split.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from anomalysd_edge.data.datasets import ClassData, Dataset, open_dataset
from anomalysd_edge.errors import ClassError, DatasetError

Counts = tuple[int, int, int]
"""Good photos to train with, good ones to test on, bad ones to test on."""


@dataclass(frozen=True)
class Published:
    """A data set as its authors split it."""

    title: str
    """As the literature calls it."""
    layout: str
    """Of datasets.open_dataset."""
    counts: Mapping[str, Counts]
    """By class."""
    needs: str = ""
    """A file without which the split would be another."""


PUBLISHED: Mapping[str, Published] = {
    "mvtec-ad": Published(
        "MVTec AD",
        "mvtec",
        {
            "bottle": (209, 20, 63),
            "cable": (224, 58, 92),
            "capsule": (219, 23, 109),
            "carpet": (280, 28, 89),
            "grid": (264, 21, 57),
            "hazelnut": (391, 40, 70),
            "leather": (245, 32, 92),
            "metal_nut": (220, 22, 93),
            "pill": (267, 26, 141),
            "screw": (320, 41, 119),
            "tile": (230, 33, 84),
            "toothbrush": (60, 12, 30),
            "transistor": (213, 60, 40),
            "wood": (247, 19, 60),
            "zipper": (240, 32, 119),
        },
    ),
    "visa": Published(
        "VisA",
        "visa",
        {
            "candle": (900, 100, 100),
            "capsules": (542, 60, 100),
            "cashew": (450, 50, 100),
            "chewinggum": (453, 50, 100),
            "fryum": (450, 50, 100),
            "macaroni1": (900, 100, 100),
            "macaroni2": (900, 100, 100),
            "pcb1": (904, 100, 100),
            "pcb2": (901, 100, 100),
            "pcb3": (905, 101, 100),
            "pcb4": (904, 101, 100),
            "pipe_fryum": (450, 50, 100),
        },
        needs="split_csv/1cls.csv",
    ),
}
"""By the name that `sd-edge protocol --dataset` takes."""


def open_published(root: Path, name: str, classes: Sequence[str] | None = None) -> tuple[Dataset, list[str]]:
    """The data set called `name` under `root`, and a sentence for each way in which it is not the published one.

    All its classes, or those of `classes`. Raises DatasetError for an unknown name, for classes that are not there
    and for a split file that is missing, ClassError for a class that the data set never had.
    """
    if name not in PUBLISHED:
        raise DatasetError(f"the data set {name!r} is unknown; known are {', '.join(PUBLISHED)}, or leave it out")
    known = PUBLISHED[name]
    wanted = list(classes) if classes is not None else list(known.counts)
    strange = [c for c in wanted if c not in known.counts]
    if strange:
        raise ClassError(f"{known.title} has no class {strange[0]!r}; it has {', '.join(known.counts)}")
    if known.needs and root.is_dir() and not (root / known.needs).is_file():
        raise DatasetError(f"{root} lacks {known.needs}, {known.title}'s published split; unpack it beside the photos")
    found = open_dataset(root, None, known.layout)
    absent = [c for c in wanted if c not in found.classes]
    if absent:
        raise DatasetError(
            f"{root} lacks {known.title}'s {', '.join(absent)}; unpack the whole data set, or name some with --classes"
        )
    chosen = Dataset(found.root, found.layout, {c: found.classes[c] for c in wanted})
    notes = [] if classes is None else [f"{len(wanted)} of {known.title}'s {len(known.counts)} classes"]
    return chosen, notes + [n for c in wanted if (n := _differs(c, chosen.classes[c], known.counts[c]))]


def counts(data: ClassData) -> Counts:
    """(train good, test good, test bad) photos of a class."""
    bad = sum(sample.label for sample in data.test)
    return len(data.train), len(data.test) - bad, bad


def _differs(name: str, data: ClassData, published: Counts) -> str:
    found = counts(data)
    if found == published:
        return ""
    words = ("good to train with", "good to test on", "bad to test on")
    apart = (f"{f} {w} in place of {p}" for f, p, w in zip(found, published, words, strict=True) if f != p)
    return f"{name}: {', '.join(apart)}"
