"""`sd-edge train`: the few-shot choice, what is known of each class, the fine-tuning."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from anomalysd_edge.core.types import Progress
from anomalysd_edge.data.class_inference import guess
from anomalysd_edge.data.classes import ClassSpec, class_spec, is_described, load_classes
from anomalysd_edge.data.datasets import Dataset, few_shot, open_dataset
from anomalysd_edge.vision.images import load_rgb

if TYPE_CHECKING:
    from anomalysd_edge.training.run import Run


def choose_shots(data: Dataset, shots: int, shot_seed: int | None) -> dict[str, list[Path]]:
    """K good photos of every class; an empty list each for K = 0."""
    return {name: list(few_shot(found.train, shots, shot_seed, name)) for name, found in data.classes.items()}


def specs_of(shots: Mapping[str, Sequence[Path]], class_file: Path | None, progress: Progress) -> dict[str, ClassSpec]:
    """What is known of each class: the user's file first, then the shipped tables, then its name and its shots."""
    user = load_classes(class_file) if class_file else None
    specs = {name: class_spec(name, user) for name in shots}
    unknown = [name for name in shots if not is_described(name, user) and shots[name]]
    for number, name in enumerate(unknown):
        specs[name] = guess(specs[name], [load_rgb(file) for file in shots[name][:4]])
        found = ", ".join((specs[name].kind, *specs[name].symmetries))
        progress("classes", number + 1, len(unknown), f"{name}: {found} by its photos; --class-file says otherwise")
    return specs


def train_on(
    data: Path,
    out: Path,
    base: str,
    chosen: Mapping[str, Any],
    shot_seed: int | None,
    classes: list[str] | None,
    class_file: Path | None,
    resume: bool,
    progress: Progress,
) -> Run:
    """`sd-edge train`. `chosen` overrides the base's default settings where its values are not None."""
    found = open_dataset(data, classes)
    shots = choose_shots(found, int(chosen["shots"]), shot_seed)
    specs = specs_of(shots, class_file, progress)
    from anomalysd_edge.training.settings import TrainSettings
    from anomalysd_edge.training.train import train

    overrides = {name: value for name, value in chosen.items() if value is not None}
    settings = TrainSettings.for_base(base, **overrides)
    return train(settings, shots, out, specs=specs, resume=resume, progress=progress)
