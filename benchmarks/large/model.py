"""Stable Diffusion 1.5 inpainting's size with random weights: LoRA steps, resume, export, one photo, on a CPU.

    python -m benchmarks.large.model estimate --out OUT                   # what training foretells; needs no model
    python -m benchmarks.large.model write  --model FOLDER
    python -m benchmarks.large.model memory --model FOLDER --out OUT     # 5 LoRA steps, one option more each time
    python -m benchmarks.large.model resume --model FOLDER --out OUT     # stopped after step 4, gone on
    python -m benchmarks.large.model export --model FOLDER --out OUT     # fp32, fp16: time, memory, sizes, differences
    python -m benchmarks.large.model inspect --out OUT                   # one photo: ONNX Runtime against torch

Above 300 lines: every subcommand stands by itself, in a process of its own.

Weights are random, so only cost and agreement are measured, never a score's worth. Every measurement runs in a process
of its own; peak memory is the most that the process had of its own once the model was loaded, and with the pages of
weight files that it had mapped. "memory" also lets go of those pages after the first step: what is there in the steps
that follow ("in use") is what they need. OUT takes about 12 GB. Figures go to OUT/large-model.json, piece by piece.
With --px and --device the same at 512 px on a GPU.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import threading
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from anomalysd_edge.core.files import write_json
from benchmarks import harness
from benchmarks.large import networks as sd15

GIB = 2**30
BATCH = 2
OPTIONS: tuple[tuple[str, dict[str, Any]], ...] = (
    ("LoRA rank 8, float32", {}),
    ("+ gradient_checkpointing", {"gradient_checkpointing": True}),
    ("+ accumulate = 2", {"accumulate": 2}),
    ("+ cache = ahead", {"cache": "ahead"}),
    ("+ autocast = bf16", {"autocast": "bf16"}),
    ("+ frozen_weights = bf16", {"frozen_weights": "bf16"}),
)
"""What is switched on, each on top of those before."""
LORA: dict[str, Any] = {
    "shots": 1, "steps": 5, "batch": BATCH, "lr": 1e-4, "warmup": 1, "lora_rank": 8, "decoder_steps": 0, "copies": 2,
    "masks_per_copy": 1, "autocast": "none", "checkpoint_every": 3, "lpips_weight": 0.0,
}  # fmt: skip


def estimate(asked: argparse.Namespace) -> None:
    """What a training of this size is foretold to take, option by option, without the model and without running it."""
    import torch

    from anomalysd_edge.training.memory import estimate as foretell
    from anomalysd_edge.training.models.base import Base
    from anomalysd_edge.training.settings import TrainSettings

    with torch.device("meta"):
        unet, vae = sd15.unet(), sd15.autoencoder()
    base = Base(unet, vae, None, None, scheduler={}, name="", sha256="", folder=asked.out)
    full = {**LORA, "lora_rank": 0, "ema": 0.999}
    rows: dict[str, float] = {"all weights, ema, float32": 0.0}
    settings = [{**full}, {**full, "optimizer": "adamw8bit", "ema": 0.0, "gradient_checkpointing": True}]
    names = ["all weights, ema, float32", "all weights, 8-bit Adam, gradient_checkpointing, no ema"]
    changes: dict[str, Any] = {}
    for name, more in OPTIONS:
        changes.update(more)
        names.append(name)
        settings.append({**LORA, **changes})
    for name, values in zip(names, settings, strict=True):
        told = TrainSettings.for_base("large", **{**values, "device": asked.device})
        rows[name] = foretell(base, told, asked.px).unet / GIB
        print(f"{rows[name]:6.2f} GiB  {name}")
    enter(asked, "estimate_gib", f"{asked.px} px, batch {BATCH}", rows)


def write(folder: Path) -> None:
    """The model in diffusers' layout, float32, random weights, 4.3 GB."""
    import torch
    from diffusers import DDIMScheduler, StableDiffusionInpaintPipeline
    from transformers import CLIPTextConfig, CLIPTextModel

    from anomalysd_edge.training.models.base import load_base

    torch.manual_seed(0)
    unet, vae = sd15.unet(), sd15.autoencoder()
    words = load_base("nano").tokenizer  # the published vocabulary is a download; any other has the same cost
    StableDiffusionInpaintPipeline(
        unet=unet,
        vae=vae,
        text_encoder=CLIPTextModel(
            CLIPTextConfig(
                vocab_size=49408, hidden_size=768, intermediate_size=3072, projection_dim=768, num_hidden_layers=12,
                num_attention_heads=12, max_position_embeddings=77, bos_token_id=words.bos_token_id,
                eos_token_id=words.eos_token_id, pad_token_id=words.pad_token_id,
            )
        ),
        tokenizer=words,
        scheduler=DDIMScheduler(
            beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", clip_sample=False,
            set_alpha_to_one=False, steps_offset=1,
        ),
        safety_checker=None, feature_extractor=None, requires_safety_checker=False,
    ).save_pretrained(folder)  # fmt: skip


def photo(out: Path) -> Path:
    """One rendered part, as a good photo."""
    from anomalysd_edge.demo.dataset import render_part
    from anomalysd_edge.vision import images

    file = out / "photo.png"
    if not file.exists():
        images.save_png(file, render_part("demo_washer", (1, 0), 256).photo())
    return file


def trainer_of(asked: argparse.Namespace, changes: dict[str, Any], work: Path) -> Any:
    """A training of the large model with `changes` on top of LORA; its losses are printed."""
    from anomalysd_edge.data.classes import class_spec
    from anomalysd_edge.training.models import base as base_module
    from anomalysd_edge.training.settings import TrainSettings
    from anomalysd_edge.training.trainer import Trainer

    values = {**LORA, "size_px": asked.px, "device": asked.device, **changes}
    settings = TrainSettings.for_base(str(asked.model), **values)
    shots = {"demo_washer": [photo(asked.out)]}
    setattr(base_module, "folder_sha256", lambda _folder: "")  # noqa: B010 - reading 4.3 GB once more is not what is measured
    base = base_module.load_base(asked.model)
    return Trainer(settings, shots, {"demo_washer": class_spec("demo_washer")}, base, work, _silent)


def memory(asked: argparse.Namespace, number: int) -> dict[str, Any]:
    """Five LoRA steps with the first `number` + 1 options on."""
    changes: dict[str, Any] = {}
    for _, more in OPTIONS[: number + 1]:
        changes.update(more)
    resident, began = Resident(), time.monotonic()
    trainer = trainer_of(asked, changes, asked.out / f"memory-{number}.partial")
    loaded = time.monotonic()
    name = OPTIONS[number][0]

    def note(_phase: str, done: int, total: int, _detail: str) -> None:
        # Kept at every step: a measurement that is cut off has told its peak.
        found = {"options": name, "step": done, "of": total, **peaks(asked.device, resident)}
        write_json(asked.out / f"memory-{number}.json", found)
        if done == 1:
            drop_mapped_pages()
            first_step.update(peaks(asked.device, resident))
            resident.reset()

    first_step: dict[str, float] = {}
    trainer.progress = note
    trainer.estimate_memory(None)
    resident.reset()
    foreseen = time.monotonic()
    trainer.run(False)
    later = peaks(asked.device, resident)
    log = [json.loads(line) for line in (trainer.work / "log.jsonl").read_text().splitlines()]
    return {
        "options": OPTIONS[number][0],
        "estimate_gib": trainer.memory_estimate.peak / GIB,
        **{key: max(first_step[key], value) for key, value in later.items()},
        "in_use_gib": later.get("with_mapped_files_gib", later["peak_gib"]),
        "load_s": loaded - began,
        "estimate_s": foreseen - loaded,
        "step_s": (log[-1]["seconds"] - log[0]["seconds"]) / (len(log) - 1),
        "losses": [line["loss"] for line in log],
    }


def resume(asked: argparse.Namespace, part: str) -> dict[str, Any]:
    """'broken': stops after step 4, past the checkpoint of step 3. 'on': takes it up and writes the run."""
    from anomalysd_edge.training.run import read_run
    from anomalysd_edge.training.train import train

    changes: dict[str, Any] = {}
    for _, more in OPTIONS:
        changes.update(more)
    from anomalysd_edge.training.settings import TrainSettings

    values = {**LORA, "size_px": asked.px, "device": asked.device, **changes}
    settings = TrainSettings.for_base(str(asked.model), **values)
    resident, began = Resident(), time.monotonic()

    def stop(phase: str, done: int, _total: int, _detail: str) -> None:
        if part == "broken" and (phase, done) == ("train", 4):
            raise KeyboardInterrupt

    try:
        train(settings, {"demo_washer": [photo(asked.out)]}, asked.out / "run", resume=part == "on", progress=stop)
    except KeyboardInterrupt:
        return {"stopped_after": 4, "seconds": time.monotonic() - began}
    run = read_run(asked.out / "run")
    losses = [json.loads(line)["loss"] for line in (run.path / "log.jsonl").read_text().splitlines()]
    return {"losses": losses, "seconds": time.monotonic() - began, **peaks(asked.device, resident)}


def presets() -> dict[str, Any]:
    """The paper's plan with K = {1, 2}, two passes from lambda*T: five masks, ten UNet samples, a decode a scale."""
    from anomalysd_edge.method.settings import PAPER

    return {"paper": replace(PAPER, scales=(1, 2), grid_steps=0, passes=2, merge_decode=True)}


def export(asked: argparse.Namespace) -> dict[str, Any]:
    """The run's bundle, float32."""
    from anomalysd_edge.calibration.settings import CalibrationSettings
    from anomalysd_edge.training.run import read_run
    from anomalysd_export.export_source import trained_of
    from anomalysd_export.exporting import export_trained

    marks: list[tuple[str, float]] = []
    began = time.monotonic()

    def note(phase: str, _done: int, _total: int, detail: str) -> None:
        marks.append((f"{phase} {detail}", time.monotonic() - began))

    trained, resident = trained_of(read_run(asked.out / "run")), Resident()
    bundle = export_trained(
        trained,
        asked.out / "bundle",
        presets=presets(),
        calibrated=("paper",),
        calibration=CalibrationSettings(bank_size=512, negatives=1),
        progress=note,
        consume=True,
    )
    return {
        "seconds": time.monotonic() - began,
        **peaks("cpu", resident),
        "marks": marks,
        "megabytes": graph_megabytes(bundle, "fp32"),
        "max_abs": {name: record.parity["max_abs"] for name, record in bundle.manifest.networks.items()},
    }


def half(asked: argparse.Namespace) -> dict[str, Any]:
    """Its fp16 graphs, with float32 islands, each held against its float32 graph."""
    from anomalysd_edge.bundle.reader import read_bundle
    from anomalysd_edge.bundle.update import writing
    from anomalysd_export.engines.precisions import PrecisionSettings, make_precision

    resident, began = Resident(), time.monotonic()
    with writing(asked.out / "bundle"):
        bundle = make_precision(
            read_bundle(asked.out / "bundle", verify=False), PrecisionSettings("fp16", preset="paper")
        )
    variants = bundle.manifest.precisions["fp16"].networks
    return {
        "seconds": time.monotonic() - began,
        **peaks("cpu", resident),
        "megabytes": graph_megabytes(bundle, "fp16"),
        "max_abs_to_fp32": {name: record.max_abs for name, record in variants.items()},
        "float32_nodes": {name: record.float32_nodes for name, record in variants.items()},
    }


def inspect(asked: argparse.Namespace, backend: str) -> dict[str, Any]:
    """The photo with a dent, judged by `backend`: torch, cpu or cpu:fp16."""
    from anomalysd_edge.bundle.detector_factory import detector_of
    from anomalysd_edge.bundle.reader import read_bundle
    from anomalysd_edge.vision.images import load_rgb

    pixels = load_rgb(photo(asked.out)).copy()
    pixels[100:130, 60:100] = (200, 40, 40)
    resident, began = Resident(), time.monotonic()
    if backend == "torch":
        from anomalysd_edge.training.run import networks_of_run, read_run

        networks: Any = networks_of_run(read_run(asked.out / "run"), device=asked.device)
        detector = detector_of(read_bundle(asked.out / "bundle", verify=False), networks, "paper")
    else:
        from anomalysd_runtime.loading import open_detector

        detector = open_detector(asked.out / "bundle", "paper", backend, verify=False, force=True)
    opened = time.monotonic()
    with detector:
        answer = detector.inspect([pixels], "demo_washer")[0]
    np.save(asked.out / f"map-{backend.replace(':', '-')}.npy", answer.anomaly_map)
    return {
        "score": answer.pred_score,
        "threshold": answer.threshold,
        "label": answer.pred_label,
        "open_s": opened - began,
        "inspect_s": time.monotonic() - opened,
        **peaks(asked.device if backend == "torch" else "cpu", resident),
        "timings_ms": dict(answer.timings_ms),
        "backend": answer.backend,
    }


def graph_megabytes(bundle: Any, precision: str) -> dict[str, float]:
    """Graph and external weights of each network."""
    files = {name: bundle.network_file(name, precision) for name in bundle.manifest.networks}
    return {
        name: sum(f.stat().st_size for f in (file, file.with_name(f"{file.name}.data")) if f.exists()) / 1e6
        for name, file in files.items()
    }


class Resident(threading.Thread):
    """The most memory of this process's own, and the most with mapped files, every 20 ms.

    Weights that were read and not changed lie in pages of their file. They count as resident, but the kernel drops them
    when memory is short: whether a training fits is decided by what is the process's own.
    """

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.own = self.mapped = 0
        self.start()

    def run(self) -> None:
        """Sample until the process ends."""
        while True:
            own, mapped = (kib_of(f"Rss{kind}") * 1024 for kind in ("Anon", "File"))
            self.own, self.mapped = max(self.own, own), max(self.mapped, own + mapped)
            time.sleep(0.02)

    def reset(self) -> None:
        """Forget what was: loading is not what is measured."""
        self.own = self.mapped = 0


def drop_mapped_pages() -> None:
    """Let go of every page of the weight files: what is mapped afterwards is what is asked for again.

    Nothing here changes weights in place, so no page of these files is this process's own.
    """
    import ctypes

    libc = ctypes.CDLL(None)
    for line in Path("/proc/self/maps").read_text().splitlines():
        if line.endswith(".safetensors"):
            begin, end = (int(word, 16) for word in line.split()[0].split("-"))
            libc.madvise(ctypes.c_void_p(begin), ctypes.c_size_t(end - begin), 4)  # MADV_DONTNEED


def kib_of(field: str) -> int:
    """A field of this process's status, as Linux keeps it."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(f"{field}:"))


def peaks(device: str, resident: Resident) -> dict[str, float]:
    """GiB at the peak; on a GPU, the most that torch held there."""
    if device == "cuda":
        import torch

        return {"peak_gib": torch.cuda.max_memory_reserved() / GIB}
    time.sleep(0.05)  # a last sample
    return {"peak_gib": resident.own / GIB, "with_mapped_files_gib": resident.mapped / GIB}


def _silent(_phase: str, _done: int, _total: int, _detail: str) -> None:
    pass


def in_a_process(asked: argparse.Namespace, *step: str) -> dict[str, Any]:
    """Run one measurement by itself and enter it into OUT/large-model.json."""
    options = ["--out", str(asked.out), "--model", str(asked.model), "--px", str(asked.px), "--device", asked.device]
    found = harness.last_json("large.model", asked.verb, *options, "--step", *step)
    enter(asked, asked.verb, " ".join(step), found)
    print(asked.verb, *step, json.dumps(found), flush=True)
    return found


def enter(asked: argparse.Namespace, verb: str, step: str, found: dict[str, Any]) -> None:
    """Put a figure into OUT/large-model.json."""
    file = asked.out / "large-model.json"
    fresh: dict[str, Any] = {"machine": f"{platform.machine()}, {os.cpu_count()} cores"}
    known: dict[str, Any] = json.loads(file.read_text()) if file.exists() else fresh
    known.setdefault(verb, {})[step] = found
    write_json(file, known)


def main() -> None:
    """One verb; see the module's text."""
    parser = harness.parser_of(__doc__)
    parser.add_argument("verb", choices=("estimate", "write", "memory", "resume", "export", "inspect"))
    parser.add_argument("--model", type=Path, default=Path("large-model"))
    parser.add_argument("--out", type=Path, default=Path("out/large"))
    parser.add_argument("--px", type=int, default=256)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--only", default="", help="some of the verb's measurements, by number or name, with commas")
    parser.add_argument("--step", nargs="+", default=None, help=argparse.SUPPRESS)
    asked = parser.parse_args()
    asked.out.mkdir(parents=True, exist_ok=True)
    steps: dict[str, list[str]] = {
        "write": [],
        "memory": [str(number) for number in range(len(OPTIONS))],
        "resume": ["broken", "on"],
        "export": ["fp32", "fp16"],
        "inspect": ["torch", "cpu", "cpu:fp16"],
    }
    if asked.verb == "write":
        write(asked.model)
    elif asked.verb == "estimate":
        estimate(asked)
    elif asked.step is None:
        for step in asked.only.split(",") if asked.only else steps[asked.verb]:
            in_a_process(asked, step)
    else:
        step = asked.step[0]
        bodies: dict[str, Any] = {
            "memory": lambda: memory(asked, int(step)),
            "resume": lambda: resume(asked, step),
            "export": lambda: export(asked) if step == "fp32" else half(asked),
            "inspect": lambda: inspect(asked, step),
        }
        print(json.dumps(bodies[asked.verb]()))


if __name__ == "__main__":
    main()
