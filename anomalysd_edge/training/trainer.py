"""Fine-tuning: a few good photos per class, all classes together, in; a run folder out.

Phase "unet" trains the UNet (whole, or low-rank adapters) on L_theta, phase "decoder" the VAE's decoder on L_D. The
work lies in OUT.partial until it is done; what stands at OUT is always a finished run.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from anomalysd_edge import __version__
from anomalysd_edge.classes import ClassSpec, class_spec
from anomalysd_edge.errors import BackendError, DatasetError, InputError, RunError, SettingsError
from anomalysd_edge.files import folder_aside, sha256_file, write_json
from anomalysd_edge.schedule import NoiseSchedule
from anomalysd_edge.training.base import Base, decode, decoder_parameters, folder_sha256, load_base
from anomalysd_edge.training.checkpoints import (
    Checkpoint,
    begin,
    check_identity,
    keep_log_until,
    latest,
    load_checkpoint,
    partial_folder,
    read_log,
)
from anomalysd_edge.training.data import TrainingData, memory_layout
from anomalysd_edge.training.fitting import Fitter, Progress, wants_bf16
from anomalysd_edge.training.lora import add_adapter, merge_adapter, save_adapter
from anomalysd_edge.training.losses import decoder_loss, noisy_samples, unet_loss
from anomalysd_edge.training.perceptual import AlexPerceptual, load_perceptual
from anomalysd_edge.training.run import MARKER, SCHEMA_VERSION, Run, copy_shots, read_run, versions, write_model
from anomalysd_edge.training.settings import TrainSettings


def train(
    settings: TrainSettings,
    shots: Mapping[str, Sequence[Path]],
    out: Path,
    specs: Mapping[str, ClassSpec] | None = None,
    resume: bool = False,
    progress: Progress = lambda _phase, _done, _total, _detail: None,
) -> Run:
    """Fine-tune `settings.base` on exactly `settings.shots` photos of every class; returns the finished run.

    An older run at `out` is replaced when the new one is whole. With `resume`, a training of the same settings and
    photos goes on from its last checkpoint and ends with the weights of an unbroken one, bit for bit on the same
    machine and versions; a finished one is returned as it is. Without, an unfinished one is begun again.
    On an error or Ctrl-C, OUT.partial stays if it holds a checkpoint and goes otherwise.

    Raises DatasetError (too few photos), ImageError, InputError (base or perceptual weights), SettingsError,
    BackendError, RunError (a resume that brings other settings or photos) and NumericError (a loss not finite).
    """
    _check_shots(settings, shots)
    if settings.device == "cuda" and not torch.cuda.is_available():
        raise BackendError(f"device cuda was asked for, but torch {torch.__version__} sees none; set device to cpu")
    if out.is_dir() and any(out.iterdir()) and not (out / MARKER).is_file():
        raise InputError(f"{out} is not empty and holds no {MARKER}, so it is not replaced; choose another folder")
    known = dict(specs) if specs is not None else {}
    resolved = {name: known.get(name) or class_spec(name) for name in shots}
    work = partial_folder(out)
    if resume and (out / MARKER).is_file() and latest(work) is None:
        return _finished(out, settings)
    base = load_base(settings.base)
    with _threads(settings.threads):
        trainer = _Trainer(settings, shots, resolved, base, work, progress)
        try:
            trainer.run(resume)
            trainer.write(out)
        except BaseException:
            if latest(work) is None:
                shutil.rmtree(work, ignore_errors=True)
            raise
    shutil.rmtree(work, ignore_errors=True)
    return read_run(out)


def _finished(out: Path, settings: TrainSettings) -> Run:
    """The run at `out`, unless it was made with other settings."""
    run = read_run(out)
    ours, theirs = settings.to_json(), run.settings.to_json()
    for name in ours:
        if ours[name] != theirs[name] and name != "checkpoint_every":
            raise RunError(
                f"the run {out} is finished and was made with {name} = {theirs[name]!r}, this call brings "
                f"{ours[name]!r}; train again without resuming, or into another folder"
            )
    return run


class _Trainer:
    """The state of one training."""

    def __init__(
        self,
        settings: TrainSettings,
        shots: Mapping[str, Sequence[Path]],
        specs: Mapping[str, ClassSpec],
        base: Base,
        work: Path,
        progress: Progress,
    ) -> None:
        self.settings, self.shots, self.specs, self.base = settings, shots, specs, base
        self.work, self.progress = work, progress
        self.device = torch.device(settings.device)
        self.bf16 = wants_bf16(settings)
        self.learns = settings.shots > 0
        self.seconds = 0.0
        self.unet_steps = settings.steps if self.learns else 0
        self.decoder_steps = settings.decoder_steps if self.learns else 0
        self.perceptual: tuple[AlexPerceptual, str] | None = None
        if self.decoder_steps and settings.lpips_weight > 0:
            self.perceptual = load_perceptual(settings.perceptual)

    def run(self, resume: bool) -> None:
        """Both phases, from the start or from the last checkpoint."""
        if not self.unet_steps and not self.decoder_steps:
            return
        found = self._begin(resume)
        settings, base = self.settings, self.base
        schedule = NoiseSchedule.from_config(base.scheduler)
        layout = memory_layout(settings)
        for network in (base.unet, base.vae, base.text_encoder):
            network.to(self.device)
        data = TrainingData(self.shots, self.specs, base, settings, schedule.train_steps)
        abar = torch.from_numpy(schedule.alphas_cumprod).float().to(self.device)
        base.unet.to(memory_format=layout)
        fitter = Fitter(settings, self.work, self.progress, self.bf16, self.unet_steps, found)

        def unet_step(step: int) -> tuple[Tensor, dict[str, float]]:
            draw = data.draw(step)
            samples = noisy_samples(
                draw.clean, draw.start, draw.noise, abar[draw.timesteps], draw.corrupted, schedule.prediction_type
            )
            seen = torch.cat([samples.noisy, draw.masks, draw.masked], dim=1).contiguous(memory_format=layout)
            with self._autocast():
                output = base.unet(seen, draw.timesteps, encoder_hidden_states=draw.states).sample
            return unet_loss(output, samples, draw.masks, settings.outside_weight), {}

        if self.unet_steps:
            weights = self._trainable_unet()
            if settings.gradient_checkpointing:
                base.unet.enable_gradient_checkpointing()
            base.unet.train()
            fitter.fit("unet", weights, unet_step, self.unet_steps, settings.lr)
            base.unet.eval().requires_grad_(False)
        if self.decoder_steps:
            decoder = decoder_parameters(base.vae)
            judge = self.perceptual[0].to(self.device) if self.perceptual else None

            def decoder_step(step: int) -> tuple[Tensor, dict[str, float]]:
                photos, latents = data.draw_photos(step)
                with self._autocast():
                    decoded = decode(base.vae, latents.contiguous(memory_format=layout))
                return decoder_loss(photos, decoded, judge, settings.lpips_weight)

            for parameter in decoder.values():
                parameter.requires_grad_(True)
            fitter.fit("decoder", decoder, decoder_step, self.decoder_steps, settings.decoder_lr)
            base.vae.requires_grad_(False)
        self.seconds = fitter.seconds()
        for network in (base.unet, base.vae):
            network.to(device="cpu", memory_format=torch.contiguous_format)

    def write(self, out: Path) -> None:
        """The run folder, aside and renamed."""
        base, settings = self.base, self.settings
        with folder_aside(out, marker=MARKER) as aside:
            if settings.lora_rank and self.unet_steps:
                save_adapter(base.unet, aside / "lora")
                merge_adapter(base.unet)
            write_model(aside / "model", base, bool(self.unet_steps), bool(self.decoder_steps))
            classes = copy_shots(aside, self.shots, self.specs)
            log = read_log(self.work / "log.jsonl")
            (aside / "log.jsonl").write_text("".join(json.dumps(line) + "\n" for line in log))
            record = {
                "schema_version": SCHEMA_VERSION,
                "product": "anomalysd-edge",
                "product_version": __version__,
                "created": datetime.now(timezone.utc).isoformat(timespec="seconds"),
                "settings": settings.to_json(),
                "size_px": settings.size_px or base.size_px,
                "base": {"name": base.name, "sha256": base.sha256},
                "model_sha256": folder_sha256(aside / "model"),
                "classes": classes,
                "perceptual": self._perceptual_record(),
                "arithmetic": "bf16 autocast" if self.bf16 else "float32",
                "threads": torch.get_num_threads(),
                "versions": versions(),
                "losses": {phase: _ends(log, phase) for phase in ("unet", "decoder")},
                "seconds": round(self.seconds, 1),
            }
            write_json(aside / MARKER, record)

    def _begin(self, resume: bool) -> Checkpoint | None:
        """Open the partial folder; the checkpoint to go on from, if there is one."""
        settings = self.settings.to_json()
        del settings["checkpoint_every"]  # changes nothing in the result
        identity = {
            "base": self.base.sha256,
            "arithmetic": "bf16" if self.bf16 else "float32",
            "settings": settings,
            "photos": {name: [sha256_file(path) for path in paths] for name, paths in self.shots.items()},
            "prompts": {name: [spec.prompts().whole, spec.prompts().detail] for name, spec in self.specs.items()},
        }
        last = latest(self.work) if resume else None
        if last is None:
            begin(self.work, identity)
            return None
        check_identity(self.work, identity)
        found = load_checkpoint(last)
        keep_log_until(self.work, found.total)
        return found

    def _trainable_unet(self) -> dict[str, torch.nn.Parameter]:
        unet, settings = self.base.unet, self.settings
        if settings.lora_rank:
            add_adapter(unet, settings)
        else:
            unet.requires_grad_(True)
        return {name: weight for name, weight in unet.named_parameters() if weight.requires_grad}

    def _autocast(self) -> torch.autocast:
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self.bf16)

    def _perceptual_record(self) -> dict[str, str] | None:
        if self.perceptual is None:
            return None
        return {"kind": self.perceptual[0].kind, "source": self.perceptual[1]}


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


def _ends(log: Sequence[Mapping[str, Any]], phase: str) -> dict[str, float] | None:
    """Mean loss of the first and the last twentieth of a phase's steps; None where it had none."""
    losses = [float(line["loss"]) for line in log if line["phase"] == phase]
    if not losses:
        return None
    some = max(1, len(losses) // 20)
    return {"first": sum(losses[:some]) / some, "last": sum(losses[-some:]) / some, "steps": len(losses)}
