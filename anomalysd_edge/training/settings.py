"""The settings of a fine-tuning: one frozen dataclass, stored in run.json."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from anomalysd_edge.errors import SettingsError

NANO = "nano"
"""The name of the embedded base."""


@dataclass(frozen=True)
class TrainSettings:
    """Settings of one run. The defaults suit a Stable Diffusion base; `for_base` has others for nano.

    Raises SettingsError for values out of range.
    """

    base: str = NANO
    """The model to fine-tune: "nano", a folder in diffusers' layout, or a model hub's id."""
    vae: str = ""
    """"" = the base's own VAE; "tiny" (TAESD from the hub), or the folder or hub id of an AutoencoderTiny."""
    prediction_type: str = ""
    """"" = from the base's scheduler; "epsilon" or "v_prediction" for checkpoint files without this metadata."""
    shots: int = 4
    """K: good photos per class; 0 = no fine-tuning, the run holds the base unchanged."""
    seed: int = 0
    """Random seed. Every draw is a function of it and of the photo, copy, mask or step: a resumed run repeats them."""
    size_px: int = 0
    """Side of the square training photo in px; 0 = the base's own size."""
    steps: int = 1000
    """Optimiser steps of the UNet phase."""
    batch: int = 8
    """Samples per step, over all classes, processes and accumulated micro-batches."""
    accumulate: int = 1
    """Gradient accumulation: micro-batches per step and process. Less memory, the same step."""
    lr: float = 1e-5
    """Peak learning rate of the UNet (AdamW)."""
    warmup: int = 20
    """Steps of linear learning rate warm-up, in both phases."""
    lr_floor: float = 0.05
    """Final value of the cosine decay after the warm-up, as a share of the peak."""
    weight_decay: float = 1e-2
    """AdamW's decoupled weight decay, in both phases."""
    optimizer: str = "adamw"
    """"adamw", or "adamw8bit": both moments in 8 bits (needs the package bitsandbytes)."""
    clip_norm: float = 1.0
    """Largest global gradient norm (clipping)."""
    ema: float = 0.0
    """Decay of the moving average of the weights, which is the result; 0 = the last weights are the result."""
    lora_rank: int = 0
    """0 = full fine-tuning; otherwise the rank of the low-rank adapters; the UNet's own weights are frozen."""
    lora_alpha: float = 0.0
    """The adapters' scale is alpha / rank; 0 = alpha equals the rank."""
    lora_targets: tuple[str, ...] = ("to_q", "to_k", "to_v", "to_out.0")
    """Name endings of the layers with adapters."""
    context_tokens: int = 0
    """Learned context vectors in front of each class's prompts (CoOp; not in the paper); 0 = none."""
    context_lr: float = 1e-3
    """Peak learning rate of the context vectors."""
    decoder_steps: int = 200
    """Optimiser steps of the decoder phase, after the UNet phase; the encoder is frozen."""
    decoder_batch: int = 4
    """Photos per decoder step."""
    decoder_lr: float = 1e-5
    """Peak learning rate of the decoder."""
    lpips_weight: float = 0.1
    """beta of L_D = MSE + beta * LPIPS; 0 needs no perceptual network."""
    perceptual: str = "auto"
    """Perceptual network of L_D: "lpips_alex", "shift_tolerant" or "auto" (the first that is installed)."""
    max_timestep: float = 1.0
    """t ~ U(0, max_timestep * T). 1 as in the paper; inspection only uses t up to lambda * T."""
    prompt_drop: float = 0.05
    """Share of samples with the empty prompt, for classifier-free guidance."""
    mask_most: int = 4
    """Largest number of random rectangles in a training mask."""
    grid_masks: float = 0.0
    """Share of masks that are every other cell, in rows and columns, of a grid of 4, 8 or 16 cells a side, as in an
    inspection."""
    outside_weight: float = 1.0
    """Weight of the UNet's squared error outside the mask, where z_o nearly gives the answer; 1 as in the paper."""
    copies: int = 8
    """Augmented copies of each photo, the photo itself among them."""
    masks_per_copy: int = 8
    """Masks per copy; each (copy, mask) pair is encoded once and reused with other t and noise."""
    shift: float = 0.05
    """Largest shift of a copy, as a share of its side."""
    zoom: float = 0.06
    """Largest enlargement or reduction of a copy."""
    tilt_degrees: float = 4.0
    """Largest rotation of a copy beyond the class's symmetries."""
    jitter: float = 0.06
    """Largest relative change of a copy's light; a third of it per colour channel."""
    start_corruption: float = 0.0
    """Share of samples whose z_t shows a synthetic anomaly inside the mask (not in the paper: see losses.py)."""
    autocast: str = "auto"
    """UNet and decoder arithmetic: "none" (float32), "bf16", "fp16" (with a scaled loss), or "auto": bf16 if the
    hardware supports it."""
    frozen_weights: str = "float32"
    """Storage type of frozen convolutions and linear layers, with LoRA and autocast: "float32", "bf16" or "fp16"."""
    cache: str = "lazy"
    """Latents: "lazy" encodes a copy at first use; "ahead" encodes all before the first step, then frees the VAE."""
    memory_gib: float = 0.0
    """Memory limit in GiB (of the GPU with "cuda", else of this machine); 0 = what is free at the start."""
    gradient_checkpointing: bool = False
    """Recompute activations in the backward pass: less memory, about a third more time."""
    device: str = "cpu"
    """"cpu" or "cuda"."""
    threads: int = 0
    """CPU threads; 0 = torch's default. Results may round differently with another number."""
    checkpoint_every: int = 100
    """Steps between checkpoints, in both phases; only the last one is kept."""

    def __post_init__(self) -> None:
        self._at_least(0, "shots", "size_px", "steps", "warmup", "weight_decay", "ema", "lora_rank", "lora_alpha")
        self._at_least(0, "decoder_steps", "lpips_weight", "prompt_drop", "shift", "zoom", "tilt_degrees", "jitter")
        self._at_least(0, "start_corruption", "threads", "lr_floor", "seed", "grid_masks", "outside_weight")
        self._at_least(0, "context_tokens", "memory_gib")
        self._at_least(
            1, "accumulate", "batch", "decoder_batch", "mask_most", "copies", "masks_per_copy", "checkpoint_every"
        )
        for name in ("lr", "decoder_lr", "clip_norm", "max_timestep", "context_lr"):
            if not getattr(self, name) > 0:
                raise SettingsError(f"{name} is {getattr(self, name)}; expected a number above 0")
        for name in ("lr_floor", "prompt_drop", "start_corruption", "max_timestep", "grid_masks", "outside_weight"):
            if getattr(self, name) > 1:
                raise SettingsError(f"{name} is {getattr(self, name)}; expected at most 1")
        for name, limit in (("ema", 1.0), ("shift", 0.15), ("zoom", 0.2), ("jitter", 0.5), ("tilt_degrees", 15.0)):
            if getattr(self, name) >= limit:
                raise SettingsError(f"{name} is {getattr(self, name)}; expected less than {limit}")
        for name, choices in (
            ("autocast", ("auto", "bf16", "fp16", "none")),
            ("frozen_weights", ("float32", "bf16", "fp16")),
            ("optimizer", ("adamw", "adamw8bit")),
            ("cache", ("lazy", "ahead")),
            ("prediction_type", ("", "epsilon", "v_prediction")),
            ("device", ("cpu", "cuda")),
            ("perceptual", ("auto", "lpips_alex", "shift_tolerant")),
        ):
            if getattr(self, name) not in choices:
                raise SettingsError(f"{name} is {getattr(self, name)!r}; expected one of {', '.join(choices)}")
        if self.lora_rank and not self.lora_targets:
            raise SettingsError("lora_rank is set but lora_targets is empty; name at least one layer ending")
        if self.accumulate > self.batch:
            raise SettingsError(
                f"accumulate is {self.accumulate}; expected at most batch ({self.batch}): a piece is a sample"
            )
        if self.context_tokens > 32:
            raise SettingsError(f"context_tokens is {self.context_tokens}; expected at most 32 of a prompt's 77")
        if self.frozen_weights != "float32" and (not self.lora_rank or self.autocast != self.frozen_weights):
            raise SettingsError(
                f"frozen_weights is {self.frozen_weights}: it needs lora_rank above 0 (what learns stays float32) and "
                f"autocast {self.frozen_weights}"
            )

    def _at_least(self, smallest: int, *names: str) -> None:
        for name in names:
            if not getattr(self, name) >= smallest:
                raise SettingsError(f"{name} is {getattr(self, name)}; expected at least {smallest}")

    @classmethod
    def for_base(cls, base: str, **changes: Any) -> TrainSettings:
        """Defaults that suit `base`, with `changes` on top. Unknown names raise SettingsError."""
        values = {**(NANO_DEFAULTS if base == NANO else {}), **changes, "base": base}
        return cls.from_json(values)

    def to_json(self) -> dict[str, Any]:
        """All fields as JSON values."""
        values = dataclasses.asdict(self)
        values["lora_targets"] = list(self.lora_targets)
        return values

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> TrainSettings:
        """The inverse of `to_json`; missing fields take their default, unknown ones raise SettingsError."""
        known = {field.name for field in dataclasses.fields(cls)}
        unknown = sorted(values.keys() - known)
        if unknown:
            raise SettingsError(f"unknown training setting {unknown[0]!r}; expected some of {', '.join(sorted(known))}")
        named = dict(values)
        if "lora_targets" in named:
            named["lora_targets"] = tuple(named["lora_targets"])
        return cls(**named)


NANO_DEFAULTS: dict[str, Any] = {
    "steps": 360,
    "batch": 8,
    "lr": 5e-4,
    "ema": 0.98,
    "shift": 0.025,
    "zoom": 0.025,
    "tilt_degrees": 2.5,
    "decoder_steps": 40,
    "decoder_batch": 4,
    "decoder_lr": 2e-4,
    "max_timestep": 0.32,
    "masks_per_copy": 4,
    "grid_masks": 0.7,
    "outside_weight": 0.3,
    "start_corruption": 0.5,
}
"""Defaults for nano (9 million parameters): about three minutes on two CPU cores."""
