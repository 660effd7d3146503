"""Checkpoints of an unfinished training: weights, optimizer, step, as safetensors and JSON, written atomically.

OUT.partial/training.json           identity of the training: settings, photos, base; equal in a resume
OUT.partial/log.jsonl               one JSON object per step
OUT.partial/checkpoints/step-000100/{state.json, unet, ema, decoder, optimizer .safetensors}
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from anomalysd_edge.core.files import folder_aside, read_json, write_aside, write_json
from anomalysd_edge.errors import RunError

Tensors = dict[str, Tensor]


@dataclass
class Checkpoint:
    """The state of a training. `phase`: "unet" or "decoder"; `step`: its finished steps."""

    phase: str
    step: int
    total: int
    """Finished steps of both phases."""
    seconds: float
    """Training time so far, interrupted calls included."""
    tensors: dict[str, Tensors] = field(default_factory=dict)
    """By file stem: "unet" (its trained parameters), "ema", "decoder", "optimizer"."""


def partial_folder(out: Path) -> Path:
    """The working folder of the training whose run will be `out`."""
    return out.with_name(out.name + ".partial")


def save_checkpoint(work: Path, checkpoint: Checkpoint, unchanged: tuple[str, ...] = ()) -> Path:
    """Write `checkpoint` atomically, then remove older ones; its folder. `unchanged` files are linked from the last."""
    folder = work / "checkpoints" / f"step-{checkpoint.total:06d}"
    before = latest(work)
    with folder_aside(folder) as aside:
        for stem, tensors in checkpoint.tensors.items():
            file = f"{stem}.safetensors"
            if stem in unchanged and before is not None and (before / file).is_file():
                _link(before / file, aside / file)
            else:
                save_file({name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}, aside / file)
        place = {name: getattr(checkpoint, name) for name in ("phase", "step", "total", "seconds")}
        write_json(aside / "state.json", {**place, "files": sorted(checkpoint.tensors)})
    for older in (work / "checkpoints").glob("step-*"):
        if older != folder:
            shutil.rmtree(older)
    return folder


def latest(work: Path) -> Path | None:
    """The newest complete checkpoint of a partial folder."""
    found = sorted(folder for folder in (work / "checkpoints").glob("step-*") if (folder / "state.json").is_file())
    return found[-1] if found else None


def load_checkpoint(folder: Path) -> Checkpoint:
    """Read a checkpoint back. Raises RunError if a file of it is missing or broken."""
    place = read_json(folder / "state.json")
    try:
        return Checkpoint(
            phase=str(place["phase"]),
            step=int(place["step"]),
            total=int(place["total"]),
            seconds=float(place["seconds"]),
            tensors={stem: load_file(folder / f"{stem}.safetensors") for stem in place["files"]},
        )
    except (KeyError, ValueError, OSError, SafetensorError) as error:
        raise RunError(f"the checkpoint {folder} is broken ({error}); remove it and train again") from error


def restore(parameters: Mapping[str, Tensor], tensors: Tensors) -> None:
    """Copy saved values into `parameters`. Raises RunError if one is missing or of another shape."""
    with torch.no_grad():
        for name, parameter in parameters.items():
            saved = require_tensor(tensors, name)
            if saved.shape != parameter.shape:
                raise RunError(f"the checkpoint's {name} is {tuple(saved.shape)}, expected {tuple(parameter.shape)}")
            parameter.copy_(saved)


def begin_partial(work: Path, identity: Mapping[str, Any]) -> None:
    """Create an empty partial folder; one of an earlier training, recognised by its training.json, is replaced."""
    with folder_aside(work, marker="training.json") as aside:
        write_json(aside / "training.json", identity)
        (aside / "log.jsonl").touch()


def check_identity(work: Path, identity: Mapping[str, Any]) -> None:
    """Raise RunError, naming the difference, unless `identity` equals that in the partial folder."""
    begun = read_json(work / "training.json")
    for part, value in identity.items():
        was = begun.get(part)
        if was == value:
            continue
        name, found, expected = part, value, was
        if isinstance(value, Mapping) and isinstance(was, Mapping):
            key = next(k for k in sorted({*value, *was}) if value.get(k) != was.get(k))
            name, found, expected = f"{part} {key}", value.get(key), was.get(key)
        raise RunError(
            f"{work} was begun with {name} = {expected!r}, this call brings {found!r}; resume with the same, or train "
            "again without resuming"
        )


def truncate_log(work: Path, total: int) -> None:
    """Drop the log lines of steps after the checkpoint: they will be repeated."""
    lines = [line for line in read_log(work / "log.jsonl") if line["total"] <= total]
    with write_aside(work / "log.jsonl") as aside:
        aside.write_text("".join(json.dumps(line) + "\n" for line in lines))


def read_log(path: Path) -> list[dict[str, Any]]:
    """The lines of a loss log; an incomplete last line is left out."""
    lines = path.read_text().splitlines() if path.is_file() else []
    whole = []
    for number, line in enumerate(lines):
        try:
            whole.append(json.loads(line))
        except json.JSONDecodeError as error:
            if number + 1 < len(lines):
                raise RunError(f"line {number + 1} of {path} is not JSON; train again") from error
    return whole


def loss_summary(log: Sequence[Mapping[str, Any]], phase: str) -> dict[str, float] | None:
    """Mean loss of the first and of the last twentieth of a phase's steps; None for a phase without steps."""
    losses = [float(line["loss"]) for line in log if line["phase"] == phase]
    if not losses:
        return None
    some = max(1, len(losses) // 20)
    return {"first": sum(losses[:some]) / some, "last": sum(losses[-some:]) / some, "steps": len(losses)}


def require_tensor(tensors: Tensors, name: str) -> Tensor:
    """The tensor `name`. Raises RunError if the checkpoint lacks it."""
    if name not in tensors:
        raise RunError(f"the checkpoint holds no {name}; remove it and train again")
    return tensors[name]


def _link(source: Path, target: Path) -> None:
    """Hard-link; copy where the file system has no links."""
    try:
        os.link(source, target)
    except OSError:
        shutil.copyfile(source, target)
