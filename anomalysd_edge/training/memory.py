"""How much memory a training will take, before it starts; and which settings to change where that is too much.

One step of each phase is run on tensors without data (torch's FakeTensorMode), and every storage that it makes is
counted from its birth to its death: weights, activations kept for the backward pass, what is computed again, gradients.
Optimizer state and moving average follow from the number of weights that learn. What libraries take beside tensors is a
constant; figures against measured peaks stand in docs/stable-diffusion.md.
"""

from __future__ import annotations

import dataclasses
import os
import weakref
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL
from torch import Tensor
from torch._subclasses import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten

from anomalysd_edge.errors import SettingsError
from anomalysd_edge.training.loop import arithmetic
from anomalysd_edge.training.lora import add_adapter, lower_frozen
from anomalysd_edge.training.models.base import Base, decode, decoder_parameters
from anomalysd_edge.training.models.hub import quiet
from anomalysd_edge.training.models.perceptual import AlexPerceptual
from anomalysd_edge.training.settings import TrainSettings

GIB = 2**30
LIBRARIES = {"cpu": 0.8 * GIB, "cuda": 0.7 * GIB}
"""torch, diffusers and transformers in a process (measured); a CUDA context with its libraries' work space."""
_PLENTY = 4 * GIB
"""Free memory with which a base of nano's size (2 GiB at most, for a megapixel a step) needs no estimate."""
FRAGMENTS = 1.05
"""Allocators round up and leave gaps."""


@dataclasses.dataclass(frozen=True)
class Estimate:
    """Bytes at the worst moment of each phase, on the device that trains."""

    unet: int
    """Of the UNet's phase; 0 where it has no steps."""
    decoder: int
    """Of the decoder's."""

    @property
    def peak(self) -> int:
        """The larger of both."""
        return max(self.unet, self.decoder)


class _Live(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Bytes of storages that are alive, and the most that ever were."""

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
        """Count the tensor's storage, once, until nothing holds it."""
        storage = tensor.untyped_storage()
        key = storage._cdata
        if key in self._seen:
            return
        size = storage.nbytes()
        self.now += size
        self.peak = max(self.peak, self.now)

        def gone() -> None:
            self.now -= size
            self._seen.pop(key, None)

        self._seen[key] = weakref.finalize(storage, gone)


def estimate(base: Base, settings: TrainSettings, size_px: int, processes: int = 1) -> Estimate:
    """Run a step of both phases without data. `processes` share each step's samples."""
    unet = _unet_step(base, settings, size_px, processes) if settings.steps else 0
    decoder = _decoder_step(base, settings, size_px, processes) if settings.decoder_steps else 0
    library = int(LIBRARIES[settings.device])
    return Estimate(*(int(FRAGMENTS * taken) + library if taken else 0 for taken in (unet, decoder)))


def check_memory(
    base: Base, settings: TrainSettings, size_px: int, processes: int = 1, free: int | None = None
) -> Estimate | None:
    """The estimate. Raises SettingsError, naming settings that would make it fit, where it exceeds what there is.

    `free`: bytes that were free before the base was loaded; None where nobody knows, and nothing is refused then.
    None for a base of nano's size where gigabytes are free: nothing is run for it.
    """
    there = int(settings.memory_gib * GIB) or free
    if not settings.memory_gib and (there or 0) >= _PLENTY and _is_small(base, settings, size_px):
        return None
    found = estimate(base, settings, size_px, processes)
    if there is not None and settings.device == "cpu" and not settings.memory_gib:
        there //= max(1, int(os.environ.get("LOCAL_WORLD_SIZE", str(processes))))  # they share this machine's
    if there is None or found.peak <= there:
        return found
    wanted = settings
    steps: list[str] = []
    for name, value in savings(settings, size_px, processes):
        also = {"autocast": value} if name == "frozen_weights" else {}
        wanted = dataclasses.replace(wanted, **also, **{name: value})
        size = wanted.size_px or size_px
        less = estimate(base, wanted, size, processes)
        steps.append(f"{name} = {value} ({less.peak / GIB:.1f} GiB)")
        if less.peak <= there:
            break
    advice = f"set {', then '.join(steps)}" if steps else "every setting that saves memory is on"
    enough = bool(steps) and less.peak <= there
    raise SettingsError(
        f"this training would take about {found.peak / GIB:.1f} GiB and {there / GIB:.1f} GiB are "
        f"{'allowed by memory_gib' if settings.memory_gib else 'free'}: {advice}"
        + ("" if enough else "; even that is not enough: use a smaller base or a machine with more memory")
    )


def _is_small(base: Base, settings: TrainSettings, size_px: int) -> bool:
    weights = sum(weight.numel() for network in (base.unet, base.vae) for weight in network.parameters())
    return weights < 50e6 and max(settings.batch, settings.decoder_batch) * size_px**2 <= 2**20


def savings(settings: TrainSettings, size_px: int, processes: int) -> Iterator[tuple[str, Any]]:
    """Settings that take less memory, those first that change the result least."""
    if not settings.gradient_checkpointing:
        yield "gradient_checkpointing", True
    share = max(1, settings.batch // processes)
    if settings.accumulate < share:
        yield "accumulate", share
    if settings.cache == "lazy":
        yield "cache", "ahead"
    half = arithmetic(settings)
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
    """Free memory of the GPU; of this machine, no more than its control group allows. None where nobody says."""
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


def _unet_step(base: Base, settings: TrainSettings, size_px: int, processes: int) -> int:
    half = arithmetic(settings)
    rows = _most_rows(settings.batch, processes, settings.accumulate)
    side = size_px // base.latent_factor
    kept = [base.vae] if settings.cache == "lazy" else []
    if settings.context_tokens:
        kept.append(base.text_encoder)
    width = int(base.unet.config.cross_attention_dim)
    channels = int(base.unet.config.out_channels)
    unet = _shape_of(base.unet)
    if settings.lora_rank:
        add_adapter(unet, settings)
        lower_frozen(unet, settings)
    if settings.gradient_checkpointing:
        unet.enable_gradient_checkpointing()
    unet.train()
    with _without_data() as live:
        _fill(unet)
        learn = [weight for weight in unet.parameters() if weight.requires_grad]
        live.peak = live.now
        with _autocast(half):
            seen = torch.zeros(rows, int(base.unet.config.in_channels), side, side)
            states = torch.zeros(rows, 77, width)
            output = unet(seen, torch.zeros(rows, dtype=torch.int64), encoder_hidden_states=states).sample
        loss = (output.float() - torch.zeros(rows, channels, side, side)).square().mean()
        loss.backward()
        peak = live.peak
    return peak + _state_bytes(learn, settings) + sum(_weight_bytes(network) for network in kept)


def _decoder_step(base: Base, settings: TrainSettings, size_px: int, processes: int) -> int:
    rows = _most_rows(settings.decoder_batch, processes, settings.accumulate)
    side = size_px // base.latent_factor
    vae = _shape_of(base.vae)
    vae.requires_grad_(False)
    for weight in decoder_parameters(vae).values():
        weight.requires_grad_(True)
    if settings.gradient_checkpointing and isinstance(vae, AutoencoderKL):
        vae.enable_gradient_checkpointing()
        vae.decoder.train()
    with _without_data() as live:
        _fill(vae)
        learn = list(decoder_parameters(vae).values())
        judge = AlexPerceptual("shift_tolerant") if settings.lpips_weight else None
        live.peak = live.now
        with _autocast(arithmetic(settings)):
            decoded = decode(vae, torch.zeros(rows, int(vae.config.latent_channels), side, side))
        photos = torch.zeros(rows, 3, size_px, size_px)
        loss = (photos - decoded.float()).square().mean()
        if judge is not None:
            loss = loss + judge.mean_distance(photos, decoded.float()).mean()
        loss.backward()  # type: ignore[no-untyped-call]
        peak = live.peak
    # The UNet is done, but lies in memory until the run is written; on a GPU it has been moved away.
    unet = _weight_bytes(base.unet) if settings.device == "cpu" else 0
    return peak + _state_bytes(learn, settings) + unet


def _shape_of(network: Any) -> Any:
    """A network of the same configuration, its weights without data."""
    with quiet(), torch.device("meta"):
        return type(network).from_config(network.config)


def _fill(network: torch.nn.Module) -> None:
    """Give a network without data tensors of the mode that is on: what runs then is counted."""
    for module in network.modules():
        for name, weight in module._parameters.items():
            if weight is not None:
                empty = torch.empty(weight.shape, dtype=weight.dtype)
                module._parameters[name] = torch.nn.Parameter(empty, requires_grad=weight.requires_grad)
        for name, buffer in module._buffers.items():
            if buffer is not None:
                module._buffers[name] = torch.empty(buffer.shape, dtype=buffer.dtype)


@contextmanager
def _without_data() -> Iterator[_Live]:
    state = torch.random.get_rng_state()
    live = _Live()
    try:
        with FakeTensorMode(), live:
            yield live
    finally:
        torch.random.set_rng_state(state)


def _autocast(half: torch.dtype | None) -> Any:
    return nullcontext() if half is None else torch.autocast("cpu", half)


def _most_rows(batch: int, processes: int, accumulate: int) -> int:
    share = -(-batch // processes)
    return -(-share // min(accumulate, share))


def _state_bytes(weights: list[Any], settings: TrainSettings) -> int:
    """Both moments of AdamW, and the moving average."""
    count: int = sum(weight.numel() for weight in weights)
    moment = 1 if settings.optimizer == "adamw8bit" else 4
    return count * (2 * moment + (4 if settings.ema else 0))


def _weight_bytes(network: torch.nn.Module) -> int:
    total: int = sum(weight.numel() * weight.element_size() for weight in network.parameters())
    return total
