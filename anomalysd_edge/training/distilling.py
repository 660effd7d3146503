"""Consistency distillation of a fine-tuned UNet into low-rank adapters: inference in 1 to 4 steps (LCM-LoRA).

Latent consistency models (Luo et al., arXiv 2310.04378; LCM-LoRA, arXiv 2311.05556), on the part of the noise schedule
that inspection uses. Grid points t_1 < ... < t_N = lambda*T, t_0 the clean latents. The teacher, the UNet without
adapters, takes one DDIM step from z at t_i to z' at t_(i-1); the student's prediction of the clean latents must not
change:

    L = huber( f(z, t_i) - f^-(z', t_(i-1)) ),   f the predicted clean latents,   f^-(z', t_0) = z'

f^- is the student itself without a gradient. LCM's c_skip and c_out are 0 and 1 except at its first timesteps and are
omitted. The teacher denoises a corrupted start (losses.py) to the clean latents, as in an inspection, and the student
learns to do so at once. The guidance scale is 1, the default of inspection.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from anomalysd_edge.core.types import Progress
from anomalysd_edge.errors import RunError, SettingsError
from anomalysd_edge.method.inpainting.schedule import NoiseSchedule
from anomalysd_edge.training.checkpoints import partial_folder
from anomalysd_edge.training.data import TrainingData
from anomalysd_edge.training.devices import check_training_device
from anomalysd_edge.training.loop import LossFunction
from anomalysd_edge.training.memory import available_bytes
from anomalysd_edge.training.prompt_tuning import PREFIX
from anomalysd_edge.training.run import Run
from anomalysd_edge.training.train import run_training
from anomalysd_edge.training.trainer import Trainer

PASSES = (1, 2, 3, 4)
_HUBER = 1e-2
"""Pseudo-Huber's c: differences below it count as squares. Latents have unit spread."""


@dataclass(frozen=True)
class DistillSettings:
    """Settings of a distillation. Raises SettingsError for values out of range."""

    passes: int = 2
    """UNet passes of the distilled model's inference; an export limits presets with more to this number."""
    strength: float = 0.3
    """lambda: inspection starts at lambda*T; the student is not trained above it."""
    steps: int = 300
    """Steps of the distillation."""
    lora_rank: int = 16
    """Rank of the adapters on the layers of TARGETS."""
    lr: float = 5e-4
    """Peak learning rate."""
    batch: int = 0
    """Samples per step; 0 = as in the run's training."""
    grid: int = 20
    """N: grid points between 0 and lambda*T; a teacher step goes from one to the next lower."""
    ema: float = 0.95
    """Decay of the moving average of the adapters, which is the result."""
    device: str = "cpu"
    """"cpu" or "cuda"."""

    def __post_init__(self) -> None:
        if self.passes not in PASSES:
            raise SettingsError(f"passes is {self.passes}; distillation is for {PASSES[0]} to {PASSES[-1]}")
        if self.device not in ("cpu", "cuda"):
            raise SettingsError(f"device is {self.device!r}; expected one of cpu, cuda")
        if not 0 < self.strength <= 1:
            raise SettingsError(f"strength (lambda) is {self.strength}; it must lie in (0, 1]")
        if min(self.steps, self.lora_rank, self.grid) < 1 or self.grid < self.passes:
            raise SettingsError("steps, lora_rank and grid must be at least 1, and grid at least passes")


TARGETS = ("to_q", "to_k", "to_v", "to_out.0", "proj_in", "proj_out", "ff.net.0.proj", "ff.net.2", "conv1", "conv2")
"""Layers with adapters, as in LCM-LoRA: attention, feed-forward layers and the residual blocks' convolutions."""


def distill(
    run: Run,
    out: Path,
    settings: DistillSettings,
    resume: bool = False,
    progress: Progress = lambda _phase, _done, _total, _detail: None,
) -> Run:
    """Distil `run` into a run at `out` whose UNet inpaints in few steps; everything else is the same.

    Raises RunError for a run without photos, and the errors of `train`.
    """
    if not any(run.shots.values()):
        raise RunError(f"the run {run.path} was trained on 0 shots; distillation needs its good photos: train on some")
    check_training_device(settings.device)
    free_bytes = available_bytes(settings.device)
    return run_training(Distiller(run, settings, partial_folder(out), progress), out, resume, free_bytes)


class Distiller(Trainer):
    """A training whose loss is the consistency of the UNet's predictions along the teacher's trajectory."""

    def __init__(self, run: Run, settings: DistillSettings, work: Path, progress: Progress) -> None:
        train_settings = dataclasses.replace(
            run.settings,
            steps=settings.steps,
            decoder_steps=0,
            batch=settings.batch or run.settings.batch,
            accumulate=1 if settings.batch else run.settings.accumulate,
            lr=settings.lr,
            lora_rank=settings.lora_rank,
            lora_alpha=0.0,
            lora_targets=TARGETS,
            max_timestep=settings.strength,
            context_tokens=0,
            frozen_weights="float32",
            ema=settings.ema,
            vae="",
            size_px=run.size_px,
            device=settings.device,
        )
        base = run.load()
        base.vae_swap = run.record.get("vae")
        super().__init__(train_settings, run.shots, run.specs, base, work, progress)
        self.distill_settings, self.teacher_run = settings, run
        self.fixed_contexts = run.contexts()

    def run(self, resume: bool) -> None:
        """Train; the result keeps the teacher run's learned context vectors, if any."""
        super().run(resume)
        self.contexts = {PREFIX + name: torch.nn.Parameter(value) for name, value in self.fixed_contexts.items()}

    def prepare_prompts(self, data: TrainingData) -> None:
        """Use the teacher run's learned context vectors, if any."""
        if self.fixed_contexts:
            data.set_contexts(self.base, self.specs, self.fixed_contexts)

    def extra_record(self) -> dict[str, Any]:
        """The distillation's settings and the digest of the teacher run."""
        return {"distilled": {**dataclasses.asdict(self.distill_settings), "run_sha256": self.teacher_run.sha256}}

    def unet_loss_function(self, data: TrainingData) -> LossFunction:
        """The consistency loss over some rows of a step."""
        unet, device, outside = self.base.unet, self.processes.device, self.settings.outside_weight
        grid = self.distill_settings.grid
        trajectory = DdimTrajectory(self.schedule, self.distill_settings.strength, grid, device)

        def predicted(z: Tensor, points: Tensor, condition: Tensor, states: Tensor) -> tuple[Tensor, Tensor]:
            inputs = torch.cat([z, condition], dim=1).contiguous(memory_format=self.memory_format)
            with self.autocast():
                output = unet(inputs, trajectory.timesteps[points], encoder_hidden_states=states).sample.float()
            return output, trajectory.predict_clean(z, output, points)

        def loss(step: int, rows: slice) -> tuple[Tensor, dict[str, float]]:
            batch = data.unet_batch(step, rows)
            # The batch's t, uniform below lambda*T, quantised to a grid point in 1..N.
            points = (batch.timesteps * grid // data.last_timestep).clamp(max=grid - 1) + 1
            condition = torch.cat([batch.masks, batch.masked], dim=1)
            z = trajectory.add_noise(batch.start, batch.noise, points)
            with torch.no_grad():
                unet.disable_adapters()
                output, _ = predicted(z, points, condition, batch.states)
                unet.enable_adapters()
                previous = trajectory.ddim_step(z, output, points)
                _, target = predicted(previous, points - 1, condition, batch.states)
                target = torch.where((points == 1).view(-1, 1, 1, 1), previous, target)
            _, prediction = predicted(z, points, condition, batch.states)
            weight = batch.masks + outside * (1 - batch.masks)
            return (weight * (((prediction - target).square() + _HUBER**2).sqrt() - _HUBER)).mean(), {}

        return loss


class DdimTrajectory:
    """The teacher's grid below lambda*T: point 0 is clean, points 1..N are timesteps; DDIM steps between neighbours.

    All tensors are (B,C,h,w) float32 and `points` (B,) int64.
    """

    def __init__(self, schedule: NoiseSchedule, strength: float, grid: int, device: torch.device) -> None:
        table = schedule.even_ddim(grid, strength)
        rising = torch.from_numpy(table.timesteps[::-1].copy())
        self.timesteps = torch.cat([rising[:1], rising]).to(device)
        """(N+1,) int64; entry 0 is a placeholder, its output is discarded."""
        self._steps = torch.from_numpy(table.coefficients[::-1].copy()).to(device)
        abar = torch.from_numpy(schedule.alphas_cumprod[self.timesteps.cpu().numpy()]).float()
        self._signal, self._spread = abar.sqrt().to(device), (1 - abar).sqrt().to(device)
        self._kind = schedule.prediction_type

    def add_noise(self, latents: Tensor, noise: Tensor, points: Tensor) -> Tensor:
        """sqrt(abar) latents + sqrt(1-abar) noise at the grid points."""
        return self._at(self._signal, points) * latents + self._at(self._spread, points) * noise

    def ddim_step(self, z: Tensor, output: Tensor, points: Tensor) -> Tensor:
        """One DDIM step from `points` to the next lower ones, with the UNet's `output` at `points`."""
        keep, add = (self._at(column, points - 1) for column in self._steps.unbind(1))
        return keep * z + add * output

    def predict_clean(self, z: Tensor, output: Tensor, points: Tensor) -> Tensor:
        """The clean latents predicted by the UNet's `output` (epsilon or v) at `points`."""
        signal, spread = self._at(self._signal, points), self._at(self._spread, points)
        if self._kind == "epsilon":
            return (z - spread * output) / signal
        if self._kind == "v_prediction":
            return signal * z - spread * output
        raise SettingsError(f"the base predicts {self._kind!r}; distillation knows epsilon and v_prediction")

    def _at(self, table: Tensor, points: Tensor) -> Tensor:
        return table[points].view(-1, 1, 1, 1)
