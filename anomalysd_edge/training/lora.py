"""Low-rank adapters on the UNet (LoRA, arXiv 2106.09685), by peft: add, save, merge."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from anomalysd_edge.errors import SettingsError
from anomalysd_edge.training.settings import TrainSettings

HALVES = {"bf16": torch.bfloat16, "fp16": torch.float16}


def add_adapter(unet: Any, settings: TrainSettings) -> None:
    """Freeze `unet` and add zero-initialised adapters to layers whose names end in one of `lora_targets`.

    Raises SettingsError if no layer matches.
    """
    from peft import LoraConfig

    unet.requires_grad_(False)
    # A seeded initialisation that leaves the caller's random state alone.
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


def lower_frozen(unet: Any, settings: TrainSettings) -> None:
    """Store frozen convolutions and linear layers in the half precision that autocast computes them in.

    Norms stay float32, since autocast runs them in float32. Call `restore_frozen` before `merge_adapter`.
    """
    if settings.frozen_weights == "float32":
        return
    half = HALVES[settings.frozen_weights]
    for module in unet.modules():
        if isinstance(module, torch.nn.Conv2d | torch.nn.Linear):
            for weight in module.parameters(recurse=False):
                if not weight.requires_grad:
                    weight.data = weight.data.to(half)
    for weight in unet.parameters():
        if weight.dtype == torch.float32 and not weight.requires_grad:
            weight.data = weight.data.clone()  # one view left would keep the whole weight file mapped


def restore_frozen(unet: Any, fresh: Any) -> None:
    """Restore the float32 value of every weight that `lower_frozen` rounded, from `fresh`, the base's UNet."""
    exact = dict(fresh.named_parameters())
    for name, weight in unet.named_parameters():
        plain = name.replace(".base_layer.", ".")
        if weight.dtype != torch.float32 and plain in exact:
            weight.data = exact[plain].data.float()


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
