"""A learned, bounded correction of prototype distances, taught to rank photos under one threshold for all classes.

The distance to the nearest prototype is multiplied by a factor between exp(-bound) and exp(bound), so it can be mended
but not overruled. Convolutions read what two sizes of the photo say of a patch: its distances to the class's prototypes
and to the photo's own patches, as logarithms with and without the photo's median, and the patch scorer's log odds. They
see no pixels and no class. Teaching (training/threshold_prior/correction_recipe.py) asks that defective photos of a
class score above good ones, that one score separates both over all classes, and that defective pixels exceed others.
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

from anomalysd_edge.core.types import F32
from anomalysd_edge.errors import BundleError, InputError
from anomalysd_edge.method.patches.memory_bank import self_distances
from anomalysd_edge.method.patches.patch_scorer import SELF_SHARES, PatchScorer, convolve
from anomalysd_edge.vision.images import resize_maps

SHIPPED = {
    "efficientnet_lite2": Path(__file__).parents[2] / "assets/patch_scorer/efficientnet_lite2_correction.safetensors"
}
"""By kind of feature network: the correction that was taught on its distances."""
FIELDS = 13
"""Distances that are read: see `correction_inputs`."""
CHANNELS = 2 * FIELDS + 2
_SMALLEST = np.float32(1e-4)
"""Floor inside the logarithm, as in patch_scorer."""
_USUAL_LOG = 2.0
"""Added to the logarithm of a distance, so that usual ones come near 0."""
_ODDS_SCALE = 4.0
"""Log odds are divided by it, so that usual ones are about as large as the other inputs."""
_OWN_PATCHES = 256
"""Of a photo's own patches, evenly drawn, those that each is compared with: what is asked for is a quantile."""
_LEAST_ODDS, _MOST_ODDS = 1e-3, 30.0
"""The patch scorer gives the softplus of its log odds; between these it is taken back."""
DILATIONS = (1, 2, 2)
"""Of the three 3 x 3 convolutions, each added to what it was given (residual connections)."""


@dataclass(frozen=True)
class DistanceCorrection:
    """The weights of M networks of H channels, whose corrections are averaged (as logarithms)."""

    first: F32
    """(M,H,CHANNELS,1,1)."""
    first_bias: F32
    """(M,H)."""
    kernels: tuple[F32, ...]
    """(M,H,H,3,3) each, as many as DILATIONS."""
    biases: tuple[F32, ...]
    """(M,H) each."""
    last: F32
    """(M,1,H,1,1)."""
    last_bias: F32
    """(M,1)."""
    bound: float = 1.0
    """Largest absolute natural logarithm of the factor."""

    def factor(self, inputs: F32) -> F32:
        """(CHANNELS,f,f) of `correction_inputs` -> (f,f) float32 in [exp(-bound), exp(bound)]."""
        x = np.maximum(convolve(inputs[None], self.first, 1) + self.first_bias[:, :, None, None], 0)
        for kernel, bias, dilation in zip(self.kernels, self.biases, DILATIONS, strict=True):
            x = np.maximum(convolve(x, kernel, dilation) + bias[:, :, None, None], 0) + x
        raw = convolve(x, self.last, 1)[:, 0] + self.last_bias[:, :, None]
        return np.asarray(np.exp(self.bound * np.tanh(raw).mean(axis=0)), dtype=np.float32)

    def tensors(self) -> dict[str, npt.NDArray[Any]]:
        """For a bundle or a file: correction/*."""
        found: dict[str, npt.NDArray[Any]] = {
            "correction/first": self.first,
            "correction/first_bias": self.first_bias,
            "correction/last": self.last,
            "correction/last_bias": self.last_bias,
            "correction/bound": np.array([self.bound], np.float32),
        }
        for number, (kernel, bias) in enumerate(zip(self.kernels, self.biases, strict=True)):
            found[f"correction/{number}/kernel"], found[f"correction/{number}/bias"] = kernel, bias
        return found

    @classmethod
    def of_tensors(cls, tensors: Mapping[str, npt.NDArray[Any]], where: Path) -> DistanceCorrection | None:
        """The inverse of `tensors`; None where there is none. Raises BundleError where a part is missing."""
        if "correction/first" not in tensors:
            return None
        try:
            part = {name.removeprefix("correction/"): np.asarray(v, np.float32) for name, v in tensors.items()}
            found = cls(
                part["first"],
                part["first_bias"],
                tuple(part[f"{number}/kernel"] for number in range(len(DILATIONS))),
                tuple(part[f"{number}/bias"] for number in range(len(DILATIONS))),
                part["last"],
                part["last_bias"],
                float(part["bound"][0]),
            )
        except (KeyError, ValueError, IndexError) as error:
            raise BundleError(f"{where} has a distance correction without {error}: export the bundle again") from error
        members, hidden = found.first_bias.shape
        wanted = (
            found.first.shape == (members, hidden, CHANNELS, 1, 1)
            and all(kernel.shape == (members, hidden, hidden, 3, 3) for kernel in found.kernels)
            and all(bias.shape == (members, hidden) for bias in found.biases)
            and found.last.shape == (members, 1, hidden, 1, 1)
            and found.last_bias.shape == (members, 1)
        )
        if not wanted:
            raise BundleError(f"{where} has a distance correction of another shape: export the bundle again")
        return found


def shipped_correction(features_kind: str) -> DistanceCorrection | None:
    """The correction for a kind of feature network; None where none was taught, and plain distances serve."""
    file = SHIPPED.get(features_kind)
    if file is None:
        return None
    try:
        return DistanceCorrection.of_tensors(load_file(file), file)
    except (OSError, SafetensorError) as error:
        raise InputError(f"{file} cannot be read ({error}): install anomalysd-edge again") from error


def correction_inputs(large: F32, large_own: F32, small: F32, small_layers: F32, small_own: F32, log_odds: F32) -> F32:
    """What the correction reads of a photo, (CHANNELS,f,f) float32 at the larger size's field f.

    `large` (f,f), `small` (g,g): distance to the nearest prototype at the larger and the smaller size of the photo.
    `large_own` (2,f,f), `small_own` (6,g,g): distances to the tenth and the eightieth part of the photo's own patches
    most like a patch; at the smaller size for each of three layers in turn. `small_layers` (3,g,g): distance to the
    nearest prototype by layer. `log_odds` (2,g,g): the patch scorer's, as a texture and as an object.
    """
    side = large.shape[-2:]
    joined = np.concatenate([small[None], small_layers, small_own, log_odds / np.float32(_ODDS_SCALE)])
    raised = resize_maps(np.asarray(joined, np.float32), (side[0], side[1]))
    fields = np.concatenate([large[None], large_own, raised[:-2]])
    logs = np.log(np.maximum(fields, _SMALLEST))
    middle = np.median(logs, axis=(1, 2), keepdims=True)
    return np.concatenate([logs - middle, raised[-2:], logs + np.float32(_USUAL_LOG)]).astype(np.float32)


def inputs_of(fine_features: F32, nearest: Sequence[F32], distances: F32, scorer: PatchScorer) -> F32:
    """What is known of a photo -> `correction_inputs`.

    `fine_features` (D,f,f) unit features at the larger size; `nearest` (g,g) and (f,f) distances to the bank of each
    size; `distances` the smaller size's patch_scorer.layer_distances of three layers, and `scorer` what reads them.
    """
    softplus = np.stack([scorer.defect_odds(distances, textured) for textured in (True, False)])
    log_odds = np.log(np.expm1(np.clip(softplus, _LEAST_ODDS, _MOST_ODDS)))
    each = 1 + len(SELF_SHARES)
    small_own = np.stack([field for number, field in enumerate(distances) if number % each])
    large_own = np.stack(self_distances(fine_features, SELF_SHARES, _OWN_PATCHES))
    small, large = nearest
    return correction_inputs(large, large_own, small, distances[::each], small_own, log_odds)
