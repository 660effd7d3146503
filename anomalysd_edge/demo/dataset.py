"""The demo data set: five products rendered by a seed, with defects whose masks are exact, in MVTec-AD's layout.

    ROOT/CLASS/train/good/000.png            good parts
    ROOT/CLASS/test/good/000.png
    ROOT/CLASS/test/DEFECT/000.png           one defect a photo
    ROOT/CLASS/ground_truth/DEFECT/000_mask.png

Every photo is a function of (seed, class, split, number) alone: the same seed gives the same bytes.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image

from anomalysd_edge.core.files import folder_aside
from anomalysd_edge.core.types import Mask
from anomalysd_edge.demo.defects import SURFACE_DEFECTS
from anomalysd_edge.demo.procedural import Field, finish
from anomalysd_edge.demo.products import BUILDERS
from anomalysd_edge.demo.scene import lit
from anomalysd_edge.errors import InputError
from anomalysd_edge.vision.morphology import box_sum, dilate, erode

DEMO_DEFECTS: dict[str, tuple[str, ...]] = {
    "demo_weave": ("broken_thread", "stain", "pulled_thread", "hole", "colour_thread", "contamination"),
    "demo_metal": ("scratch", "dent", "stain", "colour", "contamination"),
    "demo_washer": ("chipped_edge", "scratch", "part_missing", "colour", "part_misplaced", "dent"),
    "demo_capsule": ("dent", "part_missing", "crack", "stain", "part_misplaced", "part_turned", "contamination"),
    "demo_board": (
        "part_missing",
        "scratch",
        "part_turned",
        "solder_bridge",
        "part_misplaced",
        "chipped_edge",
        "stain",
    ),
}
"""The defects of each class, in the order in which the photos take them."""

LOGICAL_DEFECTS = frozenset({"part_missing", "part_misplaced", "part_turned"})
"""Nothing is damaged: something is absent, in the wrong place or the wrong way round."""

VISIBLE = 5 / 255
"""A pixel belongs to the mask where a channel differs by more than this from the same part without the defect."""
SMALLEST, LARGEST = 0.0008, 0.25
"""Share of the photo that a mask covers; a defect outside these bounds is drawn again."""
ATTEMPTS = 40

Canvas = Field
Photo = npt.NDArray[np.uint8]


@dataclass(frozen=True)
class RenderedPart:
    """One part, with and without its defect, before light fall-off and grain."""

    clean: Canvas
    """(side,side,3) float32 in [0,1]: the part without the defect."""
    canvas: Canvas
    """(side,side,3) float32: with the defect; equal to `clean` wherever `mask` is False."""
    mask: Mask
    """(side,side) bool; all False for a good part."""
    finish_key: tuple[int, ...]
    """Seeds light fall-off and grain."""

    def photo(self, with_defect: bool = True) -> Photo:
        """(side,side,3) uint8; light fall-off and grain are the same with and without the defect."""
        rng = np.random.default_rng(self.finish_key)
        grain, light = float(rng.uniform(0.006, 0.013)), float(rng.uniform(0.0, 0.05))
        return finish(self.canvas if with_defect else self.clean, rng, grain, light)


def render_part(class_name: str, key: tuple[int, ...], side: int, defect: str = "good") -> RenderedPart:
    """One part of a demo class, a function of `key` (non-negative integers), `side` in px and the defect's name.

    Raises InputError for a class or defect that the demo does not have, and for side < 32.
    """
    if class_name not in BUILDERS:
        raise InputError(f"no demo class is called {class_name!r}: the demo has {', '.join(BUILDERS)}")
    if defect != "good" and defect not in DEMO_DEFECTS[class_name]:
        known = ", ".join(DEMO_DEFECTS[class_name])
        raise InputError(f"{class_name} has no defect called {defect!r}: it has {known}")
    if side < 32:
        raise InputError(f"demo photos of {side} px were asked for: take at least 32 px a side")
    build = BUILDERS[class_name]
    idle = np.random.default_rng(0)
    clean = lit(build(np.random.default_rng((*key, 0)), side, "good", idle))
    if defect == "good":
        return RenderedPart(clean, clean, np.zeros((side, side), bool), (*key, 1))
    for attempt in range(ATTEMPTS):
        rng = np.random.default_rng((*key, 2, attempt))
        structural = defect not in SURFACE_DEFECTS or (class_name == "demo_capsule" and defect == "dent")
        scene = build(np.random.default_rng((*key, 0)), side, defect if structural else "good", rng)
        if not structural:
            SURFACE_DEFECTS[defect](scene, rng)
        canvas = lit(scene)
        mask = tidy(np.abs(canvas - clean).max(axis=2) > VISIBLE)
        if defect in LOGICAL_DEFECTS:
            mask = dilate(mask, 1)
        if SMALLEST <= mask.mean() <= LARGEST:
            return RenderedPart(clean, np.where(mask[..., None], canvas, clean), mask, (*key, 1))
    raise InputError(f"no {defect} on {class_name} came out of a fitting size at {side} px: take a larger side")


def tidy(mask: Mask) -> Mask:
    """`mask` without lone specks (fewer than 4 of 25 pixels around), one-pixel gaps closed."""
    kept = mask & (box_sum(mask.astype(np.int32)[..., None], 2)[..., 0] >= 4)
    return np.asarray(erode(dilate(kept, 1), 1) | kept)


def render_demo(
    root: Path,
    seed: int = 0,
    train_good: int = 8,
    test_good: int = 10,
    test_bad: int = 14,
    side: int = 192,
    progress: Callable[[int, int], None] | None = None,
) -> None:
    """Render the demo data set into `root`, which must be absent or empty; counts are per class.

    `progress` is called with (photos done, photos in all). Nothing is left behind by an error or Ctrl-C.
    Raises InputError for a target that is not empty, a negative seed or count, or a side below 32 px.
    """
    if root.exists() and (not root.is_dir() or any(root.iterdir())):
        raise InputError(f"{root} is not an empty folder: name a new folder for the demo data, or empty this one")
    counts = {"seed": seed, "train_good": train_good, "test_good": test_good, "test_bad": test_bad}
    for name, value in counts.items():
        if value < 0:
            raise InputError(f"{name} is {value}: take 0 or more")
    total, done = len(BUILDERS) * (train_good + test_good + test_bad), 0
    with folder_aside(root) as target:
        for class_name, kinds in DEMO_DEFECTS.items():
            folder = target / class_name
            jobs = [("train", "good", number) for number in range(train_good)]
            jobs += [("test", "good", number) for number in range(test_good)]
            jobs += [("test", kinds[number % len(kinds)], number // len(kinds)) for number in range(test_bad)]
            for split, defect, number in jobs:
                key = (seed, zlib.crc32(class_name.encode()), zlib.crc32(f"{split}/{defect}".encode()), number)
                part = render_part(class_name, key, side, defect)
                save(folder / split / defect / f"{number:03d}.png", part.photo())
                if defect != "good":
                    mask = part.mask.astype(np.uint8) * np.uint8(255)
                    save(folder / "ground_truth" / defect / f"{number:03d}_mask.png", mask)
                done += 1
                if progress:
                    progress(done, total)


def save(path: Path, image: Photo) -> None:
    """Write a PNG at a fixed compression and without metadata, so that equal pixels give equal bytes."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(image).save(path, "PNG", compress_level=6, optimize=False)
