"""A text encoder without UNet and VAE: all that adding a class to a bundle needs of a model."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np

from anomalysd_edge.core.types import F32
from anomalysd_edge.errors import InputError
from anomalysd_edge.training.models.base import Base, find_base, load_text_encoder, prompt_states
from anomalysd_edge.training.models.hub import loading


def open_text_encoder(place: Path | None, base_name: str) -> Callable[[str], F32]:
    """A function prompt -> (77,D) float32 states, by the text encoder of `place` (run or model folder) or the base.

    Raises InputError that names the folder where it was expected.
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
    with loading("text encoder in", folder):
        text, tokenizer = load_text_encoder(folder)
    alone = Base(None, None, text, tokenizer, scheduler={}, name="", sha256="", folder=folder)

    def encode(prompt: str) -> F32:
        return np.ascontiguousarray(prompt_states(alone, [prompt])[0].numpy(), dtype=np.float32)

    return encode
