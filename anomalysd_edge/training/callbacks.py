"""What a training tells a program that runs it: settings, figures of every step, checkpoints, the end."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any


class TrainingCallback:
    """Base class of loggers (MLflow, W&B, ...); every method does nothing until it is overridden.

    Methods are called in the training's own thread, of several processes in the first alone. What they raise stops the
    training as Ctrl-C does: the last checkpoint stays, and train(..., resume=True) goes on from it.
    """

    def on_start(self, settings: Mapping[str, Any], step: int) -> None:
        """Before the first step. `settings`: all of TrainSettings as JSON values; `step`: steps that a resumed training
        has behind it, else 0."""

    def on_step(self, phase: str, step: int, of: int, numbers: Mapping[str, float]) -> None:
        """After each of the training's `of` steps; `step` counts from 1 through both phases, "unet" and "decoder".

        `numbers`: loss (mean over the step's batch), lr (of this step), grad_norm (before clipping; not in a step that
        loss scaling skipped), seconds (of training so far, interrupted calls included), and the terms of the loss where
        it has several.
        """

    def on_checkpoint(self, step: int, folder: Path) -> None:
        """A checkpoint was written to `folder`, which the next one replaces."""

    def on_end(self, run: Path | None) -> None:
        """After on_start, in any case. `run`: the finished run's folder, None where the training failed or stopped."""
