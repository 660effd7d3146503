"""A base that is one .safetensors file in Stable Diffusion's own layout, brought into diffusers' folder layout.

The names of the weights are translated by diffusers. Sizes are read off the weights, so no configuration is fetched:
what a weight cannot tell (heads, activation, betas) is Stable Diffusion 1.x's or 2.x's. The folder is made once, below
the user's cache, under the file's digest. Only the tokenizer's vocabulary is not in such a file.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionInpaintPipeline, UNet2DConditionModel
from diffusers.loaders import single_file_utils as names
from safetensors import SafetensorError, safe_open
from torch import Tensor
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from anomalysd_edge.core.files import folder_aside, sha256_file
from anomalysd_edge.errors import InputError
from anomalysd_edge.training.models.hub import from_hub

UNET, CLIP_1, CLIP_2 = "model.diffusion_model.", "cond_stage_model.transformer.", "cond_stage_model.model."
TOKENIZER = "openai/clip-vit-large-patch14"
"""Hub id of the vocabulary that Stable Diffusion 1.x and 2.x share."""
_TOKENIZER_FILES = ("vocab.json", "merges.txt", "tokenizer_config.json", "special_tokens_map.json")
_MARKER = "model_index.json"
_LAYERS = 2
"""Residual blocks a level, in the UNet and in the VAE's encoder, of every Stable Diffusion 1.x and 2.x."""


def converted(file: Path) -> Path:
    """`file` in diffusers' folder layout. Raises InputError for what is no inpainting model, or without a tokenizer."""
    try:
        with safe_open(file, framework="pt") as opened:
            shapes = {key: tuple(opened.get_slice(key).get_shape()) for key in opened.keys()}  # noqa: SIM118
            metadata = dict(opened.metadata() or {})
    except (SafetensorError, OSError) as error:
        raise InputError(f"the base {file} is no .safetensors file ({error}); copy it again") from error
    require_inpainting(shapes, file)
    folder = cache_folder() / sha256_file(file)[:16]
    if (folder / _MARKER).is_file():
        return folder
    words = _tokenizer(file)
    with folder_aside(folder, marker=_MARKER) as aside, safe_open(file, framework="pt") as opened:
        weights = {key: opened.get_tensor(key) for key in shapes}
        _convert(weights, metadata, words, file).save_pretrained(aside, safe_serialization=True)
    return folder


def cache_folder() -> Path:
    """Where converted bases lie: below XDG_CACHE_HOME, as caches of the desktop do."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "anomalysd-edge" / "bases"


def require_inpainting(shapes: Mapping[str, tuple[int, ...]], file: Path) -> None:
    """Raise InputError unless the names and shapes are those of a Stable Diffusion 1.x or 2.x inpainting model."""
    first = shapes.get(f"{UNET}input_blocks.0.0.weight")
    if first is None:
        some = ", ".join(sorted({key.split(".")[0] for key in shapes})[:4])
        raise InputError(
            f"the base {file} holds {some or 'nothing'}, expected Stable Diffusion's own names ({UNET}...): use a "
            "whole checkpoint (UNet, VAE, text encoder), or a folder in diffusers' layout"
        )
    if first[1] != 9:
        raise InputError(
            f"the base {file} has a UNet of {first[1]} input channels, expected 9 (z_t, mask, masked photo): only an "
            "inpainting model can be told what to keep; use for instance sd-v1-5-inpainting.safetensors"
        )
    for part, prefixes in (("VAE", ("first_stage_model.",)), ("text encoder", (CLIP_1, CLIP_2))):
        if not any(key.startswith(prefixes) for key in shapes):
            raise InputError(f"the base {file} has no {part}; use a whole checkpoint, not a UNet alone")


def _convert(
    weights: Mapping[str, Tensor], metadata: Mapping[str, str], words: CLIPTokenizer, file: Path
) -> StableDiffusionInpaintPipeline:
    unet_config, vae_config = unet_shape(weights), vae_shape(weights)
    unet = UNet2DConditionModel.from_config(unet_config)
    _load(unet, names.convert_ldm_unet_checkpoint(weights, unet_config, extract_ema=True), "UNet", file)
    vae = AutoencoderKL.from_config(vae_config)
    _load(vae, names.convert_ldm_vae_checkpoint(weights, vae_config), "VAE", file)
    text = _text_encoder(weights, words, file)
    return StableDiffusionInpaintPipeline(
        vae=vae,
        text_encoder=text,
        tokenizer=words,
        unet=unet,
        scheduler=DDIMScheduler(
            beta_start=0.00085,
            beta_end=0.012,
            beta_schedule="scaled_linear",
            clip_sample=False,
            set_alpha_to_one=False,
            steps_offset=1,
            prediction_type=prediction_type(weights, metadata),
        ),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )


def prediction_type(weights: Mapping[str, Any], metadata: Mapping[str, str]) -> str:
    """epsilon, unless the file says v: by modelspec's metadata or by the empty tensor "v_pred" that some tools add."""
    said = metadata.get("modelspec.prediction_type", "")
    return "v_prediction" if said.startswith("v") or "v_pred" in weights else "epsilon"


def unet_shape(weights: Mapping[str, Tensor]) -> dict[str, Any]:
    """The UNet's diffusers configuration, from its weights."""
    blocks = len({key.split(".")[3] for key in weights if key.startswith(f"{UNET}input_blocks.")})
    levels = blocks // (_LAYERS + 1)
    widths, attends = [], []
    for level in range(levels):
        block = f"{UNET}input_blocks.{1 + level * (_LAYERS + 1)}"
        widths.append(int(weights[f"{block}.0.out_layers.3.weight"].shape[0]))
        attends.append(f"{block}.1.proj_in.weight" in weights)
    middle = f"{UNET}middle_block.1."
    linear = weights[f"{middle}proj_in.weight"].ndim == 2
    return {
        "_class_name": "UNet2DConditionModel",
        "sample_size": 64,
        "in_channels": 9,
        "out_channels": int(weights[f"{UNET}out.2.weight"].shape[0]),
        "block_out_channels": tuple(widths),
        "layers_per_block": _LAYERS,
        "down_block_types": tuple("CrossAttnDownBlock2D" if yes else "DownBlock2D" for yes in attends),
        "up_block_types": tuple("CrossAttnUpBlock2D" if yes else "UpBlock2D" for yes in reversed(attends)),
        "cross_attention_dim": int(weights[f"{middle}transformer_blocks.0.attn2.to_k.weight"].shape[1]),
        # diffusers' name for the number of heads: 8 in 1.x, and heads of 64 channels in 2.x, which has linear layers.
        "attention_head_dim": tuple(max(1, width // 64) for width in widths) if linear else 8,
        "use_linear_projection": linear,
    }


def vae_shape(weights: Mapping[str, Tensor]) -> dict[str, Any]:
    """The VAE's diffusers configuration, from its weights."""
    first = "first_stage_model.encoder."
    levels = len({key.split(".")[3] for key in weights if key.startswith(f"{first}down.")})
    return {
        "_class_name": "AutoencoderKL",
        "block_out_channels": tuple(
            int(weights[f"{first}down.{level}.block.0.conv1.weight"].shape[0]) for level in range(levels)
        ),
        "down_block_types": ("DownEncoderBlock2D",) * levels,
        "up_block_types": ("UpDecoderBlock2D",) * levels,
        "layers_per_block": _LAYERS,
        "latent_channels": int(weights["first_stage_model.decoder.conv_in.weight"].shape[1]),
        "sample_size": 512,
        "scaling_factor": 0.18215,
    }


def _text_encoder(weights: Mapping[str, Tensor], words: CLIPTokenizer, file: Path) -> CLIPTextModel:
    """Stable Diffusion 1.x's CLIP whole; of 2.x's OpenCLIP all layers but the last, whose output it never uses."""
    second = f"{CLIP_2}token_embedding.weight" in weights
    if second:
        blocks = {int(key.split(".")[4]) for key in weights if key.startswith(f"{CLIP_2}transformer.resblocks.")}
        last = f"{CLIP_2}transformer.resblocks.{max(blocks)}."
        weights = {key: value for key, value in weights.items() if not key.startswith(last)}
        table, layers = weights[f"{CLIP_2}token_embedding.weight"], len(blocks) - 1
        inner = weights[f"{CLIP_2}transformer.resblocks.0.mlp.c_fc.weight"].shape[0]
        activation = "gelu"
    else:
        layer = f"{CLIP_1}text_model.encoder.layers."
        layers = len({key.removeprefix(layer).split(".")[0] for key in weights if key.startswith(layer)})
        table = weights[f"{CLIP_1}text_model.embeddings.token_embedding.weight"]
        inner, activation = weights[f"{layer}0.mlp.fc1.weight"].shape[0], "quick_gelu"
    model = CLIPTextModel(
        CLIPTextConfig(
            vocab_size=int(table.shape[0]),
            hidden_size=int(table.shape[1]),
            intermediate_size=int(inner),
            num_hidden_layers=layers,
            num_attention_heads=max(1, int(table.shape[1]) // 64),
            max_position_embeddings=77,
            hidden_act=activation,
            projection_dim=512 if second else int(table.shape[1]),
            bos_token_id=words.bos_token_id,
            eos_token_id=words.eos_token_id,
            pad_token_id=words.pad_token_id,
        )
    )
    if second:
        found = names.convert_open_clip_checkpoint(model, weights, prefix=CLIP_2)
    else:
        found = names.convert_ldm_clip_checkpoint(weights)
    # transformers 5.6 dropped a level of names that the translation still writes.
    _load(model, {key.removeprefix("text_model."): value for key, value in found.items()}, "text encoder", file)
    return model


def _load(network: Any, weights: Mapping[str, Tensor], part: str, file: Path) -> None:
    wanted = network.state_dict()
    missing = sorted(name for name in wanted if name not in weights and not name.endswith("position_ids"))
    if missing:
        raise InputError(
            f"the base {file} lacks {missing[0]} of the {part} and {len(missing) - 1} more; expected a whole Stable "
            "Diffusion 1.x or 2.x inpainting checkpoint: download it again, or use a folder in diffusers' layout"
        )
    try:
        network.load_state_dict(
            {name: weights[name].to(torch.float32) for name in wanted if name in weights}, strict=False
        )
    except RuntimeError as error:
        raise InputError(f"the {part} of {file} is of another shape ({str(error).splitlines()[-1].strip()})") from error


def _tokenizer(file: Path) -> CLIPTokenizer:
    """From a folder beside the checkpoint, else from the hub's cache, else by download."""
    for place in (file.parent / "tokenizer", file.parent):
        if (place / "tokenizer.json").is_file() or (place / "vocab.json").is_file():
            return CLIPTokenizer.from_pretrained(place)
    try:
        found = from_hub(TOKENIZER, _TOKENIZER_FILES, _TOKENIZER_FILES[:2], "tokenizer")
    except InputError as error:
        raise InputError(
            f"a checkpoint file holds no tokenizer, and that of {TOKENIZER} is neither beside it nor on this machine, "
            f"and could not be downloaded; where there is a network run: hf download {TOKENIZER} "
            f"{' '.join(_TOKENIZER_FILES)} --local-dir tokenizer, and copy that folder to {file.parent / 'tokenizer'}"
        ) from error
    return CLIPTokenizer.from_pretrained(found)
