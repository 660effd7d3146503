"""The learned reading of prototype distances: which pattern of them is a defect, and which a good part in other light.

A single distance cannot tell a crack from a border that the shots did not show: both are far. What differs is the
pattern, over the layers of the feature network, over the photo's own patches and over the neighbourhood. Convolutions
of some thirty thousand weights each read it, taught alike from other starts, and their log odds are averaged. They were
taught on surfaces and parts drawn in code with synthetic anomalies on them (training/reading_recipe.py), see distances
alone, never pixels or classes, and so serve classes that they were not taught on. They run here, in numpy: on a 32 x 32
field each costs some thirty million multiplications.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import NormalDist
from typing import Any

import numpy as np
import numpy.typing as npt
from safetensors import SafetensorError
from safetensors.numpy import load_file

from anomalysd_edge.core.threads import spread
from anomalysd_edge.core.types import F32
from anomalysd_edge.errors import BundleError, InputError
from anomalysd_edge.method.patches.memory_bank import Bank, own_distances, unit
from anomalysd_edge.method.patches.prediction_bounds import student_t

SHIPPED = {"efficientnet_lite2": Path(__file__).parents[2] / "assets/patch_scorer/efficientnet_lite2.safetensors"}
"""By kind of feature network: the reading that was taught on its distances."""
OWN_SHARES = (0.1, 0.0125)
"""Shares of the photo's own patches to whose farthest a patch is compared: a texture repeats itself."""
_OWN_PATCHES = 256
"""Of those patches, evenly drawn: what is asked for is a quantile."""
_SMALLEST = np.float32(1e-4)
"""Floor inside the logarithm, above float32's rounding of 1 - cosine."""
_PRIOR_PHOTOS = 4
"""What the drawn classes' variance counts for beside a class's own: few, since they differ in it. Of a scaled inverse
chi-square with 4 degrees the mean is 1.7 times the median; of the drawn classes' variances likewise."""
_USUAL_LOG = 2.0
"""Added to the logarithm of a distance, so that usual ones come near 0."""


@dataclass(frozen=True)
class Usual:
    """Image scores of `Reading.judge` that good photos get, as logarithms: what is known of a class before its shots.

    Classes differ in their mean, good photos of a class from each other. Both are estimated from drawn classes
    (training/reading_recipe.py) by a one-way analysis of variance.
    """

    middle: float
    """Mean over classes."""
    between: float
    """Standard deviation of the classes' means."""
    within: float
    """Standard deviation of a class's good photos; root of the mean variance."""

    def bound(self, scores: Sequence[float], rate: float) -> float:
        """Score that a further good photo exceeds with probability `rate`, given held-out good photos' `scores`.

        The normal model with this prior (Gelman et al., Bayesian Data Analysis, 3rd ed., 2.5 and 2.6): the variance
        is pooled with _PRIOR_PHOTOS of the drawn classes' (scaled inverse chi-square), then the mean with theirs, and
        the answer is the quantile of Student's t around it. Without scores it is what drawn classes give.
        """
        count = len(scores)
        if not count:
            return math.exp(self.middle + NormalDist().inv_cdf(1 - rate) * math.hypot(self.between, self.within))
        logs = np.log(np.maximum(np.asarray(scores, np.float64), _SMALLEST))
        freedom = _PRIOR_PHOTOS + count - 1
        # The mean of a scaled inverse chi-square is n/(n-2) times its scale: `within` is that mean.
        variance = ((_PRIOR_PHOTOS - 2) * self.within**2 + float(np.square(logs - logs.mean()).sum())) / freedom
        sure, known = count / variance, 1 / self.between**2
        middle = (sure * float(logs.mean()) + known * self.middle) / (sure + known)
        return math.exp(middle + student_t(1 - rate, freedom) * math.sqrt(variance + 1 / (sure + known)))


@dataclass(frozen=True)
class Reading:
    """The weights of one reading: those of M convolutions of the same shape."""

    layers: tuple[int, ...]
    """Channels of each layer that the features join, in order."""
    kernels: tuple[F32, ...]
    """(M,O,I,k,k) float32 of each layer; the last has one output and k = 1."""
    biases: tuple[F32, ...]
    """(M,O) float32 of each."""
    dilations: tuple[int, ...]
    """Of each; the photo is mirrored at its border."""
    usual: tuple[Usual, Usual] | None = None
    """What good photos of drawn surfaces score, and of drawn parts; None where nobody measured it."""

    def fits(self, depth: int) -> bool:
        """Whether features of this many channels are those that it reads."""
        return depth == sum(self.layers)

    def judge(self, distances: F32, textured: bool) -> F32:
        """(C,f,f) `layer_distances` -> (f,f) float32 >= 0: how far a patch is from good ones, and how like a defect.

        The geometric mean of the distance (weight 2) and of what the convolution makes of it (weight 1): the distance
        fills a large defect, of which the convolution sees the border.
        """
        return np.asarray(np.cbrt(plain(distances, textured) ** 2 * self.odds(distances, textured)), dtype=np.float32)

    def odds(self, distances: F32, textured: bool) -> F32:
        """(C,f,f) distances -> (f,f) float32 > 0: softplus of the log odds that a patch belongs to a defect."""
        x = inputs(distances, textured)[None]
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
    def joined(cls, readings: Sequence[Reading]) -> Reading:
        """Readings of the same layers and shape as one, whose log odds are their mean."""
        first = readings[0]
        return cls(
            first.layers,
            tuple(np.concatenate(kernels) for kernels in zip(*(r.kernels for r in readings), strict=True)),
            tuple(np.concatenate(biases) for biases in zip(*(r.biases for r in readings), strict=True)),
            first.dilations,
            first.usual,
        )

    def tensors(self) -> dict[str, npt.NDArray[Any]]:
        """For a bundle or a file: reading/layers, reading/dilations, reading/N/kernel, reading/N/bias."""
        found: dict[str, npt.NDArray[Any]] = {
            "reading/layers": np.array(self.layers, np.int64),
            "reading/dilations": np.array(self.dilations, np.int64),
        }
        if self.usual is not None:
            found["reading/usual"] = np.array([[u.middle, u.between, u.within] for u in self.usual], np.float32)
        for number, (kernel, bias) in enumerate(zip(self.kernels, self.biases, strict=True)):
            found[f"reading/{number}/kernel"], found[f"reading/{number}/bias"] = kernel, bias
        return found

    @classmethod
    def of_tensors(cls, tensors: Mapping[str, npt.NDArray[Any]], where: Path) -> Reading | None:
        """The inverse of `tensors`; None where there is no reading. Raises BundleError where a part is missing."""
        if "reading/layers" not in tensors:
            return None
        try:
            dilations = tuple(int(d) for d in tensors["reading/dilations"])
            usual = tensors.get("reading/usual")
            kernels = [np.asarray(tensors[f"reading/{n}/kernel"], np.float32) for n in range(len(dilations))]
            biases = [np.asarray(tensors[f"reading/{n}/bias"], np.float32) for n in range(len(dilations))]
            found = cls(
                tuple(int(c) for c in tensors["reading/layers"]),
                # Bundles of the first releases hold one convolution, without an axis for it.
                tuple(kernel[None] if kernel.ndim == 4 else kernel for kernel in kernels),
                tuple(bias[None] if bias.ndim == 1 else bias for bias in biases),
                dilations,
                None if usual is None else _usual(usual),
            )
        except (KeyError, ValueError, TypeError) as error:
            raise BundleError(f"{where} has a reading without {error}: export the bundle again") from error
        inputs_wanted = [_channels(len(found.layers)), *(bias.shape[-1] for bias in found.biases[:-1])]
        for number, (kernel, bias) in enumerate(zip(found.kernels, found.biases, strict=True)):
            wrong = kernel.ndim != 5 or kernel.shape[:3] != (found.members, bias.shape[-1], inputs_wanted[number])
            wrong = wrong or bias.shape != kernel.shape[:2] or kernel.shape[3] != kernel.shape[4]
            if wrong or (number == len(dilations) - 1 and bias.shape[-1] != 1):
                raise BundleError(
                    f"{where}: reading/{number}/kernel is {kernel.shape}, which fits no reading: export again"
                )
        return found


def shipped_reading(features_kind: str) -> Reading | None:
    """The reading for a kind of feature network; None where none was taught, and plain distances serve."""
    file = SHIPPED.get(features_kind)
    if file is None:
        return None
    try:
        return Reading.of_tensors(load_file(file), file)
    except (OSError, SafetensorError) as error:
        raise InputError(f"{file} cannot be read ({error}): install anomalysd-edge again") from error


def _usual(tensor: npt.NDArray[Any]) -> tuple[Usual, Usual]:
    """Raises ValueError for another shape, and where a standard deviation is not above 0."""
    if tensor.shape != (2, 3) or not (np.isfinite(tensor).all() and (tensor[:, 1:] > 0).all()):
        raise ValueError(f"a usable reading/usual: it is {tensor.tolist()}")
    surface, part = (Usual(*(float(v) for v in row)) for row in tensor)
    return surface, part


def layer_distances(bank: Bank, features: F32, layers: tuple[int, ...]) -> F32:
    """(D,f,f) unit features -> (3L,f,f) float32 distances, 1 - cosine, three a layer.

    To the nearest prototype, and to the farthest of each of OWN_SHARES of the photo's own patches, in the channels of
    one layer alone.
    """
    found, start = [], 0
    for depth, part in zip(layers, bank.by_layer(layers), strict=True):
        query = unit(np.ascontiguousarray(features[start : start + depth]), axis=0)
        found.append(part.distance(query))
        found += own_distances(query, OWN_SHARES, _OWN_PATCHES)
        start += depth
    return np.stack(found)


def plain(distances: F32, textured: bool) -> F32:
    """(3L,f,f) distances -> (f,f) float32 >= 0: the mean over layers of that to prototypes.

    For a texture its geometric mean with that to the first of OWN_SHARES, as in prototypes.prototype_distance.
    """
    each = 1 + len(OWN_SHARES)
    nearest = np.maximum(distances[::each].mean(axis=0), 0)
    if not textured:
        return np.asarray(nearest, dtype=np.float32)
    return np.asarray(np.sqrt(nearest * np.maximum(distances[1::each].mean(axis=0), 0)), dtype=np.float32)


def inputs(distances: F32, textured: bool) -> F32:
    """(C,f,f) distances -> (2C+1,f,f): their logarithms less the photo's median, as they are, and the kind."""
    logs = np.log(np.maximum(distances, _SMALLEST))
    middle = np.median(logs, axis=(1, 2), keepdims=True)
    kind = np.full((1, *distances.shape[1:]), 0.0 if textured else 1.0, np.float32)
    return np.concatenate([logs - middle, logs + _USUAL_LOG, kind]).astype(np.float32)


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
    spread(product, [(member, *ends) for member in range(members) for ends in ((0, half), (half, height * width))])
    return found.reshape(members, outputs, height, width)


def _channels(layers: int) -> int:
    return 2 * layers * (1 + len(OWN_SHARES)) + 1
