"""The optimisation loop of both phases: AdamW, learning rate schedule, moving average, loss log, checkpoints."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from anomalysd_edge.core.types import Progress
from anomalysd_edge.errors import NumericError
from anomalysd_edge.training.callbacks import TrainingCallback
from anomalysd_edge.training.checkpoints import Checkpoint, Tensors, latest, restore, save_checkpoint
from anomalysd_edge.training.devices import autocast_dtype
from anomalysd_edge.training.distributed import Processes
from anomalysd_edge.training.optimizers import (
    make_optimizer,
    optimizer_tensors,
    restore_optimizer,
    restore_scaler,
    scaler_tensors,
)
from anomalysd_edge.training.settings import TrainSettings

LossFunction = Callable[[int, slice], tuple[Tensor, dict[str, float]]]
"""loss(step, rows) -> scalar mean loss over these rows of the step's batch, and its terms for the log."""
_MAX_OVERFLOWS = 20
"""Consecutive steps that float16 may skip while its loss scale is halved each time."""


@dataclass(frozen=True)
class _PhaseState:
    """What a phase changes, and what its checkpoints hold."""

    phase: str
    weights: dict[str, torch.nn.Parameter]
    optimizer: torch.optim.Optimizer
    scaler: torch.amp.GradScaler
    average: Tensors
    """Moving average of the weights; empty if settings.ema is 0."""


class TrainingLoop:
    """Runs the phases "unet" and "decoder" one after the other, from the start or from a checkpoint."""

    def __init__(
        self,
        settings: TrainSettings,
        work: Path,
        progress: Progress,
        unet_steps: int,
        checkpoint: Checkpoint | None,
        processes: Processes,
        callbacks: Sequence[TrainingCallback] = (),
    ) -> None:
        """`work`: the partial folder; `checkpoint`: the one to resume from."""
        self.settings, self.work, self.progress, self.processes = settings, work, progress, processes
        self.callbacks = callbacks
        self.half = autocast_dtype(settings)
        self.unet_steps, self.checkpoint = unet_steps, checkpoint
        self.unet_tensors: Tensors = {}
        self._began = time.monotonic() - (checkpoint.seconds if checkpoint else 0.0)

    def seconds(self) -> float:
        """Training time so far, interrupted calls included."""
        return time.monotonic() - self._began

    def fit(
        self,
        phase: str,
        weights: dict[str, torch.nn.Parameter],
        loss_function: LossFunction,
        steps: int,
        batch: int,
        peak_rates: Mapping[str, float],
    ) -> None:
        """Optimise `weights` in place from the checkpoint's step, if it is of this phase, to `steps`.

        `batch`: samples per step; `peak_rates`: learning rates by prefix of the weights' names, the longest match
        counts ("" matches all). Raises NumericError for a non-finite loss or gradient, before the weights change.
        """
        settings, processes = self.settings, self.processes
        average = {name: weight.detach().clone() for name, weight in weights.items()} if settings.ema else {}
        scaler = torch.amp.GradScaler(processes.device.type, enabled=self.half == torch.float16)
        optimizer = make_optimizer(settings, weights, peak_rates)
        state = _PhaseState(phase, weights, optimizer, scaler, average)
        start = self._restore(state)
        if start is None:
            return
        micro_batches = processes.rows(batch, settings.accumulate)
        steps_before = self.unet_steps if phase == "decoder" else 0
        smoothed: float | None = None
        overflows = 0
        for step in range(start, steps):
            share = learning_rate(step, steps, 1.0, settings)
            for group in optimizer.param_groups:
                group["lr"] = share * group["peak"]
            rate = share * peak_rates[""]
            optimizer.zero_grad(set_to_none=True)
            value, terms = 0.0, dict[str, float]()
            for rows in micro_batches:
                loss, loss_terms = loss_function(step, rows)
                part = (rows.stop - rows.start) / batch
                value += part * float(loss.detach())
                terms = {name: terms.get(name, 0.0) + part * term for name, term in loss_terms.items()}
                scaler.scale(loss * part).backward()
            value = processes.sum(value)
            terms = {name: processes.sum(term) for name, term in terms.items()}
            self._require_finite("loss", value, phase, step, rate)
            processes.sum_gradients(weights.values())
            scaler.unscale_(optimizer)
            norm = float(torch.nn.utils.clip_grad_norm_(weights.values(), settings.clip_norm))
            # Dynamic loss scaling overflows now and then by design; the scaler then skips the step.
            overflows = overflows + 1 if self.half == torch.float16 and not math.isfinite(norm) else 0
            if self.half != torch.float16 or overflows > _MAX_OVERFLOWS:
                self._require_finite("gradient", norm, phase, step, rate)
            scaler.step(optimizer)
            scaler.update()
            with torch.no_grad():
                for name, slow in average.items():
                    slow.lerp_(weights[name], 1 - settings.ema)
            done = step + 1
            total = steps_before + done
            smoothed = value if smoothed is None else 0.9 * smoothed + 0.1 * value
            if processes.is_main:
                gradient = {"grad_norm": norm} if math.isfinite(norm) else {}  # infinite in a step that fp16 skips
                self._log(phase, done, total, {"loss": value, "lr": rate, **gradient, **terms})
                self.progress("train" if phase == "unet" else "decoder", done, steps, f"loss {smoothed:.4f}")
            # Also at the end of a phase: a full disk while the run is written must not lose the training.
            if processes.is_main and (done % settings.checkpoint_every == 0 or done == steps):
                self._save(state, done, total)
        optimizer.zero_grad(set_to_none=True)  # gradients of a phase that ended would stay as long as its weights
        if average:
            restore(weights, average)
        if phase == "unet":
            # The parameters themselves: detached tensors would hold the GPU's memory after the network left it.
            self.unet_tensors = {name: weight for name, weight in weights.items()}  # noqa: C416 - as Tensors

    def _restore(self, state: _PhaseState) -> int | None:
        """Load the checkpoint into `state`; the step to start at, or None if the phase was finished before it."""
        checkpoint = self.checkpoint
        if checkpoint is None or state.phase not in (checkpoint.phase, "unet"):
            return 0
        restore(state.weights, checkpoint.tensors[state.phase])
        if checkpoint.phase != state.phase:  # a decoder checkpoint: its "unet" file is the result of the UNet phase
            self.unet_tensors = checkpoint.tensors["unet"]
            return None
        restore_optimizer(state.optimizer, state.weights, checkpoint.tensors["optimizer"])
        restore_scaler(state.scaler, checkpoint.tensors["optimizer"])
        if state.average:
            restore(state.average, checkpoint.tensors["ema"])
        checkpoint.tensors.clear()  # frees gigabytes that were copied into the weights
        return checkpoint.step

    def _save(self, state: _PhaseState, step: int, total: int) -> None:
        optimizer = {**optimizer_tensors(state.optimizer, state.weights), **scaler_tensors(state.scaler)}
        tensors: dict[str, Tensors] = {state.phase: dict(state.weights), "optimizer": optimizer}
        if state.average:
            tensors["ema"] = state.average
        last = latest(self.work)
        unchanged: tuple[str, ...] = ()
        if state.phase == "decoder" and self.unet_steps:
            tensors["unet"] = self.unet_tensors
            # From the second decoder checkpoint on, the UNet's file is the same.
            if last is not None and int(last.name.split("-")[1]) > self.unet_steps:
                unchanged = ("unet",)
        folder = save_checkpoint(self.work, Checkpoint(state.phase, step, total, self.seconds(), tensors), unchanged)
        for callback in self.callbacks:
            callback.on_checkpoint(total, folder)

    def _log(self, phase: str, step: int, total: int, numbers: Mapping[str, float]) -> None:
        """To log.jsonl and the callbacks. `step` of the phase, `total` of both."""
        numbers = {**numbers, "seconds": round(self.seconds(), 3)}
        with (self.work / "log.jsonl").open("a") as log:
            log.write(json.dumps({"phase": phase, "step": step, "total": total, **numbers}) + "\n")
        for callback in self.callbacks:
            callback.on_step(phase, total, self.unet_steps + self.settings.decoder_steps, numbers)

    def _require_finite(self, what: str, value: float, phase: str, step: int, rate: float) -> None:
        if math.isfinite(value):
            return
        name = "lr" if phase == "unet" else "decoder_lr"
        peak = self.settings.lr if phase == "unet" else self.settings.decoder_lr
        also = " and set autocast to none" if self.half is not None else ""
        raise NumericError(
            f"the {what} of step {step + 1} of phase {phase} is {value} at learning rate {rate:.2e}; expected a finite "
            f"number: train again with a {name} below {peak:g}{also}"
        )


def learning_rate(step: int, steps: int, peak: float, settings: TrainSettings) -> float:
    """At 0 <= step < steps: linear warm-up over `warmup` steps, then cosine decay to lr_floor * peak."""
    warmup = min(settings.warmup, steps)
    if step < warmup:
        return peak * (step + 1) / warmup
    position = (step - warmup) / max(1, steps - warmup)
    return peak * (settings.lr_floor + (1 - settings.lr_floor) * 0.5 * (1 + math.cos(math.pi * position)))
