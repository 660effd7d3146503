"""The recipe of the embedded base "nano": python -m anomalysd_edge.training.nano.recipe --out DIR

Stage 1 draws the images (images.py). Stage 2 trains the autoencoder. Stage 3 trains the inpainting UNet and the
text encoder together. Everything is seeded; each stage keeps a checkpoint and goes on from it when called again.
On two cores: about 2 + 7 + 40 minutes. What ships in anomalysd_edge/nano/ is this recipe's output.
"""

from __future__ import annotations

import argparse
import copy
import json
import time
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as nnf

from anomalysd_edge.training.nano import images, models
from anomalysd_edge.training.nano.common import SEED, batch_of, blend, note, rate


def draw_images(cache: Path, count: int) -> tuple[np.ndarray[Any, np.dtype[np.uint8]], list[str]]:
    """(count,128,128,3) uint8 memory map and the noun of each, drawn once into `cache`."""
    pixels, nouns = cache / "images.npy", cache / "nouns.json"
    if not nouns.exists():
        side = models.SIDE_PX
        target = np.lib.format.open_memmap(pixels, mode="w+", dtype=np.uint8, shape=(count, side, side, 3))
        names: list[str] = []
        with ProcessPoolExecutor() as pool:
            drawn = pool.map(partial(images.render, SEED, side=side), range(count), chunksize=64)
            for number, (noun, image) in enumerate(drawn):
                target[number] = image
                names.append(noun)
        target.flush()
        nouns.write_text(json.dumps(names))
    return np.load(pixels, mmap_mode="r"), json.loads(nouns.read_text())


def pyramid_loss(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
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


def train_autoencoder(images: np.ndarray[Any, np.dtype[np.uint8]], cache: Path, steps: int) -> Any:
    """AutoencoderTiny on random 64 px crops. Latents are pushed to unit spread; noise on them smooths the decoder."""
    torch.manual_seed(SEED)
    vae = models.autoencoder().to(memory_format=torch.channels_last)
    optimizer = torch.optim.AdamW(vae.parameters(), lr=2e-3, betas=(0.9, 0.99), weight_decay=1e-4)
    average = copy.deepcopy(vae)
    saved, start = cache / "autoencoder.pt", 0
    if saved.exists():
        state = torch.load(saved, weights_only=True)
        vae.load_state_dict(state["vae"]), average.load_state_dict(state["average"])
        optimizer.load_state_dict(state["optimizer"])
        start = state["step"]
    began = time.time()
    for step in range(start, steps):
        rng = np.random.default_rng((SEED, 1, step))
        noise = torch.Generator().manual_seed(SEED + step)
        batch, _ = batch_of(images, rng, 32)
        top, left = rng.integers(0, 65, size=2)
        crop = batch[..., top : top + 64, left : left + 64]
        grey = crop.mean(1, keepdim=True)
        vivid = torch.from_numpy(rng.uniform(0.3, 2.5, (32, 1, 1, 1)).astype(np.float32))
        crop = (grey + vivid * (crop - grey)).clamp(-1, 1).contiguous(memory_format=torch.channels_last)
        for group in optimizer.param_groups:
            group["lr"] = rate(step, steps, 2e-3)
        with torch.autocast("cpu", torch.bfloat16):
            latents = vae.encode(crop).latents
            level = 0.1 * float(rng.random())
            decoded = vae.decode(latents + level * torch.randn(latents.shape, generator=noise)).sample
        latents, decoded = latents.float(), decoded.float()
        spread = latents.pow(2).mean(dim=(0, 2, 3))
        loss = pyramid_loss(decoded, crop) + 0.02 * (spread - 1).pow(2).mean()
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(vae.parameters(), 1.0)
        optimizer.step()
        blend(average, vae, min(0.999, step / (step + 20)))
        if step % 100 == 99:
            note(cache, "autoencoder", step + 1, steps, float(loss.detach()), time.time() - began)
        if step % 250 == 249 or step == steps - 1:
            state = {
                "vae": vae.state_dict(),
                "average": average.state_dict(),
                "optimizer": optimizer.state_dict(),
                "step": step + 1,
            }
            torch.save(state, saved.with_suffix(".new"))
            saved.with_suffix(".new").replace(saved)
    return average


def main() -> None:
    """Run the three stages."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--out", type=Path, required=True, help="folder that gets the diffusers layout")
    parser.add_argument("--cache", type=Path, required=True, help="folder for drawn images, checkpoints and the log")
    parser.add_argument("--images", type=int, default=20000)
    parser.add_argument("--autoencoder-steps", type=int, default=1400)
    parser.add_argument("--unet-steps", type=int, default=2500)
    settings = parser.parse_args()
    settings.cache.mkdir(parents=True, exist_ok=True)
    images, nouns = draw_images(settings.cache, settings.images)
    vae = train_autoencoder(images, settings.cache, settings.autoencoder_steps)
    from anomalysd_edge.training.nano.unet import train_unet

    train_unet(images, nouns, vae, settings.cache, settings.unet_steps, settings.out)


if __name__ == "__main__":
    main()
