"""The two training losses of AnomalySD (Yan et al., arXiv 2408.01960), and one addition of ours.

UNet:     L_theta = E || eps - eps_theta([z_t, m, z_o], t, tau(y)) ||^2        (or the v-target, for such a base)
Decoder:  L_D     = || x - D(E(x)) ||^2 + beta * LPIPS(x, D(E(x))),  encoder frozen

Ours, not the paper's: *start corruption*. Inspection starts at lambda*T from the photo itself, defects and all, so the
network meets defects inside the mask that training never showed it. A corrupted sample therefore starts from latents
z_c of a photo with a synthetic anomaly inside the mask, z_t = sqrt(abar) z_c + sqrt(1-abar) eps, while its target stays
the noise that leads back to the CLEAN latents z:

    eps' = (z_t - sqrt(abar) z) / sqrt(1-abar) = eps + sqrt(abar/(1-abar)) (z_c - z)

The second term grows without bound as t falls (34 times the difference at t = 1 of Stable Diffusion), so a plain square
would let a few small t drown all else. Such samples are weighted by min(1, (1-abar)/abar): below abar = 1/2 nothing
changes, above it the loss is exactly the squared error of the predicted clean latents, because
|| z - z_hat ||^2 = (1-abar)/abar || eps' - eps_hat ||^2. Hence it never exceeds what the anomaly itself measures, and
small t still learn to remove what is left. For v-prediction the same error is (1-abar) || v' - v_hat ||^2.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from anomalysd_edge.errors import SettingsError
from anomalysd_edge.training.models.perceptual import AlexPerceptual


@dataclass(frozen=True)
class NoisySamples:
    """A batch before the UNet: what it sees and what it should say."""

    noisy: Tensor
    """(N,C,h,w) z_t."""
    target: Tensor
    """(N,C,h,w) the epsilon or v that leads back to the clean latents."""
    weight: Tensor
    """(N,) factor of each sample's mean squared error."""


def noisy_samples(
    clean: Tensor, start: Tensor, noise: Tensor, abar: Tensor, corrupted: Tensor, prediction_type: str
) -> NoisySamples:
    """Noise the starts and work out the targets.

    clean, start, noise: (N,C,h,w), where `start` equals `clean` except in corrupted samples; abar: (N,) at each
    sample's t; corrupted: (N,) bool. Raises SettingsError for an unknown prediction type.
    """
    signal, spread = abar.sqrt().view(-1, 1, 1, 1), (1 - abar).sqrt().view(-1, 1, 1, 1)
    noisy = signal * start + spread * noise
    # Untouched samples keep the drawn noise itself: solving for it again would only add rounding.
    solved = (noisy - signal * clean) / spread
    epsilon = torch.where(corrupted.view(-1, 1, 1, 1), solved, noise)
    if prediction_type == "epsilon":
        target, tamed = epsilon, ((1 - abar) / abar).clamp(max=1.0)
    elif prediction_type == "v_prediction":
        target, tamed = signal * epsilon - spread * clean, 1 - abar
    else:
        raise SettingsError(f"the base predicts {prediction_type!r}; training knows epsilon and v_prediction")
    return NoisySamples(noisy, target, torch.where(corrupted, tamed, torch.ones_like(abar)))


def unet_loss(output: Tensor, samples: NoisySamples, masks: Tensor, outside_weight: float) -> Tensor:
    """Scalar float32: the weighted mean of each sample's mean squared error.

    `masks` (N,1,h,w) in {0,1}: errors outside them count `outside_weight` (1 = everywhere alike, as in the paper).
    """
    weight = masks + outside_weight * (1 - masks)
    errors = (weight * (output.float() - samples.target).square()).mean((1, 2, 3))
    return (samples.weight * errors).mean()


def decoder_loss(
    photos: Tensor, decoded: Tensor, perceptual: AlexPerceptual | None, beta: float
) -> tuple[Tensor, dict[str, float]]:
    """L_D of (N,3,H,W) photos and their decoded latents, both in [-1,1]: scalar, and its two terms for the log."""
    decoded = decoded.float()
    squared = (photos - decoded).square().mean()
    if perceptual is None or beta == 0:
        return squared, {"mse": float(squared.detach())}
    distance = perceptual.mean_distance(photos, decoded).mean()
    return squared + beta * distance, {"mse": float(squared.detach()), "lpips": float(distance.detach())}
