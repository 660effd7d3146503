"""The patch scorer: a learned map from distances to the memory bank to defect scores.

A single distance cannot tell a crack from a border that the shots did not show: both are far. What differs is the
pattern, over the layers of the feature network, over the photo's own patches and over the neighbourhood. Convolutions
of some thirty thousand weights each read it, taught alike from other starts, and their log odds are averaged. They were
taught on surfaces and parts drawn in code with synthetic anomalies on them (training/reading_recipe.py), see distances
alone, never pixels or classes, and so serve classes that they were not taught on. They run here, in numpy: on a 32 x 32
field each costs some thirty million multiplications.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from safetensors import SafetensorError
from safetensors.numpy import load_file

from anomalysd_edge.core.threads import map_threads
from anomalysd_edge.core.types import F32
from anomalysd_edge.errors import BundleError, InputError
from anomalysd_edge.method.patches.memory_bank import MemoryBank, self_distances, unit

SHIPPED = {"efficientnet_lite2": Path(__file__).parents[2] / "assets/patch_scorer/efficientnet_lite2.safetensors"}
"""By kind of feature network: the patch scorer that was taught on its distances."""
SELF_SHARES = (0.1, 0.0125)
"""Shares of the photo's own patches to whose farthest a patch is compared: a texture repeats itself."""
_SELF_PATCHES = 256
"""Of those patches, evenly drawn: what is asked for is a quantile."""
_SMALLEST = np.float32(1e-4)
"""Floor inside the logarithm, above float32's rounding of 1 - cosine."""
_LOG_OFFSET = 2.0
"""Added to the logarithm of a distance, so that usual ones come near 0."""


@dataclass(frozen=True)
class PatchScorer:
    """The weights of a patch scorer: those of M convolutional networks of the same shape."""

    layers: tuple[int, ...]
    """Channels of each layer that the features join, in order."""
    kernels: tuple[F32, ...]
    """(M,O,I,k,k) float32 of each layer; the last has one output and k = 1."""
    biases: tuple[F32, ...]
    """(M,O) float32 of each."""
    dilations: tuple[int, ...]
    """Of each; the photo is mirrored at its border."""

    def fits(self, depth: int) -> bool:
        """Whether features of this many channels are those that it reads."""
        return depth == sum(self.layers)

    def score(self, distances: F32, textured: bool) -> F32:
        """(C,f,f) `layer_distances` -> (f,f) float32 >= 0: how far a patch is from good ones, and how like a defect.

        The geometric mean of the distance (weight 2) and of what the convolution makes of it (weight 1): the distance
        fills a large defect, of which the convolution sees the border.
        """
        return np.asarray(
            np.cbrt(mean_layer_distance(distances, textured) ** 2 * self.defect_odds(distances, textured)),
            dtype=np.float32,
        )

    def defect_odds(self, distances: F32, textured: bool) -> F32:
        """(C,f,f) distances -> (f,f) float32 > 0: softplus of the log odds that a patch belongs to a defect."""
        x = scorer_inputs(distances, textured)[None]
        last = len(self.kernels) - 1
        for number, (kernel, bias, dilation) in enumerate(zip(self.kernels, self.biases, self.dilations, strict=True)):
            x = convolve(x, kernel, dilation) + bias[:, :, None, None]
            if number < last:
                x = np.maximum(x, 0)
        return np.asarray(np.logaddexp(0, x[:, 0].mean(axis=0)), dtype=np.float32)

    @property
    def members(self) -> int:
        """M: how many convolutions read."""
        return len(self.kernels[0])

    @classmethod
    def ensemble(cls, patch_scorers: Sequence[PatchScorer]) -> PatchScorer:
        """Readings of the same layers and shape as one, whose log odds are their mean."""
        first = patch_scorers[0]
        return cls(
            first.layers,
            tuple(np.concatenate(kernels) for kernels in zip(*(r.kernels for r in patch_scorers), strict=True)),
            tuple(np.concatenate(biases) for biases in zip(*(r.biases for r in patch_scorers), strict=True)),
            first.dilations,
        )

    def tensors(self) -> dict[str, npt.NDArray[Any]]:
        """By the names of bundles: reading/layers, reading/dilations, reading/N/kernel, reading/N/bias."""
        found: dict[str, npt.NDArray[Any]] = {
            "reading/layers": np.array(self.layers, np.int64),
            "reading/dilations": np.array(self.dilations, np.int64),
        }
        for number, (kernel, bias) in enumerate(zip(self.kernels, self.biases, strict=True)):
            found[f"reading/{number}/kernel"], found[f"reading/{number}/bias"] = kernel, bias
        return found

    @classmethod
    def of_tensors(cls, tensors: Mapping[str, npt.NDArray[Any]], where: Path) -> PatchScorer | None:
        """The inverse of `tensors`; None where there is none. Raises BundleError where a part is missing."""
        if "reading/layers" not in tensors:
            return None
        try:
            dilations = tuple(int(d) for d in tensors["reading/dilations"])
            kernels = [np.asarray(tensors[f"reading/{n}/kernel"], np.float32) for n in range(len(dilations))]
            biases = [np.asarray(tensors[f"reading/{n}/bias"], np.float32) for n in range(len(dilations))]
            found = cls(
                tuple(int(c) for c in tensors["reading/layers"]),
                # Bundles of the first releases hold one convolution, without an axis for it.
                tuple(kernel[None] if kernel.ndim == 4 else kernel for kernel in kernels),
                tuple(bias[None] if bias.ndim == 1 else bias for bias in biases),
                dilations,
            )
        except (KeyError, ValueError, TypeError) as error:
            raise BundleError(f"{where} has a patch scorer without {error}: export the bundle again") from error
        inputs_wanted = [_channels(len(found.layers)), *(bias.shape[-1] for bias in found.biases[:-1])]
        for number, (kernel, bias) in enumerate(zip(found.kernels, found.biases, strict=True)):
            wrong = kernel.ndim != 5 or kernel.shape[:3] != (found.members, bias.shape[-1], inputs_wanted[number])
            wrong = wrong or bias.shape != kernel.shape[:2] or kernel.shape[3] != kernel.shape[4]
            if wrong or (number == len(dilations) - 1 and bias.shape[-1] != 1):
                raise BundleError(
                    f"{where}: reading/{number}/kernel is {kernel.shape}, which fits no patch scorer: export again"
                )
        return found


def shipped_patch_scorer(features_kind: str) -> PatchScorer | None:
    """The patch scorer for a kind of feature network; None where none was taught, and plain distances serve."""
    file = SHIPPED.get(features_kind)
    if file is None:
        return None
    try:
        return PatchScorer.of_tensors(load_file(file), file)
    except (OSError, SafetensorError) as error:
        raise InputError(f"{file} cannot be read ({error}): install anomalysd-edge again") from error


def layer_distances(bank: MemoryBank, features: F32, layers: tuple[int, ...]) -> F32:
    """(D,f,f) unit features -> (3L,f,f) float32 distances, 1 - cosine, three a layer.

    To the nearest prototype, and to the farthest of each of OWN_SHARES of the photo's own patches, in the channels of
    one layer alone.
    """
    found, start = [], 0
    for depth, part in zip(layers, bank.by_layer(layers), strict=True):
        query = unit(np.ascontiguousarray(features[start : start + depth]), axis=0)
        found.append(part.distance(query))
        found += self_distances(query, SELF_SHARES, _SELF_PATCHES)
        start += depth
    return np.stack(found)


def mean_layer_distance(distances: F32, textured: bool) -> F32:
    """(3L,f,f) distances -> (f,f) float32 >= 0: the mean over layers of that to prototypes.

    For a texture its geometric mean with that to the first of OWN_SHARES, as in prototypes.prototype_distance.
    """
    each = 1 + len(SELF_SHARES)
    nearest = np.maximum(distances[::each].mean(axis=0), 0)
    if not textured:
        return np.asarray(nearest, dtype=np.float32)
    return np.asarray(np.sqrt(nearest * np.maximum(distances[1::each].mean(axis=0), 0)), dtype=np.float32)


def scorer_inputs(distances: F32, textured: bool) -> F32:
    """(C,f,f) distances -> (2C+1,f,f): their logarithms less the photo's median, as they are, and the kind."""
    logs = np.log(np.maximum(distances, _SMALLEST))
    mean = np.median(logs, axis=(1, 2), keepdims=True)
    kind = np.full((1, *distances.shape[1:]), 0.0 if textured else 1.0, np.float32)
    return np.concatenate([logs - mean, logs + _LOG_OFFSET, kind]).astype(np.float32)


def convolve(x: F32, kernels: F32, dilation: int) -> F32:
    """(M,I,h,w), or (1,I,h,w) for all, and (M,O,I,k,k) -> (M,O,h,w): dilated convolutions of M networks.

    Mirrored at the border (without the border twice).
    """
    members, outputs, _, size, _ = kernels.shape
    *_, height, width = x.shape
    reach = dilation * (size // 2)
    # A field narrower than the reach cannot be mirrored by it: its border is repeated instead.
    around = ((0, 0), (0, 0), (reach, reach), (reach, reach))
    padded = np.pad(x, around, mode="reflect") if reach < min(height, width) else np.pad(x, around, mode="edge")
    # Side by side only what a kernel's row sees; its rows are the same values a few rows of the field further on.
    beside = [padded[..., column * dilation : column * dilation + width] for column in range(size)]
    columns = np.stack(beside, axis=2).reshape(len(x), -1, padded.shape[-2] * width)
    rows = np.ascontiguousarray(kernels.transpose(3, 0, 1, 2, 4)).reshape(size, members, outputs, -1)
    found = np.empty((members, outputs, height * width), np.float32)

    def product(part: tuple[int, int, int]) -> None:
        member, start, stop = part
        seen, down = columns[min(member, len(x) - 1)], dilation * width
        found[member, :, start:stop] = sum(
            rows[row, member] @ seen[:, row * down + start : row * down + stop] for row in range(size)
        )

    half = height * width // 2
    map_threads(product, [(member, *ends) for member in range(members) for ends in ((0, half), (half, height * width))])
    return found.reshape(members, outputs, height, width)


def _channels(layers: int) -> int:
    return 2 * layers * (1 + len(SELF_SHARES)) + 1
