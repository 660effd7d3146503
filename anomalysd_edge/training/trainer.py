"""The two phases of a fine-tuning, and what its run folder says: the state of one training.

Phase "unet" trains the UNet (whole, or low-rank adapters, with learned contexts where asked) on L_theta, phase
"decoder" the VAE's decoder on L_D. trainer.py carries it out.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL
from torch import Tensor

from anomalysd_edge import __version__
from anomalysd_edge.core.files import folder_aside, sha256_file, write_json
from anomalysd_edge.core.types import Progress
from anomalysd_edge.data.classes import ClassSpec
from anomalysd_edge.method.inpainting.schedule import NoiseSchedule
from anomalysd_edge.training.checkpoints import (
    Checkpoint,
    begin,
    check_identity,
    keep_log_until,
    latest,
    load_checkpoint,
    read_log,
)
from anomalysd_edge.training.data import Draw, TrainingData, levels, memory_layout
from anomalysd_edge.training.distributed import Processes
from anomalysd_edge.training.loop import Fitter, arithmetic
from anomalysd_edge.training.lora import add_adapter, lower_frozen, merge_adapter, restore_frozen, save_adapter
from anomalysd_edge.training.losses import decoder_loss, noisy_samples, unet_loss
from anomalysd_edge.training.memory import Estimate, check_memory
from anomalysd_edge.training.models.base import (
    Base,
    check_size,
    decode,
    decoder_parameters,
    folder_sha256,
    load_unet,
    load_vae,
)
from anomalysd_edge.training.models.perceptual import AlexPerceptual, load_perceptual
from anomalysd_edge.training.prompt_tuning import FILE as CONTEXTS
from anomalysd_edge.training.prompt_tuning import PREFIX, context_states, first_contexts, save_contexts
from anomalysd_edge.training.run import MARKER, SCHEMA_VERSION, copy_shots, versions, write_model
from anomalysd_edge.training.settings import TrainSettings

Step = Callable[[int, slice], tuple[Tensor, dict[str, float]]]
_WORDS = {None: "float32", torch.bfloat16: "bf16 autocast", torch.float16: "fp16 autocast"}


class Trainer:
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
        self.size_px = settings.size_px or base.size_px
        check_size(base, self.size_px)
        self.processes = Processes(settings.device)
        self.half = arithmetic(settings)
        self.learns = settings.shots > 0
        self.seconds = 0.0
        self.foreseen: Estimate | None = None
        self.unet_steps = settings.steps if self.learns else 0
        self.decoder_steps = settings.decoder_steps if self.learns else 0
        self.schedule = NoiseSchedule.from_config(base.scheduler)
        self.contexts: dict[str, torch.nn.Parameter] = {}
        self.perceptual: tuple[AlexPerceptual, str] | None = None
        if self.decoder_steps and settings.lpips_weight > 0:
            self.perceptual = load_perceptual(settings.perceptual)

    def foresee(self, there: int | None) -> None:
        """Estimate the memory. Raises SettingsError, naming the settings to change, where it is more than there is."""
        if self.unet_steps or self.decoder_steps:
            limits = dataclasses.replace(self.settings, steps=self.unet_steps, decoder_steps=self.decoder_steps)
            self.foreseen = check_memory(self.base, limits, self.size_px, self.processes.count, there)

    def run(self, resume: bool) -> None:
        """Both phases, from the start or from the last checkpoint."""
        if not self.unet_steps and not self.decoder_steps:
            return
        found = self._begin(resume)
        settings, base, device = self.settings, self.base, self.processes.device
        layout = memory_layout(settings)
        for network in (base.unet, base.vae, base.text_encoder):
            network.to(device)
        data = TrainingData(self.shots, self.specs, base, settings, self.schedule.train_steps, device)
        weights = self._trainable_unet() if self.unet_steps else {}
        if settings.context_tokens:
            self.contexts = first_contexts(base, self.specs, settings.context_tokens)
            weights.update(self.contexts)
        else:
            self.prepare(data)
            base.text_encoder = None  # its states are known
        if settings.cache == "ahead":
            self._encode_ahead(data, found)
        base.unet.to(memory_format=layout)
        fitter = Fitter(settings, self.work, self.progress, self.unet_steps, found, self.processes)
        if self.unet_steps:
            if settings.gradient_checkpointing:
                base.unet.enable_gradient_checkpointing()
            base.unet.train()
            peaks = {"": settings.lr, PREFIX: settings.context_lr}
            fitter.fit("unet", weights, self.unet_step(data, layout), self.unet_steps, settings.batch, peaks)
            base.unet.eval().requires_grad_(False)
        if self.decoder_steps:
            base.text_encoder = None
            if device.type != "cpu":
                base.unet.to("cpu")
                torch.cuda.empty_cache()
            if base.vae is None:
                base.vae = load_vae(base.folder).to(device=device, memory_format=layout)
            if settings.gradient_checkpointing and isinstance(base.vae, AutoencoderKL):
                base.vae.enable_gradient_checkpointing()
                base.vae.decoder.train()  # nothing in it drops out; diffusers recomputes in training mode alone
            decoder = decoder_parameters(base.vae)
            for parameter in decoder.values():
                parameter.requires_grad_(True)
            step = self._decoder_step(data, layout)
            fitter.fit("decoder", decoder, step, self.decoder_steps, settings.decoder_batch, {"": settings.decoder_lr})
            base.vae.eval().requires_grad_(False)
        self.seconds = fitter.seconds()
        for network in (base.unet, base.vae):
            if network is not None:
                network.to(device="cpu", memory_format=torch.contiguous_format)

    def unet_step(self, data: TrainingData, layout: torch.memory_format) -> Step:
        """The loss of L_theta over some rows of a step."""
        settings, unet, schedule = self.settings, self.base.unet, self.schedule
        abar = torch.from_numpy(schedule.alphas_cumprod).float().to(self.processes.device)

        def loss_of(step: int, rows: slice) -> tuple[Tensor, dict[str, float]]:
            draw = data.draw(step, rows)
            samples = noisy_samples(
                draw.clean, draw.start, draw.noise, abar[draw.timesteps], draw.corrupted, schedule.prediction_type
            )
            seen = torch.cat([samples.noisy, draw.masks, draw.masked], dim=1).contiguous(memory_format=layout)
            states = self._states(data, draw)
            with self.autocast():
                output = unet(seen, draw.timesteps, encoder_hidden_states=states).sample
            return unet_loss(output, samples, draw.masks, settings.outside_weight), {}

        return loss_of

    def write(self, out: Path) -> None:
        """The run folder, aside and renamed."""
        base, settings = self.base, self.settings
        with folder_aside(out, marker=MARKER) as aside:
            if settings.lora_rank and self.unet_steps:
                save_adapter(base.unet, aside / "lora")
                if settings.frozen_weights != "float32":
                    restore_frozen(base.unet, load_unet(base.folder))
                merge_adapter(base.unet)
            write_model(aside / "model", base, bool(self.unet_steps), bool(self.decoder_steps or base.vae_swap))
            if self.contexts:
                save_contexts(aside, self.contexts)
            classes = copy_shots(aside, self.shots, self.specs)
            log = read_log(self.work / "log.jsonl")
            (aside / "log.jsonl").write_text("".join(json.dumps(line) + "\n" for line in log))
            record = {
                "schema_version": SCHEMA_VERSION,
                "product": "anomalysd-edge",
                "product_version": __version__,
                "created": datetime.now(timezone.utc).isoformat(timespec="seconds"),
                "settings": settings.to_json(),
                "size_px": self.size_px,
                "base": {"name": base.name, "sha256": base.sha256},
                "vae": base.vae_swap,
                "model_sha256": folder_sha256(aside / "model"),
                "contexts_sha256": sha256_file(aside / CONTEXTS) if self.contexts else None,
                "classes": classes,
                "perceptual": self._perceptual_record(),
                "arithmetic": _WORDS[self.half],
                "processes": self.processes.count,
                "memory_estimate_bytes": self.foreseen.peak if self.foreseen else None,
                "threads": torch.get_num_threads(),
                "versions": versions(),
                "losses": {phase: _ends(log, phase) for phase in ("unet", "decoder")},
                "seconds": round(self.seconds, 1),
                **self.more_record(),
            }
            write_json(aside / MARKER, record)

    def prepare(self, data: TrainingData) -> None:
        """What the data needs before the text encoder goes; nothing here."""

    def more_record(self) -> dict[str, Any]:
        """What else run.json says, and a resume compares; nothing here."""
        return {}

    def autocast(self) -> torch.autocast:
        """The half precision that was chosen, around a network's call."""
        return torch.autocast(self.processes.device.type, self.half, enabled=self.half is not None)

    def _states(self, data: TrainingData, draw: Draw) -> Tensor:
        """(N,77,D) prompt states of a draw: as cached, or computed now where contexts learn."""
        if not self.contexts:
            return draw.states
        device = self.processes.device
        named = sorted({prompt for prompt in draw.prompts if prompt[0] >= 0})
        if not named:
            return draw.states
        texts = [levels(self.specs[data.classes[number]])[level] for number, level in named]
        vectors = torch.stack([self.contexts[PREFIX + data.classes[number]] for number, _ in named]).to(device)
        known = dict(zip(named, context_states(self.base, texts, vectors), strict=True))
        return torch.stack([known.get(p, plain) for p, plain in zip(draw.prompts, draw.states, strict=True)])

    def _decoder_step(self, data: TrainingData, layout: torch.memory_format) -> Step:
        vae, beta = self.base.vae, self.settings.lpips_weight
        judge = self.perceptual[0].to(self.processes.device) if self.perceptual else None

        def loss_of(step: int, rows: slice) -> tuple[Tensor, dict[str, float]]:
            photos, latents = data.draw_photos(step, rows)
            with self.autocast():
                decoded = decode(vae, latents.contiguous(memory_format=layout))
            return decoder_loss(photos, decoded, judge, beta)

        return loss_of

    def _encode_ahead(self, data: TrainingData, found: Checkpoint | None) -> None:
        """Cache what the steps to come will meet, and let the autoencoder go where it can be loaded again."""
        settings, mine = self.settings, self.processes.rows
        done = {"unet": 0, "decoder": 0}
        if found is not None:
            done = {"unet": self.unet_steps if found.phase == "decoder" else found.step, "decoder": 0}
            done[found.phase] = found.step
        unet = [(s, rows) for s in range(done["unet"], self.unet_steps) for rows in mine(settings.batch, 1)]
        after = range(done["decoder"], self.decoder_steps)
        decoder = [(s, rows) for s in after for rows in mine(settings.decoder_batch, 1)]
        data.encode_ahead(unet, decoder, lambda n, of: self.progress("encode", n, of, ""))
        if self.base.vae_swap is None:
            self.base.vae = None

    def _begin(self, resume: bool) -> Checkpoint | None:
        """Open the partial folder; the checkpoint to go on from, if there is one."""
        settings = self.settings.to_json()
        for name in ("checkpoint_every", "memory_gib"):  # change nothing in the result
            del settings[name]
        identity = {
            "base": self.base.sha256,
            "vae": self.base.vae_swap,
            "arithmetic": _WORDS[self.half],
            "settings": settings,
            "photos": {name: [sha256_file(path) for path in paths] for name, paths in self.shots.items()},
            "prompts": {name: [spec.prompts().whole, spec.prompts().detail] for name, spec in self.specs.items()},
            **self.more_record(),
        }
        last = latest(self.work) if resume else None
        found = None
        if last is not None:
            check_identity(self.work, identity)
            found = load_checkpoint(last)
        self.processes.wait()  # all have read before one writes
        if self.processes.main:
            if found is None:
                begin(self.work, identity)
            else:
                keep_log_until(self.work, found.total)
        self.processes.wait()
        return found

    def _trainable_unet(self) -> dict[str, torch.nn.Parameter]:
        unet, settings = self.base.unet, self.settings
        if settings.lora_rank:
            add_adapter(unet, settings)
            lower_frozen(unet, settings)
        else:
            unet.requires_grad_(True)
        return {name: weight for name, weight in unet.named_parameters() if weight.requires_grad}

    def _perceptual_record(self) -> dict[str, str] | None:
        if self.perceptual is None:
            return None
        return {"kind": self.perceptual[0].kind, "source": self.perceptual[1]}


def _ends(log: Sequence[Mapping[str, Any]], phase: str) -> dict[str, float] | None:
    """Mean loss of the first and the last twentieth of a phase's steps; None where it had none."""
    losses = [float(line["loss"]) for line in log if line["phase"] == phase]
    if not losses:
        return None
    some = max(1, len(losses) // 20)
    return {"first": sum(losses[:some]) / some, "last": sum(losses[-some:]) / some, "steps": len(losses)}
