"""UNet and autoencoder of Stable Diffusion 1.5 inpainting's size; random weights cost what trained ones cost."""

from __future__ import annotations

from typing import Any

PROMPT_WIDTH = 768


def unet() -> Any:
    """The UNet: 860 million parameters."""
    from diffusers import UNet2DConditionModel

    return UNet2DConditionModel(
        sample_size=64, in_channels=9, out_channels=4, cross_attention_dim=PROMPT_WIDTH, attention_head_dim=8,
        block_out_channels=(320, 640, 1280, 1280),
    ).eval()  # fmt: skip


def autoencoder() -> Any:
    """Encoder and decoder: 84 million parameters."""
    from diffusers import AutoencoderKL

    return AutoencoderKL(
        block_out_channels=(128, 256, 512, 512), down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4, layers_per_block=2, latent_channels=4, sample_size=512,
        scaling_factor=0.18215,
    ).eval()  # fmt: skip


def tiny_autoencoder() -> Any:
    """AutoencoderTiny of TAESD's size: 2.4 million parameters."""
    from diffusers import AutoencoderTiny

    return AutoencoderTiny().eval()


def network(name: str) -> Any:
    """The torch module behind the graph `name`; always the same weights."""
    import torch

    torch.manual_seed(0)
    if name.startswith("tiny_"):
        return tiny_autoencoder()
    return unet() if name == "unet" else autoencoder()
