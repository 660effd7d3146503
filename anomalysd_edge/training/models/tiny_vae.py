"""Another autoencoder in the base's place: a small one, whose decoder L_D tunes; photos meet their own round trip.

TAESD ("Tiny AutoEncoder for Stable Diffusion") encodes to the latents of Stable Diffusion's own VAE, so the UNet stays
what it is; at 512 px a decode costs about a hundredth. It smooths fine grain, so a photo is compared with its own round
trip: what the autoencoder cannot carry is then no difference.
"""

from __future__ import annotations

from pathlib import Path

import torch
from diffusers import AutoencoderTiny

from anomalysd_edge.core.files import read_json, sha256_file
from anomalysd_edge.errors import InputError
from anomalysd_edge.training.models.base import Base, latent_factor
from anomalysd_edge.training.models.hub import from_hub, quiet

TINY = "tiny"
TINY_HUB = "madebyollin/taesd"
"""For Stable Diffusion 1.x and 2.x."""
_WEIGHTS = "diffusion_pytorch_model.safetensors"


def swap_vae(base: Base, asked: str) -> None:
    """Put the AutoencoderTiny `asked` ("tiny", a folder or a hub id) in the place of the base's autoencoder.

    Raises InputError where it is not there, no AutoencoderTiny, or its latents are not of the base's shape.
    """
    name = TINY_HUB if asked == TINY else asked
    if Path(name).is_dir():
        folder = Path(name)
    elif len(name.split("/")) == 2 and not name.startswith((".", "~", "/")):
        folder = from_hub(name, ["config.json", _WEIGHTS], ["config.json", _WEIGHTS], "vae")
    else:
        raise InputError(
            f"the vae {asked!r} is neither {TINY!r} nor a folder nor a hub id (OWNER/NAME); check the name"
        )
    kind = read_json(folder / "config.json").get("_class_name")
    if kind != "AutoencoderTiny":
        raise InputError(f"the vae {asked} is a {kind!r}, expected an AutoencoderTiny: use for instance {TINY_HUB}")
    with quiet():
        try:
            vae = AutoencoderTiny.from_pretrained(folder, torch_dtype=torch.float32, use_safetensors=True)
        except (OSError, ValueError, RuntimeError, KeyError) as error:
            raise InputError(
                f"the vae {folder} cannot be loaded ({str(error).splitlines()[0]}); copy it again"
            ) from error
    ours = (int(vae.config.latent_channels), latent_factor(vae))
    theirs = (int(base.vae.config.latent_channels), base.latent_factor)
    if ours != theirs:
        raise InputError(
            f"the vae {asked} makes latents of {ours[0]} channels at {ours[1]} px a cell, the base's UNet expects "
            f"{theirs[0]} at {theirs[1]}: use one that was made for this base"
        )
    vae.requires_grad_(False)
    vae.eval()
    base.vae = vae
    base.vae_swap = {"name": name if asked == TINY else Path(asked).name, "sha256": sha256_file(folder / _WEIGHTS)}
