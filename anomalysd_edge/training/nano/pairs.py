"""Stage 3 of nano's recipe: pictures with a mask each, encoded once by the autoencoder that now stands.

A pair is met in several steps of the UNet, each time with another t, other noise and another start. Encoding it anew
would cost a fifth of a step. Masks are those that an inspection repaints: packed grids, guided regions, rectangles.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from anomalysd_edge import regions
from anomalysd_edge.masks import to_pixels
from anomalysd_edge.synthetic import field, synthetic_anomaly
from anomalysd_edge.training.nano.common import PAIRS, Workshop, stream
from anomalysd_edge.training.nano.images import Pictures
from anomalysd_edge.training.nano.marks import random_marks
from anomalysd_edge.training.nano.models import LATENT_SIDE, SIDE_PX

F32 = npt.NDArray[np.float32]
Mask = npt.NDArray[np.bool_]
Rng = np.random.Generator

BATCH = 32
GRIDS = (2, 4, 8, 16)
_FACTOR = SIDE_PX // LATENT_SIDE
_SAMPLE = 256
"""Pictures whose latents set the scale."""


@dataclass(frozen=True)
class Pairs:
    """Encoded pictures with masks; memory maps of N rows."""

    latents: npt.NDArray[np.float16]
    """(N,3,4,32,32) scaled: of the picture, of the picture with the masked pixels at 0, of the one with an anomaly."""
    masks: npt.NDArray[np.uint8]
    """(N,32,32) in {0,1}."""
    nouns: list[str]
    """For the prompts."""
    scale: float
    """The autoencoder's scaling factor: it brings the latents to unit spread."""


def make_pairs(workshop: Workshop, pictures: Pictures, vae: Any, count: int) -> Pairs:
    """Encode `count` pairs into the checkpoints' folder, unless they are there; every process does its share."""
    folder, processes = workshop.checkpoints, workshop.processes
    latents_file, masks_file, facts = folder / "latents.npy", folder / "masks.npy", folder / "pairs.json"
    vae = vae.to(device=workshop.place, memory_format=workshop.layout).eval()
    if not facts.exists():
        scale = latents_scale(workshop, pictures, vae)
        if processes.main:
            shape = (count, 3, 4, LATENT_SIDE, LATENT_SIDE)
            np.lib.format.open_memmap(latents_file, mode="w+", dtype=np.float16, shape=shape).flush()
            shape_of_masks = (count, LATENT_SIDE, LATENT_SIDE)
            np.lib.format.open_memmap(masks_file, mode="w+", dtype=np.uint8, shape=shape_of_masks).flush()
        processes.wait()
        latents, masks = np.load(latents_file, mmap_mode="r+"), np.load(masks_file, mmap_mode="r+")
        starts = range(processes.number * BATCH, count, processes.count * BATCH)
        for done, start in enumerate(starts):
            numbers = range(start, min(start + BATCH, count))
            made = [pair_of(pictures, number) for number in numbers]
            images = np.stack([image for pair in made for image in pair[0]])
            encoded = _encoded(workshop, vae, images) * scale
            latents[start : numbers.stop] = encoded.reshape(len(made), 3, *encoded.shape[1:]).astype(np.float16)
            masks[start : numbers.stop] = np.stack([pair[1] for pair in made])
            if done % 20 == 19:
                workshop.note("pairs", done + 1, len(starts))
        latents.flush()
        masks.flush()
        processes.wait()
        if processes.main:
            facts.write_text(json.dumps({"scale": scale}))
        processes.wait()
    nouns = [pictures.nouns[number % len(pictures.nouns)] for number in range(count)]
    latents, masks = np.load(latents_file, mmap_mode="r"), np.load(masks_file, mmap_mode="r")
    return Pairs(latents, masks, nouns, float(json.loads(Path(facts).read_text())["scale"]))


def latents_scale(workshop: Workshop, pictures: Pictures, vae: Any) -> float:
    """The factor that brings the latents of some pictures to unit spread."""
    some = stream(PAIRS).choice(len(pictures.pixels), min(_SAMPLE, len(pictures.pixels)), replace=False)
    images = np.stack([_planes(pictures.pixels[int(number)]) for number in some])
    return 1 / float(_encoded(workshop, vae, images).std())


def pair_of(pictures: Pictures, number: int) -> tuple[list[F32], Mask]:
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
        guided = regions.dilate(far > np.quantile(far, rng.uniform(0.6, 0.97)), 1)
        return np.asarray(guided)
    mask = np.zeros((side, side), np.bool_)
    for _ in range(int(rng.integers(1, 5))):
        h, w = (max(2, round(side * float(np.exp(rng.uniform(np.log(0.06), np.log(0.6)))))) for _ in range(2))
        top, left = int(rng.integers(0, side - h + 1)), int(rng.integers(0, side - w + 1))
        mask[top : top + h, left : left + w] = True
    return mask


@torch.inference_mode()
def _encoded(workshop: Workshop, vae: Any, images: F32) -> F32:
    """(N,3,H,W) in [-1,1] -> (N,4,h,w) float32 latents, not scaled."""
    parts = []
    for start in range(0, len(images), BATCH):
        batch = torch.from_numpy(images[start : start + BATCH]).to(workshop.place)
        with workshop.autocast():
            parts.append(vae.encode(batch.contiguous(memory_format=workshop.layout)).latents.float().cpu().numpy())
    return np.concatenate(parts)


def _planes(picture: npt.NDArray[np.uint8]) -> F32:
    """(H,W,3) bytes -> (3,H,W) float32 in [-1,1]."""
    return np.asarray(picture.transpose(2, 0, 1) / np.float32(127.5) - 1, dtype=np.float32)
