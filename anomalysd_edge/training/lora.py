"""Low-rank adapters on the UNet (LoRA, arXiv 2106.09685), by peft: add, save, merge."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from anomalysd_edge.errors import SettingsError
from anomalysd_edge.training.settings import TrainSettings


def add_adapter(unet: Any, settings: TrainSettings) -> None:
    """Freeze `unet` and add adapters to the layers whose names end in `lora_targets`; they begin without effect.

    Raises SettingsError if no layer matches.
    """
    from peft import LoraConfig

    unet.requires_grad_(False)
    # A fixed start, without touching the caller's random state.
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(settings.seed)
        try:
            unet.add_adapter(
                LoraConfig(
                    r=settings.lora_rank,
                    lora_alpha=settings.lora_alpha or settings.lora_rank,
                    target_modules=list(settings.lora_targets),
                    init_lora_weights="gaussian",
                )
            )
        except ValueError as error:
            raise SettingsError(
                f"no layer of the UNet ends in one of {', '.join(settings.lora_targets)}; name others in lora_targets"
            ) from error


def save_adapter(unet: Any, folder: Path) -> None:
    """Write the adapter as diffusers does: pipeline.load_lora_weights(folder) reads it."""
    from diffusers import StableDiffusionInpaintPipeline
    from diffusers.utils import convert_state_dict_to_diffusers
    from peft.utils import get_peft_model_state_dict

    layers = {name: tensor.contiguous() for name, tensor in get_peft_model_state_dict(unet).items()}
    StableDiffusionInpaintPipeline.save_lora_weights(folder, unet_lora_layers=convert_state_dict_to_diffusers(layers))


def merge_adapter(unet: Any) -> None:
    """Add the adapters into the layers' own weights and remove them: a plain UNet again."""
    unet.fuse_lora()
    unet.unload_lora()
