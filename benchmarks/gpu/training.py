"""Subcommand train: LoRA on nano and at Stable Diffusion 1.5's size, in three precisions: losses, memory, resume."""

from __future__ import annotations

import gc
import json
import shutil
from pathlib import Path
from typing import Any

from anomalysd_edge.core.types import Progress
from benchmarks.gpu.claims import Claim, Kit, Lines, Part
from benchmarks.gpu.machine import tf32

PRECISIONS = ("none", "bf16", "fp16")
ALLOWED = {"none": 1e-3, "bf16": 0.03, "fp16": 0.03}
"""What a step's loss may differ from the CPU's in float32, relative to it."""
NAME = "demo_washer"
NANO: dict[str, Any] = {
    "shots": 2, "steps": 6, "batch": 4, "lora_rank": 8, "decoder_steps": 0, "copies": 2, "masks_per_copy": 2,
    "warmup": 1, "checkpoint_every": 3,
}  # fmt: skip
LARGE: dict[str, Any] = {
    "shots": 2, "steps": 3, "batch": 2, "lr": 1e-4, "warmup": 1, "lora_rank": 8, "decoder_steps": 0, "copies": 1,
    "masks_per_copy": 1, "checkpoint_every": 100, "lpips_weight": 0.0,
}  # fmt: skip
GIB = 2**30
MOST, LEAST = 1.05, 0.6
"""Measured over foretold memory: what is foretold must be enough, and not so much that it refuses what would fit."""

_NANO = "every step's loss within {} of the CPU's"
CLAIMS = (
    Claim("train.float32", "nano's LoRA in float32 trains as on the CPU", _NANO.format("0.1 %")),
    Claim("train.bf16", "in bf16 it trains alike", _NANO.format("3 %")),
    Claim("train.fp16", "in fp16 it trains alike", _NANO.format("3 %")),
    Claim("train.resume", "a training that was stopped goes on as if it had not been", "losses within 1e-4"),
    Claim(
        "train.large", "LoRA of Stable Diffusion's size trains as on the CPU", "0.1 %, 3 % and 3 %, in the precisions"
    ),
    Claim("train.memory", "its memory was foretold, in three precisions", "0.6 to 1.05 of the estimate", True),
    Claim("train.decoder", "the decoder's phase holds no UNet on the GPU", "at most 1.05 of its estimate", True),
)


def run(kit: Kit, lines: Lines) -> None:
    """Show CLAIMS."""
    work = kit.work / "train"
    shutil.rmtree(work, ignore_errors=True)
    shots = [_photo(work, number) for number in range(2)]
    with lines.showing("train.float32", "train.bf16", "train.fp16"):
        right = _nano(work, shots, "cpu", "none")
        for precision, name in zip(PRECISIONS, ("train.float32", "train.bf16", "train.fp16"), strict=True):
            with lines.showing(name):
                found = _nano(work, shots, kit.device, precision)
                far = apart(found, right)
                lines.shown(name, far, far <= ALLOWED[precision], losses=found, cpu=right)
    with lines.showing("train.resume"):
        whole = _nano(work, shots, kit.device, "none")
        gone_on = _nano(work, shots, kit.device, "none", stop_after=4)
        far = apart(gone_on, whole)
        lines.shown("train.resume", far, far <= 1e-4, equal_to_the_bit=gone_on == whole, losses=gone_on)
    with tf32(False):  # as train() has it, which the large ones go around: they have no folder to be read from
        with lines.showing("train.large"):
            _large_losses(kit, lines, work, shots)
        with lines.showing("train.memory"):
            _large_memory(kit, lines, work, shots)
        with lines.showing("train.decoder"):
            _large_decoder(kit, lines, work, shots)
    shutil.rmtree(work, ignore_errors=True)


def apart(found: list[float], right: list[float]) -> float:
    """Largest relative difference of two lists of losses of one length."""
    return max(abs(a - b) / abs(b) for a, b in zip(found, right, strict=True))


def _photo(work: Path, number: int) -> Path:
    from anomalysd_edge.demo.dataset import render_part
    from anomalysd_edge.vision import images

    file = work / f"{number}.png"
    images.save_png(file, render_part(NAME, (1, number), 256).photo())
    return file


def _nano(work: Path, shots: list[Path], device: str, precision: str, stop_after: int = 0) -> list[float]:
    """The losses of a training of nano; with `stop_after`, one that is broken off after that step and resumed."""
    from anomalysd_edge.training.settings import TrainSettings
    from anomalysd_edge.training.train import train

    settings = TrainSettings.for_base("nano", **{**NANO, "device": device, "autocast": precision})
    out = work / "run"
    shutil.rmtree(out, ignore_errors=True)

    def stop(phase: str, done: int, _total: int, _detail: str) -> None:
        if (phase, done) == ("train", stop_after):
            raise KeyboardInterrupt

    if stop_after:
        try:
            train(settings, {NAME: shots}, out, progress=stop)
        except KeyboardInterrupt:
            assert not out.exists(), "the training was not stopped"
    train(settings, {NAME: shots}, out, resume=bool(stop_after))
    return losses_in(out / "log.jsonl")


def losses_in(log: Path) -> list[float]:
    """Every step's loss."""
    return [float(json.loads(line)["loss"]) for line in log.read_text(encoding="utf-8").splitlines()]


def _base(kit: Kit, device: str) -> Any:
    """A base of Stable Diffusion 1.5's size with random weights, made on `device`; a small one in a rehearsal."""
    import torch
    from transformers import CLIPTextConfig, CLIPTextModel

    from anomalysd_edge.training.models.base import Base, load_base
    from benchmarks.gpu.large_networks import autoencoder, unet
    from benchmarks.large.networks import PROMPT_WIDTH

    words = load_base("nano").tokenizer  # the published vocabulary is a download; any other has the same cost
    shape = {"num_hidden_layers": 1 if kit.rehearsal else 12, "num_attention_heads": 12, "intermediate_size": 3072}
    with torch.device(device):
        text = CLIPTextModel(
            CLIPTextConfig(
                vocab_size=49408, hidden_size=PROMPT_WIDTH, projection_dim=PROMPT_WIDTH, max_position_embeddings=77,
                bos_token_id=words.bos_token_id, eos_token_id=words.eos_token_id, pad_token_id=words.pad_token_id,
                **shape,
            )
        )  # fmt: skip
        networks = unet(kit.rehearsal), autoencoder(kit.rehearsal), text
    schedule = {
        "num_train_timesteps": 1000, "beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear",
        "set_alpha_to_one": False, "steps_offset": 1, "clip_sample": False, "prediction_type": "epsilon",
    }  # fmt: skip
    painter, vae, encoder = (network.requires_grad_(False).eval() for network in networks)
    return Base(painter, vae, encoder, words, schedule, name="random", sha256="random", folder=Path("random"))


def _trainer(kit: Kit, work: Path, shots: list[Path], base: Any, progress: Progress, **changes: Any) -> Any:
    from anomalysd_edge.data.classes import class_spec
    from anomalysd_edge.training.settings import TrainSettings
    from anomalysd_edge.training.trainer import Trainer

    values = {**LARGE, "size_px": 256 if kit.rehearsal else 512, "device": kit.device, **changes}
    folder = work / "large.partial"
    shutil.rmtree(folder, ignore_errors=True)
    return Trainer(
        TrainSettings.for_base("random", **values), {NAME: shots}, {NAME: class_spec(NAME)}, base, folder, progress
    )


def _silent(_phase: str, _done: int, _total: int, _detail: str) -> None:
    pass


def _large_losses(kit: Kit, lines: Lines, work: Path, shots: list[Path]) -> None:
    """At 256 px, one photo a step: what the CPU can compute beside it in the time there is."""
    few = {"steps": 2, "batch": 1, "size_px": 256}
    weights: list[dict[str, Any]] = []

    def losses(device: str, precision: str) -> list[float]:
        base = _base(kit, device)
        networks = (base.unet, base.vae, base.text_encoder)
        if weights:
            for network, known in zip(networks, weights, strict=True):
                network.load_state_dict(known)
        else:  # copies: training changes the networks
            weights.extend({key: value.clone() for key, value in each.state_dict().items()} for each in networks)
        trainer = _trainer(kit, work, shots, base, _silent, device=device, autocast=precision, **few)
        trainer.run(False)
        found = losses_in(trainer.work / "log.jsonl")
        del trainer, base, networks
        _release(kit)
        return found

    right = losses("cpu", "none")
    found = {precision: losses(kit.device, precision) for precision in PRECISIONS}
    far = {precision: apart(mine, right) for precision, mine in found.items()}
    lines.shown("train.large", far, all(far[p] <= ALLOWED[p] for p in PRECISIONS), losses=found, cpu=right)


def _large_memory(kit: Kit, lines: Lines, work: Path, shots: list[Path]) -> None:
    """The peak from the weights' way to the GPU on: that, too, has to fit; and that of the steps alone."""
    found = {}
    for precision in PRECISIONS:
        frozen = {} if precision == "none" else {"frozen_weights": precision}
        before: list[int] = []

        def progress(phase: str, done: int, _total: int, _detail: str, before: list[int] = before) -> None:
            if (phase, done) == ("train", 1):
                before.append(_peak_bytes(kit))
                _reset_peak(kit)

        base = _base(kit, "cpu")
        trainer = _trainer(kit, work, shots, base, progress, autocast=precision, **frozen)
        foretold = _foretold(trainer).unet
        _reset_peak(kit)
        trainer.run(False)
        steps = _peak_bytes(kit)
        measured = max(steps, *before)
        found[precision] = {
            "foretold_gib": foretold / GIB, "measured_gib": measured / GIB, "from_step_2_gib": steps / GIB,
        }  # fmt: skip
        del trainer, base
        _release(kit)
    ratios = {precision: each["measured_gib"] / each["foretold_gib"] for precision, each in found.items()}
    lines.shown("train.memory", ratios, all(LEAST <= ratio <= MOST for ratio in ratios.values()), gib=found)


def _large_decoder(kit: Kit, lines: Lines, work: Path, shots: list[Path]) -> None:
    """A step of the UNet, then two of the decoder; the peak is counted from the first decoder step on."""

    def progress(phase: str, done: int, _total: int, _detail: str) -> None:
        if (phase, done) == ("decoder", 1):
            _reset_peak(kit)

    base = _base(kit, kit.device)
    changes = {"steps": 1, "batch": 1, "decoder_steps": 3, "decoder_batch": 1, "autocast": "none"}
    trainer = _trainer(kit, work, shots, base, progress, **changes)
    foretold = _foretold(trainer).decoder
    trainer.run(False)
    measured = _peak_bytes(kit)
    lines.shown(
        "train.decoder", measured / foretold, measured <= MOST * foretold, foretold_gib=foretold / GIB,
        measured_gib=measured / GIB,
    )  # fmt: skip


def _foretold(trainer: Any) -> Any:
    from anomalysd_edge.training.memory import estimate

    return estimate(trainer.base, trainer.settings, trainer.size_px)


def _reset_peak(kit: Kit) -> None:
    if not kit.rehearsal:
        import torch

        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()


def _peak_bytes(kit: Kit) -> int:
    """What torch held at the peak, and what a CUDA context takes beside it (as the estimate counts it)."""
    if kit.rehearsal:
        return 0
    import torch

    from anomalysd_edge.training.memory import LIBRARY_BYTES

    return torch.cuda.max_memory_reserved() + int(LIBRARY_BYTES["cuda"])


def _release(kit: Kit) -> None:
    gc.collect()
    if not kit.rehearsal:
        import torch

        torch.cuda.empty_cache()


PARTS = (Part("train", "LoRA of nano and of Stable Diffusion's size", 210, ("torch", "training"), CLAIMS, run),)
