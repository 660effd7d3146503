"""The distance D(x, x^): AlexNet features, unit-normalised, squared difference, learned weights, upsampled, summed.

Source of the formula: Zhang et al., "The Unreasonable Effectiveness of Deep Features as a Perceptual Metric" (LPIPS,
arXiv 1801.03924), without its mean over space. Two sets of trained weights fit:

    lpips_alex      torchvision's ImageNet AlexNet with the heads of the `lpips` package (its version 0.1)
    shift_tolerant  ST-LPIPS (arXiv 2207.13686): conv1 at stride 1, blurred pooling; one file of `stlpips-pytorch`

Both packages are looked up as files and never imported: torchvision, which they import, cannot load beside every torch.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping
from pathlib import Path
from pickle import UnpicklingError
from typing import Literal, cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from anomalysd_edge.core.files import sha256_file
from anomalysd_edge.errors import InputError, ShapeError, missing_extra

PerceptualKind = Literal["lpips_alex", "shift_tolerant"]

CHANNELS = (64, 192, 384, 256, 256)
"""Channels of AlexNet's five convolutions."""
TRUNK_FILE = "alexnet-owt-7be5be79.pth"
"""torchvision's name of its ImageNet AlexNet; the digits are the start of the file's SHA-256."""
_TRUNK_OF_TORCHVISION = ("0", "3", "6", "8", "10")
_TRUNK_OF_SHIFT_TOLERANT = ("slice1.0", "slice2.5", "slice3.9", "slice4.11", "slice5.13")
_EPS = 1e-10


class AlexPerceptual(nn.Module):
    """LPIPS with AlexNet's shape, per pixel. Weights are random until :meth:`load`; always frozen and in eval mode."""

    shift: Tensor
    scale: Tensor
    blur: Tensor

    def __init__(self, kind: PerceptualKind) -> None:
        super().__init__()
        self.kind = kind
        stride = 4 if kind == "lpips_alex" else 1
        self.convolutions = nn.ModuleList(
            [
                nn.Conv2d(3, 64, 11, stride=stride, padding=2),
                nn.Conv2d(64, 192, 5, padding=2),
                nn.Conv2d(192, 384, 3, padding=1),
                nn.Conv2d(384, 256, 3, padding=1),
                nn.Conv2d(256, 256, 3, padding=1),
            ]
        )
        self.heads = nn.ModuleList([nn.Conv2d(channels, 1, 1, bias=False) for channels in CHANNELS])
        for head in self.heads:
            nn.init.uniform_(cast(nn.Conv2d, head).weight)  # trained heads are never negative: a distance is >= 0
        # LPIPS' scaling layer: ImageNet's mean and spread for inputs in [-1, 1].
        self.register_buffer("shift", torch.tensor([-0.030, -0.088, -0.188]).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("scale", torch.tensor([0.458, 0.448, 0.450]).view(1, 3, 1, 1), persistent=False)
        binomial = torch.tensor([1.0, 2.0, 1.0])
        self.register_buffer("blur", torch.outer(binomial, binomial).view(1, 1, 3, 3) / 16, persistent=False)
        self.requires_grad_(False)
        self.eval()

    def load(self, trunk: Mapping[str, Tensor], trunk_names: tuple[str, ...], heads: Mapping[str, Tensor]) -> None:
        """Take the convolutions `trunk_names` of `trunk` and heads lin0..lin4. Raises InputError if one is missing."""
        state: dict[str, Tensor] = {}
        try:
            for i, name in enumerate(trunk_names):
                state[f"convolutions.{i}.weight"] = trunk[f"{name}.weight"]
                state[f"convolutions.{i}.bias"] = trunk[f"{name}.bias"]
                state[f"heads.{i}.weight"] = heads[f"lin{i}.model.1.weight"]
            self.load_state_dict(state)
        except (KeyError, RuntimeError) as error:
            raise InputError(
                f"the perceptual weights do not have AlexNet's shape ({error}); install their package again"
            ) from error

    def trunk(self, images: Tensor) -> list[Tensor]:
        """(N,3,H,W) in [-1,1] -> five maps (N,C,h,w), each unit length along C."""
        if min(images.shape[-2:]) < 32:
            raise ShapeError(f"images of {tuple(images.shape[-2:])} px reached AlexNet; it needs at least 32 x 32")
        x = (images - self.shift) / self.scale
        layers = []
        for i, convolution in enumerate(self.convolutions):
            if i in (1, 2):
                x = self._pool(x)
            x = convolution(x)
            if i == 0 and self.kind == "shift_tolerant":
                x = self._blurred_half(x)
            x = functional.relu(x)
            # The clamp changes no value that counts and keeps the gradient of sqrt finite where all channels are 0.
            length = x.square().sum(1, keepdim=True).clamp_min(_EPS * _EPS).sqrt()
            layers.append(x / (length + _EPS))
        return layers

    def forward(self, references: Tensor, repaints: Tensor, reference_of: Tensor) -> Tensor:
        """(M,3,H,W), (N,3,H,W) in [-1,1], (N,) int64 -> (N,H,W) distance >= 0; references pass the trunk once."""
        side = repaints.shape[-2:]
        maps = [
            functional.interpolate(layer, size=side, mode="bilinear", align_corners=False)
            for layer in self._differences(references, repaints, reference_of)
        ]
        return torch.stack(maps).sum(0).squeeze(1)

    def mean_distance(self, references: Tensor, repaints: Tensor) -> Tensor:
        """LPIPS as published: (N,3,H,W) twice -> (N,) the sum over layers of each layer's mean over space."""
        pairs = torch.arange(len(repaints), device=repaints.device)
        means = [layer.mean((1, 2, 3)) for layer in self._differences(references, repaints, pairs)]
        return torch.stack(means).sum(0)

    def _differences(self, references: Tensor, repaints: Tensor, reference_of: Tensor) -> list[Tensor]:
        layers = zip(self.heads, self.trunk(references), self.trunk(repaints), strict=True)
        return [head((a.index_select(0, reference_of) - b).square()) for head, a, b in layers]

    def _pool(self, x: Tensor) -> Tensor:
        if self.kind == "lpips_alex":
            return functional.max_pool2d(x, 3, stride=2)
        return self._blurred_half(functional.max_pool2d(x, 3, stride=1))

    def _blurred_half(self, x: Tensor) -> Tensor:
        """Binomial 3x3 blur at stride 2 with two reflected pixels on each side (Zhang, arXiv 1904.11486)."""
        channels = x.shape[1]
        padded = functional.pad(x, (2, 2, 2, 2), mode="reflect")
        return functional.conv2d(padded, self.blur.expand(channels, 1, 3, 3), stride=2, groups=channels)


def load_perceptual(kind: str = "auto", trunk: Path | None = None) -> tuple[AlexPerceptual, str]:
    """The distance network with trained weights, and one line that says where they came from.

    `kind` is "lpips_alex", "shift_tolerant" or "auto": the first of the two that is on this machine; nothing is
    downloaded. `trunk` names torchvision's AlexNet file; without it torch hub's cache is searched.
    Raises MissingExtra or InputError if the weights are not there or not what they should be.
    """
    if kind not in ("auto", "lpips_alex", "shift_tolerant"):
        raise InputError(f"the perceptual network {kind!r} is unknown; expected auto, lpips_alex or shift_tolerant")
    heads_file = package_file("lpips", "weights/v0.1/alex.pth")
    trunk_file = trunk or Path(torch.hub.get_dir()) / "checkpoints" / TRUNK_FILE
    if kind == "lpips_alex" or (kind == "auto" and heads_file is not None and trunk_file.is_file()):
        return _lpips_alex(heads_file, trunk_file)
    return _shift_tolerant()


def _lpips_alex(heads_file: Path | None, trunk_file: Path) -> tuple[AlexPerceptual, str]:
    if heads_file is None:
        raise InputError(
            "LPIPS' heads were not found, they come with the package lpips: pip install --no-deps lpips, "
            "or choose the perceptual network shift_tolerant"
        )
    if not trunk_file.is_file():
        raise InputError(
            f"torchvision's AlexNet was not found at {trunk_file}; download "
            f"https://download.pytorch.org/models/{TRUNK_FILE} to that place, or choose shift_tolerant"
        )
    digest = sha256_file(trunk_file)
    if not digest.startswith("7be5be79"):
        raise InputError(f"{trunk_file} has SHA-256 {digest[:8]}..., expected 7be5be79...; download {TRUNK_FILE} again")
    weights = read_weights(trunk_file)
    module = AlexPerceptual("lpips_alex")
    module.load(weights, tuple(f"features.{name}" for name in _TRUNK_OF_TORCHVISION), read_weights(heads_file))
    return module, f"torchvision {TRUNK_FILE}, heads of lpips v0.1"


def _shift_tolerant() -> tuple[AlexPerceptual, str]:
    file = package_file("stlpips_pytorch", "weights/vST0.0/alex_shift_tolerant.pth")
    if file is None:
        raise missing_extra("stlpips-pytorch", "train")
    weights = read_weights(file)
    module = AlexPerceptual("shift_tolerant")
    module.load(weights, tuple(f"net.{name}" for name in _TRUNK_OF_SHIFT_TOLERANT), weights)
    return module, f"stlpips-pytorch vST0.0 alex_shift_tolerant, sha256 {sha256_file(file)[:16]}"


def package_file(package: str, relative: str) -> Path | None:
    """A data file inside an installed package, found without importing it; None if there is none."""
    spec = importlib.util.find_spec(package)
    if spec is None or spec.origin is None:
        return None
    file = Path(spec.origin).parent / relative
    return file if file.is_file() else None


def read_weights(file: Path) -> dict[str, Tensor]:
    """The tensors of a .pth file, read without running code (weights_only). Raises InputError if it is not one."""
    try:
        return cast(dict[str, Tensor], torch.load(file, map_location="cpu", weights_only=True))
    except (OSError, RuntimeError, EOFError, ValueError, KeyError, UnpicklingError) as error:
        raise InputError(
            f"{file} cannot be read as weights ({type(error).__name__}); install the package that brings it again"
        ) from error
