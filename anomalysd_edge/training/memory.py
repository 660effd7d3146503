"""Estimating the peak memory of a training before it starts, and the settings to change if it does not fit.

One step of each phase runs on tensors without data (torch's FakeTensorMode), counting every storage while it is alive:
weights, activations kept for the backward pass, recomputed activations, gradients. Optimizer state and moving average
follow from the number of trained weights. Memory of libraries beside tensors is a constant; docs/stable-diffusion.md
compares estimates with measured peaks.
"""

from __future__ import annotations

import dataclasses
import os
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL
from torch import Tensor
from torch._subclasses import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten

from anomalysd_edge.errors import SettingsError
from anomalysd_edge.training.devices import autocast_dtype
from anomalysd_edge.training.lora import add_adapter, lower_frozen
from anomalysd_edge.training.models.base import Base, decode, decoder_parameters
from anomalysd_edge.training.models.hub import quiet
from anomalysd_edge.training.models.perceptual import AlexPerceptual
from anomalysd_edge.training.settings import TrainSettings

GIB = 2**30
LIBRARY_BYTES = {"cpu": 0.8 * GIB, "cuda": 0.7 * GIB}
"""Measured, by device: torch, diffusers and transformers; or a CUDA context with its libraries' workspace."""
_AMPLE_BYTES = 4 * GIB
"""With this much free memory, a base of nano's size (at most 2 GiB at a megapixel per step) needs no estimate."""
FRAGMENTATION = 1.05
"""Factor for rounding and gaps of the allocator."""


@dataclasses.dataclass(frozen=True)
class MemoryEstimate:
    """Peak bytes of each phase, on the training device."""

    unet: int
    """Of the UNet phase; 0 without steps."""
    decoder: int
    """Of the decoder phase; 0 without steps."""

    @property
    def peak(self) -> int:
        """The larger of both."""
        return max(self.unet, self.decoder)


class _StorageCounter(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Bytes of live storages, now and at the peak."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.now = self.peak = 0
        self._seen: dict[int, Any] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for value in tree_flatten(result)[0]:
            if isinstance(value, Tensor):
                self.add(value)
        return result

    def add(self, tensor: Tensor) -> None:
        """Count the tensor's storage, once, until it is freed."""
        storage = tensor.untyped_storage()
        key = storage._cdata
        if key in self._seen:
            return
        size = storage.nbytes()
        self.now += size
        self.peak = max(self.peak, self.now)

        def freed() -> None:
            self.now -= size
            self._seen.pop(key, None)

        self._seen[key] = weakref.finalize(storage, freed)


def estimate(base: Base, settings: TrainSettings, size_px: int, processes: int = 1) -> MemoryEstimate:
    """Run one step of both phases without data. `processes`: world size, which shares each batch."""
    unet = _unet_peak(base, settings, size_px, processes) if settings.steps else 0
    decoder = _decoder_peak(base, settings, size_px, processes) if settings.decoder_steps else 0
    library = int(LIBRARY_BYTES[settings.device])
    return MemoryEstimate(*(int(FRAGMENTATION * peak) + library if peak else 0 for peak in (unet, decoder)))


def check_memory(
    base: Base, settings: TrainSettings, size_px: int, processes: int = 1, free: int | None = None
) -> MemoryEstimate | None:
    """The estimate. Raises SettingsError, naming settings that make it fit, if it exceeds the memory limit.

    `free`: free bytes before the base was loaded; None if unknown, then there is no limit (unless memory_gib is set).
    Returns None without estimating for a base of nano's size with gigabytes free.
    """
    limit = int(settings.memory_gib * GIB) or free
    if not settings.memory_gib and (limit or 0) >= _AMPLE_BYTES and _is_small(base, settings, size_px):
        return None
    found = estimate(base, settings, size_px, processes)
    if limit is not None and settings.device == "cpu" and not settings.memory_gib:
        # Processes of one machine share its memory.
        limit //= max(1, int(os.environ.get("LOCAL_WORLD_SIZE", str(processes))))
    if limit is None or found.peak <= limit:
        return found
    reduced = settings
    steps: list[str] = []
    for name, value in savings(settings, size_px, processes):
        also = {"autocast": value} if name == "frozen_weights" else {}
        reduced = dataclasses.replace(reduced, **also, **{name: value})
        size = reduced.size_px or size_px
        smaller = estimate(base, reduced, size, processes)
        steps.append(f"{name} = {value} ({smaller.peak / GIB:.1f} GiB)")
        if smaller.peak <= limit:
            break
    advice = f"set {', then '.join(steps)}" if steps else "every setting that saves memory is on"
    enough = bool(steps) and smaller.peak <= limit
    raise SettingsError(
        f"this training would take about {found.peak / GIB:.1f} GiB and {limit / GIB:.1f} GiB are "
        f"{'allowed by memory_gib' if settings.memory_gib else 'free'}: {advice}"
        + ("" if enough else "; even that is not enough: use a smaller base or a machine with more memory")
    )


def _is_small(base: Base, settings: TrainSettings, size_px: int) -> bool:
    weights = sum(weight.numel() for network in (base.unet, base.vae) for weight in network.parameters())
    return weights < 50e6 and max(settings.batch, settings.decoder_batch) * size_px**2 <= 2**20


def savings(settings: TrainSettings, size_px: int, processes: int) -> Iterator[tuple[str, Any]]:
    """Settings that save memory, as (name, value), ordered by how little they change the result."""
    if not settings.gradient_checkpointing:
        yield "gradient_checkpointing", True
    share = max(1, settings.batch // processes)
    if settings.accumulate < share:
        yield "accumulate", share
    if settings.cache == "lazy":
        yield "cache", "ahead"
    half = autocast_dtype(settings)
    word = "fp16" if half == torch.float16 else "bf16"
    if half is None:
        yield "autocast", word
    if settings.lora_rank and settings.frozen_weights == "float32":
        yield "frozen_weights", word
    if not settings.lora_rank:
        if settings.optimizer == "adamw":
            yield "optimizer", "adamw8bit"
        if settings.ema:
            yield "ema", 0.0
        yield "lora_rank", 8
        yield "frozen_weights", word
    if settings.decoder_batch > 1:
        yield "decoder_batch", processes
    smaller = size_px // 2 // 64 * 64
    if smaller >= 256:
        yield "size_px", smaller


def available_bytes(device: str) -> int | None:
    """Free memory of the GPU, or of this machine within its control group's limit; None if unknown."""
    if device == "cuda":
        return int(torch.cuda.mem_get_info()[0])
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
        free = next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:"))
    except (OSError, StopIteration):
        return None
    try:
        limit = Path("/sys/fs/cgroup/memory.max").read_text().strip()
        used = int(Path("/sys/fs/cgroup/memory.current").read_text())
        return free if limit == "max" else min(free, int(limit) - used)
    except (OSError, ValueError):
        return free


def _unet_peak(base: Base, settings: TrainSettings, size_px: int, processes: int) -> int:
    rows = _largest_micro_batch(settings.batch, processes, settings.accumulate)
    side, config = size_px // base.latent_factor, base.unet.config
    unet = _meta_copy(base.unet)
    if settings.lora_rank:
        add_adapter(unet, settings)
        lower_frozen(unet, settings)
    if settings.gradient_checkpointing:
        unet.enable_gradient_checkpointing()
    unet.train()

    def train_step(autocast: torch.autocast) -> None:
        with autocast:
            inputs = torch.zeros(rows, int(config.in_channels), side, side)
            states = torch.zeros(rows, 77, int(config.cross_attention_dim))
            output = unet(inputs, torch.zeros(rows, dtype=torch.int64), encoder_hidden_states=states).sample
        channels = int(config.out_channels)
        (output.float() - torch.zeros(rows, channels, side, side)).square().mean().backward()

    peak = _peak_of_step(unet, train_step, settings)
    if settings.cache == "lazy":
        peak += _weight_bytes(base.vae)
    return peak + (_weight_bytes(base.text_encoder) if settings.context_tokens else 0)


def _decoder_peak(base: Base, settings: TrainSettings, size_px: int, processes: int) -> int:
    rows = _largest_micro_batch(settings.decoder_batch, processes, settings.accumulate)
    side = size_px // base.latent_factor
    vae = _meta_copy(base.vae)
    vae.requires_grad_(False)
    for weight in decoder_parameters(vae).values():
        weight.requires_grad_(True)
    if settings.gradient_checkpointing and isinstance(vae, AutoencoderKL):
        vae.enable_gradient_checkpointing()
        vae.decoder.train()

    def train_step(autocast: torch.autocast) -> None:
        perceptual = AlexPerceptual("shift_tolerant") if settings.lpips_weight else None
        with autocast:
            decoded = decode(vae, torch.zeros(rows, int(vae.config.latent_channels), side, side))
        photos = torch.zeros(rows, 3, size_px, size_px)
        loss = (photos - decoded.float()).square().mean()
        if perceptual is not None:
            loss = loss + perceptual.mean_distance(photos, decoded.float()).mean()
        loss.backward()  # type: ignore[no-untyped-call]

    # The trained UNet stays in memory until the run is written; with a GPU it was moved to the CPU.
    unet = _weight_bytes(base.unet) if settings.device == "cpu" else 0
    return _peak_of_step(vae, train_step, settings) + unet


def _peak_of_step(
    network: torch.nn.Module, train_step: Callable[[torch.autocast], None], settings: TrainSettings
) -> int:
    """Peak bytes of one forward and backward pass of a meta `network`, and of the optimizer state."""
    half = autocast_dtype(settings)
    with _fake_tensors() as counter:
        _materialise(network)
        trained = [weight for weight in network.parameters() if weight.requires_grad]
        counter.peak = counter.now
        train_step(torch.autocast("cpu", half, enabled=half is not None))
        # Two AdamW moments and the moving average of every trained weight.
        moment = 1 if settings.optimizer == "adamw8bit" else 4
        per_weight = 2 * moment + (4 if settings.ema else 0)
        return counter.peak + per_weight * sum(weight.numel() for weight in trained)


def _meta_copy(network: Any) -> Any:
    """A network of the same configuration on the meta device."""
    with quiet(), torch.device("meta"):
        return type(network).from_config(network.config)


def _materialise(network: torch.nn.Module) -> None:
    """Replace meta tensors by fake ones of the active FakeTensorMode, so that they are counted."""
    for module in network.modules():
        for name, weight in module._parameters.items():
            if weight is not None:
                empty = torch.empty(weight.shape, dtype=weight.dtype)
                module._parameters[name] = torch.nn.Parameter(empty, requires_grad=weight.requires_grad)
        for name, buffer in module._buffers.items():
            if buffer is not None:
                module._buffers[name] = torch.empty(buffer.shape, dtype=buffer.dtype)


@contextmanager
def _fake_tensors() -> Iterator[_StorageCounter]:
    state = torch.random.get_rng_state()
    counter = _StorageCounter()
    try:
        with FakeTensorMode(), counter:
            yield counter
    finally:
        torch.random.set_rng_state(state)


def _largest_micro_batch(batch: int, processes: int, accumulate: int) -> int:
    share = -(-batch // processes)
    return -(-share // min(accumulate, share))


def _weight_bytes(network: torch.nn.Module) -> int:
    total: int = sum(weight.numel() * weight.element_size() for weight in network.parameters())
    return total
