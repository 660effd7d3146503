"""What the UNet of nano's recipe is taught on: pictures with a mask each, encoded by the autoencoder that now stands.

A pair is met in several steps of the UNet, each time with another t, other noise and another start. Encoding it anew
would cost a fifth of a step. Masks are those that an inspection repaints: packed grids, guided regions, rectangles.
"""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from anomalysd_edge.calibration.synthetic_anomalies import field, synthetic_anomaly
from anomalysd_edge.core.files import read_json, write_json
from anomalysd_edge.core.types import F32, Mask
from anomalysd_edge.method.inpainting.masks import to_pixels
from anomalysd_edge.training.nano.common import PAIRS, RecipeContext, stream
from anomalysd_edge.training.nano.images import PictureSet
from anomalysd_edge.training.nano.marks import random_marks
from anomalysd_edge.training.nano.models import LATENT_SIDE, SIDE_PX
from anomalysd_edge.vision import morphology

Rng = np.random.Generator

FACTS = "pairs.json"
BATCH = 32
GRIDS = (2, 4, 8, 16)
_FACTOR = SIDE_PX // LATENT_SIDE
_SAMPLE = 256
"""PictureSet whose latents set the scale."""


class Pairs:
    """Encoded pictures with masks. Each is encoded when first met, into memory maps beside the checkpoints.

    Several processes share the maps: a pair is a function of its number, so it does no harm if two encode it.
    """

    def __init__(self, context: RecipeContext, pictures: PictureSet, vae: Any, count: int) -> None:
        """`vae`: the autoencoder that now stands, on any device; `count`: pairs, each picture once if as many."""
        self._workshop, self._pictures, self.count = context, pictures, count
        self._vae = vae.to(device=context.place, memory_format=context.layout).eval()
        folder, processes = context.checkpoints, context.processes
        facts = folder / FACTS
        shapes: dict[str, tuple[tuple[int, ...], type]] = {
            "latents": ((count, 3, 4, LATENT_SIDE, LATENT_SIDE), np.float16),
            "masks": ((count, LATENT_SIDE, LATENT_SIDE), np.uint8),
            "encoded": ((count,), np.uint8),
        }
        if processes.is_main and not facts.exists():
            for name, (shape, kind) in shapes.items():
                np.lib.format.open_memmap(folder / f"{name}.npy", mode="w+", dtype=kind, shape=shape).flush()
            write_json(facts, {"scale": latents_scale(context, pictures, self._vae)})
        processes.barrier()
        self.scale = float(read_json(facts)["scale"])
        """The autoencoder's scaling factor: it brings the latents to unit spread."""
        self._latents, self._masks, self._encoded = (np.load(folder / f"{name}.npy", mmap_mode="r+") for name in shapes)

    def take(self, numbers: Sequence[int]) -> tuple[F32, F32]:
        """(n,3,4,32,32) scaled latents: of the picture, of the picture with the masked pixels at 0, of the one with an
        anomaly inside the mask; and (n,32,32) masks in {0,1}."""
        new = sorted({number for number in numbers if not self._encoded[number]})
        for start in range(0, len(new), BATCH):
            some = new[start : start + BATCH]
            self._put(some, [pair_of(self._pictures, number) for number in some])
        rows = list(numbers)
        return self._latents[rows].astype(np.float32), self._masks[rows].astype(np.float32)

    def encode_all(self, workers: int) -> None:
        """Encode what is not encoded yet, drawn by `workers` helpers: a GPU would wait for a single core's drawing."""
        new = [int(number) for number in np.flatnonzero(np.asarray(self._encoded) == 0)]
        folder = self._workshop.checkpoints
        with ProcessPoolExecutor(workers, initializer=_open_pictures, initargs=(folder,)) as pool:
            drawn = pool.map(_drawn_pair, new, chunksize=8)
            for start in range(0, len(new), BATCH):
                some = new[start : start + BATCH]
                self._put(some, list(islice(drawn, len(some))))

    def noun(self, number: int) -> str:
        """What pair `number` shows, for its prompt."""
        return self._pictures.nouns[number % len(self._pictures.nouns)]

    def _put(self, numbers: Sequence[int], made: Sequence[tuple[list[F32], Mask]]) -> None:
        rows = list(numbers)
        images = np.stack([image for pair in made for image in pair[0]])
        latents = encode(self._workshop, self._vae, images) * self.scale
        self._latents[rows] = latents.reshape(len(rows), 3, *latents.shape[1:]).astype(np.float16)
        self._masks[rows] = np.stack([pair[1] for pair in made])
        self._encoded[rows] = 1


def latents_scale(context: RecipeContext, pictures: PictureSet, vae: Any) -> float:
    """The factor that brings the latents of some pictures to unit spread."""
    some = stream(PAIRS).choice(len(pictures.pixels), min(_SAMPLE, len(pictures.pixels)), replace=False)
    images = np.stack([_planes(pictures.pixels[int(number)]) for number in some])
    return 1 / float(encode(context, vae, images).std())


def pair_of(pictures: PictureSet, number: int) -> tuple[list[F32], Mask]:
    """Pair `number`: the picture, its masked copy and its copy with an anomaly, (3,128,128) in [-1,1] each; (32,32)."""
    rng = stream(PAIRS, number)
    picture = np.asarray(pictures.pixels[number % len(pictures.pixels)])
    mask = random_mask(rng, LATENT_SIDE)
    inside = to_pixels(mask, _FACTOR)
    clean = _planes(picture)
    kind = rng.random()
    anomaly = clean
    if kind < 0.45:
        other = np.asarray(pictures.pixels[int(rng.integers(len(pictures.pixels)))])
        changed = synthetic_anomaly(picture, inside, other, rng)
        anomaly = clean if changed is None else _planes(changed.photo)
    elif kind < 0.9:
        marked, _ = random_marks(rng, clean.transpose(1, 2, 0), least=1)
        anomaly = marked.transpose(2, 0, 1)
    # Outside the mask an inspection keeps what it sees, so the anomaly lies inside alone.
    anomaly = np.where(inside, anomaly, clean)
    return [clean, np.where(inside, np.float32(0), clean), anomaly], mask


def random_mask(rng: Rng, side: int) -> Mask:
    """(side,side) True = repaint: a slot of a packed grid, a guided region, rectangles, now and then everything."""
    kind = rng.random()
    if kind < 0.05:
        return np.ones((side, side), np.bool_)
    if kind < 0.5:
        k = int(rng.choice(GRIDS, p=(0.1, 0.3, 0.3, 0.3)))
        cell, odd = np.arange(side) * k // side, rng.integers(0, 2, 2)
        mask = np.logical_and.outer(cell % 2 == odd[0], cell % 2 == odd[1])
        if rng.random() < 0.4:  # an inspection leaves out cells that are clear: here those of a region
            kept = mask & np.kron(rng.random((k, k)) < rng.uniform(0.1, 0.9), np.ones((side // k, side // k), np.bool_))
            mask = kept if kept.any() else mask
        return np.asarray(mask)
    if kind < 0.75:
        far = field(rng, (side, side), int(rng.integers(3, 14)))
        guided = morphology.dilate(far > np.quantile(far, rng.uniform(0.6, 0.97)), 1)
        return np.asarray(guided)
    mask = np.zeros((side, side), np.bool_)
    for _ in range(int(rng.integers(1, 5))):
        h, w = (max(2, round(side * float(np.exp(rng.uniform(np.log(0.06), np.log(0.6)))))) for _ in range(2))
        top, left = int(rng.integers(0, side - h + 1)), int(rng.integers(0, side - w + 1))
        mask[top : top + h, left : left + w] = True
    return mask


@torch.inference_mode()
def encode(context: RecipeContext, vae: Any, images: F32) -> F32:
    """(N,3,H,W) in [-1,1] -> (N,4,h,w) float32 latents, not scaled."""
    parts = []
    for start in range(0, len(images), BATCH):
        batch = torch.from_numpy(images[start : start + BATCH]).to(context.place)
        with context.autocast():
            parts.append(vae.encode(batch.contiguous(memory_format=context.layout)).latents.float().cpu().numpy())
    return np.concatenate(parts)


def _planes(picture: npt.NDArray[np.uint8]) -> F32:
    """(H,W,3) bytes -> (3,H,W) float32 in [-1,1]."""
    return np.asarray(picture.transpose(2, 0, 1) / np.float32(127.5) - 1, dtype=np.float32)


_pictures: PictureSet | None = None
"""Of a helper process: a memory map that is opened, not sent."""


def _open_pictures(folder: Path) -> None:
    global _pictures  # noqa: PLW0603
    _pictures = PictureSet.load(folder)


def _drawn_pair(number: int) -> tuple[list[F32], Mask]:
    if _pictures is None:
        raise RuntimeError("the helper was not started with its pictures")
    return pair_of(_pictures, number)
