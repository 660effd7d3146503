"""Replacing the base's VAE by a small AutoencoderTiny, whose decoder is then fine-tuned with L_D.

TAESD ("Tiny AutoEncoder for Stable Diffusion") encodes to the latents of Stable Diffusion's own VAE, so the UNet is
unchanged; at 512 px a decode costs about a hundredth. It smooths fine grain, so a photo is compared with its own
VAE round trip (encode, decode): what the VAE cannot reconstruct then does not count as a difference.
"""

from __future__ import annotations

from pathlib import Path

import torch
from diffusers import AutoencoderTiny

from anomalysd_edge.core.files import read_json, sha256_file
from anomalysd_edge.errors import InputError
from anomalysd_edge.training.models.base import Base, latent_factor
from anomalysd_edge.training.models.hub import from_hub, loading

TINY = "tiny"
TINY_HUB = "madebyollin/taesd"
"""For Stable Diffusion 1.x and 2.x."""
_WEIGHTS = "diffusion_pytorch_model.safetensors"


def swap_vae(base: Base, requested: str) -> None:
    """Replace the base's VAE by the AutoencoderTiny `requested`: "tiny", a folder or a hub id.

    Raises InputError if it is not found, is no AutoencoderTiny, or its latents have another shape than the base's.
    """
    name = TINY_HUB if requested == TINY else requested
    if Path(name).is_dir():
        folder = Path(name)
    elif len(name.split("/")) == 2 and not name.startswith((".", "~", "/")):
        folder = from_hub(name, ["config.json", _WEIGHTS], ["config.json", _WEIGHTS], "vae")
    else:
        raise InputError(
            f"the vae {requested!r} is neither {TINY!r} nor a folder nor a hub id (OWNER/NAME); check the name"
        )
    kind = read_json(folder / "config.json").get("_class_name")
    if kind != "AutoencoderTiny":
        raise InputError(f"the vae {requested} is a {kind!r}, expected an AutoencoderTiny: use for instance {TINY_HUB}")
    with loading("vae", folder):
        vae = AutoencoderTiny.from_pretrained(folder, torch_dtype=torch.float32, use_safetensors=True)
    ours = (int(vae.config.latent_channels), latent_factor(vae))
    theirs = (int(base.vae.config.latent_channels), base.latent_factor)
    if ours != theirs:
        raise InputError(
            f"the vae {requested} makes latents of {ours[0]} channels at {ours[1]} px a cell, the base's UNet expects "
            f"{theirs[0]} at {theirs[1]}: use one that was made for this base"
        )
    base.vae = vae.requires_grad_(False).eval()
    base.vae_swap = {
        "name": name if requested == TINY else Path(requested).name,
        "sha256": sha256_file(folder / _WEIGHTS),
    }
