"""Learned context vectors: a few token embeddings in front of a class's prompts, trained with the UNet.

"[V1]..[VM] A perfect bottle." with V learned and the text encoder frozen: context optimisation (CoOp, Zhou et al.,
arXiv 2109.01134) by the loss of the diffusion model, as textual inversion does (Gal et al., arXiv 2208.01618). They
begin as the embeddings of the class's own noun. What leaves the training are prompt states like any others.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from anomalysd_edge.data.classes import ClassSpec
from anomalysd_edge.training.models.base import Base

FILE = "contexts.safetensors"
PREFIX = "context/"
"""Of their names among the weights that learn, before the class."""


def first_contexts(base: Base, specs: Mapping[str, ClassSpec], tokens: int) -> dict[str, torch.nn.Parameter]:
    """(tokens,E) vectors of every class, by PREFIX + class: its noun's embeddings, over and over."""
    found = {}
    table = base.text_encoder.get_input_embeddings().weight
    for name in sorted(specs):
        words = base.tokenizer(specs[name].noun, add_special_tokens=False).input_ids or [base.tokenizer.eos_token_id]
        chosen = [words[i % len(words)] for i in range(tokens)]
        found[PREFIX + name] = torch.nn.Parameter(table[chosen].detach().clone().float())
    return found


def context_states(base: Base, prompts: Sequence[str], vectors: Tensor) -> Tensor:
    """Prompts with (P,M,E) vectors in front -> (P,77,D) float32 states, differentiable in the vectors."""
    words, text = base.tokenizer, base.text_encoder
    count = vectors.shape[1]
    coded = words(
        list(prompts),
        padding="max_length",
        max_length=words.model_max_length,
        truncation=True,
        return_tensors="pt",
    )

    def shifted(row: Tensor, fill: int) -> Tensor:
        room = torch.full((len(row), count), fill, dtype=row.dtype)
        return torch.cat([row[:, :1], room, row[:, 1 : row.shape[1] - count]], dim=1)

    tokens = shifted(coded.input_ids, words.eos_token_id)
    # A prompt that no longer fits loses its last words, never its end.
    cut = (tokens[:, 1 + count :] != words.eos_token_id).all(1)
    tokens[cut, -1] = words.eos_token_id
    mask = shifted(coded.attention_mask, 1) if getattr(text.config, "use_attention_mask", False) else None
    device = vectors.device

    def insert(_module: Any, _inputs: Any, output: Tensor) -> Tensor:
        return torch.cat([output[:, :1], vectors.to(output.dtype), output[:, 1 + count :]], dim=1)

    hook = text.get_input_embeddings().register_forward_hook(insert)
    try:
        states = text(tokens.to(device), attention_mask=None if mask is None else mask.to(device))[0]
    finally:
        hook.remove()
    return cast(Tensor, states.float())


def save_contexts(folder: Path, vectors: Mapping[str, Tensor]) -> None:
    """Write them to folder/FILE, by class name."""
    save_file(
        {name.removeprefix(PREFIX): value.detach().cpu().contiguous() for name, value in vectors.items()},
        folder / FILE,
    )


def load_contexts(folder: Path) -> dict[str, Tensor]:
    """(M,E) vectors by class name; nothing where a run learned none."""
    return load_file(folder / FILE) if (folder / FILE).is_file() else {}
