"""The optimisation loop of both phases: AdamW, learning rate, moving average, loss log, checkpoints."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from torch import Tensor

from anomalysd_edge.errors import NumericError
from anomalysd_edge.training.checkpoints import (
    Checkpoint,
    Tensors,
    latest,
    optimizer_tensors,
    restore,
    restore_optimizer,
    save_checkpoint,
)
from anomalysd_edge.training.settings import TrainSettings

Progress = Callable[[str, int, int, str], None]
"""progress(phase, done, total, detail)."""


class Fitter:
    """Runs the phases "unet" and "decoder" one after the other, from the start or from a checkpoint."""

    def __init__(
        self,
        settings: TrainSettings,
        work: Path,
        progress: Progress,
        bf16: bool,
        unet_steps: int,
        found: Checkpoint | None,
    ) -> None:
        """`work` is the partial folder, `found` the checkpoint to go on from."""
        self.settings, self.work, self.progress, self.bf16 = settings, work, progress, bf16
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
        loss_of: Callable[[int], tuple[Tensor, dict[str, float]]],
        steps: int,
        peak: float,
    ) -> None:
        """AdamW on `weights` from the checkpoint's step, if it is of this phase, to `steps`.

        `loss_of(step)` gives the loss and its terms for the log. Raises NumericError for a loss or gradient that is not
        finite, before it reaches the weights.
        """
        settings, found = self.settings, self.found
        optimizer = torch.optim.AdamW(weights.values(), lr=peak, weight_decay=settings.weight_decay)
        average = {name: weight.detach().clone() for name, weight in weights.items()} if settings.ema else {}
        start = 0
        if found is not None and phase in (found.phase, "unet"):
            restore(weights, found.tensors[phase])
            if found.phase != phase:  # a decoder checkpoint: the UNet's phase is over and holds its result
                self.unet_tensors = found.tensors["unet"]
                return
            start = found.step
            restore_optimizer(optimizer, weights, found.tensors["optimizer"])
            if average:
                restore(average, found.tensors["ema"])
        before = self.unet_steps if phase == "decoder" else 0
        recent: float | None = None
        for step in range(start, steps):
            rate = learning_rate(step, steps, peak, settings)
            for group in optimizer.param_groups:
                group["lr"] = rate
            loss, terms = loss_of(step)
            value = float(loss.detach())
            self._require_finite("loss", value, phase, step, rate)
            optimizer.zero_grad(set_to_none=True)
            loss.backward()  # type: ignore[no-untyped-call]
            norm = float(torch.nn.utils.clip_grad_norm_(weights.values(), settings.clip_norm))
            self._require_finite("gradient", norm, phase, step, rate)
            optimizer.step()
            with torch.no_grad():
                for name, slow in average.items():
                    slow.lerp_(weights[name], 1 - settings.ema)
            done = step + 1
            self._note(phase, done, before + done, value, rate, terms, self.seconds())
            recent = value if recent is None else 0.9 * recent + 0.1 * value
            self.progress("train" if phase == "unet" else "decoder", done, steps, f"loss {recent:.4f}")
            # The end of a phase too: a full disk while the run is written must not cost the training.
            if done % settings.checkpoint_every == 0 or done == steps:
                self._checkpoint(phase, done, before + done, weights, average, optimizer, self.seconds())
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
        seconds: float,
    ) -> None:
        tensors: dict[str, Tensors] = {phase: dict(weights), "optimizer": optimizer_tensors(optimizer, weights)}
        if average:
            tensors["ema"] = average
        done_before = latest(self.work)
        unchanged: tuple[str, ...] = ()
        if phase == "decoder" and self.unet_steps:
            tensors["unet"] = self.unet_tensors
            # From the second decoder checkpoint on, the UNet's file is the same.
            if done_before is not None and int(done_before.name.split("-")[1]) > self.unet_steps:
                unchanged = ("unet",)
        save_checkpoint(self.work, Checkpoint(phase, step, total, seconds, tensors), unchanged)

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
        also = " and set autocast to none" if self.bf16 else ""
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


def wants_bf16(settings: TrainSettings) -> bool:
    """Whether the networks train under bfloat16 autocast; "auto" means where the hardware multiplies bfloat16."""
    if settings.autocast != "auto":
        return settings.autocast == "bf16"
    if settings.device == "cuda":
        return bool(torch.cuda.is_bf16_supported())
    try:
        return "avx512_bf16" in Path("/proc/cpuinfo").read_text()
    except OSError:
        return False  # not Linux: nothing is known of this CPU
