"""The optimisation loop of both phases: AdamW, learning rate, moving average, loss log, checkpoints."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from torch import Tensor

from anomalysd_edge.core.types import Progress
from anomalysd_edge.errors import NumericError
from anomalysd_edge.training.checkpoints import Checkpoint, Tensors, latest, restore, save_checkpoint
from anomalysd_edge.training.distributed import Processes
from anomalysd_edge.training.optimizers import (
    make_optimizer,
    optimizer_tensors,
    restore_optimizer,
    restore_scaler,
    scaler_tensors,
)
from anomalysd_edge.training.settings import TrainSettings

_OVERFLOWS = 20
"""Steps in a row that float16 may leave out while its loss scale falls by half each time."""


class Fitter:
    """Runs the phases "unet" and "decoder" one after the other, from the start or from a checkpoint."""

    def __init__(
        self,
        settings: TrainSettings,
        work: Path,
        progress: Progress,
        unet_steps: int,
        found: Checkpoint | None,
        processes: Processes,
    ) -> None:
        """`work` is the partial folder, `found` the checkpoint to go on from."""
        self.settings, self.work, self.progress, self.processes = settings, work, progress, processes
        self.half = arithmetic(settings)
        self.unet_steps, self.found = unet_steps, found
        self.unet_tensors: Tensors = {}
        self._began = time.monotonic() - (found.seconds if found else 0.0)

    def seconds(self) -> float:
        """Training time so far, over all sittings."""
        return time.monotonic() - self._began

    def fit(
        self,
        phase: str,
        weights: dict[str, torch.nn.Parameter],
        loss_of: Callable[[int, slice], tuple[Tensor, dict[str, float]]],
        steps: int,
        batch: int,
        peaks: Mapping[str, float],
    ) -> None:
        """Adam on `weights` from the checkpoint's step, if it is of this phase, to `steps`.

        `loss_of(step, rows)` gives the mean loss over some of the step's `batch` samples and its terms for the log.
        `peaks` are learning rates by a prefix of the weights' names, the longest that fits ("" fits all). Raises
        NumericError for a loss or gradient that is not finite, before it reaches the weights.
        """
        settings, found, processes = self.settings, self.found, self.processes
        optimizer = make_optimizer(settings, weights, peaks)
        scaler = torch.amp.GradScaler(processes.device.type, enabled=self.half == torch.float16)
        average = {name: weight.detach().clone() for name, weight in weights.items()} if settings.ema else {}
        start = 0
        if found is not None and phase in (found.phase, "unet"):
            restore(weights, found.tensors[phase])
            if found.phase != phase:  # a decoder checkpoint: the UNet's phase is over and holds its result
                self.unet_tensors = found.tensors["unet"]
                return
            start = found.step
            restore_optimizer(optimizer, weights, found.tensors["optimizer"])
            restore_scaler(scaler, found.tensors["optimizer"])
            if average:
                restore(average, found.tensors["ema"])
            found.tensors.clear()  # gigabytes that are in the weights now
        pieces = processes.rows(batch, settings.accumulate)
        before = self.unet_steps if phase == "decoder" else 0
        recent: float | None = None
        refused = 0
        for step in range(start, steps):
            share = learning_rate(step, steps, 1.0, settings)
            for group in optimizer.param_groups:
                group["lr"] = share * group["peak"]
            rate = share * peaks[""]
            optimizer.zero_grad(set_to_none=True)
            value, terms = 0.0, dict[str, float]()
            for rows in pieces:
                loss, told = loss_of(step, rows)
                part = (rows.stop - rows.start) / batch
                value += part * float(loss.detach())
                terms = {name: terms.get(name, 0.0) + part * term for name, term in told.items()}
                scaler.scale(loss * part).backward()
            value = processes.sum(value)
            terms = {name: processes.sum(term) for name, term in terms.items()}
            self._require_finite("loss", value, phase, step, rate)
            processes.sum_gradients(weights.values())
            scaler.unscale_(optimizer)
            norm = float(torch.nn.utils.clip_grad_norm_(weights.values(), settings.clip_norm))
            # Half precision looks for its scale by overflowing now and then; the step is then left out.
            refused = refused + 1 if self.half == torch.float16 and not math.isfinite(norm) else 0
            if self.half != torch.float16 or refused > _OVERFLOWS:
                self._require_finite("gradient", norm, phase, step, rate)
            scaler.step(optimizer)
            scaler.update()
            with torch.no_grad():
                for name, slow in average.items():
                    slow.lerp_(weights[name], 1 - settings.ema)
            done = step + 1
            recent = value if recent is None else 0.9 * recent + 0.1 * value
            if processes.main:
                self._note(phase, done, before + done, value, rate, terms, self.seconds())
                self.progress("train" if phase == "unet" else "decoder", done, steps, f"loss {recent:.4f}")
            # The end of a phase too: a full disk while the run is written must not cost the training.
            if processes.main and (done % settings.checkpoint_every == 0 or done == steps):
                self._checkpoint(phase, done, before + done, weights, average, optimizer, scaler)
        if average:
            restore(weights, average)
        if phase == "unet":
            self.unet_tensors = {name: weight.detach() for name, weight in weights.items()}

    def _checkpoint(
        self,
        phase: str,
        step: int,
        total: int,
        weights: dict[str, torch.nn.Parameter],
        average: Tensors,
        optimizer: torch.optim.Optimizer,
        scaler: torch.amp.GradScaler,
    ) -> None:
        state = {**optimizer_tensors(optimizer, weights), **scaler_tensors(scaler)}
        tensors: dict[str, Tensors] = {phase: dict(weights), "optimizer": state}
        if average:
            tensors["ema"] = average
        done_before = latest(self.work)
        unchanged: tuple[str, ...] = ()
        if phase == "decoder" and self.unet_steps:
            tensors["unet"] = self.unet_tensors
            # From the second decoder checkpoint on, the UNet's file is the same.
            if done_before is not None and int(done_before.name.split("-")[1]) > self.unet_steps:
                unchanged = ("unet",)
        save_checkpoint(self.work, Checkpoint(phase, step, total, self.seconds(), tensors), unchanged)

    def _note(
        self, phase: str, step: int, total: int, loss: float, rate: float, terms: Mapping[str, float], seconds: float
    ) -> None:
        line = {"phase": phase, "step": step, "total": total, "loss": loss, "lr": rate, **terms}
        with (self.work / "log.jsonl").open("a") as log:
            log.write(json.dumps({**line, "seconds": round(seconds, 3)}) + "\n")

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
    """Of step 0 <= step < steps: a linear rise over `warmup` steps, then a cosine down to lr_floor * peak."""
    warmup = min(settings.warmup, steps)
    if step < warmup:
        return peak * (step + 1) / warmup
    position = (step - warmup) / max(1, steps - warmup)
    return peak * (settings.lr_floor + (1 - settings.lr_floor) * 0.5 * (1 + math.cos(math.pi * position)))


def arithmetic(settings: TrainSettings) -> torch.dtype | None:
    """The half precision of autocast, None for float32; "auto" is bfloat16 where the hardware multiplies it."""
    if settings.autocast != "auto":
        return {"bf16": torch.bfloat16, "fp16": torch.float16, "none": None}[settings.autocast]
    if settings.device == "cuda":
        return torch.bfloat16 if torch.cuda.is_bf16_supported() else None
    try:
        return torch.bfloat16 if "avx512_bf16" in Path("/proc/cpuinfo").read_text() else None
    except OSError:
        return None  # not Linux: nothing is known of this CPU
