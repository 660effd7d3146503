"""What each network's graph looks like: names, types, axes, an example, a tolerance. Export, proof, manifest read it.

Tensor names are optimum's where it has them, so that other people's tools fit.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from anomalysd_edge.bundle.manifest import TensorRecord
from anomalysd_edge.core.types import Array
from anomalysd_edge.method.networks import NetworkSizes
from anomalysd_edge.training.models.base import decode, encode_mode

PROMPT_TOKENS = 77
"""CLIP's context length."""
TRAIN_TIMESTEPS = 1000
"""Example timesteps lie below it."""


@dataclass(frozen=True)
class TensorSpec:
    """One input or output of a graph."""

    name: str
    """Its name in the ONNX file."""
    shape: tuple[int | str, ...]
    """A number where the axis is fixed, a name where it may vary."""
    dtype: str = "float32"
    """float32 or int64."""
    spread: str = "normal"
    """Example values: 'normal' (deviation 1), 'image' (uniform in [-1,1]); integers are uniform below `below`."""
    below: int | str = 0
    """Bound of example integers: a number, or the axis that they index."""
    meaning: str = ""
    """What its values are, with range or unit: for people who open the file (graph_metadata.py)."""

    def record(self) -> TensorRecord:
        """For the manifest."""
        return TensorRecord(self.name, self.dtype, self.shape)

    def example(self, rng: np.random.Generator, axes: Mapping[str, int]) -> Array:
        """An array of this spec, its named axes as long as `axes` says."""
        shape = tuple(axes[axis] if isinstance(axis, str) else axis for axis in self.shape)
        if self.dtype == "int64":
            return rng.integers(0, axes[self.below] if isinstance(self.below, str) else self.below, shape)
        values = rng.uniform(-1, 1, shape) if self.spread == "image" else rng.standard_normal(shape)
        return values.astype(np.float32)


@dataclass(frozen=True)
class GraphSpec:
    """One network as an ONNX graph."""

    name: str
    """Its folder in the bundle."""
    inputs: tuple[TensorSpec, ...]
    """In the order of the module's arguments."""
    outputs: tuple[TensorSpec, ...]
    """In the order of the module's results; a fixed axis of 0 is filled in by :func:`proved_outputs`."""
    wrap: Callable[[Any], nn.Module]
    """From the trained network to a module of exactly these inputs and outputs."""
    tolerance: float = 1e-4
    """Largest absolute difference from torch in float32."""
    role: str = ""
    """What the network does in an inspection, in a sentence."""

    @property
    def axes(self) -> tuple[str, ...]:
        """Names of the axes that may vary, in the order of their first use."""
        return tuple(dict.fromkeys(axis for entry in self.inputs for axis in entry.shape if isinstance(axis, str)))

    def example(self, seed: int, first: int = 2) -> dict[str, Array]:
        """Inputs by name. The first varying axis is `first` long, each further one longer by one.

        At least 2: torch.export takes an axis of length 1 for a constant, and equal axes for one and the same.
        """
        lengths = {axis: first + i for i, axis in enumerate(self.axes)}
        rng = np.random.default_rng(seed)
        return {entry.name: entry.example(rng, lengths) for entry in self.inputs}


class UnetGraph(nn.Module):
    """diffusers' UNet without its output class."""

    def __init__(self, unet: Any) -> None:
        super().__init__()
        self.unet = unet

    def forward(self, sample: Tensor, timestep: Tensor, encoder_hidden_states: Tensor) -> Tensor:
        """(N,9,h,w), (N,), (N,77,D) -> (N,4,h,w)."""
        out: Tensor = self.unet(sample, timestep, encoder_hidden_states, return_dict=False)[0]
        return out


class EncoderGraph(nn.Module):
    """From the photo to scaled latents, without noise."""

    def __init__(self, vae: Any) -> None:
        super().__init__()
        self.vae = vae

    def forward(self, sample: Tensor) -> Tensor:
        """(N,3,H,W) in [-1,1] -> (N,C,h,w)."""
        return encode_mode(self.vae, sample)


class DecoderGraph(nn.Module):
    """From scaled latents to the photo, clipped."""

    def __init__(self, vae: Any) -> None:
        super().__init__()
        self.vae = vae

    def forward(self, latent_sample: Tensor) -> Tensor:
        """(N,C,h,w) -> (N,3,H,W) in [-1,1]."""
        return decode(self.vae, latent_sample).clamp(-1, 1)


def graph_specs(sizes: NetworkSizes, prompt_width: int) -> dict[str, GraphSpec]:
    """The five graphs for networks of these sizes, by name; `prompt_width` is the D of (77,D) prompt states."""
    n, side, size, channels = "batch", sizes.latent_side, sizes.size_px, sizes.latent_channels
    image = ("batch", 3, size, size)
    latents = TensorSpec("latent_sample", (n, channels, side, side), meaning="latents times the autoencoder's scale")
    sample = TensorSpec("sample", image, spread="image", meaning="RGB photo, pixel / 127.5 - 1")
    specs = (
        GraphSpec(
            "unet",
            (
                TensorSpec(
                    "sample",
                    (n, 2 * channels + 1, side, side),
                    meaning=f"{channels} noisy latents, the mask (1 = repaint), {channels} latents of the masked photo",
                ),
                TensorSpec(
                    "timestep",
                    (n,),
                    "int64",
                    below=TRAIN_TIMESTEPS,
                    meaning=f"training step, 0 to {TRAIN_TIMESTEPS - 1}",
                ),
                TensorSpec("encoder_hidden_states", (n, PROMPT_TOKENS, prompt_width), meaning="prompt states of CLIP"),
            ),
            (
                TensorSpec(
                    "out_sample",
                    (n, channels, side, side),
                    meaning="predicted noise or velocity, as prediction_type of the bundle's manifest says",
                ),
            ),
            UnetGraph,
            role="one denoising step of the repaint: masked regions as they would look if the part were good",
        ),
        GraphSpec(
            "vae_encoder", (sample,), (latents,), EncoderGraph, role="from a photo to its latents, without noise"
        ),
        GraphSpec(
            "vae_decoder", (latents,), (sample,), DecoderGraph, role="from latents to a photo, clipped to [-1,1]"
        ),
        GraphSpec(
            "perceptual",
            (
                TensorSpec("references", ("references", 3, size, size), spread="image", meaning=sample.meaning),
                TensorSpec("repaints", image, spread="image", meaning="RGB repaint, pixel / 127.5 - 1"),
                TensorSpec(
                    "reference_of", (n,), "int64", below="references", meaning="row of references for each repaint"
                ),
            ),
            (TensorSpec("distance", (n, size, size), meaning="perceptual distance of each pixel, 0 where they agree"),),
            _as_it_is,
            role="perceptual distance (LPIPS without its spatial mean) of repaints from their photos",
        ),
        GraphSpec(
            "features",
            (
                TensorSpec(
                    "image", (n, 3, sizes.features_px, sizes.features_px), spread="image", meaning=sample.meaning
                ),
            ),
            (TensorSpec("features", (n, 0, 0, 0), meaning="descriptor of each patch along axis 1, of unit length"),),
            _as_it_is,
            tolerance=2e-5,  # its outputs are unit vectors
            role="patch descriptors, whose distance to those of good parts is the prototype map",
        ),
    )
    return {spec.name: spec for spec in specs}


def proved_outputs(spec: GraphSpec, found: Mapping[str, Array]) -> tuple[TensorSpec, ...]:
    """The outputs of `spec` with their open fixed axes taken from what the network gave."""
    filled = []
    for entry in spec.outputs:
        shape = tuple(n if axis == 0 else axis for axis, n in zip(entry.shape, found[entry.name].shape, strict=True))
        filled.append(TensorSpec(entry.name, shape, entry.dtype))
    return tuple(filled)


def run_torch(module: nn.Module, spec: GraphSpec, inputs: Mapping[str, Array]) -> dict[str, Array]:
    """The module's outputs by name for numpy inputs."""
    with torch.inference_mode():
        result = module(*(torch.from_numpy(inputs[entry.name]) for entry in spec.inputs))
    results = result if isinstance(result, tuple) else (result,)
    return {entry.name: value.numpy() for entry, value in zip(spec.outputs, results, strict=True)}


def _as_it_is(module: Any) -> nn.Module:
    wrapped: nn.Module = module
    return wrapped
