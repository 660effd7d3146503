"""Checkpoints of an unfinished training: weights, optimizer and place, as safetensors and JSON, whole or not there.

OUT.partial/training.json           what is trained: settings, photos, base; a resume must bring the same
OUT.partial/log.jsonl               one line a step
OUT.partial/checkpoints/step-000100/{state.json, unet, ema, decoder, optimizer .safetensors}
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping
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
    """A place in a training. `phase` is "unet" or "decoder", `step` the number of its finished steps."""

    phase: str
    step: int
    total: int
    """Finished steps of all phases."""
    seconds: float
    """Training time spent so far, over all sittings."""
    tensors: dict[str, Tensors] = field(default_factory=dict)
    """By file stem: "unet" (what is trained of it), "ema", "decoder", "optimizer"."""


def partial_folder(out: Path) -> Path:
    """Where a training that will become `out` keeps its work."""
    return out.with_name(out.name + ".partial")


def save_checkpoint(work: Path, checkpoint: Checkpoint, unchanged: tuple[str, ...] = ()) -> None:
    """Write `checkpoint` aside, rename it, then remove the older ones. `unchanged` files come from the last one."""
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
            saved = named(tensors, name)
            if saved.shape != parameter.shape:
                raise RunError(f"the checkpoint's {name} is {tuple(saved.shape)}, expected {tuple(parameter.shape)}")
            parameter.copy_(saved)


def begin(work: Path, identity: Mapping[str, Any]) -> None:
    """A fresh partial folder; an earlier one, which its training.json marks as ours, is discarded."""
    with folder_aside(work, marker="training.json") as aside:
        write_json(aside / "training.json", identity)
        (aside / "log.jsonl").touch()


def check_identity(work: Path, identity: Mapping[str, Any]) -> None:
    """Raise RunError, naming the difference, unless `identity` is what the partial folder was begun with."""
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


def keep_log_until(work: Path, total: int) -> None:
    """Drop the log lines of steps after the checkpoint: they will be run again."""
    lines = [line for line in read_log(work / "log.jsonl") if line["total"] <= total]
    with write_aside(work / "log.jsonl") as aside:
        aside.write_text("".join(json.dumps(line) + "\n" for line in lines))


def read_log(path: Path) -> list[dict[str, Any]]:
    """The lines of a loss log; a last line that was cut off is left out."""
    lines = path.read_text().splitlines() if path.is_file() else []
    whole = []
    for number, line in enumerate(lines):
        try:
            whole.append(json.loads(line))
        except json.JSONDecodeError as error:
            if number + 1 < len(lines):
                raise RunError(f"line {number + 1} of {path} is not JSON; train again") from error
    return whole


def named(tensors: Tensors, name: str) -> Tensor:
    """The tensor `name`. Raises RunError where a checkpoint lacks it."""
    if name not in tensors:
        raise RunError(f"the checkpoint holds no {name}; remove it and train again")
    return tensors[name]


def _link(source: Path, target: Path) -> None:
    """The same bytes under a second name; copied where the file system has no links."""
    try:
        os.link(source, target)
    except OSError:
        shutil.copyfile(source, target)
