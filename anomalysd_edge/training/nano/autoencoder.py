"""Stage 2 of nano's recipe: the autoencoder, on crops of 64 px with thin marks drawn on them.

Latents are pushed to unit spread; noise on them keeps the decoder smooth, since it will decode what a UNet painted.
"""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import torch
import torch.nn.functional as nnf
from torch import Tensor, nn

from anomalysd_edge.training.nano.common import AUTOENCODER, SEED, RecipeContext, blend, drawn_ahead, set_rate, stream
from anomalysd_edge.training.nano.images import PictureSet
from anomalysd_edge.training.nano.marks import random_marks

BATCH = 32
CROP_PX = 64
PEAK_RATE = 2e-3
MARK_WEIGHT = 1.0
"""Weight of the mean absolute error over marked pixels, beside that over all pixels."""


def train_autoencoder(context: RecipeContext, pictures: PictureSet, vae: Any, steps: int) -> Any:
    """Train `vae` (an AutoencoderTiny) from its weights or the last checkpoint; returns the averaged weights."""
    torch.manual_seed(SEED)
    vae = vae.to(device=context.place, memory_format=context.layout).train()
    average = copy.deepcopy(vae).eval().requires_grad_(False)
    optimizer = torch.optim.AdamW(vae.parameters(), lr=PEAK_RATE, betas=(0.9, 0.99), weight_decay=1e-4)
    state, start = context.load("autoencoder"), 0
    if state is not None:
        vae.load_state_dict(state["live"])
        average.load_state_dict(state["average"])
        optimizer.load_state_dict(state["optimizer"])
        start = state["step"]
    rows = context.rows(BATCH)
    recent: dict[str, float] = {}
    batches = drawn_ahead(lambda step: autoencoder_batch(pictures, step, rows), range(start, steps), context.place)
    for step, batch in enumerate(batches, start):
        crops, marks, levels, noise = (part.to(context.place) for part in batch)
        crops = crops.contiguous(memory_format=context.layout)
        set_rate(optimizer, step, steps, PEAK_RATE, warm=200, hold=0.6)
        with context.autocast():
            latents = vae.encode(crops).latents
            decoded = vae.decode(latents + levels * noise).sample
        latents, decoded = latents.float(), decoded.float()
        spread = latents.pow(2).mean(dim=(0, 2, 3))
        on_marks = (marks * (decoded - crops).abs()).sum() / (3 * marks.sum() + 1)
        loss = pyramid_loss(decoded, crops) + MARK_WEIGHT * on_marks + 0.02 * (spread - 1).pow(2).mean()
        value = context.update(loss, len(crops) / BATCH, optimizer)
        blend(average, vae, step, 0.999)
        for name, number in {"loss": value, "marks": float(on_marks.detach())}.items():
            recent[name] = recent.get(name, number) * 0.99 + number * 0.01
        if step % 100 == 99:
            context.note("autoencoder", step + 1, steps, **recent)
        if context.due() or step == steps - 1:
            context.save("autoencoder", _state(vae, average, optimizer, step + 1))
    return average


def autoencoder_batch(pictures: PictureSet, step: int, rows: slice) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Some rows of a step: (n,3,64,64) crops in [-1,1], (n,1,64,64) coverage of marks, (n,1,1,1) level and (n,4,16,16)
    values of the noise on the latents; all float32."""
    crops, marks, levels, noises = [], [], [], []
    side = pictures.pixels.shape[1]
    for row in range(rows.start, rows.stop):
        rng = stream(AUTOENCODER, step, row)
        picture = pictures.pixels[int(rng.integers(len(pictures.pixels)))]
        top, left = rng.integers(0, side - CROP_PX + 1, 2)
        crop = np.rot90(picture[top : top + CROP_PX, left : left + CROP_PX], int(rng.integers(4)))
        if rng.random() < 0.5:
            crop = crop[:, ::-1]
        values = crop.astype(np.float32) / 127.5 - 1
        grey = values.mean(axis=2, keepdims=True)
        values = np.clip(grey + np.float32(rng.uniform(0.3, 2.5)) * (values - grey), -1, 1)
        values, cover = random_marks(rng, values)
        crops.append(values.transpose(2, 0, 1))
        marks.append(cover[None])
        levels.append(0.1 * rng.random())
        noises.append(rng.standard_normal((4, CROP_PX // 4, CROP_PX // 4), dtype=np.float32))
    level = torch.tensor(levels, dtype=torch.float32).view(-1, 1, 1, 1)
    crop_batch, mark_batch, noise = (torch.from_numpy(np.stack(parts)) for parts in (crops, marks, noises))
    return crop_batch, mark_batch, level, noise


def pyramid_loss(a: Tensor, b: Tensor) -> Tensor:
    """L1 at three scales, L1 of the finest differences (thin lines), and L1 of the colour alone, four times coarser.

    Without a strong last term all four latent channels go to light and dark, and repaints are grey or of two colours.
    """
    loss = nnf.l1_loss(a, b)
    tint = nnf.avg_pool2d(a - a.mean(1, keepdim=True), 4) - nnf.avg_pool2d(b - b.mean(1, keepdim=True), 4)
    loss = loss + 4.0 * tint.abs().mean() + 40.0 * tint.pow(2).mean()
    dx = (a[..., 1:] - a[..., :-1]) - (b[..., 1:] - b[..., :-1])
    dy = (a[..., 1:, :] - a[..., :-1, :]) - (b[..., 1:, :] - b[..., :-1, :])
    loss = loss + 0.5 * (dx.abs().mean() + dy.abs().mean())
    for _ in range(2):
        a, b = nnf.avg_pool2d(a, 2), nnf.avg_pool2d(b, 2)
        loss = loss + 0.5 * nnf.l1_loss(a, b)
    return loss


def _state(vae: nn.Module, average: nn.Module, optimizer: torch.optim.Optimizer, step: int) -> dict[str, Any]:
    return {
        "live": vae.state_dict(),
        "average": average.state_dict(),
        "optimizer": optimizer.state_dict(),
        "step": step,
    }
