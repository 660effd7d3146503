"""The noise schedule and the truncated DDIM grid, as two numbers a step.

Deterministic DDIM (eta = 0; Song et al. 2021, eq. 12) is linear in the latent z and in the UNet's output o, so a step
is z <- c0*z + c1*o. Epsilon, v and sample prediction differ in (c0, c1) alone: a backend needs no scheduler.
DPM-Solver++ (2M) looks one pass back (Lu et al. 2022, algorithm 2), which adds one term and what it is made of.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from anomalysd_edge.core.types import F64
from anomalysd_edge.errors import SettingsError


@dataclass(frozen=True)
class StepTable:
    """A truncated loop, ready for the networks' door."""

    timesteps: npt.NDArray[np.int64]
    """(S,) falling training timesteps at which the UNet is asked."""
    coefficients: npt.NDArray[np.float32]
    """(S,2): z <- c[0]*z + c[1]*unet_output."""
    start_abar: float
    """abar at the first timestep: z_start = sqrt(abar)*z + sqrt(1-abar)*noise."""
    history: npt.NDArray[np.float32] | None = None
    """(S,3), see networks.InpaintJob; None where no pass looks back."""

    def __len__(self) -> int:
        return len(self.timesteps)

    def noised(self, latents: npt.NDArray[np.float32], noise: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
        """(...) clean latents and noise of one shape -> latents at the first timestep."""
        keep, add = np.float32(np.sqrt(self.start_abar)), np.float32(np.sqrt(1 - self.start_abar))
        return keep * latents + add * noise


@dataclass(frozen=True)
class NoiseSchedule:
    """abar_t over the training steps, and how a grid of inference steps is laid over it."""

    alphas_cumprod: F64
    """(T,) falling from nearly 1: abar_t = prod(1 - beta)."""
    prediction_type: str
    """'epsilon', 'v_prediction' or 'sample'."""
    timestep_spacing: str
    """diffusers' names: 'leading', 'trailing' or 'linspace'."""
    steps_offset: int
    """Added to 'leading' timesteps; 1 for Stable Diffusion."""
    final_abar: float
    """abar after the last step: 1, or abar_0 where set_alpha_to_one is false."""

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> NoiseSchedule:
        """From a diffusers scheduler config of any sampler: its betas and prediction type. Raises SettingsError."""
        total = int(config.get("num_train_timesteps", 1000))
        first, last = float(config.get("beta_start", 1e-4)), float(config.get("beta_end", 0.02))
        kind = config.get("beta_schedule", "linear")
        if config.get("trained_betas") is not None:
            betas = np.asarray(config["trained_betas"], np.float64)
        elif kind == "linear":
            betas = np.linspace(first, last, total)
        elif kind == "scaled_linear":
            betas = np.linspace(first**0.5, last**0.5, total) ** 2
        elif kind == "squaredcos_cap_v2":
            edge = np.cos((np.arange(total + 1) / total + 0.008) / 1.008 * np.pi / 2) ** 2
            betas = np.minimum(1 - edge[1:] / edge[:-1], 0.999)
        else:
            raise SettingsError(f"beta_schedule {kind!r} is not known; use linear, scaled_linear or squaredcos_cap_v2")
        if config.get("rescale_betas_zero_snr"):
            raise SettingsError("rescale_betas_zero_snr is not supported: the first step would divide by abar = 0")
        prediction = str(config.get("prediction_type", "epsilon"))
        if prediction not in ("epsilon", "v_prediction", "sample"):
            raise SettingsError(f"prediction_type {prediction!r} is not known; use epsilon, v_prediction or sample")
        abar = np.cumprod(1 - betas, dtype=np.float64)
        to_one = bool(config.get("set_alpha_to_one", True))
        return cls(
            alphas_cumprod=abar,
            prediction_type=prediction,
            timestep_spacing=str(config.get("timestep_spacing", "leading")),
            steps_offset=int(config.get("steps_offset", 0)),
            final_abar=1.0 if to_one else float(abar[0]),
        )

    @property
    def train_steps(self) -> int:
        """T, the number of training steps."""
        return len(self.alphas_cumprod)

    def table(self, sampler: str, grid_steps: int, passes: int, strength: float) -> StepTable:
        """The loop of an inspection: the truncated grid of `grid_steps`, or `passes` even ones where that is 0."""
        grid = self.truncated_ddim(grid_steps, strength) if grid_steps else self.even_ddim(passes, strength)
        return self.dpm_solver(grid) if sampler == "dpm2m" else grid

    def dpm_solver(self, grid: StepTable) -> StepTable:
        """DPM-Solver++ (2M), midpoint, over the timesteps of `grid`, ending where DDIM ends.

        First and last pass are of first order, as in diffusers' DPMSolverMultistepScheduler with few steps; one of
        first order is DDIM's own step, so up to two passes are DDIM.
        """
        kept = grid.timesteps
        if len(kept) < 3:
            return grid
        abar = np.append(self.alphas_cumprod[kept], self.final_abar)
        alpha, sigma = np.sqrt(abar), np.sqrt(1 - abar)
        with np.errstate(divide="ignore"):
            log_snr = np.log(alpha) - np.log(sigma)
        h = np.diff(log_snr)
        gain = alpha[1:] * -np.expm1(-h)
        back = np.zeros(len(kept))  # 1 / (2 r), r = h[i-1] / h[i]; 0 = first order
        back[1:-1] = h[1:-1] / (2 * h[:-2])
        a, s = alpha[:-1], sigma[:-1]
        if self.prediction_type == "epsilon":
            of_z, of_out = 1 / a, -s / a
        elif self.prediction_type == "v_prediction":
            of_z, of_out = a, -s
        else:
            of_z, of_out = np.zeros_like(a), np.ones_like(a)
        c0 = sigma[1:] / s + gain * (1 + back) * of_z
        c1 = gain * (1 + back) * of_out
        return replace(
            grid,
            coefficients=np.stack([c0, c1], axis=1).astype(np.float32),
            history=np.stack([-gain * back, of_z, of_out], axis=1).astype(np.float32),
        )

    def truncated_ddim(self, steps: int, strength: float) -> StepTable:
        """The part below strength*T of a grid of `steps`: what StableDiffusionInpaintPipeline(strength=...) runs.

        The method's N is `steps` and its lambda is `strength`; int(steps*strength) UNet passes remain.
        """
        _check(steps, strength)
        total, ratio = self.train_steps, self.train_steps // steps
        if self.timestep_spacing == "leading":
            grid = np.arange(steps)[::-1] * ratio + self.steps_offset
        elif self.timestep_spacing == "trailing":
            grid = np.round(np.arange(total, 0, -total / steps)).astype(np.int64) - 1
        elif self.timestep_spacing == "linspace":
            grid = np.round(np.linspace(0, total - 1, steps))[::-1].astype(np.int64)
        else:
            raise SettingsError(f"timestep_spacing {self.timestep_spacing!r} is not known")
        run = min(int(steps * strength), steps)
        if run < 1:
            raise SettingsError(
                f"strength {strength} of {steps} steps leaves none to run; use {int(1 / strength) + 1} or more"
            )
        kept = grid[steps - run :]
        return self._table(kept, kept - ratio)

    def even_ddim(self, passes: int, strength: float) -> StepTable:
        """Exactly `passes` UNet passes, evenly spaced from strength*T - 1 down: the few-step grid of preset edge."""
        _check(passes, strength)
        top = strength * self.train_steps
        kept = np.round(top * np.arange(passes, 0, -1) / passes).astype(np.int64) - 1
        return self._table(kept, np.append(kept[1:], -1))

    def _table(self, timesteps: npt.NDArray[np.int64], previous: npt.NDArray[np.int64]) -> StepTable:
        a = self.alphas_cumprod[timesteps]
        b = np.where(previous >= 0, self.alphas_cumprod[np.maximum(previous, 0)], self.final_abar)
        sa, sn, sb, sm = np.sqrt(a), np.sqrt(1 - a), np.sqrt(b), np.sqrt(1 - b)
        if self.prediction_type == "epsilon":
            c0, c1 = sb / sa, sm - sb * sn / sa
        elif self.prediction_type == "v_prediction":
            c0, c1 = sb * sa + sm * sn, sm * sa - sb * sn
        else:
            c0, c1 = sm / sn, sb - sm * sa / sn
        return StepTable(
            timesteps=np.ascontiguousarray(timesteps, dtype=np.int64),
            coefficients=np.stack([c0, c1], axis=1).astype(np.float32),
            start_abar=float(a[0]),
        )


def _check(steps: int, strength: float) -> None:
    if steps < 1:
        raise SettingsError(f"steps is {steps}; at least 1 is needed")
    if not 0 < strength <= 1:
        raise SettingsError(f"strength (lambda) is {strength}; it must lie in (0, 1]")
