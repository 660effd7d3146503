"""The published protocols of benchmark data sets: which classes, and how many photos of each in which split.

Counts let a reader see whether a folder is the data set that published figures were measured on. MVTec AD: Bergmann et
al., IJCV 129 (2021), table 1. VisA: Zou et al., "SPot-the-Difference", ECCV 2022, the one-class split of its 1cls.csv.
MVTec LOCO AD: Bergmann et al., IJCV 130 (2022); its validation photos neither train nor test. MVTec AD 2: Heckler-Kram
et al., arXiv 2503.21622, the public test set. BTAD: Mishra et al., ISIE 2021. MPDD: Jezek et al., ICUMT 2021. Real-IAD:
Wang et al., CVPR 2024, by its JSON files. Few-shot results choose their shots from the training split and are measured
on the whole test split.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from anomalysd_edge.data.classes import choose_classes
from anomalysd_edge.data.datasets import ClassData, Dataset, open_dataset
from anomalysd_edge.errors import DatasetError

Counts = tuple[int, int, int]
"""Good photos to train with, good ones to test on, bad ones to test on."""


@dataclass(frozen=True)
class Published:
    """A data set as its authors split it."""

    title: str
    """As the literature calls it."""
    counts: Mapping[str, Counts | None]
    """By class; None where there are none to compare with."""
    needs: str = ""
    """A file without which the split would be another."""


PUBLISHED: Mapping[str, Published] = {
    "mvtec-ad": Published(
        "MVTec AD",
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
    "mvtec-loco": Published(
        "MVTec LOCO AD",
        {
            "breakfast_box": (351, 102, 173),
            "juice_bottle": (335, 94, 236),
            "pushpins": (372, 138, 172),
            "screw_bag": (360, 122, 219),
            "splicing_connectors": (354, 119, 193),
        },
    ),
    "mvtec-ad2": Published(
        "MVTec AD 2",
        dict.fromkeys(("can", "fabric", "fruit_jelly", "rice", "sheet_metal", "vial", "wallplugs", "walnuts")),
    ),
    "btad": Published("BTAD", {"01": (400, 21, 49), "02": (399, 30, 200), "03": (1000, 400, 41)}),
    "mpdd": Published(
        "MPDD",
        {
            "bracket_black": (289, 32, 47),
            "bracket_brown": (185, 26, 51),
            "bracket_white": (110, 30, 30),
            "connector": (128, 30, 14),
            "metal_plate": (54, 26, 71),
            "tubes": (122, 32, 69),
        },
    ),
    "real-iad": Published(
        "Real-IAD",
        dict.fromkeys(
            (
                "audiojack",
                "bottle_cap",
                "button_battery",
                "end_cap",
                "eraser",
                "fire_hood",
                "mint",
                "mounts",
                "pcb",
                "phone_battery",
                "plastic_nut",
                "plastic_plug",
                "porcelain_doll",
                "regulator",
                "rolled_strip_base",
                "sim_card_set",
                "switch",
                "tape",
                "terminalblock",
                "toothbrush",
                "toy",
                "toy_brick",
                "transistor1",
                "u_block",
                "usb",
                "usb_adaptor",
                "vcpill",
                "wooden_beads",
                "woodstick",
                "zipper",
            )
        ),
    ),
}
"""By the name that `--dataset` takes."""


def open_published(root: Path, name: str, classes: Sequence[str] | None = None) -> tuple[Dataset, list[str]]:
    """The data set called `name` under `root`, and a sentence for each way in which it is not the published one.

    All its classes, or those of `classes`. Raises DatasetError for an unknown name, for classes that are not there
    and for a split file that is missing, ClassError for a class that the data set never had.
    """
    if name not in PUBLISHED:
        raise DatasetError(f"the data set {name!r} is unknown; known are {', '.join(PUBLISHED)}, or leave it out")
    known = PUBLISHED[name]
    wanted = list(known.counts) if classes is None else choose_classes(classes, known.counts, known.title)
    if known.needs and root.is_dir() and not (root / known.needs).is_file():
        raise DatasetError(f"{root} lacks {known.needs}, {known.title}'s published split; unpack it beside the photos")
    found = open_dataset(root, None, name)
    absent = [c for c in wanted if c not in found.classes]
    if absent:
        raise DatasetError(
            f"{root} lacks {known.title}'s {', '.join(absent)}; unpack the whole data set, name some with "
            "--classes, or leave --dataset out"
        )
    chosen = replace(found, classes={c: found.classes[c] for c in wanted})
    notes = (
        [] if len(wanted) == len(known.counts) else [f"{len(wanted)} of {known.title}'s {len(known.counts)} classes"]
    )
    differences = (_differs(c, chosen.classes[c], known.counts[c]) for c in wanted)
    return chosen, notes + [words for words in differences if words]


def counts(data: ClassData) -> Counts:
    """(train good, test good, test bad) photos of a class."""
    bad = sum(sample.label for sample in data.test)
    return len(data.train), len(data.test) - bad, bad


def _differs(name: str, data: ClassData, published: Counts | None) -> str:
    found = counts(data)
    if published is None or found == published:
        return ""
    words = ("good to train with", "good to test on", "bad to test on")
    apart = (f"{f} {w} in place of {p}" for f, p, w in zip(found, published, words, strict=True) if f != p)
    return f"{name}: {', '.join(apart)}"
