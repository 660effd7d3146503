"""Every choice of a fine-tuning, in one frozen dataclass that travels with its result."""

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
    """Settings of one run. The defaults suit a Stable Diffusion base; `for_base` knows better ones for nano.

    Raises SettingsError for values out of range.
    """

    base: str = NANO
    """The model to fine-tune: "nano", a folder in diffusers' layout, or a model hub's id."""
    vae: str = ""
    """"" = the base's own autoencoder; "tiny" (TAESD from the hub), or the folder or hub id of an AutoencoderTiny."""
    prediction_type: str = ""
    """"" = as the base's scheduler says; "epsilon" or "v_prediction" where a checkpoint file cannot say it."""
    shots: int = 4
    """K: good photos per class; 0 = no fine-tuning, the run holds the base as it is."""
    seed: int = 0
    """Every draw is a function of the seed and its place (photo, copy, mask, step), so a resumed run draws alike."""
    size_px: int = 0
    """Side of the square training photo; 0 = what the base was made for."""
    steps: int = 1000
    """Steps of the UNet's fine-tuning."""
    batch: int = 8
    """Samples a step, of all classes, processes and accumulated pieces together."""
    accumulate: int = 1
    """Pieces that a process works its samples off in, one after the other: less memory, the same step."""
    lr: float = 1e-5
    """Peak learning rate of the UNet (AdamW)."""
    warmup: int = 20
    """Steps in which the learning rate rises linearly to its peak, in both phases."""
    lr_floor: float = 0.05
    """Where the cosine that follows ends, as a share of the peak."""
    weight_decay: float = 1e-2
    """AdamW's decoupled weight decay, in both phases."""
    optimizer: str = "adamw"
    """"adamw", or "adamw8bit": its two moments in 8 bits (needs the package bitsandbytes)."""
    clip_norm: float = 1.0
    """Gradients are scaled down to this norm."""
    ema: float = 0.0
    """Decay of the moving average of the weights that becomes the result; 0 = the last weights are the result."""
    lora_rank: int = 0
    """0 = full fine-tuning; above it, the UNet's weights stay and low-rank adapters of this rank learn."""
    lora_alpha: float = 0.0
    """The adapters' scale is alpha / rank; 0 = alpha equals the rank."""
    lora_targets: tuple[str, ...] = ("to_q", "to_k", "to_v", "to_out.0")
    """Name endings of the layers that get an adapter."""
    context_tokens: int = 0
    """Learned vectors in front of each class's prompts (ours: context optimisation, CoOp); 0 = the words alone."""
    context_lr: float = 1e-3
    """Peak learning rate of those vectors."""
    decoder_steps: int = 200
    """Steps of the decoder's fine-tuning after the UNet's; the encoder stays frozen."""
    decoder_batch: int = 4
    """Photos a decoder step."""
    decoder_lr: float = 1e-5
    """Peak learning rate of the decoder."""
    lpips_weight: float = 0.1
    """beta of L_D = MSE + beta * LPIPS; 0 needs no perceptual network."""
    perceptual: str = "auto"
    """Perceptual network of L_D: "lpips_alex", "shift_tolerant" or "auto" (the first that is here)."""
    max_timestep: float = 1.0
    """t ~ U(0, max_timestep * T). 1 is the paper's; inspection starts at lambda * T and never asks above it."""
    prompt_drop: float = 0.05
    """Share of samples with the empty prompt, which guidance above 1 steers away from."""
    mask_most: int = 4
    """Largest number of random rectangles in a training mask."""
    grid_masks: float = 0.0
    """Share of masks that are every other cell, both ways, of one of preset edge's grids: the slots it repaints."""
    outside_weight: float = 1.0
    """Weight of the UNet's squared error outside the mask, where z_o all but tells the answer; 1 is the paper's."""
    copies: int = 8
    """Augmented copies of each photo, the photo itself among them."""
    masks_per_copy: int = 8
    """Masks drawn for each copy; a (copy, mask) pair is encoded once and met again with other t and noise."""
    shift: float = 0.05
    """Largest shift of a copy, as a share of its side."""
    zoom: float = 0.06
    """Largest enlargement or reduction of a copy."""
    tilt_degrees: float = 4.0
    """Largest rotation of a copy beyond the class's symmetries."""
    jitter: float = 0.06
    """Largest relative change of a copy's light; a third of it per colour channel."""
    start_corruption: float = 0.0
    """Share of samples whose z_t shows a synthetic anomaly inside the mask (ours, not the paper's: see losses.py)."""
    autocast: str = "auto"
    """UNet and decoder arithmetic: "none" (float32), "bf16", "fp16" (with a scaled loss), or "auto": bf16 where the
    hardware multiplies it."""
    frozen_weights: str = "float32"
    """With LoRA and autocast: convolutions and linear layers that do not learn lie in "bf16" or "fp16"."""
    cache: str = "lazy"
    """Latents: "lazy" encodes a copy when first met; "ahead" all that the steps will meet, then lets the VAE go."""
    memory_gib: float = 0.0
    """Memory that a training may take (of the GPU with "cuda", else of this machine); 0 = what is free at the start."""
    gradient_checkpointing: bool = False
    """Recompute activations in the backward pass: less memory, about a third more time."""
    device: str = "cpu"
    """"cpu" or "cuda"."""
    threads: int = 0
    """CPU threads; 0 = torch's choice. Other numbers of threads may round differently."""
    checkpoint_every: int = 100
    """Steps between checkpoints, in both phases; the last one is kept."""

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
"""What nano, 9 million parameters trained from scratch, is best fine-tuned with in three minutes on two cores."""
