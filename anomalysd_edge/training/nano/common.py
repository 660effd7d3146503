"""What the stages of the recipe share: the seed, batches, learning rate, averaged weights, notes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch

SEED = 20240801


def batch_of(
    images: np.ndarray[Any, np.dtype[np.uint8]], rng: np.random.Generator, size: int
) -> tuple[torch.Tensor, np.ndarray[Any, np.dtype[np.int64]]]:
    """(size,3,H,W) float32 in [-1,1], each turned and mirrored at random, and the numbers of the images."""
    numbers = rng.integers(len(images), size=size)
    picked = []
    for number in numbers:
        image = np.rot90(images[number], int(rng.integers(4)))
        picked.append(image[:, ::-1] if rng.random() < 0.5 else image)
    stacked = np.stack(picked).transpose(0, 3, 1, 2).astype(np.float32) / 127.5 - 1
    return torch.from_numpy(stacked).contiguous(memory_format=torch.channels_last), numbers


def rate(step: int, total: int, peak: float, warm: int = 100, hold: float = 0.7) -> float:
    """Learning rate: linear warm-up, constant, then linear decay over the last 1-hold of the steps."""
    if step < warm:
        return peak * (step + 1) / warm
    left = (total - step) / max(1.0, total * (1 - hold))
    return peak * min(1.0, max(left, 0.02))


def blend(average: torch.nn.Module, live: torch.nn.Module, keep: float) -> None:
    """Exponential moving average of the weights, in place."""
    with torch.no_grad():
        for slow, fast in zip(average.parameters(), live.parameters(), strict=True):
            slow.lerp_(fast, 1 - keep)


def note(cache: Path, stage: str, step: int, steps: int, loss: float, seconds: float) -> None:
    """One JSON line a hundred steps."""
    with (cache / "log.jsonl").open("a") as log:
        log.write(
            json.dumps({"stage": stage, "step": step, "of": steps, "loss": round(loss, 5), "s": round(seconds, 1)})
            + "\n"
        )
