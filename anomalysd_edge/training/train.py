"""Fine-tuning the base model on a few good photos per class, all classes together; the result is a run folder.

Checkpoints are kept in OUT.partial until the training is finished; OUT itself is always a finished run.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import torch

from anomalysd_edge.core.types import Progress
from anomalysd_edge.data.classes import ClassSpec, class_spec
from anomalysd_edge.errors import DatasetError, InputError, RunError, SettingsError
from anomalysd_edge.training.callbacks import TrainingCallback
from anomalysd_edge.training.checkpoints import latest, partial_folder
from anomalysd_edge.training.devices import check_training_device, plain_float32
from anomalysd_edge.training.memory import available_bytes
from anomalysd_edge.training.models.base import load_base
from anomalysd_edge.training.models.tiny_vae import swap_vae
from anomalysd_edge.training.run import MARKER, Run, read_run
from anomalysd_edge.training.settings import TrainSettings
from anomalysd_edge.training.trainer import Trainer


def train(
    settings: TrainSettings,
    shots: Mapping[str, Sequence[Path]],
    out: Path,
    specs: Mapping[str, ClassSpec] | None = None,
    resume: bool = False,
    progress: Progress = lambda _phase, _done, _total, _detail: None,
    callbacks: Sequence[TrainingCallback] = (),
) -> Run:
    """Fine-tune `settings.base` on exactly `settings.shots` photos of every class; returns the finished run.

    An older run at `out` is replaced once the new one is complete. With `resume`, a training of the same settings and
    photos continues from its last checkpoint and ends with the weights of an uninterrupted one: bit for bit on the same
    machine and versions on a CPU, up to the order of additions on a GPU (attention's backward pass adds as it comes). A
    finished run is returned unchanged. Without, an unfinished training starts again.
    `callbacks` are told settings, figures, checkpoints and the end; nothing where a finished run is returned.
    On an error or Ctrl-C, OUT.partial is kept if it holds a checkpoint and removed otherwise.

    Raises DatasetError (too few photos), ImageError, InputError (base or perceptual weights), SettingsError,
    BackendError, RunError (a resume with other settings or photos) and NumericError (a non-finite loss).
    """
    _check_shots(settings, shots)
    check_training_device(settings.device)
    if out.is_dir() and any(out.iterdir()) and not (out / MARKER).is_file():
        raise InputError(f"{out} is not empty and holds no {MARKER}, so it is not replaced; choose another folder")
    resolved = {name: (specs or {}).get(name) or class_spec(name) for name in shots}
    if resume and (out / MARKER).is_file() and latest(partial_folder(out)) is None:
        return _finished(out, settings)
    free_bytes = available_bytes(settings.device)
    base = load_base(settings.base)
    if settings.vae:
        swap_vae(base, settings.vae)
    if settings.prediction_type:
        base.scheduler["prediction_type"] = settings.prediction_type
    return run_training(
        Trainer(settings, shots, resolved, base, partial_folder(out), progress, callbacks), out, resume, free_bytes
    )


def run_training(trainer: Trainer, out: Path, resume: bool, free_bytes: int | None) -> Run:
    """Run `trainer` and write its run to `out`. `free_bytes`: free memory before the base was loaded."""
    work, processes, finished = trainer.work, trainer.processes, False
    with _threads(trainer.settings.threads), plain_float32(trainer.settings.device):
        try:
            trainer.estimate_memory(free_bytes)
            trainer.run(resume)
            if processes.is_main:
                trainer.write(out)
            finished = True
        except torch.OutOfMemoryError as error:
            raise _out_of_memory(error) from error
        except RuntimeError as error:
            raise _out_of_memory(error) if "allocate memory" in str(error) else error from error
        finally:
            if processes.is_main and (finished or latest(work) is None):
                shutil.rmtree(work, ignore_errors=True)
            for callback in trainer.callbacks if trainer.begun else ():
                callback.on_end(out if finished else None)
    processes.barrier()
    return read_run(out)


def _out_of_memory(error: BaseException) -> SettingsError:
    return SettingsError(
        f"memory ran out although the estimate said it would do ({str(error).strip().splitlines()[0]}): set "
        "gradient_checkpointing, raise accumulate, or lower batch, then go on with --resume"
    )


def _finished(out: Path, settings: TrainSettings) -> Run:
    """The finished run at `out`. Raises RunError if its settings differ."""
    run = read_run(out)
    ours, theirs = settings.to_json(), run.settings.to_json()
    for name in ours:
        if ours[name] != theirs[name] and name != "checkpoint_every":
            raise RunError(
                f"the run {out} is finished and was made with {name} = {theirs[name]!r}, this call brings "
                f"{ours[name]!r}; train again without resuming, or into another folder"
            )
    return run


@contextmanager
def _threads(count: int) -> Iterator[None]:
    before = torch.get_num_threads()
    if count:
        torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _check_shots(settings: TrainSettings, shots: Mapping[str, Sequence[Path]]) -> None:
    if not shots:
        raise DatasetError("no class was given to train on; name at least one, with or without photos")
    for name, paths in shots.items():
        if len(paths) < settings.shots:
            raise DatasetError(
                f"class {name!r} has {len(paths)} good photos, {settings.shots} were asked for; add some or lower shots"
            )
        if len(paths) > settings.shots:
            raise SettingsError(
                f"class {name!r} brings {len(paths)} photos for shots = {settings.shots}; choose exactly that many "
                "(datasets.few_shot does)"
            )
