"""The two phases of a fine-tuning and the run folder that they result in: the state of one training.

Phase "unet" trains the UNet (all weights, or low-rank adapters, optionally with learned context vectors) on L_theta,
phase "decoder" the VAE's decoder on L_D. loop.py optimises, train.py calls.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
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
from anomalysd_edge.training.callbacks import TrainingCallback
from anomalysd_edge.training.checkpoints import (
    Checkpoint,
    begin_partial,
    check_identity,
    latest,
    load_checkpoint,
    loss_summary,
    read_log,
    truncate_log,
)
from anomalysd_edge.training.data import TrainingData, UNetBatch, memory_format, prompt_levels
from anomalysd_edge.training.devices import autocast_dtype
from anomalysd_edge.training.distributed import Processes
from anomalysd_edge.training.loop import LossFunction, TrainingLoop
from anomalysd_edge.training.lora import add_adapter, lower_frozen, merge_adapter, restore_frozen, save_adapter
from anomalysd_edge.training.losses import decoder_loss, noisy_samples, unet_loss
from anomalysd_edge.training.memory import MemoryEstimate, check_memory
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
from anomalysd_edge.training.prompt_tuning import (
    CONTEXTS_FILE,
    PREFIX,
    context_states,
    initial_contexts,
    save_contexts,
)
from anomalysd_edge.training.run import MARKER, SCHEMA_VERSION, copy_shots, versions, write_model
from anomalysd_edge.training.settings import TrainSettings

_ARITHMETIC = {None: "float32", torch.bfloat16: "bf16 autocast", torch.float16: "fp16 autocast"}


class Trainer:
    """The state of one training: base model, phases, checkpoints, run folder."""

    def __init__(
        self,
        settings: TrainSettings,
        shots: Mapping[str, Sequence[Path]],
        specs: Mapping[str, ClassSpec],
        base: Base,
        work: Path,
        progress: Progress,
        callbacks: Sequence[TrainingCallback] = (),
    ) -> None:
        """`shots`, `specs`: by class name; `work`: the partial folder of checkpoints and log."""
        self.settings, self.shots, self.specs, self.base = settings, shots, specs, base
        self.work, self.progress = work, progress
        self.size_px = settings.size_px or base.size_px
        check_size(base, self.size_px)
        self.processes = Processes(settings.device)
        self.callbacks, self.begun = (tuple(callbacks) if self.processes.is_main else ()), False
        self.half = autocast_dtype(settings)
        self.memory_format = memory_format(settings)
        self.seconds = 0.0
        self.memory_estimate: MemoryEstimate | None = None
        self.unet_steps, self.decoder_steps = (settings.steps, settings.decoder_steps) if settings.shots else (0, 0)
        self.schedule = NoiseSchedule.from_config(base.scheduler)
        self.contexts: dict[str, torch.nn.Parameter] = {}
        self.perceptual: tuple[AlexPerceptual, str] | None = None
        if self.decoder_steps and settings.lpips_weight > 0:
            self.perceptual = load_perceptual(settings.perceptual)

    def estimate_memory(self, free_bytes: int | None) -> None:
        """Estimate the peak memory. Raises SettingsError, naming the settings to change, if it exceeds `free_bytes`."""
        if self.unet_steps or self.decoder_steps:
            limits = dataclasses.replace(self.settings, steps=self.unet_steps, decoder_steps=self.decoder_steps)
            self.memory_estimate = check_memory(self.base, limits, self.size_px, self.processes.world_size, free_bytes)

    def run(self, resume: bool) -> None:
        """Run both phases, from the start or from the last checkpoint."""
        checkpoint = self._open_partial(resume) if self.unet_steps or self.decoder_steps else None
        self.begun = True
        for callback in self.callbacks:
            callback.on_start(self.settings.to_json(), checkpoint.total if checkpoint else 0)
        if not self.unet_steps and not self.decoder_steps:
            return
        settings, base, device = self.settings, self.base, self.processes.device
        for network in (base.vae, base.text_encoder):
            network.to(device)
        data = TrainingData(self.shots, self.specs, base, settings, self.schedule.train_steps, device)
        weights = self._trainable_unet() if self.unet_steps else {}
        if settings.context_tokens:
            self.contexts = initial_contexts(base, self.specs, settings.context_tokens)
            weights.update(self.contexts)
        else:
            self.prepare_prompts(data)
            base.text_encoder = None  # frees memory: all prompt states are computed
        if settings.cache == "ahead":
            self._encode_ahead(data, checkpoint)
        # Not before: frozen weights of half the bytes never stand on the device whole.
        base.unet.to(device=device, memory_format=self.memory_format)
        loop = TrainingLoop(
            settings, self.work, self.progress, self.unet_steps, checkpoint, self.processes, self.callbacks
        )
        if self.unet_steps:
            if settings.gradient_checkpointing:
                base.unet.enable_gradient_checkpointing()
            base.unet.train()
            peak_rates = {"": settings.lr, PREFIX: settings.context_lr}
            loop.fit("unet", weights, self.unet_loss_function(data), self.unet_steps, settings.batch, peak_rates)
            base.unet.eval().requires_grad_(False)
        if self.decoder_steps:
            self._train_decoder(loop, data)
        self.seconds = loop.seconds()
        for network in (base.unet, base.vae):
            if network is not None:
                network.to(device="cpu", memory_format=torch.contiguous_format)

    def unet_loss_function(self, data: TrainingData) -> LossFunction:
        """L_theta over some rows of a step."""
        settings, unet, schedule = self.settings, self.base.unet, self.schedule
        abar = torch.from_numpy(schedule.alphas_cumprod).float().to(self.processes.device)

        def loss(step: int, rows: slice) -> tuple[Tensor, dict[str, float]]:
            batch = data.unet_batch(step, rows)
            samples = noisy_samples(
                batch.clean, batch.start, batch.noise, abar[batch.timesteps], batch.corrupted, schedule.prediction_type
            )
            inputs = torch.cat([samples.noisy, batch.masks, batch.masked], dim=1)
            states = self._prompt_states(data, batch)
            with self.autocast():
                output = unet(
                    inputs.contiguous(memory_format=self.memory_format), batch.timesteps, encoder_hidden_states=states
                ).sample
            return unet_loss(output, samples, batch.masks, settings.outside_weight), {}

        return loss

    def write(self, out: Path) -> None:
        """Write the run folder `out` atomically."""
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
            perceptual = self.perceptual
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
                "contexts_sha256": sha256_file(aside / CONTEXTS_FILE) if self.contexts else None,
                "classes": classes,
                "perceptual": {"kind": perceptual[0].kind, "source": perceptual[1]} if perceptual else None,
                "arithmetic": _ARITHMETIC[self.half],
                "processes": self.processes.world_size,
                "memory_estimate_bytes": self.memory_estimate.peak if self.memory_estimate else None,
                "threads": torch.get_num_threads(),
                "versions": versions(),
                "losses": {phase: loss_summary(log, phase) for phase in ("unet", "decoder")},
                "seconds": round(self.seconds, 1),
                **self.extra_record(),
            }
            write_json(aside / MARKER, record)

    def prepare_prompts(self, data: TrainingData) -> None:
        """Hook: change the prompt states of `data` before the text encoder is released."""

    def extra_record(self) -> dict[str, Any]:
        """Hook: further entries of run.json, which a resume compares too."""
        return {}

    def autocast(self) -> torch.autocast:
        """The autocast context of a network's forward pass."""
        return torch.autocast(self.processes.device.type, self.half, enabled=self.half is not None)

    def _prompt_states(self, data: TrainingData, batch: UNetBatch) -> Tensor:
        """(N,77,D) prompt states of a batch: the cached ones, or recomputed from the context vectors being trained."""
        tuned = sorted({prompt for prompt in batch.prompts if prompt[0] >= 0})
        if not self.contexts or not tuned:
            return batch.states
        texts = [prompt_levels(self.specs[data.classes[number]])[level] for number, level in tuned]
        vectors = torch.stack([self.contexts[PREFIX + data.classes[number]] for number, _ in tuned])
        states = context_states(self.base, texts, vectors.to(self.processes.device))
        by_prompt = dict(zip(tuned, states, strict=True))
        return torch.stack([by_prompt.get(p, plain) for p, plain in zip(batch.prompts, batch.states, strict=True)])

    def _train_decoder(self, loop: TrainingLoop, data: TrainingData) -> None:
        settings, base, device = self.settings, self.base, self.processes.device
        base.text_encoder = None
        if device.type != "cpu":
            base.unet.to("cpu")
            torch.cuda.empty_cache()
        if base.vae is None:
            base.vae = load_vae(base.folder).to(device=device, memory_format=self.memory_format)
        if settings.gradient_checkpointing and isinstance(base.vae, AutoencoderKL):
            base.vae.enable_gradient_checkpointing()
            base.vae.decoder.train()  # diffusers checkpoints only in training mode; the decoder has no dropout
        weights = decoder_parameters(base.vae)
        for weight in weights.values():
            weight.requires_grad_(True)
        perceptual = self.perceptual[0].to(device) if self.perceptual else None

        def loss(step: int, rows: slice) -> tuple[Tensor, dict[str, float]]:
            photos, latents = data.decoder_batch(step, rows)
            with self.autocast():
                decoded = decode(base.vae, latents.contiguous(memory_format=self.memory_format))
            return decoder_loss(photos, decoded, perceptual, settings.lpips_weight)

        loop.fit("decoder", weights, loss, self.decoder_steps, settings.decoder_batch, {"": settings.decoder_lr})
        base.vae.eval().requires_grad_(False)

    def _encode_ahead(self, data: TrainingData, checkpoint: Checkpoint | None) -> None:
        """Cache the latents of all remaining steps, and release the VAE if it can be loaded again."""
        settings, my_rows = self.settings, self.processes.rows
        done = {"unet": 0, "decoder": 0}
        if checkpoint is not None:
            done["unet"] = self.unet_steps
            done[checkpoint.phase] = checkpoint.step
        unet_range, decoder_range = range(done["unet"], self.unet_steps), range(done["decoder"], self.decoder_steps)
        unet = [(step, rows) for step in unet_range for rows in my_rows(settings.batch, 1)]
        decoder = [(step, rows) for step in decoder_range for rows in my_rows(settings.decoder_batch, 1)]
        data.encode_ahead(unet, decoder, lambda n, of: self.progress("encode", n, of, ""))
        if self.base.vae_swap is None:
            self.base.vae = None

    def _open_partial(self, resume: bool) -> Checkpoint | None:
        """Create or reopen the partial folder; the checkpoint to resume from, if any."""
        settings = self.settings.to_json()
        for name in ("checkpoint_every", "memory_gib"):  # without influence on the result
            del settings[name]
        identity = {
            "base": self.base.sha256,
            "vae": self.base.vae_swap,
            "arithmetic": _ARITHMETIC[self.half],
            "settings": settings,
            "photos": {name: [sha256_file(path) for path in paths] for name, paths in self.shots.items()},
            "prompts": {name: [spec.prompts().whole, spec.prompts().detail] for name, spec in self.specs.items()},
            **self.extra_record(),
        }
        last = latest(self.work) if resume else None
        checkpoint = None
        if last is not None:
            check_identity(self.work, identity)
            checkpoint = load_checkpoint(last)
        self.processes.barrier()  # all processes have read before one writes
        if self.processes.is_main:
            if checkpoint is None:
                begin_partial(self.work, identity)
            else:
                truncate_log(self.work, checkpoint.total)
        self.processes.barrier()
        return checkpoint

    def _trainable_unet(self) -> dict[str, torch.nn.Parameter]:
        unet, settings = self.base.unet, self.settings
        if settings.lora_rank:
            add_adapter(unet, settings)
            lower_frozen(unet, settings)
        else:
            unet.requires_grad_(True)
        return {name: weight for name, weight in unet.named_parameters() if weight.requires_grad}
