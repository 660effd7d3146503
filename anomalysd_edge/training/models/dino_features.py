"""DINOv2 as the feature network, for whoever has its weights: `sd-edge export RUN --features FOLDER`.

The folder is one of transformers' (config.json, model.safetensors), for instance a download of facebook/dinov2-small
(Apache-2.0). The last layer's patch tokens at 448 px, as AnomalyDINO takes them (Damm et al., arXiv 2405.14529).
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import Tensor, nn
from torch.nn import functional

from anomalysd_edge.core.files import sha256_file
from anomalysd_edge.errors import InputError, ShapeError
from anomalysd_edge.training.models.hub import quiet

PATCHES = 32
"""Patches along a side: with DINOv2's patches of 14 px the photo is 448 px wide."""


class DinoFeatures(nn.Module):
    """(N,3,F,F) float32 in [-1,1], F = `side` -> (N,D,f,f) patch tokens of unit length. Frozen, eval mode."""

    mean: Tensor
    spread: Tensor

    def __init__(self, model: Any) -> None:
        """`model`: a transformers Dinov2Model. Its positions are brought to this grid once, not in every photo."""
        super().__init__()
        self.side = PATCHES * int(model.config.patch_size)
        embeddings = model.embeddings
        places = torch.zeros(1, PATCHES**2 + 1, int(model.config.hidden_size))
        with torch.no_grad():
            fitted = embeddings.interpolate_pos_encoding(places, self.side, self.side)
        embeddings.position_embeddings = nn.Parameter(fitted.clone())
        model.config.image_size = self.side
        model.config._attn_implementation = "sdpa"
        self.model = model
        mean, spread = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
        self.register_buffer("mean", (2 * mean - 1).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("spread", (2 * spread).view(1, 3, 1, 1), persistent=False)
        self.requires_grad_(False)
        self.eval()

    def forward(self, images: Tensor) -> Tensor:
        """Raises ShapeError for photos of another side: the positions are fitted to one."""
        if images.shape[-1] != self.side or images.shape[-2] != self.side:
            raise ShapeError(f"photos of {tuple(images.shape[-2:])} px reached DINOv2; expected {self.side} px a side")
        embeddings = self.model.embeddings
        patches = embeddings.patch_embeddings((images - self.mean) / self.spread)
        tokens = torch.cat((embeddings.cls_token.expand(patches.shape[0], -1, -1), patches), dim=1)
        seen = self.model.encoder(tokens + embeddings.position_embeddings).last_hidden_state
        grid = self.model.layernorm(seen)[:, 1:].transpose(1, 2).unflatten(2, (PATCHES, PATCHES))
        return functional.normalize(grid, dim=1, eps=1e-6)


def load_dino(folder: Path) -> tuple[DinoFeatures, str]:
    """The network in `folder`, and one line that says where it came from. Raises InputError with the way to mend it."""
    from transformers import Dinov2Model

    config, weights = folder / "config.json", folder / "model.safetensors"
    for file in (config, weights):
        if not file.is_file():
            raise InputError(
                f"{folder} has no {file.name}: give a folder of DINOv2 in transformers' layout, as\n"
                "  hf download facebook/dinov2-small --local-dir FOLDER\nmakes on a machine with a network"
            )
    try:
        kind = json.loads(config.read_text(encoding="utf-8")).get("model_type")
    except (ValueError, AttributeError) as error:
        raise InputError(f"{config} is not the JSON of a model: download it again") from error
    if kind != "dinov2":
        raise InputError(f"{folder} holds a model of type {kind!r}; expected dinov2")
    try:
        with quiet():
            model = Dinov2Model.from_pretrained(folder, local_files_only=True, dtype=torch.float32)
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        raise InputError(f"{weights} cannot be read as DINOv2 ({error}): download it again") from error
    return DinoFeatures(model), f"dinov2 {folder.name}, sha256 {sha256_file(weights)[:16]}"
