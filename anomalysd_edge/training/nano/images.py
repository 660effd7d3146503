"""The pictures that the embedded base is taught on: scenes drawn in code, and crops of photos where a folder is given.

They are drawn once, into a memory map of bytes beside the checkpoints: drawing costs as much as a step's networks, and
a picture is met several times, each time with other masks and noise.
"""

from __future__ import annotations

import json
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np

from anomalysd_edge.core.types import U8
from anomalysd_edge.demo import procedural as draw
from anomalysd_edge.training.nano.common import PICTURES, SEED, RecipeContext
from anomalysd_edge.training.nano.models import SIDE_PX
from anomalysd_edge.training.nano.parts import (
    array_of_parts,
    board,
    cable,
    capsule,
    connector,
    gear,
    nut,
    organic,
    pill,
    round_part,
    screw,
)
from anomalysd_edge.training.nano.surfaces import (
    Family,
    brushed_metal,
    carpet,
    cast_surface,
    cloth,
    collage,
    grid,
    leather,
    speckle,
    stone,
    stripes,
    tiles,
    wood,
)
from anomalysd_edge.training.nano.textures import PhotoFile, chosen, cropped

PIXELS, NOUNS = "pictures.npy", "pictures.json"

FAMILIES: dict[str, Family] = {
    "cloth": cloth, "leather": leather, "stone": stone, "speckled plate": speckle, "wood": wood,
    "brushed metal": brushed_metal, "cast surface": cast_surface, "tile": tiles, "grid": grid, "carpet": carpet,
    "striped sheet": stripes, "collage": collage, "round part": round_part, "nut": nut, "gear": gear,
    "capsule": capsule, "pill": pill, "screw": screw, "board": board, "connector": connector, "cable": cable,
    "kernel": organic, "tray": array_of_parts,
}  # fmt: skip

# Families that carry more than their share: natural statistics for the autoencoder, round parts for their symmetry.
_WEIGHTS = {"collage": 3.0, "round part": 2.0, "stone": 1.5, "cast surface": 2.0, "brushed metal": 1.5, "leather": 1.5}


def family_of(seed: int, number: int) -> str:
    """The noun of scene `number` of the set `seed`."""
    return _begun(seed, number)[0]


def render(seed: int, number: int, side: int) -> tuple[str, U8]:
    """Scene `number` of the set `seed`: (noun of its family, (side,side,3) uint8). Same arguments, same bytes."""
    name, rng = _begun(seed, number)
    canvas = FAMILIES[name](rng, side)
    if rng.random() < 0.15:
        canvas = np.repeat(canvas.mean(axis=2, keepdims=True), 3, axis=2)
    return name, draw.finish(canvas, rng, grain=float(rng.exponential(0.008)), light=float(rng.exponential(0.08)))


def _begun(seed: int, number: int) -> tuple[str, np.random.Generator]:
    rng = np.random.default_rng((seed, number))
    names = list(FAMILIES)
    weights = np.array([_WEIGHTS.get(name, 1.0) for name in names])
    return names[int(rng.choice(len(names), p=weights / weights.sum()))], rng


@dataclass(frozen=True)
class PictureSet:
    """The pictures, drawn ones first."""

    pixels: U8
    """(N,128,128,3), a memory map."""
    nouns: list[str]
    """What each shows, for its prompt."""

    @classmethod
    def load(cls, folder: Path) -> PictureSet:
        """Those that `make_pictures` left in the checkpoints' folder."""
        return cls(np.load(folder / PIXELS, mmap_mode="r"), json.loads((folder / NOUNS).read_text()))


def make_pictures(context: RecipeContext, scenes: int, crops: int, photos: list[PhotoFile], workers: int) -> PictureSet:
    """Draw `scenes` and cut `crops` of `photos` into the checkpoints' folder, unless they are there already.

    Every process makes its share, with `workers` helpers of its own. Numbers name pictures: the same for any sharing.
    """
    folder, processes = context.checkpoints, context.processes
    file, names = folder / PIXELS, folder / NOUNS
    if not names.exists():
        count = scenes + crops
        if processes.is_main:
            whole = np.lib.format.open_memmap(file, mode="w+", dtype=np.uint8, shape=(count, SIDE_PX, SIDE_PX, 3))
            whole.flush()
        processes.barrier()
        target = np.load(file, mmap_mode="r+")
        mine = range(processes.rank, scenes, processes.world_size)
        with ProcessPoolExecutor(workers) as pool:
            drawn = pool.map(partial(_render, SEED), mine, chunksize=64)
            for done, (number, picture) in enumerate(zip(mine, drawn, strict=True)):
                target[number] = picture
                if done % 1000 == 999:
                    context.note("scenes", done + 1, len(mine))
        for number, picture in cropped(
            photos, range(processes.rank, crops, processes.world_size), SIDE_PX, (SEED, PICTURES)
        ).items():
            target[scenes + number] = picture
        target.flush()
        processes.barrier()
        if processes.is_main:
            nouns = [family_of(SEED, number) for number in range(scenes)]
            nouns += [chosen(photos, number, (SEED, PICTURES)).noun for number in range(crops)]
            names.write_text(json.dumps(nouns))
        processes.barrier()
    return PictureSet.load(folder)


def _render(seed: int, number: int) -> U8:
    return render(seed, number, SIDE_PX)[1]
