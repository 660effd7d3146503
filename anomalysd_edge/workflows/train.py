"""`sd-edge train`: choose the few shots, describe each class, fine-tune."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from anomalysd_edge.core.files import sha256_file
from anomalysd_edge.core.types import Progress
from anomalysd_edge.data.class_inference import guess
from anomalysd_edge.data.classes import ClassSpec, class_spec, is_described, load_classes
from anomalysd_edge.data.datasets import Dataset, NamedFolders, few_shot
from anomalysd_edge.errors import RunError
from anomalysd_edge.vision.images import load_rgb
from anomalysd_edge.workflows.datasets import check_class_names, open_described, say_faults

if TYPE_CHECKING:
    from anomalysd_edge.training.run import Run


def choose_shots(data: Dataset, shots: int, shot_seed: int | None) -> dict[str, list[Path]]:
    """K good photos of every class; an empty list each for K = 0."""
    return {name: list(few_shot(found.train, shots, shot_seed, name)) for name, found in data.classes.items()}


def specs_of(shots: Mapping[str, Sequence[Path]], class_file: Path | None, progress: Progress) -> dict[str, ClassSpec]:
    """Each class's description: from the user's file, else the shipped tables, else from its name and shots."""
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
    dataset: str | None = None,
    named: NamedFolders | None = None,
) -> Run:
    """Train on K shots of each class; values of `chosen` that are not None override the base's default settings."""
    found = open_described(data, classes, dataset, named)
    check_class_names(found, named is not None)
    shots = choose_shots(found, int(chosen["shots"]), shot_seed)
    say_faults(shots)
    if resume:
        _check_finished(out, shots)
    specs = specs_of(shots, class_file, progress)
    from anomalysd_edge.training.settings import TrainSettings
    from anomalysd_edge.training.train import train

    overrides = {name: value for name, value in chosen.items() if value is not None}
    settings = TrainSettings.for_base(base, **overrides)
    return train(settings, shots, out, specs=specs, resume=resume, progress=progress)


def _check_finished(out: Path, shots: Mapping[str, Sequence[Path]]) -> None:
    """Raise RunError where a finished run, which resuming would return as it is, was made with other photos."""
    from anomalysd_edge.training.checkpoints import latest, partial_folder
    from anomalysd_edge.training.run import MARKER, read_run

    if not (out / MARKER).is_file() or latest(partial_folder(out)) is not None:
        return
    classes = read_run(out).record["classes"]
    before = {name: sorted(shot["sha256"] for shot in entry["shots"]) for name, entry in classes.items()}
    now = {name: sorted(map(sha256_file, files)) for name, files in shots.items()}
    if before != now:
        differ = sorted(name for name in before.keys() | now.keys() if before.get(name) != now.get(name))
        raise RunError(
            f"the run {out} is finished and was made with other photos of {', '.join(differ)}; train again without "
            "--resume, or into another folder"
        )
