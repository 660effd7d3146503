"""Consistency distillation of a fine-tuned UNet into low-rank adapters: 1 to 4 passes from lambda*T (LCM-LoRA).

Latent consistency models (Luo et al., arXiv 2310.04378; LCM-LoRA, arXiv 2311.05556), on the part of the schedule that
an inspection runs. Grid points t_1 < ... < t_N = lambda*T, t_0 the clean latents. The teacher, the UNet without
adapters, takes one DDIM step from z at t_i to z' at t_(i-1); the student's prediction of the clean latents must not
change:

    L = huber( f(z, t_i) - f^-(z', t_(i-1)) ),   f the clean latents that the output stands for,   f^-(z', t_0) = z'

f^- is the student itself without a gradient. LCM's c_skip and c_out are 0 and 1 but for its first timesteps and are
left out. A sample that starts corrupted (losses.py) is led to the clean latents by the teacher, as in an inspection, so
the student learns the whole way at once. Guidance is 1: nothing else is ever inspected with by default.
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
from anomalysd_edge.training.data import TrainingData
from anomalysd_edge.training.memory import available_bytes
from anomalysd_edge.training.prompt_tuning import PREFIX
from anomalysd_edge.training.run import Run
from anomalysd_edge.training.train import carry_out
from anomalysd_edge.training.trainer import Step, Trainer

PASSES = (1, 2, 3, 4)
_HUBER = 1e-2
"""Pseudo-Huber's c: differences below it count as squares. Latents have unit spread."""


@dataclass(frozen=True)
class DistillSettings:
    """How a run is distilled. Raises SettingsError for values out of range."""

    passes: int = 2
    """UNet passes that the new model is for; presets of more take these when it is exported."""
    strength: float = 0.3
    """lambda: inspections start at lambda*T, and the student learns nothing above it."""
    steps: int = 300
    """Steps of the distillation."""
    lora_rank: int = 16
    """Rank of the adapters on the layers that the run's own lora_targets name, and on the UNet's convolutions."""
    lr: float = 5e-4
    """Peak learning rate."""
    batch: int = 0
    """Samples a step; 0 = the run's."""
    grid: int = 20
    """N: grid points between 0 and lambda*T; a teacher's step goes from one to the next."""
    ema: float = 0.95
    """Decay of the moving average of the adapters that becomes the result."""
    device: str = "cpu"
    """cpu or cuda."""

    def __post_init__(self) -> None:
        if self.passes not in PASSES:
            raise SettingsError(f"passes is {self.passes}; distillation is for {PASSES[0]} to {PASSES[-1]}")
        if not 0 < self.strength <= 1:
            raise SettingsError(f"strength (lambda) is {self.strength}; it must lie in (0, 1]")
        if min(self.steps, self.lora_rank, self.grid) < 1 or self.grid < self.passes:
            raise SettingsError("steps, lora_rank and grid must be at least 1, and grid at least passes")


TARGETS = ("to_q", "to_k", "to_v", "to_out.0", "proj_in", "proj_out", "ff.net.0.proj", "ff.net.2", "conv1", "conv2")
"""What LCM-LoRA adapts in a UNet: attention, feed-forward layers and the residual blocks' convolutions."""


def distill(
    run: Run,
    out: Path,
    settings: DistillSettings,
    resume: bool = False,
    progress: Progress = lambda _phase, _done, _total, _detail: None,
) -> Run:
    """A run at `out` whose UNet repaints in few passes what `run`'s repaints in many; the rest is the same.

    Raises RunError for a run without photos, and what `train` raises.
    """
    shots = {name: list(files) for name, files in run.shots.items()}
    if not any(shots.values()):
        raise RunError(f"the run {run.path} was trained on 0 shots; distillation needs its good photos: train on some")
    from anomalysd_edge.training.checkpoints import partial_folder

    there = available_bytes(settings.device)
    trainer = Distiller(run, settings, partial_folder(out), progress)
    return carry_out(trainer, out, resume, there)


class Distiller(Trainer):
    """A training whose loss is the consistency of the UNet with itself along the teacher's way."""

    def __init__(self, run: Run, how: DistillSettings, work: Path, progress: Progress) -> None:
        told = dataclasses.replace(
            run.settings,
            steps=how.steps,
            decoder_steps=0,
            batch=how.batch or run.settings.batch,
            accumulate=1 if how.batch else run.settings.accumulate,
            lr=how.lr,
            lora_rank=how.lora_rank,
            lora_alpha=0.0,
            lora_targets=TARGETS,
            max_timestep=how.strength,
            context_tokens=0,
            frozen_weights="float32",
            ema=how.ema,
            vae="",
            size_px=run.size_px,
            device=how.device,
        )
        base = run.load()
        base.vae_swap = run.record.get("vae")
        super().__init__(
            told, {name: list(files) for name, files in run.shots.items()}, run.specs, base, work, progress
        )
        self.how, self.origin = how, run
        self.fixed_contexts = run.contexts()

    def run(self, resume: bool) -> None:
        """As a training, with the run's learned contexts, if any, in the prompt states."""
        super().run(resume)
        self.contexts = {PREFIX + name: torch.nn.Parameter(value) for name, value in self.fixed_contexts.items()}

    def prepare(self, data: TrainingData) -> None:
        """The prompts that this run's classes are inspected with."""
        if self.fixed_contexts:
            data.put_contexts(self.base, self.specs, self.fixed_contexts)

    def more_record(self) -> dict[str, Any]:
        """What it was distilled for, and from which run."""
        return {"distilled": {**dataclasses.asdict(self.how), "run_sha256": self.origin.sha256}}

    def unet_step(self, data: TrainingData, layout: torch.memory_format) -> Step:
        """The consistency loss over some rows of a step."""
        unet, device, outside = self.base.unet, self.processes.device, self.settings.outside_weight
        way = TeachersWay(self.schedule, self.how.strength, self.how.grid, device)

        def predicted(z: Tensor, points: Tensor, condition: Tensor, states: Tensor) -> tuple[Tensor, Tensor]:
            seen = torch.cat([z, condition], dim=1).contiguous(memory_format=layout)
            with self.autocast():
                output = unet(seen, way.timesteps[points], encoder_hidden_states=states).sample.float()
            return output, way.clean(z, output, points)

        def loss_of(step: int, rows: slice) -> tuple[Tensor, dict[str, float]]:
            draw = data.draw(step, rows)
            # draw's t is uniform below lambda*T: the grid point that it falls to.
            points = (draw.timesteps * self.how.grid // data.last_timestep).clamp(max=self.how.grid - 1) + 1
            condition = torch.cat([draw.masks, draw.masked], dim=1)
            z = way.noised(draw.start, draw.noise, points)
            with torch.no_grad():
                unet.disable_adapters()
                output, _ = predicted(z, points, condition, draw.states)
                unet.enable_adapters()
                before = way.stepped(z, output, points)
                _, target = predicted(before, points - 1, condition, draw.states)
                target = torch.where((points == 1).view(-1, 1, 1, 1), before, target)
            _, mine = predicted(z, points, condition, draw.states)
            weight = draw.masks + outside * (1 - draw.masks)
            return (weight * (((mine - target).square() + _HUBER**2).sqrt() - _HUBER)).mean(), {}

        return loss_of


class TeachersWay:
    """The grid below lambda*T: point 0 is clean, points 1..N are timesteps; DDIM steps between neighbours."""

    def __init__(self, schedule: NoiseSchedule, strength: float, grid: int, device: torch.device) -> None:
        table = schedule.even_ddim(grid, strength)
        rising = torch.from_numpy(table.timesteps[::-1].copy())
        self.timesteps = torch.cat([rising[:1], rising]).to(device)
        """(N+1,) int64; that of point 0 is never asked."""
        self._steps = torch.from_numpy(table.coefficients[::-1].copy()).to(device)
        abar = torch.from_numpy(schedule.alphas_cumprod[self.timesteps.cpu().numpy()]).float()
        self._signal, self._spread = abar.sqrt().to(device), (1 - abar).sqrt().to(device)
        self._kind = schedule.prediction_type

    def noised(self, latents: Tensor, noise: Tensor, points: Tensor) -> Tensor:
        """(N,C,h,w) latents at their grid points."""
        return self._at(self._signal, points) * latents + self._at(self._spread, points) * noise

    def stepped(self, z: Tensor, output: Tensor, points: Tensor) -> Tensor:
        """One DDIM step from `points` to the points before."""
        chosen = self._steps[points - 1]
        return chosen[:, 0].view(-1, 1, 1, 1) * z + chosen[:, 1].view(-1, 1, 1, 1) * output

    def clean(self, z: Tensor, output: Tensor, points: Tensor) -> Tensor:
        """The clean latents that a UNet's output at `points` stands for."""
        signal, spread = self._at(self._signal, points), self._at(self._spread, points)
        if self._kind == "epsilon":
            return (z - spread * output) / signal
        if self._kind == "v_prediction":
            return signal * z - spread * output
        raise SettingsError(f"the base predicts {self._kind!r}; distillation knows epsilon and v_prediction")

    def _at(self, table: Tensor, points: Tensor) -> Tensor:
        return table[points].view(-1, 1, 1, 1)
