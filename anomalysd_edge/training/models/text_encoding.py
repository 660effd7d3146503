"""A text encoder by itself: what adding a class needs of a model, without its UNet and autoencoder."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from transformers import CLIPTextModel, CLIPTokenizer

from anomalysd_edge.core.types import F32
from anomalysd_edge.errors import InputError
from anomalysd_edge.training.models.base import Base, find_base, prompt_states
from anomalysd_edge.training.models.hub import quiet


def open_text_encoder(place: Path | None, base_name: str) -> Callable[[str], F32]:
    """prompt -> (77,D) float32 states, by the text encoder at `place` (a run, a model folder), else of the base.

    Raises InputError that says where it was looked for.
    """
    if place is None:
        try:
            folder = find_base(base_name)
        except InputError as error:
            raise InputError(
                f"this machine has no text encoder for the bundle's base {base_name!r} ({error}): a bundle holds "
                "prompt states, never the encoder; name a run or a model folder with --text-encoder, or run add-class "
                "where the model was trained"
            ) from error
    else:
        folder = place / "model" if (place / "run.json").is_file() else place
    if not ((folder / "text_encoder").is_dir() and (folder / "tokenizer").is_dir()):
        raise InputError(
            f"{place or folder} holds no text_encoder and tokenizer: expected a run that sd-edge train wrote, or a "
            "model in diffusers' layout"
        )
    with quiet():
        try:
            text = CLIPTextModel.from_pretrained(folder / "text_encoder", dtype=torch.float32).eval()
            words = CLIPTokenizer.from_pretrained(folder / "tokenizer")
        except (OSError, ValueError, RuntimeError, KeyError) as error:
            raise InputError(f"the text encoder in {folder} cannot be loaded ({error}); copy it again") from error
    text.requires_grad_(False)
    alone = Base(None, None, text, words, scheduler={}, name="", sha256="", folder=folder)

    def encode(prompt: str) -> F32:
        return np.ascontiguousarray(prompt_states(alone, [prompt])[0].numpy(), dtype=np.float32)

    return encode
