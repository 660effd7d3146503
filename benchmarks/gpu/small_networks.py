"""Networks of a Stable Diffusion model's kinds of layers, small, in torch alone: what the device loop is tried with."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from anomalysd_edge.core.types import F32
from anomalysd_edge.method.networks import InpaintJob, NetworkSizes, denoise
from anomalysd_runtime.tensorrt.networks import TensorrtNetworks
from benchmarks.gpu.torch_engine import CudaStream, HostStream, Stream, TorchEngine, WatchedDevice

SIZES = NetworkSizes(size_px=64, latent_channels=4, latent_factor=4, features_px=0)
WIDTH = 32
"""D of the prompt states."""
CHANNELS = 32


class SmallUnet(nn.Module):
    """Convolutions, group norms, self- and cross-attention, an embedding of the timestep: (N,9,h,w) -> (N,4,h,w)."""

    def __init__(self) -> None:
        super().__init__()
        self.enter, self.leave = nn.Conv2d(9, CHANNELS, 3, padding=1), nn.Conv2d(CHANNELS, 4, 3, padding=1)
        self.inside = nn.Conv2d(CHANNELS, CHANNELS, 3, padding=1)
        self.norm, self.time = nn.GroupNorm(4, CHANNELS), nn.Linear(CHANNELS, CHANNELS)
        self.query, self.own, self.words = (nn.Linear(n, m) for n, m in _PROJECTIONS)

    def forward(self, sample: Tensor, timestep: Tensor, encoder_hidden_states: Tensor) -> tuple[Tensor]:
        """(N,9,h,w), (N,) int64, (N,77,WIDTH) -> ((N,4,h,w),)."""
        half = CHANNELS // 2
        rates = torch.exp(torch.arange(half, device=sample.device) * (-math.log(10000) / half))
        angles = timestep[:, None].float() * rates
        x = self.enter(sample) + self.time(torch.cat([angles.sin(), angles.cos()], dim=1))[:, :, None, None]
        x = x + self.inside(functional.silu(self.norm(x)))
        tokens = x.flatten(2).transpose(1, 2)
        for keys, values in (self.own(tokens).chunk(2, dim=2), self.words(encoder_hidden_states).chunk(2, dim=2)):
            q, k, v = (_heads(part) for part in (self.query(tokens), keys, values))
            tokens = tokens + functional.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
        return (torch.tanh(self.leave(tokens.transpose(1, 2).reshape(x.shape))),)


_PROJECTIONS = ((CHANNELS, CHANNELS), (CHANNELS, 2 * CHANNELS), (WIDTH, 2 * CHANNELS))


def _heads(tokens: Tensor) -> Tensor:
    return tokens.reshape(*tokens.shape[:2], 4, -1).transpose(1, 2)


class SmallEncoder(nn.Module):
    """(N,3,H,W) -> ((N,4,h,w),)."""

    def __init__(self) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, 4, 4, stride=4)

    def forward(self, sample: Tensor) -> tuple[Tensor]:
        """The latents."""
        return (self.patches(sample),)


class SmallDecoder(nn.Module):
    """(N,4,h,w) -> ((N,3,H,W),) in [-1,1]."""

    def __init__(self) -> None:
        super().__init__()
        self.colours = nn.Conv2d(4, 3, 3, padding=1)

    def forward(self, latent_sample: Tensor) -> tuple[Tensor]:
        """The picture."""
        return (torch.tanh(self.colours(functional.interpolate(latent_sample, scale_factor=4.0, mode="nearest"))),)


def small_modules(device: str) -> dict[str, Any]:
    """The three networks on a device, in eval mode; always the same weights."""
    state = torch.random.get_rng_state()
    torch.manual_seed(0)
    try:
        made = {"unet": SmallUnet(), "vae_encoder": SmallEncoder(), "vae_decoder": SmallDecoder()}
    finally:
        torch.random.set_rng_state(state)
    return {name: module.eval().requires_grad_(False).to(device) for name, module in made.items()}


def step(
    latents: Tensor, out_sample: Tensor, condition: Tensor, c0: Tensor, c1: Tensor, guidance: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """The DDIM step as the runtime's step graph defines it (onnx/step_graph.py)."""
    if guidance is not None:
        negative, positive = out_sample.chunk(2)
        out_sample = negative + guidance * (positive - negative)
    following = latents * c0 + out_sample * c1
    sample = torch.cat([following, condition], dim=1)
    return following, sample if guidance is None else torch.cat([sample, sample])


def small_engines(modules: dict[str, Any], stream: Stream, sizes: tuple[int, ...]) -> dict[str, TorchEngine]:
    """Engines of all networks and both steps, at static batch `sizes`."""
    side, px = SIZES.latent_side, SIZES.size_px
    latent, image = ("batch", 4, side, side), ("batch", 3, px, px)
    shapes: dict[str, tuple[Any, Any]] = {
        "unet": (
            {"sample": ("batch", 9, side, side), "timestep": ("batch",), "encoder_hidden_states": ("batch", 77, WIDTH)},
            {"out_sample": latent},
        ),
        "vae_encoder": ({"sample": image}, {"latent_sample": latent}),
        "vae_decoder": ({"latent_sample": latent}, {"sample": image}),
    }
    engines = {
        name: TorchEngine(modules[name], *shapes[name], sizes, stream, name, {"timestep": np.int64}) for name in shapes
    }
    halves = tuple(size // 2 for size in sizes if size % 2 == 0)
    for name, batch, of in (("step", "batch", sizes), ("step_guided", "passes", halves)):
        inputs: dict[str, tuple[int | str, ...]] = {
            "latents": latent, "out_sample": (batch, 4, side, side), "condition": ("batch", 5, side, side),
            "c0": (1,), "c1": (1,),
        }  # fmt: skip
        if name == "step_guided":
            inputs["guidance"] = (1,)
        outputs: dict[str, tuple[int | str, ...]] = {"next_latents": latent, "sample": (batch, 9, side, side)}
        engines[name] = TorchEngine(step, inputs, outputs, of, stream, name)
    return engines


def job(count: int, guidance: float = 1.0, steps: int = 3, seed: int = 3) -> InpaintJob:
    """`count` slots of two prompts in `steps` passes, for networks of SIZES."""
    rng = np.random.default_rng(seed)
    side = SIZES.latent_side

    def normal(*shape: int) -> F32:
        return rng.normal(size=shape).astype(np.float32)

    return InpaintJob(
        start_latents=normal(count, 4, side, side),
        masks=(rng.random((count, 1, side, side)) < 0.5).astype(np.float32),
        masked_latents=normal(count, 4, side, side),
        prompt_states=normal(2, 77, WIDTH),
        prompt_of=rng.integers(0, 2, count),
        timesteps=np.linspace(399, 7, steps).astype(np.int64),
        coefficients=np.tile(np.array([[1.02, -0.2]], np.float32), (steps, 1)),
        guidance_scale=guidance,
        negative_states=normal(77, WIDTH) if guidance > 1 else None,
    )


def on_the_cpu(of: InpaintJob, unet: Any) -> F32:
    """The loop in numpy around a torch UNet on the CPU."""
    context = np.concatenate([of.masks, of.masked_latents], axis=1)
    states = torch.from_numpy(of.prompt_states[of.prompt_of])

    def out(latents: F32, number: int) -> F32:
        sample = torch.from_numpy(np.concatenate([latents.astype(np.float32), context], axis=1))
        timestep = torch.full((len(latents),), int(of.timesteps[number]))
        with torch.no_grad():
            positive = unet(sample, timestep, states)[0]
            if of.negative_states is None:
                return np.asarray(positive.numpy())
            negative = unet(sample, timestep, torch.from_numpy(of.negative_states).expand_as(states))[0]
        return np.asarray((negative + of.guidance_scale * (positive - negative)).numpy())

    return denoise(of, out)


class TorchWorker:
    """TensorrtNetworks over torch engines, and what they run on; a context manager."""

    def __init__(self, place: str, modules: dict[str, Any], sizes: tuple[int, ...], captures: bool = True) -> None:
        """`place`: cuda, or cpu for a host device; `sizes`: static batches; `captures`: False runs node by node."""
        if place == "cpu":
            from tests.support.host_engines import HostDevice

            host = HostDevice()
            self.device = WatchedDevice(host)
            self._stream: HostStream | CudaStream = HostStream(host)
        else:
            from anomalysd_runtime.tensorrt.cuda_device import CudaDevice

            cuda = CudaDevice()
            self.device, self._stream = WatchedDevice(cuda), CudaStream(cuda.stream)
        self.engines = small_engines(modules, self._stream, sizes)
        for engine in self.engines.values():
            engine.captures = captures
        self.networks = TensorrtNetworks(self.engines, SIZES, self.device, "torch engines")

    def __enter__(self) -> TorchWorker:
        return self

    def __exit__(self, *_: object) -> None:
        self.networks.close()
        self._stream.close()
