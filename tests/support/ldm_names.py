"""A model in diffusers' layout written as one .safetensors file under Stable Diffusion's own names."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

_RESNET = {
    "norm1": "in_layers.0",
    "conv1": "in_layers.2",
    "norm2": "out_layers.0",
    "conv2": "out_layers.3",
    "time_emb_proj": "emb_layers.1",
    "conv_shortcut": "skip_connection",
}
_ENDS = {
    "time_embedding.linear_1": "time_embed.0",
    "time_embedding.linear_2": "time_embed.2",
    "conv_in": "input_blocks.0.0",
    "conv_norm_out": "out.0",
    "conv_out": "out.2",
}


def unet_names(unet: Any) -> dict[str, Tensor]:
    """UNet of four levels with two residual blocks each."""
    found = {}
    for name, value in unet.state_dict().items():
        found["model.diffusion_model." + _unet_name(name)] = value
    return found


def _unet_name(name: str) -> str:
    stem, _, end = name.rpartition(".")
    if stem in _ENDS:
        return f"{_ENDS[stem]}.{end}"
    side, level, kind, number, rest = re.fullmatch(
        r"(down_blocks|up_blocks|mid_block)\.?(\d*)\.(resnets|attentions|downsamplers|upsamplers)\.(\d+)\.(.*)", name
    ).groups()  # type: ignore[union-attr]
    i, j = int(level or 0), int(number)
    if kind == "downsamplers":
        return f"input_blocks.{3 * (i + 1)}.0.op.{end}"
    if kind == "upsamplers":
        return f"output_blocks.{3 * i + 2}.{1 if i == 0 else 2}.conv.{end}"
    place = {"down_blocks": f"input_blocks.{3 * i + j + 1}", "up_blocks": f"output_blocks.{3 * i + j}"}.get(side, "")
    if side == "mid_block":
        return f"middle_block.1.{rest}" if kind == "attentions" else f"middle_block.{2 * j}.{_inner(rest)}"
    return f"{place}.1.{rest}" if kind == "attentions" else f"{place}.0.{_inner(rest)}"


def _inner(rest: str) -> str:
    stem, _, end = rest.rpartition(".")
    return f"{_RESNET[stem]}.{end}"


def vae_names(vae: Any) -> dict[str, Tensor]:
    """AutoencoderKL of four levels."""
    found = {}
    for name, value in vae.state_dict().items():
        new = re.sub(r"down_blocks\.(\d)\.resnets\.(\d)", r"down.\1.block.\2", name)
        new = re.sub(r"down_blocks\.(\d)\.downsamplers\.0", r"down.\1.downsample", new)
        new = re.sub(r"up_blocks\.(\d)\.resnets\.(\d)", lambda m: f"up.{3 - int(m[1])}.block.{m[2]}", new)
        new = re.sub(r"up_blocks\.(\d)\.upsamplers\.0", lambda m: f"up.{3 - int(m[1])}.upsample", new)
        new = re.sub(r"mid_block\.resnets\.(\d)", lambda m: f"mid.block_{int(m[1]) + 1}", new)
        new = new.replace("mid_block.attentions.0", "mid.attn_1").replace("conv_norm_out", "norm_out")
        new = new.replace("conv_shortcut", "nin_shortcut")
        pairs = (
            ("group_norm", "norm"),
            ("to_q", "q"),
            ("to_k", "k"),
            ("to_v", "v"),
            ("to_out.0", "proj_out"),
        )
        for ours, theirs in pairs:
            new = new.replace(f"attn_1.{ours}.", f"attn_1.{theirs}.")
        if "attn_1" in new and value.ndim == 2:
            value = value[:, :, None, None]
        found["first_stage_model." + new] = value
    return found


def clip_names(text: Any) -> dict[str, Tensor]:
    """Stable Diffusion 1.x's text encoder."""
    return {f"cond_stage_model.transformer.text_model.{name}": value for name, value in text.state_dict().items()}


def open_clip_names(text: Any) -> dict[str, Tensor]:
    """Stable Diffusion 2.x's: OpenCLIP, with one more layer that nothing uses."""
    state, root = text.state_dict(), "cond_stage_model.model."
    found = {
        f"{root}positional_embedding": state["embeddings.position_embedding.weight"],
        f"{root}token_embedding.weight": state["embeddings.token_embedding.weight"],
        f"{root}ln_final.weight": state["final_layer_norm.weight"],
        f"{root}ln_final.bias": state["final_layer_norm.bias"],
    }
    pairs = (
        ("self_attn.out_proj", "attn.out_proj"),
        ("layer_norm1", "ln_1"),
        ("layer_norm2", "ln_2"),
        ("mlp.fc1", "mlp.c_fc"),
        ("mlp.fc2", "mlp.c_proj"),
    )
    count = text.config.num_hidden_layers
    for layer in range(count + 1):
        source, target = f"encoder.layers.{min(layer, count - 1)}.", f"{root}transformer.resblocks.{layer}."
        for end in ("weight", "bias"):
            for ours, theirs in pairs:
                found[f"{target}{theirs}.{end}"] = state[f"{source}{ours}.{end}"] + float(layer == count)
            stacked = [state[f"{source}self_attn.{part}_proj.{end}"] for part in "qkv"]
            found[f"{target}attn.in_proj_{end}"] = torch.cat(stacked)
    return found


def save_checkpoint(file: Path, *parts: dict[str, Tensor], metadata: dict[str, str] | None = None) -> Path:
    """All parts in one file."""
    joined = {name: value.detach().clone().contiguous() for part in parts for name, value in part.items()}
    save_file(joined, file, metadata=metadata)
    return file
