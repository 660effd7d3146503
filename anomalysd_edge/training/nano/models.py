"""The shape of the embedded base "nano": Stable Diffusion's inpainting model, scaled to what two CPU cores can run.

Sizes were chosen by measuring on two cores: a UNet sample costs about 17 ms and a decode about 16 ms in float32.
A factor-4 autoencoder is used in place of factor 8: at 128 px, thin scratches do not survive 8x8 cells in 4 channels.
"""

from __future__ import annotations

from pathlib import Path

import torch
from diffusers import (
    AutoencoderTiny,
    DDIMScheduler,
    StableDiffusionInpaintPipeline,
    UNet2DConditionModel,
)
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, trainers
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from anomalysd_edge.training.models.base import forget_origin

SIDE_PX = 128
LATENT_SIDE = 32
TEXT_WIDTH = 128
TOKENS = 77


def autoencoder() -> AutoencoderTiny:
    """AutoencoderTiny, factor 4, 48 channels, no block at full resolution (those would cost most of the time)."""
    return AutoencoderTiny(
        encoder_block_out_channels=(48, 48, 48),
        decoder_block_out_channels=(48, 48, 48),
        num_encoder_blocks=(0, 1, 3),
        num_decoder_blocks=(3, 1, 0),
        latent_channels=4,
        scaling_factor=1.0,
    )


def unet() -> UNet2DConditionModel:
    """9-channel UNet: 32x32 without attention, 16x16 and 8x8 with; 9.1 M parameters."""
    return UNet2DConditionModel(
        sample_size=LATENT_SIDE,
        in_channels=9,
        out_channels=4,
        block_out_channels=(32, 96, 192),
        layers_per_block=1,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        cross_attention_dim=TEXT_WIDTH,
        attention_head_dim=4,
        norm_num_groups=16,
    )


def scheduler() -> DDIMScheduler:
    """The scheduler settings of Stable Diffusion 1.x."""
    return DDIMScheduler(
        num_train_timesteps=1000,
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        clip_sample=False,
        set_alpha_to_one=False,
        steps_offset=1,
        timestep_spacing="leading",
        prediction_type="epsilon",
    )


def text_encoder(vocabulary: int) -> CLIPTextModel:
    """A CLIP text model of two layers for a vocabulary of our own."""
    return CLIPTextModel(
        CLIPTextConfig(
            vocab_size=vocabulary,
            hidden_size=TEXT_WIDTH,
            intermediate_size=4 * TEXT_WIDTH,
            projection_dim=TEXT_WIDTH,
            num_hidden_layers=2,
            num_attention_heads=4,
            max_position_embeddings=TOKENS,
            bos_token_id=0,
            eos_token_id=1,
            pad_token_id=1,
        )
    )


def tokenizer(sentences: list[str]) -> CLIPTokenizer:
    """A CLIP tokenizer (byte-level BPE, so that no word is unknown) whose merges are learned from `sentences`."""
    trained = Tokenizer(models.BPE(end_of_word_suffix="</w>", unk_token="<|endoftext|>"))
    trained.normalizer = normalizers.Lowercase()
    trained.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trained.train_from_iterator(
        sentences,
        trainers.BpeTrainer(
            vocab_size=1024,
            min_frequency=2,
            show_progress=False,
            special_tokens=["<|startoftext|>", "<|endoftext|>"],
            initial_alphabet=alphabet,
            end_of_word_suffix="</w>",
        ),
    )
    import json

    state = json.loads(trained.to_str())["model"]
    vocab: dict[str, int] = dict(state["vocab"])
    # Every byte must also be able to end a word, or a rare last letter would become the unknown token.
    for letter in alphabet:
        vocab.setdefault(letter + "</w>", len(vocab))
    merges = [tuple(pair) for pair in state["merges"]]
    return CLIPTokenizer(vocab=vocab, merges=merges, model_max_length=TOKENS)


def tokenize(words: CLIPTokenizer, sentences: list[str]) -> torch.Tensor:
    """(N,77) int64 token numbers, padded and cut as diffusers does."""
    coded = words(sentences, padding="max_length", max_length=TOKENS, truncation=True, return_tensors="pt")
    ids: torch.Tensor = coded.input_ids
    return ids


def save_pipeline(
    folder: Path, net: UNet2DConditionModel, vae: AutoencoderTiny, text: CLIPTextModel, words: CLIPTokenizer
) -> None:
    """Write diffusers' folder layout; StableDiffusionInpaintPipeline.from_pretrained reads it back.

    UNet and VAE are stored in float16 and loaded as float32. The text encoder stays float32: transformers loads weights
    in the type they are stored in, and a half text encoder before a float UNet does not run.
    """
    pipeline = StableDiffusionInpaintPipeline(
        vae=vae,
        text_encoder=text,
        tokenizer=words,
        unet=net,
        scheduler=scheduler(),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    net.half()
    vae.half()
    pipeline.save_pretrained(folder, safe_serialization=True)
    for part in ("unet", "vae", "text_encoder"):
        forget_origin(folder / part)
