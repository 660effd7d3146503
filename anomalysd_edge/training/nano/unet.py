"""Stage 3 of nano's recipe: the inpainting UNet and its text encoder, trained together from nothing.

Two things differ from training Stable Diffusion. Timesteps are drawn mostly below 0.65 T, since an inspection starts at
lambda*T. And half of the samples start corrupted: z_t carries content that does not belong (pasted from another image,
or a smooth stain) inside the mask, while the target still leads to the clean latents. An inspection starts from the
photo itself, defects and all; a plain denoiser would faithfully keep them.
"""

from __future__ import annotations

import copy
import json
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as nnf

from anomalysd_edge.training.nano import models
from anomalysd_edge.training.nano.common import SEED, batch_of, blend, note, rate

BATCH = 16
PEAK_RATE = 6e-4


def random_masks(rng: np.random.Generator, count: int, side: int) -> torch.Tensor:
    """(count,1,side,side) float32 in {0,1}: rectangles, or every other cell of a grid, now and then everything."""
    masks = np.zeros((count, side, side), np.float32)
    for mask in masks:
        kind = rng.random()
        if kind < 0.08:
            mask[:] = 1
        elif kind < 0.5:
            k = int(rng.choice([2, 4, 8]))
            cell = side // k
            row, column = rng.integers(2, size=2)
            grid = np.zeros((k, k), np.float32)
            grid[row::2, column::2] = 1
            mask[:] = np.kron(grid, np.ones((cell, cell), np.float32))
        else:
            for _ in range(int(rng.integers(1, 5))):
                h, w = (max(2, round(side * rng.uniform(0.06, 0.6))) for _ in range(2))
                top, left = int(rng.integers(0, side - h + 1)), int(rng.integers(0, side - w + 1))
                mask[top : top + h, left : left + w] = 1
    return torch.from_numpy(masks[:, None])


def blobs(rng: np.random.Generator, count: int, side: int) -> torch.Tensor:
    """(count,1,side,side) float32 in [0,1]: soft-edged regions of many sizes and forms, from thresholded noise."""
    fields = []
    for _ in range(count):
        cells = int(rng.integers(2, 14))
        stretch = int(rng.integers(1, 4)) if rng.random() < 0.5 else 1
        field = torch.from_numpy(rng.standard_normal((1, 1, cells, max(2, cells // stretch)), dtype=np.float32))
        if rng.random() < 0.5:
            field = field.transpose(2, 3)
        field = nnf.interpolate(field, size=(side, side), mode="bicubic")
        fields.append(torch.sigmoid((field - float(rng.uniform(0.2, 1.4))) * 12))
    return torch.cat(fields)


def corrupt(latents: torch.Tensor, masks: torch.Tensor, share: float, rng: np.random.Generator) -> torch.Tensor:
    """(N,C,h,w) clean latents -> the same with foreign content inside the masks, in about `share` of the samples."""
    count, channels, side, _ = latents.shape
    region = masks * blobs(rng, count, side)
    foreign = latents.roll(int(rng.integers(1, count)), 0).roll(
        (int(rng.integers(side)), int(rng.integers(side))), (2, 3)
    )
    smooth = torch.from_numpy(rng.standard_normal((count, channels, 1, 1), dtype=np.float32))
    stain = latents + smooth * torch.from_numpy(rng.uniform(0.2, 1.5, (count, 1, 1, 1)).astype(np.float32))
    own = latents.roll((int(rng.integers(2, side - 1)), int(rng.integers(2, side - 1))), (2, 3))
    kind = torch.from_numpy(rng.integers(0, 3, (count, 1, 1, 1)))
    other = torch.where(kind == 0, foreign, torch.where(kind == 1, stain, own))
    strength = torch.from_numpy(rng.uniform(0.3, 1.0, (count, 1, 1, 1)) * (rng.random((count, 1, 1, 1)) < share))
    return latents + region * strength.float() * (other - latents)


def train_unet(
    images: np.ndarray[Any, np.dtype[np.uint8]], nouns: list[str], vae: Any, cache: Path, steps: int, out: Path
) -> None:
    """Train, keep a checkpoint every 250 steps, and write the diffusers folder `out` at each of them."""
    torch.manual_seed(SEED + 1)
    vae = vae.eval().to(memory_format=torch.channels_last)
    sentences = [f"A perfect {noun}." for noun in sorted(set(nouns))]
    words = models.tokenizer(sentences * 2)
    tokens = dict(zip([*sentences, ""], models.tokenize(words, [*sentences, ""]), strict=True))
    net, text = models.unet(), models.text_encoder(len(words))
    slow_net, slow_text = copy.deepcopy(net), copy.deepcopy(text)
    parameters = [*net.parameters(), *text.parameters()]
    optimizer = torch.optim.AdamW(parameters, lr=PEAK_RATE, betas=(0.9, 0.99), weight_decay=0.01)
    abar = models.scheduler().alphas_cumprod.float()
    with torch.no_grad():
        sample = vae.encode(batch_of(images, np.random.default_rng(SEED), 64)[0]).latents
        scale = 1 / float(sample.std())
    saved, start = cache / "unet.pt", 0
    modules = {"net": net, "text": text, "slow_net": slow_net, "slow_text": slow_text}
    if saved.exists():
        state = torch.load(saved, weights_only=True)
        for name, module in modules.items():
            module.load_state_dict(state[name])
        optimizer.load_state_dict(state["optimizer"])
        start = state["step"]
    began, running = time.time(), 0.0
    for step in range(start, steps):
        rng = np.random.default_rng((SEED, 2, step))
        noise = torch.Generator().manual_seed(SEED + step)
        pixels, numbers = batch_of(images, rng, BATCH)
        masks = random_masks(rng, BATCH, models.LATENT_SIDE)
        hidden = nnf.interpolate(masks, scale_factor=4.0, mode="nearest")
        with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
            both = vae.encode(torch.cat([pixels, pixels * (1 - hidden)])).latents.float() * scale
        clean, known = both.chunk(2)
        low = rng.integers(0, 650, BATCH)
        t = torch.from_numpy(np.where(rng.random(BATCH) < 0.85, low, rng.integers(0, 1000, BATCH)))
        a = abar[t].view(-1, 1, 1, 1)
        eps = torch.randn(clean.shape, generator=noise)
        # Late steps meet only what earlier ones left of the foreign content: it fades with the noise.
        left = (1 - a).sqrt().clamp(0, 1) * (t.view(-1, 1, 1, 1) > 60)
        start_latents = clean + left * (corrupt(clean, masks, 0.6, rng) - clean)
        z = a.sqrt() * start_latents + (1 - a).sqrt() * eps
        target = (z - a.sqrt() * clean) / (1 - a).sqrt()
        prompts = ["" if rng.random() < 0.1 else f"A perfect {nouns[i]}." for i in numbers]
        ids = torch.stack([tokens[p] for p in prompts])
        for group in optimizer.param_groups:
            group["lr"] = rate(step, steps, PEAK_RATE, warm=200)
        with torch.autocast("cpu", torch.bfloat16):
            states = text(ids).last_hidden_state
            guess = net(torch.cat([z, masks, known], 1), t, states).sample
        # Inside the mask is where repainting happens; outside, z_o all but gives the answer away.
        weight = 0.3 + 0.7 * masks
        loss = (weight * (guess.float() - target).pow(2)).mean()
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        keep = min(0.9985, step / (step + 20))
        blend(slow_net, net, keep)
        blend(slow_text, text, keep)
        running = running * 0.99 + float(loss.detach()) * 0.01 if step > start else float(loss.detach())
        if step % 100 == 99:
            note(cache, "unet", step + 1, steps, running, time.time() - began)
        if step % 250 == 249 or step == steps - 1:
            state = {name: module.state_dict() for name, module in modules.items()}
            torch.save({**state, "optimizer": optimizer.state_dict(), "step": step + 1}, saved.with_suffix(".new"))
            saved.with_suffix(".new").replace(saved)
            finished = copy.deepcopy(vae)
            finished.register_to_config(scaling_factor=scale)
            models.save_pipeline(out, copy.deepcopy(slow_net), finished, copy.deepcopy(slow_text), words)
    (out / "recipe.json").write_text(
        json.dumps({"seed": SEED, "images": len(images), "unet_steps": steps}, indent=2) + "\n"
    )
