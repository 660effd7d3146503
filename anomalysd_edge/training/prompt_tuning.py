"""Prompt tuning: learned context vectors in front of a class's prompts, trained together with the UNet.

"[V1]..[VM] A perfect bottle." with V learned and the text encoder frozen: context optimisation (CoOp, Zhou et al.,
arXiv 2109.01134) by the loss of the diffusion model, as textual inversion does (Gal et al., arXiv 2208.01618). They
are initialised with the embeddings of the class's noun. The exported result are ordinary prompt states.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from anomalysd_edge.data.classes import ClassSpec
from anomalysd_edge.training.models.base import Base, tokenize

CONTEXTS_FILE = "contexts.safetensors"
PREFIX = "context/"
"""Prefix, before the class name, of the vectors' names among the trained parameters."""


def initial_contexts(base: Base, specs: Mapping[str, ClassSpec], tokens: int) -> dict[str, torch.nn.Parameter]:
    """Initial (tokens,E) float32 vectors by PREFIX + class name: the noun's token embeddings, repeated."""
    found = {}
    table = base.text_encoder.get_input_embeddings().weight
    for name in sorted(specs):
        words = base.tokenizer(specs[name].noun, add_special_tokens=False).input_ids or [base.tokenizer.eos_token_id]
        chosen = [words[i % len(words)] for i in range(tokens)]
        found[PREFIX + name] = torch.nn.Parameter(table[chosen].detach().clone().float())
    return found


def context_states(base: Base, prompts: Sequence[str], vectors: Tensor) -> Tensor:
    """Prompts with (P,M,E) vectors in front -> (P,77,D) float32 states, differentiable in the vectors."""
    end, text = base.tokenizer.eos_token_id, base.text_encoder
    count = vectors.shape[1]
    coded = tokenize(base, prompts)

    def shifted(row: Tensor, fill: int) -> Tensor:
        inserted = torch.full((len(row), count), fill, dtype=row.dtype)
        return torch.cat([row[:, :1], inserted, row[:, 1 : row.shape[1] - count]], dim=1)

    tokens = shifted(coded.input_ids, end)
    # A prompt that is too long now loses its last words, but keeps the end token.
    cut = (tokens[:, 1 + count :] != end).all(1)
    tokens[cut, -1] = end
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
    """Write the vectors to folder/CONTEXTS_FILE, by class name."""
    save_file(
        {name.removeprefix(PREFIX): value.detach().cpu().contiguous() for name, value in vectors.items()},
        folder / CONTEXTS_FILE,
    )


def load_contexts(folder: Path) -> dict[str, Tensor]:
    """(M,E) vectors by class name; empty for a run without prompt tuning."""
    return load_file(folder / CONTEXTS_FILE) if (folder / CONTEXTS_FILE).is_file() else {}
