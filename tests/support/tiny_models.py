"""A Stable-Diffusion-shaped inpainting model small enough for tests, as a diffusers folder: random weights, no hub."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import torch
from diffusers import (
    AutoencoderKL,
    AutoencoderTiny,
    DDIMScheduler,
    StableDiffusionInpaintPipeline,
    UNet2DConditionModel,
)
from tokenizers.pre_tokenizers import ByteLevel
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

TINY_PX = 32
"""Side of the square photo of the tiny base; its latents are 8 x 8 x 4 (factor 4)."""

SCHEDULER: dict[str, Any] = {
    "num_train_timesteps": 1000,
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "timestep_spacing": "leading",
    "steps_offset": 1,
    "set_alpha_to_one": False,
    "clip_sample": False,
}
"""DDIM as Stable Diffusion 1.x is published with."""


def tiny_tokenizer() -> CLIPTokenizer:
    """A byte-level CLIP tokenizer without merges: one token a letter, 77 tokens a prompt."""
    letters = sorted(ByteLevel.alphabet())
    tokens = [*letters, *(letter + "</w>" for letter in letters), "<|startoftext|>", "<|endoftext|>"]
    return CLIPTokenizer(vocab={token: i for i, token in enumerate(tokens)}, merges=[], model_max_length=77)


def tiny_base(
    folder: Path,
    vae: Literal["tiny", "kl"] = "tiny",
    prediction_type: Literal["epsilon", "v_prediction"] = "epsilon",
) -> Path:
    """Write the model to `folder` in diffusers' layout and return `folder`. Same arguments, same weights."""
    state = torch.random.get_rng_state()
    torch.manual_seed(0)
    try:
        unet = UNet2DConditionModel(
            sample_size=TINY_PX // 4,
            in_channels=9,
            out_channels=4,
            block_out_channels=(32, 64),
            layers_per_block=1,
            down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
            up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
            cross_attention_dim=32,
            attention_head_dim=2,
            norm_num_groups=8,
        )
        autoencoder: torch.nn.Module
        if vae == "tiny":
            autoencoder = AutoencoderTiny(
                encoder_block_out_channels=(16, 16, 16),
                decoder_block_out_channels=(16, 16, 16),
                num_encoder_blocks=(1, 1, 1),
                num_decoder_blocks=(1, 1, 1),
                scaling_factor=1.5,
            )
        else:
            autoencoder = AutoencoderKL(
                block_out_channels=(16, 16, 32),
                down_block_types=("DownEncoderBlock2D",) * 3,
                up_block_types=("UpDecoderBlock2D",) * 3,
                latent_channels=4,
                norm_num_groups=8,
                sample_size=TINY_PX,
                scaling_factor=0.18215,
            )
        tokenizer = tiny_tokenizer()
        text_encoder = CLIPTextModel(
            CLIPTextConfig(
                vocab_size=len(tokenizer),
                hidden_size=32,
                intermediate_size=64,
                num_hidden_layers=2,
                num_attention_heads=2,
                max_position_embeddings=77,
                projection_dim=32,
                bos_token_id=tokenizer.bos_token_id,
                eos_token_id=tokenizer.eos_token_id,
                pad_token_id=tokenizer.pad_token_id,
            )
        )
    finally:
        torch.random.set_rng_state(state)
    StableDiffusionInpaintPipeline(
        vae=autoencoder,
        text_encoder=text_encoder,
        tokenizer=tokenizer,
        unet=unet,
        scheduler=DDIMScheduler(**SCHEDULER, prediction_type=prediction_type),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    ).save_pretrained(folder)
    return folder
