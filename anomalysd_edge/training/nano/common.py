"""What the stages of nano's recipe share: the seed, learning rates, moving averages, checkpoints and the log.

Every draw is a function of the seed, the stage and the step alone. So a training that was stopped goes on as if it had
not been, and several processes, each with its own rows of a batch, take the step that one process would take.
"""

from __future__ import annotations

import json
import time
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor, nn

from anomalysd_edge.core.files import write_aside
from anomalysd_edge.training.distributed import Processes

T = TypeVar("T")

SEED = 20240801
PICTURES, AUTOENCODER, PAIRS, UNET = range(1, 5)
"""The second entry of each draw's address, so that no two stages share a stream."""


def stream(stage: int, *address: int) -> np.random.Generator:
    """The random numbers of one step or sample of a stage."""
    return np.random.default_rng((SEED, stage, *address))


@dataclass
class RecipeContext:
    """Where and how the recipe computes."""

    checkpoints: Path
    """Folder of caches, checkpoints and the log; outside any repository."""
    device: str = "cpu"
    """"cpu" or "cuda"."""
    precision: str = "fp32"
    """"fp32", or "bf16": matrix products and convolutions in bfloat16, weights and their averages in float32."""
    save_seconds: float = 180.0
    """Time between two checkpoints of a stage."""

    def __post_init__(self) -> None:
        self.processes = Processes(self.device)
        self._saved = self._began = time.monotonic()

    @property
    def place(self) -> torch.device:
        """The device of this process."""
        return self.processes.device

    @property
    def layout(self) -> torch.memory_format:
        """Channels last: in bfloat16 half the time on a CPU, and what tensor cores want."""
        return torch.channels_last

    def autocast(self) -> torch.autocast:
        """The precision, around a network's call."""
        return torch.autocast(self.place.type, torch.bfloat16, enabled=self.precision == "bf16")

    def rows(self, batch: int) -> slice:
        """This process's samples of a step."""
        return self.processes.rows(batch, 1)[0]

    def update(self, loss: Tensor, share: float, optimizer: torch.optim.Optimizer, clip_norm: float = 1.0) -> float:
        """One optimiser step on the sum of all processes' gradients; the loss over the whole batch.

        `loss` is the mean over this process's rows, `share` those rows as a share of the batch. A step whose gradient
        is not finite is left out.
        """
        weights = [weight for group in optimizer.param_groups for weight in group["params"]]
        optimizer.zero_grad(set_to_none=True)
        torch.autograd.backward(loss * share)
        self.processes.sum_gradients(weights)
        norm = torch.nn.utils.clip_grad_norm_(weights, clip_norm)
        if bool(torch.isfinite(norm)):
            optimizer.step()
        return self.processes.sum(float(loss.detach()) * share)

    def due(self) -> bool:
        """Whether it is time for another checkpoint; a True starts the clock anew. Only the main process writes."""
        if not self.processes.is_main or time.monotonic() - self._saved < self.save_seconds:
            return False
        self._saved = time.monotonic()
        return True

    def save(self, name: str, state: dict[str, Any]) -> None:
        """Write a checkpoint aside and rename it, so that a stop at any moment leaves a whole one."""
        if self.processes.is_main:
            with write_aside(self.checkpoints / f"{name}.pt") as aside:
                torch.save(state, aside)

    def load(self, name: str) -> dict[str, Any] | None:
        """A stage's last checkpoint, on the CPU; None where there is none."""
        file = self.checkpoints / f"{name}.pt"
        if not file.exists():
            return None
        state: dict[str, Any] = torch.load(file, map_location="cpu", weights_only=True)
        return state

    def note(self, stage: str, step: int, steps: int, **values: float) -> None:
        """One JSON line in the log, with the seconds since this process began."""
        if self.processes.is_main:
            seconds = round(time.monotonic() - self._began, 1)
            line = {"stage": stage, "step": step, "of": steps, "s": seconds}
            with (self.checkpoints / "log.jsonl").open("a") as log:
                log.write(json.dumps({**line, **{key: round(value, 6) for key, value in values.items()}}) + "\n")


def set_rate(optimizer: torch.optim.Optimizer, step: int, steps: int, peak: float, warm: int, hold: float) -> float:
    """The learning rate of a step: linear rise over `warm` steps, `peak`, linear fall over the last 1-hold of them."""
    value = peak * (step + 1) / warm
    if step >= warm:
        left = (steps - step) / max(1.0, steps * (1 - hold))
        value = peak * min(1.0, max(left, 0.02))
    for group in optimizer.param_groups:
        group["lr"] = value
    return value


def blend(average: nn.Module, live: nn.Module, step: int, longest: float) -> None:
    """Exponential moving average of the weights, in place; its decay grows with the steps up to `longest`."""
    keep = min(longest, step / (step + 20))
    with torch.no_grad():
        for slow, fast in zip(average.parameters(), live.parameters(), strict=True):
            slow.lerp_(fast, 1 - keep)


def drawn_ahead(draw: Callable[[int], T], steps: range, device: torch.device) -> Iterator[T]:
    """draw(step) for each of `steps`; beside a GPU a thread draws the next ones while it computes."""
    if device.type == "cpu":
        yield from map(draw, steps)
        return
    with ThreadPoolExecutor(1) as pool:
        waiting = deque(pool.submit(draw, step) for step in steps[:2])
        for step in steps:
            drawn = waiting.popleft().result()
            if step + 2 < steps.stop:
                waiting.append(pool.submit(draw, step + 2))
            yield drawn
