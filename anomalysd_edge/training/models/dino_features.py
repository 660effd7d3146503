"""DINOv2 as the feature network: `sd-edge export RUN --features dinov2-small`.

By name, by hub id or from a local folder of transformers' (config.json, model.safetensors), for instance a download of
facebook/dinov2-small (Apache-2.0). The last layer's patch tokens at 448 or 672 px, as AnomalyDINO takes them (Damm et
al., arXiv 2405.14529).
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from anomalysd_edge.core.files import sha256_file
from anomalysd_edge.errors import InputError, ShapeError
from anomalysd_edge.training.models.hub import from_hub, loading

NAMES = {"dinov2-small": "facebook/dinov2-small", "dinov2-base": "facebook/dinov2-base"}
"""Hub ids by the names that --features takes."""
SIDES_PX = (448, 672)
"""Sides of the square photo; AnomalyDINO reports both."""


class DinoFeatures(nn.Module):
    """(N,3,F,F) float32 in [-1,1], F = `side` -> (N,D,f,f) patch tokens of unit length. Frozen, eval mode."""

    mean: Tensor
    spread: Tensor

    def __init__(self, model: Any, side_px: int = SIDES_PX[0]) -> None:
        """`model`: a transformers Dinov2Model. Its position embeddings are resampled to this side's grid once.

        Raises InputError where the side is no multiple of the model's patches.
        """
        super().__init__()
        patch = int(model.config.patch_size)
        if side_px < patch or side_px % patch:
            raise InputError(f"photos of {side_px} px do not divide into this DINOv2's patches of {patch} px")
        self.side, self._patches = side_px, side_px // patch
        embeddings = model.embeddings
        tokens = torch.zeros(1, self._patches**2 + 1, int(model.config.hidden_size))
        with torch.no_grad():
            resampled = embeddings.interpolate_pos_encoding(tokens, self.side, self.side)
        embeddings.position_embeddings = nn.Parameter(resampled.clone())
        model.config.image_size = self.side
        model.config._attn_implementation = "sdpa"
        self.model = model
        mean, spread = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
        self.register_buffer("mean", (2 * mean - 1).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("spread", (2 * spread).view(1, 3, 1, 1), persistent=False)
        self.requires_grad_(False)
        self.eval()

    def forward(self, images: Tensor) -> Tensor:
        """Raises ShapeError for photos of another side: the position embeddings are resampled to one grid."""
        if images.shape[-1] != self.side or images.shape[-2] != self.side:
            raise ShapeError(f"photos of {tuple(images.shape[-2:])} px reached DINOv2; expected {self.side} px a side")
        embeddings = self.model.embeddings
        patches = embeddings.patch_embeddings((images - self.mean) / self.spread)
        tokens = torch.cat((embeddings.cls_token.expand(patches.shape[0], -1, -1), patches), dim=1)
        encoded = self.model.encoder(tokens + embeddings.position_embeddings).last_hidden_state
        grid = self.model.layernorm(encoded)[:, 1:].transpose(1, 2).unflatten(2, (self._patches, self._patches))
        return functional.normalize(grid, dim=1, eps=1e-6)


def load_dino(name: str, side_px: int = SIDES_PX[0]) -> tuple[DinoFeatures, str]:
    """The network, and one line naming its source. Raises InputError if missing, broken or no DINOv2.

    `name` is one of NAMES, a folder, or a hub id (OWNER/NAME), which is downloaded where it is not cached.
    """
    from transformers import Dinov2Model

    hub, folder = NAMES.get(name, name), Path(name)
    if not folder.is_dir() and hub.count("/") == 1 and not hub.startswith((".", "/", "~")):
        folder = from_hub(hub, ["config.json", "model.safetensors"], ["config.json", "model.safetensors"], "DINOv2")
    config, weights = folder / "config.json", folder / "model.safetensors"
    for file in (config, weights):
        if not file.is_file():
            raise InputError(
                f"{folder} has no {file.name}: give {', '.join(NAMES)}, a hub id, or a folder of DINOv2 in "
                "transformers' layout, as\n  hf download facebook/dinov2-small --local-dir FOLDER\nmakes on a machine "
                "with a network"
            )
    try:
        kind = json.loads(config.read_text(encoding="utf-8")).get("model_type")
    except (ValueError, AttributeError) as error:
        raise InputError(f"{config} is not the JSON of a model: download it again") from error
    if kind != "dinov2":
        raise InputError(f"{folder} holds a model of type {kind!r}; expected dinov2")
    with loading("DINOv2", folder):
        model = Dinov2Model.from_pretrained(folder, local_files_only=True, dtype=torch.float32)
    return DinoFeatures(model, side_px), f"dinov2 {Path(hub).name}, sha256 {sha256_file(weights)[:16]}"
