"""Training of the tiny base in a few steps."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from anomalysd_edge.data.classes import ClassSpec
from anomalysd_edge.training.run import Run
from anomalysd_edge.training.settings import TrainSettings

SPECS = {"nut": ClassSpec("nut", "nut", "object", ("thread",)), "felt": ClassSpec("felt", "felt", "texture")}


def tiny_settings(base: Path, **changes: Any) -> TrainSettings:
    """Three steps of the UNet on one thread."""
    values: dict[str, Any] = {
        "shots": 1, "steps": 3, "batch": 4, "lr": 1e-3, "warmup": 1, "decoder_steps": 0, "decoder_batch": 2,
        "decoder_lr": 1e-3, "lpips_weight": 0.0, "copies": 2, "masks_per_copy": 2, "start_corruption": 0.5,
        "checkpoint_every": 2, "autocast": "none", "threads": 1,
    }  # fmt: skip
    return TrainSettings.for_base(str(base), **{**values, **changes})


def weights_of(run: Run, part: str = "unet") -> dict[str, torch.Tensor]:
    """By name, of one network of the run's model."""
    return dict(load_file(run.model / part / "diffusion_pytorch_model.safetensors"))
